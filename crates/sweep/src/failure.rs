//! Why cells fail, and how that is written down.

use std::error::Error;
use std::time::SystemTime;

use tch::Device;

use crate::cell_folder::CellResult;
use crate::context::Context;
use crate::planned::{Planned, empty_row};
use crate::progress::CellProgress;
use report::results::Status;

/// Why a cell failed, as it will stand in `results.csv`.
#[derive(Debug, Clone)]
pub(crate) struct Reason(pub(crate) String);

impl<E: Error> From<E> for Reason {
    fn from(error: E) -> Self {
        Self::of(&error)
    }
}

impl Reason {
    /// The error and what caused it.
    pub(crate) fn of(error: &dyn Error) -> Self {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            // A transparent error repeats its source.
            if !text.contains(&cause_text) {
                text = format!("{text}: {cause_text}");
            }
            source = cause.source();
        }
        let mut reason = Self(text);
        if reason.is_out_of_memory() {
            reason
                .0
                .push_str("; raise train.accumulation or lower train.batch_size, then start again");
        }
        reason
    }

    /// Whether there was too little memory, by what libtorch says on the CPU and on CUDA.
    pub(crate) fn is_out_of_memory(&self) -> bool {
        ["out of memory", "not enough memory", "bad_alloc"]
            .iter()
            .any(|words| self.0.contains(words))
    }
}

/// How far a cell had come when it failed.
pub(crate) struct Reached {
    /// Optimiser steps done.
    pub(crate) steps: u64,
    /// Corrupt samples that its data stream had skipped, where the cell was open.
    pub(crate) corrupt_skipped: Option<u64>,
}

/// Writes a failed cell's result and says so. An earlier result that is done is not lost.
pub(crate) fn fail(
    context: &Context,
    planned: &Planned,
    progress: Option<&CellProgress>,
    reached: Reached,
    reason: &Reason,
) {
    let mut row = empty_row(&planned.cell, Status::Failed);
    row.steps = Some(reached.steps);
    row.reason = reason.0.clone();
    let written = planned.folder.write_failure(&CellResult {
        hash: planned.hash.clone(),
        hardware: hardware(context.device, &planned.cell.config),
        started_at: now(),
        finished_at: now(),
        corrupt_skipped: reached.corrupt_skipped,
        collapse: None,
        row,
    });
    context.note_failure(&planned.cell.id, &reason.0);
    let line = format!("failed: {}", reason.0);
    match progress {
        Some(progress) => context.progress.done(progress, &line),
        None => context
            .progress
            .print(&format!("{}: {line}", planned.cell.id)),
    }
    if let Err(error) = written {
        context
            .progress
            .print(&format!("{}: {error}", planned.cell.id));
    }
}

/// Says that a cell cannot be had: another process works on it, or its folder cannot be read or written. Its files
/// are left as they are.
pub(crate) fn leave(context: &Context, planned: &Planned, reason: &Reason) {
    let line = format!("{}: not run: {}", planned.cell.id, reason.0);
    context.progress.print(&line);
    context.note_failure(&planned.cell.id, &reason.0);
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_secs())
}

/// Device, precision and threads in words.
pub(crate) fn hardware(device: Device, config: &training::Config) -> String {
    let threads = tch::get_num_threads();
    let precision = format!("{:?}", config.train.precision).to_lowercase();
    match device {
        Device::Cpu => format!("CPU, {threads} threads, {precision}"),
        Device::Cuda(index) => format!("CUDA device {index}, {precision}"),
        other => format!("{other:?}, {precision}"),
    }
}
