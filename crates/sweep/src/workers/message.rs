//! Messages between the program and its workers.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde::{Deserialize, Serialize};

use crate::progress::Update;

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
    /// [`Context::judges_first`](crate::context::Context::judges_first) of the worker.
    pub(crate) judges_first: bool,
}

/// What a worker reports.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// News of a cell, for the user.
    Progress(Update),
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
        let step = Answer::Progress(Update::Step {
            cell: "a".to_owned(),
            step: 3,
            steps: 7,
            loss: None,
            rate: 0.1,
        });
        let line = Answer::Progress(Update::Line {
            line: "x\ny".to_owned(),
        });
        let mut written = Vec::new();
        write(&mut written, &step).unwrap();
        write(&mut written, &line).unwrap();
        let text = String::from_utf8(written).unwrap();
        let read = text.lines().map(serde_json::from_str::<Answer>);
        let read: Result<Vec<_>, _> = read.collect();
        assert_eq!(read.unwrap(), [step, line]);
    }
}
