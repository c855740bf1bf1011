//! The side of a worker.

use std::collections::BTreeMap;
use std::io;
use std::mem;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;

use super::message::{Answer, HeldCell, Task};
use crate::cohort;
use crate::context::Context;
use crate::failure::Reason;
use crate::planned::Planned;

/// Runs the tasks that arrive on standard input, until it ends.
pub(crate) fn serve(context: &mut Context, planned: &[Planned], interrupted: &'static AtomicBool) {
    let by_id: BTreeMap<&str, &Planned> = planned
        .iter()
        .map(|planned| (planned.cell.id.as_str(), planned))
        .collect();
    for task in tasks(interrupted) {
        let mut cells = Vec::new();
        for (id, hash) in &task.cells {
            match by_id.get(id.as_str()) {
                Some(planned) if planned.hash == *hash => {
                    let is_fresh = task.fresh.contains(id);
                    planned.is_fresh.store(is_fresh, Ordering::Relaxed);
                    cells.push(*planned);
                }
                _ => {
                    let reason = "the experiment, its data or its encoders were changed during the sweep; start it again";
                    context.progress.print(&format!("{id}: not run: {reason}"));
                    context.note_failure(id, reason);
                }
            }
        }
        context.memory_limit = task.memory_limit;
        context.judges_first = task.judges_first;
        let held = cohort::run(context, cells);
        if context.is_interrupted() {
            // Without `Ended` the program knows that the cells are not completed.
            break;
        }
        let held = held.into_iter().map(|held| {
            let Reason(reason) = held.reason;
            HeldCell {
                cell: held.planned.cell.id.clone(),
                reason,
                is_by_file: held.is_by_file,
            }
        });
        let held = held.collect();
        let failures = mem::take(
            context
                .failures
                .get_mut()
                .unwrap_or_else(PoisonError::into_inner),
        );
        context.progress.send(&Answer::Ended { failures, held });
    }
}

/// Reads tasks in a thread. The end of standard input sets `interrupted`: no task follows, and one that is running is
/// no longer wanted.
fn tasks(interrupted: &'static AtomicBool) -> Receiver<Task> {
    let (sender, receiver) = mpsc::channel();
    let thread = thread::Builder::new()
        .name("tasks".to_owned())
        .spawn(move || {
            for line in io::stdin().lines() {
                let task = line.ok().and_then(|line| serde_json::from_str(&line).ok());
                let sent = task.is_some_and(|task| sender.send(task).is_ok());
                if !sent {
                    break;
                }
            }
            interrupted.store(true, Ordering::Relaxed);
        });
    if let Err(error) = thread {
        tracing::error!("a thread cannot be started: {error}");
    }
    receiver
}
