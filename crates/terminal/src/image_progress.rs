//! Reports the progress of a pass over images on stderr: a bar on a terminal, a line every ten seconds elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::errln;

/// Time between two lines when stderr is not a terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// The progress of a pass over images.
pub struct ImageProgress {
    name: String,
    bar: Option<ProgressBar>,
    total: u64,
    done: u64,
    /// Images that existed before the pass; they do not count for the speed.
    existing: u64,
    started: Instant,
    last_line: Instant,
}

impl ImageProgress {
    /// Starts at 0 of `total` images; `name` labels the pass.
    pub fn new(name: &str, total: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let template = "{prefix:28!} {bar:24} {pos:>8}/{len} images  {per_sec}  {eta} left";
            let style = ProgressStyle::with_template(template);
            ProgressBar::new(total)
                .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
                .with_prefix(name.to_owned())
        });
        Self {
            name: name.to_owned(),
            bar,
            total,
            done: 0,
            existing: 0,
            started: Instant::now(),
            last_line: Instant::now(),
        }
    }

    /// Adds `images` to those that are done.
    pub fn add(&mut self, images: u64) {
        self.done += images;
        match &self.bar {
            Some(bar) => bar.inc(images),
            None if self.last_line.elapsed() >= LINE_EVERY => {
                self.last_line = Instant::now();
                errln!("{}: {}", self.name, self.line());
            }
            None => {}
        }
    }

    /// Starts again at `existing` images that are done already.
    pub fn resume_at(&mut self, existing: u64) {
        (self.done, self.existing) = (existing, existing);
        self.started = Instant::now();
        if let Some(bar) = &self.bar {
            bar.set_position(existing);
            bar.reset_eta();
        }
    }

    /// Number of images that are done.
    pub fn done(&self) -> u64 {
        self.done
    }

    fn line(&self) -> String {
        let rate =
            (self.done - self.existing) as f64 / self.started.elapsed().as_secs_f64().max(1e-9);
        format!("{}/{} images, {rate:.1} images/s", self.done, self.total)
    }

    /// Ends the progress with a line that stays on the terminal, followed by `remark`.
    pub fn finish(&self, remark: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        errln!("{}: {}{remark}", self.name, self.line());
    }
}
