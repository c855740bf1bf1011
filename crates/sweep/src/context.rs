//! The context that all cohorts of a command share.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use evaluation::encoder_bank::EncoderBank;
use tch::{Device, Tensor};

use crate::progress::Progress;
use crate::ranks::Ranks;

/// Initial weights of a run.
#[derive(Debug)]
pub struct InitialWeights {
    /// The file, for error messages.
    pub path: PathBuf,
    /// Names and tensors of the file.
    pub tensors: Vec<(String, Tensor)>,
    /// Whether weights that the file lacks are initialised randomly. If false, they are an error.
    pub partial: bool,
}

/// Device, encoders, run folder and progress of a command.
pub(crate) struct Context<'a> {
    pub(crate) device: Device,
    pub(crate) bank: &'a EncoderBank,
    pub(crate) folder: PathBuf,
    pub(crate) progress: Progress,
    pub(crate) interrupted: &'a AtomicBool,
    /// Initial weights of a new run; `None` for random ones.
    pub(crate) init: Option<&'a InitialWeights>,
    /// Maximum size in bytes of the state of cells that are trained at the same time.
    pub(crate) memory_limit: Option<u64>,
    /// Whether the judges are loaded before training, so that other processes find the statistics of real images when
    /// they need them.
    pub(crate) judges_first: bool,
    /// The processes that train the only cell together with this one.
    pub(crate) ranks: Option<&'a Ranks>,
    /// Why cells failed or were not run, by cell id.
    pub(crate) failures: Mutex<BTreeMap<String, String>>,
}

impl<'a> Context<'a> {
    /// The context of a command without progress, initial weights and limit of memory.
    pub(crate) fn new(
        device: Device,
        bank: &'a EncoderBank,
        folder: &Path,
        interrupted: &'a AtomicBool,
    ) -> Self {
        Self {
            device,
            bank,
            folder: folder.to_owned(),
            progress: Progress::new(0),
            interrupted,
            init: None,
            memory_limit: None,
            judges_first: false,
            ranks: None,
            failures: Mutex::default(),
        }
    }

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
