//! Messages between the program and its workers.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde::{Deserialize, Serialize};

/// Cells of one cohort, for a worker to run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Task {
    /// Ids of the cells, with the hash of their configuration and inputs: a worker that is started later reads the same
    /// files again, which may have changed in the meantime.
    pub(crate) cells: Vec<(String, String)>,
    /// Ids of the cells whose previous run must be moved to `before/N` first (`--fresh`).
    pub(crate) fresh: Vec<String>,
    /// [`Context::memory_limit`](crate::context::Context::memory_limit) of the worker.
    pub(crate) memory_limit: Option<u64>,
}

/// What happens in a worker. The first ones are the calls of [`Progress`](crate::progress::Progress).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Event {
    /// A cell was opened after `done` of `steps` steps.
    Opened { cell: String, done: u64, steps: u64 },
    /// A cell trained a step.
    Step {
        cell: String,
        step: u64,
        steps: u64,
        loss: Option<f64>,
        rate: f64,
    },
    /// A cell does something else.
    Stage { cell: String, stage: String },
    /// A cell ended.
    Done { cell: String, line: String },
    /// Another process ended a cell.
    DoneElsewhere { line: String },
    /// A cell will be opened again.
    Removed { cell: String },
    /// A line for the user.
    Line { line: String },
    /// The task is completed.
    Ended {
        /// Why cells failed or were not run, by cell id.
        failures: BTreeMap<String, String>,
        /// Cells that other processes run.
        held: Vec<HeldCell>,
    },
}

/// A cell that is locked by another process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct HeldCell {
    pub(crate) cell: String,
    pub(crate) reason: String,
    pub(crate) is_by_file: bool,
}

/// Writes a message as one line.
///
/// # Errors
/// The other process has closed its end.
pub(crate) fn write(to: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    to.write_all(&line)?;
    to.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_and_is_read_back_equal() {
        let event = Event::Step {
            cell: "a".to_owned(),
            step: 3,
            steps: 7,
            // JSON has no such number: a loss that is not finite is not shown.
            loss: None,
            rate: 0.1,
        };
        let mut line = Vec::new();
        write(&mut line, &event).unwrap();
        write(
            &mut line,
            &Event::Line {
                line: "x\ny".to_owned(),
            },
        )
        .unwrap();
        let text = String::from_utf8(line).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(serde_json::from_str::<Event>(lines[0]).unwrap(), event);
    }
}
