//! What all cohorts of a command share.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use evaluation::encoder_bank::EncoderBank;
use tch::{Device, Tensor};

use crate::progress::Progress;

/// Weights that a run starts from.
#[derive(Debug)]
pub struct InitialWeights {
    /// The file, for messages.
    pub path: PathBuf,
    /// Names and tensors.
    pub tensors: Vec<(String, Tensor)>,
    /// Whether weights without a counterpart are drawn, instead of an error.
    pub partial: bool,
}

/// What all cohorts share.
pub(crate) struct Context<'a> {
    pub(crate) device: Device,
    pub(crate) bank: &'a EncoderBank,
    pub(crate) folder: PathBuf,
    pub(crate) progress: Progress,
    pub(crate) interrupted: &'a AtomicBool,
    /// What a new run starts from, if not from drawn weights.
    pub(crate) init: Option<&'a InitialWeights>,
    /// Most bytes that the state of cells trained at the same time may take.
    pub(crate) memory_limit: Option<u64>,
    /// Why cells failed or could not be had, by their ids.
    pub(crate) failures: Mutex<BTreeMap<String, String>>,
}

impl Context<'_> {
    pub(crate) fn note_failure(&self, cell: &str, reason: &str) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.insert(cell.to_owned(), reason.to_owned());
    }

    pub(crate) fn into_failures(self) -> BTreeMap<String, String> {
        let failures = self.failures.into_inner();
        failures.unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }
}
