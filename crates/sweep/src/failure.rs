//! The reason why a cell failed, and how it is recorded.

use std::error::Error;
use std::time::SystemTime;

use tch::Device;

use crate::cell_folder::CellResult;
use crate::context::Context;
use crate::planned::{Planned, empty_row};
use report::results::Status;

/// Why a cell failed: the text of the `reason` column in `results.csv`.
#[derive(Debug, Clone)]
pub(crate) struct Reason(pub(crate) String);

impl<E: Error> From<E> for Reason {
    fn from(error: E) -> Self {
        Self::of(&error)
    }
}

impl Reason {
    /// The messages of an error and of its chain of sources.
    pub(crate) fn of(error: &dyn Error) -> Self {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            // A transparent error has the same message as its source.
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

    /// Whether memory ran out, judged by the messages of libtorch on the CPU and on CUDA.
    pub(crate) fn is_out_of_memory(&self) -> bool {
        ["out of memory", "not enough memory", "bad_alloc"]
            .iter()
            .any(|words| self.0.contains(words))
    }
}

impl Reason {
    /// Whether an operation of several ranks failed, judged by the message of [`torch_ext::TorchError::Distributed`].
    pub(crate) fn is_of_ranks(&self) -> bool {
        self.0.contains(" on rank ")
    }
}

/// The progress of a cell when it failed.
pub(crate) struct Reached {
    /// Completed optimiser steps.
    pub(crate) steps: u64,
    /// Corrupt samples that the data stream had skipped; `None` if the cell was not open.
    pub(crate) corrupt_skipped: Option<u64>,
}

/// Writes the result of a failed cell and prints the reason. An earlier result with status `done` is kept.
///
/// If another rank has ended, the cell itself has not failed: it is reported as not run, and can be resumed.
pub(crate) fn fail(context: &Context, planned: &Planned, reached: Reached, reason: &Reason) {
    if context.ranks.is_some() && reason.is_of_ranks() {
        context.note_failure(&planned.cell.id, &reason.0);
        context.progress.closed(&planned.cell.id);
        return;
    }
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
    context.progress.done(&planned.cell.id, &line);
    if let Err(error) = written {
        context
            .progress
            .print(&format!("{}: {error}", planned.cell.id));
    }
}

/// Reports a cell that was not run, because another process works on it or because its folder cannot be read or
/// written. The files of the cell are not changed.
pub(crate) fn report_not_run(context: &Context, planned: &Planned, reason: &Reason) {
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

/// Device, precision and number of threads, as text.
pub(crate) fn hardware(device: Device, config: &training::Config) -> String {
    let threads = tch::get_num_threads();
    let precision = format!("{:?}", config.train.precision).to_lowercase();
    match device {
        Device::Cpu if threads == 1 => format!("CPU, 1 thread, {precision}"),
        Device::Cpu => format!("CPU, {threads} threads, {precision}"),
        Device::Cuda(index) => format!("CUDA device {index}, {precision}"),
        other => format!("{other:?}, {precision}"),
    }
}
