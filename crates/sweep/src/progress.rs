//! Progress of training on standard error.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, MultiProgress, ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};

use terminal::errln;

use crate::mutex::lock;
use crate::workers::message::{self, Answer};

/// Interval between the lines about steps and stages if standard error is not a terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Interval between the steps and stages that a worker reports.
const UPDATE_EVERY: Duration = Duration::from_millis(100);

/// News of a command's cells, which are named by their ids.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Update {
    /// A cell was opened after `done` of `steps` steps.
    Opened { cell: String, done: u64, steps: u64 },
    /// A cell trained a step, at `rate` steps per second.
    Step {
        cell: String,
        step: u64,
        steps: u64,
        /// `None` also if it is not finite, because JSON has no such numbers.
        loss: Option<f64>,
        rate: f64,
    },
    /// A cell does something besides training.
    Stage { cell: String, stage: String },
    /// A cell ended, with a final line.
    Done { cell: String, line: String },
    /// Another process ended a cell.
    DoneElsewhere { line: String },
    /// A cell will be opened again.
    Closed { cell: String },
    /// A line for the user.
    Line { line: String },
}

/// Shows [`Update`]s on standard error, or sends them to the program that started this process as a worker.
pub(crate) struct Progress {
    output: Output,
    last_shown: Mutex<Instant>,
    cells: usize,
    /// Number of cells that have ended.
    ended: AtomicUsize,
    started: Instant,
}

enum Output {
    /// A bar for each cell, and one for all of them.
    Bars {
        bars: MultiProgress,
        total: ProgressBar,
        of_cells: Mutex<BTreeMap<String, ProgressBar>>,
    },
    /// Plain lines.
    Lines,
    /// Messages on standard output.
    Messages,
    /// Nothing: another process shows the progress.
    Nothing,
}

impl Progress {
    /// The progress of a command that runs `cells` cells.
    pub(crate) fn new(cells: usize) -> Self {
        let output = match io::stderr().is_terminal() && cells > 0 {
            true => {
                let bars = MultiProgress::new();
                let total = ProgressBar::new(cells as u64)
                    .with_style(style(
                        "{prefix} {pos}/{len} cells  {elapsed_precise}  {eta} left",
                    ))
                    .with_prefix("sweep");
                Output::Bars {
                    total: bars.add(total),
                    bars,
                    of_cells: Mutex::default(),
                }
            }
            false => Output::Lines,
        };
        Self {
            output,
            last_shown: Mutex::new(Instant::now()),
            cells,
            ended: AtomicUsize::new(0),
            started: Instant::now(),
        }
    }

    /// The progress of a worker.
    pub(crate) fn of_worker() -> Self {
        Self {
            output: Output::Messages,
            ..Self::new(0)
        }
    }

    /// The progress of a process beside the one that shows it.
    pub(crate) fn silent() -> Self {
        Self {
            output: Output::Nothing,
            ..Self::new(0)
        }
    }

    /// Starts the progress of a cell that has completed `done` of `steps` steps.
    pub(crate) fn opened(&self, cell: &str, done: u64, steps: u64) {
        let cell = cell.to_owned();
        self.show(Update::Opened { cell, done, steps });
    }

    /// Shows the current step of a cell, with its loss and its speed `rate` in steps per second.
    pub(crate) fn step(&self, cell: &str, step: u64, steps: u64, loss: Option<f64>, rate: f64) {
        self.show(Update::Step {
            cell: cell.to_owned(),
            step,
            steps,
            loss: loss.filter(|loss| loss.is_finite()),
            rate,
        });
    }

    /// Shows what a cell is doing besides training.
    pub(crate) fn stage(&self, cell: &str, stage: &str) {
        let (cell, stage) = (cell.to_owned(), stage.to_owned());
        self.show(Update::Stage { cell, stage });
    }

    /// Ends the progress of a cell and prints a final line.
    pub(crate) fn done(&self, cell: &str, line: &str) {
        let (cell, line) = (cell.to_owned(), line.to_owned());
        self.show(Update::Done { cell, line });
    }

    /// Counts a cell that another process has ended, and prints a line.
    pub(crate) fn done_elsewhere(&self, line: &str) {
        let line = line.to_owned();
        self.show(Update::DoneElsewhere { line });
    }

    /// Ends the progress of a cell that will be opened again.
    pub(crate) fn closed(&self, cell: &str) {
        let cell = cell.to_owned();
        self.show(Update::Closed { cell });
    }

    /// Prints a line above the bars.
    pub(crate) fn print(&self, line: &str) {
        let line = line.to_owned();
        self.show(Update::Line { line });
    }

