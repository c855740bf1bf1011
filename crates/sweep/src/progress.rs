use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use console::errln;

/// How often a line is printed where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Progress on stderr: bars on a terminal, a plain line now and then elsewhere.
pub(crate) struct Progress {
    bars: Option<MultiProgress>,
    total: Option<ProgressBar>,
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
            last_line: Mutex::new(Instant::now()),
            cells,
        }
    }

    /// Starts the bar of a cell that has `done` of `steps` steps.
    pub(crate) fn cell(&self, id: &str, done: u64, steps: u64) -> CellProgress {
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
            errln!("{id}: continues after step {done} of {steps}");
        }
        CellProgress {
            bar,
            id: id.to_owned(),
        }
    }

    /// Tells how far a cell is.
    pub(crate) fn step(
        &self,
        cell: &CellProgress,
        step: u64,
        steps: u64,
        loss: Option<f64>,
        rate: f64,
    ) {
        let loss = loss
            .map(|loss| format!("loss {loss:.4}"))
            .unwrap_or_default();
        match &cell.bar {
            Some(bar) => {
                bar.set_position(step);
                bar.set_message(format!("{loss}  {rate:.2} steps/s"));
            }
            None => {
                if self.line_is_due() || step == steps {
                    errln!(
                        "{}: step {step}/{steps}  {loss}  {rate:.2} steps/s",
                        cell.id
                    );
                }
            }
        }
    }

    /// Tells what a cell is doing besides training.
    pub(crate) fn stage(&self, cell: &CellProgress, stage: &str) {
        match &cell.bar {
            Some(bar) => bar.set_message(stage.to_owned()),
            None => {
                if self.line_is_due() {
                    errln!("{}: {stage}", cell.id);
                }
            }
        }
    }

    /// Ends a cell, with a line that stays.
    pub(crate) fn done(&self, cell: &CellProgress, line: &str) {
        if let Some(bar) = &cell.bar {
            bar.finish_and_clear();
        }
        if let Some(total) = &self.total {
            total.inc(1);
        }
        self.print(&format!("{}: {line}", cell.id));
    }

    /// Ends a cell that was never begun here, with a line that stays.
    pub(crate) fn passed(&self, line: &str) {
        if let Some(total) = &self.total {
            total.inc(1);
        }
        self.print(line);
    }

    /// Takes a cell's bar away; the cell will come back.
    pub(crate) fn leave(&self, cell: &CellProgress) {
        if let Some(bar) = &cell.bar {
            bar.finish_and_clear();
        }
    }

    /// Prints a line above the bars.
    pub(crate) fn print(&self, line: &str) {
        match &self.bars {
            // Falls back to nothing only when stderr itself is gone.
            Some(bars) => {
                let _closed = bars.println(line);
            }
            None => errln!("{line}"),
        }
    }

    pub(crate) fn finish(&self) {
        if let Some(total) = &self.total {
            total.finish_and_clear();
        }
        if self.cells == 0 {
            errln!("nothing to run; rebuilding the report");
        }
    }

    fn line_is_due(&self) -> bool {
        let Ok(mut last) = self.last_line.lock() else {
            return true;
        };
        let due = last.elapsed() >= LINE_EVERY;
        if due {
            *last = Instant::now();
        }
        due
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
