//! Progress of training on standard error.

use std::io::{self, IsTerminal};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use terminal::errln;

use crate::workers::message::{self, Event};

/// Interval between lines if standard error is not a terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Interval between the steps and stages that a worker reports.
const EVENT_EVERY: Duration = Duration::from_millis(100);

/// Progress on standard error: bars on a terminal, otherwise a plain line every [`LINE_EVERY`]. The progress of a worker
/// goes to the program that started it.
pub(crate) struct Progress {
    bars: Option<MultiProgress>,
    total: Option<ProgressBar>,
    /// Whether this is a worker.
    is_worker: bool,
    last_line: Mutex<Instant>,
    cells: usize,
}

/// The progress of one cell.
pub(crate) struct CellProgress {
    bar: Option<ProgressBar>,
    id: String,
}

impl Progress {
    /// The progress of a command that runs `cells` cells.
    pub(crate) fn new(cells: usize) -> Self {
        let bars = (std::io::stderr().is_terminal() && cells > 0).then(MultiProgress::new);
        let total = bars.as_ref().map(|bars| {
            bars.add(
                ProgressBar::new(cells as u64)
                    .with_style(style("{prefix} {pos}/{len} cells  {elapsed_precise}"))
                    .with_prefix("sweep"),
            )
        });
        Self {
            bars,
            total,
            is_worker: false,
            last_line: Mutex::new(Instant::now()),
            cells,
        }
    }

    /// The progress of a worker.
    pub(crate) fn of_worker() -> Self {
        Self {
            bars: None,
            total: None,
            is_worker: true,
            last_line: Mutex::new(Instant::now()),
            cells: 0,
        }
    }

    /// Sends an event to the program that started this worker.
    pub(crate) fn send(&self, event: &Event) {
        // An error means that the program has ended; standard input then ends too, and interrupts this worker.
        let _closed = message::write(&mut io::stdout(), event);
    }

    /// Starts the progress of a cell that has completed `done` of `steps` steps.
    pub(crate) fn cell(&self, id: &str, done: u64, steps: u64) -> CellProgress {
        let cell = id.to_owned();
        if self.is_worker {
            self.send(&Event::Opened {
                cell: cell.clone(),
                done,
                steps,
            });
            return CellProgress {
                bar: None,
                id: cell,
            };
        }
        let bar = self.bars.as_ref().map(|bars| {
            let bar = ProgressBar::new(steps)
                .with_style(style(
                    "{prefix:28!} {bar:24} {pos:>6}/{len} {msg}  {eta} left",
                ))
                .with_prefix(id.to_owned());
            let bar = bars.add(bar);
            bar.set_position(done);
            bar.reset_eta();
            bar
        });
        if bar.is_none() && done > 0 {
            errln!("{id}: resumes after step {done} of {steps}");
        }
        CellProgress { bar, id: cell }
    }

    /// Shows the current step of a cell, with its loss and its speed `rate` in steps per second.
    pub(crate) fn step(
        &self,
        cell: &CellProgress,
        step: u64,
        steps: u64,
        loss: Option<f64>,
        rate: f64,
    ) {
        if self.is_worker {
            if self.is_due(EVENT_EVERY) || step == steps {
                let cell = cell.id.clone();
                // JSON has no infinite numbers.
                let loss = loss.filter(|loss| loss.is_finite());
                self.send(&Event::Step {
                    cell,
                    step,
                    steps,
                    loss,
                    rate,
                });
            }
            return;
        }
        let loss = loss
            .map(|loss| format!("loss {loss:.4}"))
            .unwrap_or_default();
        match &cell.bar {
            Some(bar) => {
                bar.set_position(step);
                bar.set_message(format!("{loss}  {rate:.2} steps/s"));
            }
            None => {
                if self.is_due(LINE_EVERY) || step == steps {
                    errln!(
                        "{}: step {step}/{steps}  {loss}  {rate:.2} steps/s",
                        cell.id
                    );
                }
            }
        }
    }

    /// Shows what a cell is doing besides training.
    pub(crate) fn stage(&self, cell: &CellProgress, stage: &str) {
        if self.is_worker {
            if self.is_due(EVENT_EVERY) {
                let (cell, stage) = (cell.id.clone(), stage.to_owned());
                self.send(&Event::Stage { cell, stage });
            }
            return;
        }
        match &cell.bar {
            Some(bar) => bar.set_message(stage.to_owned()),
            None => {
                if self.is_due(LINE_EVERY) {
                    errln!("{}: {stage}", cell.id);
                }
            }
        }
    }

    /// Ends the progress of a cell and prints a final line.
    pub(crate) fn done(&self, cell: &CellProgress, line: &str) {
        if self.is_worker {
            let (cell, line) = (cell.id.clone(), line.to_owned());
            return self.send(&Event::Done { cell, line });
        }
        if let Some(bar) = &cell.bar {
            bar.finish_and_clear();
        }
        if let Some(total) = &self.total {
            total.inc(1);
        }
        self.print(&format!("{}: {line}", cell.id));
    }

    /// Counts a cell that another process has ended, and prints a line.
    pub(crate) fn done_elsewhere(&self, line: &str) {
        if self.is_worker {
            let line = line.to_owned();
            return self.send(&Event::DoneElsewhere { line });
        }
        if let Some(total) = &self.total {
            total.inc(1);
        }
        self.print(line);
    }

    /// Removes the bar of a cell that will be opened again.
    pub(crate) fn remove_bar(&self, cell: &CellProgress) {
        if self.is_worker {
            let cell = cell.id.clone();
            return self.send(&Event::Removed { cell });
        }
        if let Some(bar) = &cell.bar {
            bar.finish_and_clear();
        }
    }

    /// Prints a line above the bars.
    pub(crate) fn print(&self, line: &str) {
        if self.is_worker {
            let line = line.to_owned();
            return self.send(&Event::Line { line });
        }
        match &self.bars {
            // An error means that standard error is closed, so there is nowhere to report it.
            Some(bars) => {
                let _closed = bars.println(line);
            }
            None => errln!("{line}"),
        }
    }

    /// Ends the progress of the command.
    pub(crate) fn finish(&self) {
        if let Some(total) = &self.total {
            total.finish_and_clear();
        }
        if self.cells == 0 {
            errln!("nothing to run; rebuilding the report");
        }
    }

    /// Whether nothing was shown for the time `interval`.
    fn is_due(&self, interval: Duration) -> bool {
        let Ok(mut last) = self.last_line.lock() else {
            return true;
        };
        let due = last.elapsed() >= interval;
        if due {
            *last = Instant::now();
        }
        due
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
