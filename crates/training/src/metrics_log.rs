//! `metrics.jsonl`: one JSON object per logged step.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use metrics::figures::{Figure, Figures, Kind};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

/// One line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// Number of optimiser steps done, counted from 1.
    pub step: u64,
    /// The figures of the step. Those of [`Kind::Quality`] measure samples of the averaged weights after the step, and
    /// are absent if `evaluate.every` requires no evaluation at the step.
    #[serde(flatten, deserialize_with = "complete")]
    pub figures: Figures,
}

impl StepMetrics {
    /// The value of a figure.
    pub fn get(&self, figure: Figure) -> Option<f64> {
        self.figures.get(figure)
    }

    /// Returns whether the line has figures of samples.
    pub fn is_evaluated(&self) -> bool {
        Figure::of_kind(Kind::Quality).any(|figure| self.get(figure).is_some())
    }
}

/// The figures of every line. A line without them is damaged.
const REQUIRED: [Figure; 4] = [
    Figure::Loss,
    Figure::DenoisingLoss,
    Figure::GradNorm,
    Figure::LearningRate,
];

fn complete<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Figures, D::Error> {
    let figures = Figures::deserialize(deserializer)?;
    let missing = |figure: &Figure| figures.get(*figure).is_none();
    match REQUIRED.into_iter().find(missing) {
        Some(figure) => Err(D::Error::missing_field(figure.name())),
        None => Ok(figures),
    }
}

/// Appends to `metrics.jsonl`.
#[derive(Debug)]
pub struct MetricsLog {
    file: File,
    path: PathBuf,
}

impl MetricsLog {
    /// Opens the log for a run that resumes after `step`. Later lines, and a truncated line of a
    /// killed run, are removed, since their steps will be run again.
    ///
    /// # Errors
    /// The file cannot be read or written; the error names it.
    pub fn open(path: &Path, step: u64) -> io::Result<Self> {
        let named = |error| named(path, error);
        let kept: String = match fs::read_to_string(path) {
            Ok(text) => text
                .split_inclusive('\n')
                .filter(|line| {
                    line.ends_with('\n')
                        && serde_json::from_str::<StepMetrics>(line)
                            .is_ok_and(|metrics| metrics.step <= step)
                })
                .collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(named(error)),
        };
        Ok(Self {
            file: rewrite(path, &kept).map_err(named)?,
            path: path.to_owned(),
        })
    }

    /// Replaces the last line, or removes it if `metrics` is `None`.
    ///
    /// # Errors
    /// The file cannot be read or written; the error names it.
    pub fn replace_last(&mut self, metrics: Option<&StepMetrics>) -> io::Result<()> {
        let mut text = fs::read_to_string(&self.path).map_err(|error| named(&self.path, error))?;
        let lines = text.trim_end_matches('\n');
        text.truncate(lines.rfind('\n').map_or(0, |end| end + 1));
        if let Some(metrics) = metrics {
            text.push_str(&serde_json::to_string(metrics)?);
            text.push('\n');
        }
        self.file = rewrite(&self.path, &text).map_err(|error| named(&self.path, error))?;
        Ok(())
    }

    /// Appends one line in a single write.
    ///
    /// # Errors
    /// The file cannot be written; the error names it.
    pub fn append(&mut self, metrics: &StepMetrics) -> io::Result<()> {
        let mut line = serde_json::to_string(metrics)?;
        line.push('\n');
        self.file
            .write_all(line.as_bytes())
            .map_err(|error| named(&self.path, error))
    }

    /// Waits until all lines are on disk. Call it before saving a checkpoint, so that the log has the
    /// lines of all steps before the checkpoint.
    ///
    /// # Errors
    /// The file cannot be synced; the error names it.
    pub fn sync(&self) -> io::Result<()> {
        self.file
            .sync_all()
            .map_err(|error| named(&self.path, error))
    }

    /// Reads a log and skips incomplete lines.
    ///
    /// # Errors
    /// The file cannot be read; the error names it.
    pub fn read(path: &Path) -> io::Result<Vec<StepMetrics>> {
        let text = fs::read_to_string(path).map_err(|error| named(path, error))?;
        Ok(text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect())
    }
}

/// Replaces the log at `path` by `text`, and returns it opened for appending.
fn rewrite(path: &Path, text: &str) -> io::Result<File> {
    // The file is replaced atomically, so that a crash cannot lose the kept lines.
    files::write(path, |file| file.write_all(text.as_bytes()))?;
    OpenOptions::new().append(true).open(path)
}

fn named(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use metrics::figures::File;

    use super::*;
    use crate::event_log::{EventLog, Value};

    #[test]
    fn every_figure_of_the_log_is_a_key_of_the_line_and_a_tag_in_tensorboard() {
        let folder = tempfile::tempdir().unwrap();
        let values = (1..).map(|value| f64::from(value) / 4.0);
        let line = StepMetrics {
            step: 7,
            figures: Figure::in_file(File::Log)
                .zip(values)
                .map(|(figure, value)| match figure.kind() {
                    Kind::Count => (figure, value.ceil()),
                    _ => (figure, value),
                })
                .collect(),
        };
        let path = folder.path().join("metrics.jsonl");
        MetricsLog::open(&path, 0).unwrap().append(&line).unwrap();
        assert_eq!(
            MetricsLog::read(&path).unwrap(),
            std::slice::from_ref(&line)
        );
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("{\"step\":7,\"loss\":0.25,"), "{text}");

        let mut events = EventLog::open(folder.path(), 0).unwrap();
        events.scalars(line.step, &line.figures).unwrap();
        let events = EventLog::read(&EventLog::path_in(folder.path())).unwrap();
        for (figure, value) in line.figures.iter() {
            assert!(text.contains(&format!("\"{figure}\":")), "{figure}");
            let scalar = (figure.name().to_owned(), Value::Scalar(value as f32));
            assert!(events[1].values.contains(&scalar), "{figure}");
        }
    }

    #[test]
    fn a_line_without_a_required_figure_is_skipped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let whole = r#"{"step":1,"loss":1.5,"denoising_loss":1.0,"grad_norm":2.0,"lr":0.0001}"#;
        let mut lines = vec![whole.to_owned()];
        for figure in REQUIRED {
            lines.push(whole.replace(figure.name(), "other"));
            lines.push(whole.replace(
                &format!("\"{figure}\":"),
                &format!("\"{figure}\":\"\",\"x\":"),
            ));
        }
        fs::write(&path, lines.join("\n")).unwrap();
        let read = MetricsLog::read(&path).unwrap();
        assert_eq!(read.len(), 1);
        assert_eq!(serde_json::to_string(&read[0]).unwrap(), whole);
        assert!(!read[0].is_evaluated());
    }
}