    /// Shows or sends an update. Steps and stages are left out if others were shown a short time before.
    pub(crate) fn show(&self, update: Update) {
        let is_minor = match &update {
            Update::Step { step, steps, .. } => step < steps,
            Update::Stage { .. } => true,
            _ => false,
        };
        let interval = match self.output {
            Output::Bars { .. } => Duration::ZERO,
            Output::Lines => LINE_EVERY,
            Output::Messages | Output::Nothing => UPDATE_EVERY,
        };
        if is_minor && !self.is_due(interval) {
            return;
        }
        let ends = matches!(update, Update::Done { .. } | Update::DoneElsewhere { .. });
        let ended = match ends {
            true => self.ended.fetch_add(1, Ordering::Relaxed) + 1,
            false => 0,
        };
        match &self.output {
            Output::Bars {
                bars,
                total,
                of_cells,
            } => show_bars(update, bars, total, &mut lock(of_cells)),
            Output::Lines => {
                show_lines(update);
                if ends && self.cells > 1 {
                    errln!("{ended}/{} cells{}", self.cells, self.time_left(ended));
                }
            }
            Output::Messages => self.send(&Answer::Progress(update)),
            Output::Nothing => {}
        }
    }

    /// An estimate of the time left, from the time that `ended` cells took.
    fn time_left(&self, ended: usize) -> String {
        let open = self.cells.saturating_sub(ended);
        match open {
            0 => String::new(),
            _ => left(
                self.started
                    .elapsed()
                    .mul_f64(open as f64 / ended.max(1) as f64),
            ),
        }
    }

    /// Sends a message to the program that started this worker.
    pub(crate) fn send(&self, answer: &Answer) {
        // An error means that the program has ended; standard input then ends too, and interrupts this worker.
        let _closed = message::write(&mut io::stdout(), answer);
    }

    /// Ends the progress of the command.
    pub(crate) fn finish(&self) {
        if let Output::Bars { total, .. } = &self.output {
            total.finish_and_clear();
        }
        if self.cells == 0 && !matches!(self.output, Output::Nothing) {
            errln!("nothing to run; rebuilding the report");
        }
    }

    /// Whether nothing was shown for the time `interval`.
    fn is_due(&self, interval: Duration) -> bool {
        let mut last = lock(&self.last_shown);
        let due = last.elapsed() >= interval;
        if due {
            *last = Instant::now();
        }
        due
    }
}

fn show_bars(
    update: Update,
    bars: &MultiProgress,
    total: &ProgressBar,
    of_cells: &mut BTreeMap<String, ProgressBar>,
) {
    let print = |line: &str| {
        // An error means that standard error is closed, so there is nowhere to report it.
        let _closed = bars.println(line);
    };
    let close = |bar: Option<ProgressBar>| {
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
    };
    match update {
        Update::Opened { cell, done, steps } => {
            let bar = ProgressBar::new(steps)
                .with_style(style(
                    "{prefix:28!} {bar:24} {pos:>6}/{len} {msg}  {eta} left",
                ))
                .with_prefix(cell.clone());
            let bar = bars.add(bar);
            bar.set_position(done);
            bar.reset_eta();
            of_cells.insert(cell, bar);
        }
        Update::Step {
            cell,
            step,
            loss,
            rate,
            ..
        } => {
            if let Some(bar) = of_cells.get(&cell) {
                bar.set_position(step);
                bar.set_message(speed(loss, rate));
            }
        }
        Update::Stage { cell, stage } => {
            if let Some(bar) = of_cells.get(&cell) {
                bar.set_message(stage);
            }
        }
        Update::Done { cell, line } => {
            close(of_cells.remove(&cell));
            total.inc(1);
            print(&format!("{cell}: {line}"));
        }
        Update::DoneElsewhere { line } => {
            total.inc(1);
            print(&line);
        }
        Update::Closed { cell } => close(of_cells.remove(&cell)),
        Update::Line { line } => print(&line),
    }
}

fn show_lines(update: Update) {
    match update {
        Update::Opened { done: 0, .. } | Update::Closed { .. } => {}
        Update::Opened { cell, done, steps } => {
            errln!("{cell}: resumes after step {done} of {steps}");
        }
        Update::Step {
            cell,
            step,
            steps,
            loss,
            rate,
        } => {
            let open = steps.saturating_sub(step) as f64 / rate;
            let left = match Duration::try_from_secs_f64(open) {
                Ok(open) if step < steps => left(open),
                _ => String::new(),
            };
            errln!("{cell}: step {step}/{steps}  {}{left}", speed(loss, rate));
        }
        Update::Stage { cell, stage } => errln!("{cell}: {stage}"),
        Update::Done { cell, line } => errln!("{cell}: {line}"),
        Update::DoneElsewhere { line } | Update::Line { line } => errln!("{line}"),
    }
}

/// The text of a time left.
fn left(time: Duration) -> String {
    format!(", {} left", HumanDuration(time))
}

fn speed(loss: Option<f64>, rate: f64) -> String {
    let loss = loss.map(|loss| format!("loss {loss:.4}"));
    format!("{}  {rate:.2} steps/s", loss.unwrap_or_default())
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_follows_from_the_cells_that_have_ended() {
        let hours_ago = |hours: u64| Progress {
            started: Instant::now() - Duration::from_secs(3600 * hours),
            ..Progress::new(10)
        };
        assert_eq!(hours_ago(4).time_left(4), ", 6 hours left");
        assert_eq!(hours_ago(4).time_left(8), ", 60 minutes left");
        assert_eq!(hours_ago(4).time_left(10), "");
    }
}
