//! Locks the cells that this process runs.

use crate::cell_folder::{CellFolderError, CellLock};
use crate::context::Context;
use crate::failure::{Reached, Reason, fail, report_not_run};
use crate::planned::Planned;
use report::results::Status;
use training::checkpoint::{self, CheckpointId};

/// A cell that is locked by another process.
pub(crate) struct Held<'a> {
    pub(crate) planned: &'a Planned,
    /// The error of the lock, which names its file.
    pub(crate) reason: Reason,
    /// Whether waiting may never end: the lock is a file that stays when its owner is killed.
    pub(crate) is_by_file: bool,
}

/// Locks a cell for this process. `None` if another process holds the lock (the cell is then added to `held`), if
/// another process has finished the cell in the meantime, or if its folder cannot be written.
pub(crate) fn lock_cell<'a>(
    context: &Context,
    planned: &'a Planned,
    held: &mut Vec<Held<'a>>,
) -> Option<CellLock> {
    let lock = match planned.folder.lock() {
        Ok(lock) => lock,
        Err(CellFolderError::Locked(lock)) => {
            let is_by_file = lock.is_by_file();
            held.push(Held {
                planned,
                reason: Reason::from(CellFolderError::Locked(lock)),
                is_by_file,
            });
            return None;
        }
        Err(error) => {
            report_not_run(context, planned, &Reason::from(error));
            return None;
        }
    };
    let id = &planned.cell.id;
    match planned.ended_elsewhere() {
        None => Some(lock),
        Some(row) if row.status == Status::Failed => {
            context.note_failure(id, &row.reason);
            let line = format!("{id}: failed in another process: {}", row.reason);
            context.progress.done_elsewhere(&line);
            None
        }
        Some(_) => {
            context
                .progress
                .done_elsewhere(&format!("{id}: done by another process"));
            None
        }
    }
}

/// Writes a failure for cells that cannot be opened. Returns those that are locked by other processes.
pub(crate) fn fail_all<'a>(
    context: &Context,
    cells: &[&'a Planned],
    reason: &Reason,
) -> Vec<Held<'a>> {
    let mut held = Vec::new();
    for planned in cells {
        if let Some(lock) = lock_cell(context, planned, &mut held) {
            fail(context, planned, last_saved(planned), reason);
            drop(lock);
        }
    }
    held
}

/// The step of the checkpoint that a cell would resume from; 0 if there is none.
pub(crate) fn last_saved(planned: &Planned) -> Reached {
    let config = &planned.cell.config;
    let hash = config.training_hash(&planned.identity);
    // Used for the text of a failure only, so a checkpoint that cannot be read is ignored here.
    let found = checkpoint::list(&planned.folder.path().join("checkpoints"));
    let steps = found
        .unwrap_or_default()
        .iter()
        .filter_map(|path| CheckpointId::read(path).ok())
        .filter(|identity| identity.config_hash == hash && identity.step <= config.train.steps)
        .map(|identity| identity.step)
        .max();
    Reached {
        steps: steps.unwrap_or(0),
        corrupt_skipped: None,
    }
}
