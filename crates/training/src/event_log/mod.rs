//! A TensorBoard event file, with the figures of `metrics.jsonl` and the sample grids.
//!
//! The file consists of TensorFlow's records, each an `Event` protocol buffer. Only scalars and images of
//! the protocol (`event.proto`, `summary.proto`) are needed, so this module encodes and decodes them
//! without a protocol-buffer library.

mod protobuf;
mod record;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use metrics::figures::Figures;

use protobuf::{FIXED32, FIXED64, Field, VARINT, bytes, fields, key, varint};
use record::{record, records};

/// TensorBoard finds event files by `tfevents` in their name.
const NAME: &str = "events.out.tfevents.0.irepa";
/// The version string of the first record, which TensorBoard expects.
const VERSION: &str = "brain.Event:2";

/// Appends to the event file of a run.
#[derive(Debug)]
pub struct EventLog {
    file: File,
    path: PathBuf,
}

/// The value of a tag in an event.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A number.
    Scalar(f32),
    /// An image, encoded as PNG.
    Image(Vec<u8>),
}

/// One entry of an event file.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Event {
    /// Number of optimiser steps done.
    pub step: u64,
    /// Tags and their values; empty for the first entry of a file.
    pub values: Vec<(String, Value)>,
}

impl EventLog {
    /// Opens the event file in `folder` for a run that resumes after `step`. Later entries, and a
    /// truncated entry of a killed run, are removed, since their steps will be run again.
    ///
    /// # Errors
    /// The file cannot be read or written; the error names it.
    pub fn open(folder: &Path, step: u64) -> io::Result<Self> {
        let path = Self::path_in(folder);
        let file = rewrite(&path, |event| event.step <= step).map_err(|e| named(&path, e))?;
        Ok(Self { file, path })
    }

    /// Prefix of the names of event files.
    pub(crate) const NAME_START: &str = "events.out.tfevents.";

    /// Returns the path of the event file of a run in `folder`.
    pub fn path_in(folder: &Path) -> PathBuf {
        folder.join(NAME)
    }

    /// Appends the figures of a step in a single write.
    ///
    /// # Errors
    /// The file cannot be written; the error names it.
    pub fn scalars(&mut self, step: u64, figures: &Figures) -> io::Result<()> {
        let mut summary = Vec::new();
        for (figure, number) in figures.iter() {
            let mut value = Vec::new();
            bytes(&mut value, 1, figure.name().as_bytes());
            key(&mut value, 2, FIXED32);
            value.extend((number as f32).to_le_bytes());
            bytes(&mut summary, 1, &value);
        }
        self.append(step, &summary)
    }

    /// Adds a PNG image of `width` x `height` pixels. It replaces an image of the same tag and step.
    ///
    /// # Errors
    /// The file cannot be written; the error names it.
    pub fn image(
        &mut self,
        step: u64,
        tag: &str,
        png: &[u8],
        (width, height): (u32, u32),
    ) -> io::Result<()> {
        let same = |event: &Event| {
            let mut tags = event.values.iter().map(|(tag, _)| tag);
            event.step == step && tags.any(|other| other == tag)
        };
        let named = |error| named(&self.path, error);
        if Self::read(&self.path).map_err(named)?.iter().any(same) {
            self.file = rewrite(&self.path, |event| !same(event)).map_err(named)?;
        }
        let mut image = Vec::new();
        for (field, number) in [(1, height), (2, width), (3, RGB)] {
            key(&mut image, field, VARINT);
            varint(&mut image, number.into());
        }
        bytes(&mut image, 4, png);
        let mut value = Vec::new();
        bytes(&mut value, 1, tag.as_bytes());
        bytes(&mut value, 4, &image);
        let mut summary = Vec::new();
        bytes(&mut summary, 1, &value);
        self.append(step, &summary)
    }

    fn append(&mut self, step: u64, summary: &[u8]) -> io::Result<()> {
        let mut event = event_at(step);
        bytes(&mut event, 5, summary);
        self.file
            .write_all(&record(&event))
            .map_err(|error| named(&self.path, error))
    }

    /// Waits until all entries are on disk.
    ///
    /// # Errors
    /// The file cannot be synced; the error names it.
    pub fn sync(&self) -> io::Result<()> {
        self.file
            .sync_all()
            .map_err(|error| named(&self.path, error))
    }

    /// Reads the entries of an event file, up to the first incomplete or damaged one.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(path: &Path) -> io::Result<Vec<Event>> {
        let file = fs::read(path)?;
        Ok(entries(&file).map(|(event, _)| event).collect())
    }
}

/// Replaces the file at `path` by one with only the entries that `keep` selects, or creates it.
/// Returns it opened for appending.
fn rewrite(path: &Path, keep: impl Fn(&Event) -> bool) -> io::Result<File> {
    let old = match fs::read(path) {
        Ok(old) => old,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    let mut kept = Vec::new();
    for (event, record) in entries(&old) {
        // The first entry has step 0 and no values. A new one is written below.
        if !event.values.is_empty() && keep(&event) {
            kept.extend_from_slice(record);
        }
    }
    let mut head = event_at(0);
    bytes(&mut head, 3, VERSION.as_bytes());
    // The file is replaced atomically, so that a crash cannot lose the earlier entries.
    files::write(path, |file| {
        file.write_all(&record(&head))?;
        file.write_all(&kept)
    })?;
    OpenOptions::new().append(true).open(path)
}

/// `colorspace` of an image.
const RGB: u32 = 3;

/// Returns the first fields of an `Event`: its time and step.
fn event_at(step: u64) -> Vec<u8> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let mut event = Vec::new();
    key(&mut event, 1, FIXED64);
    event.extend(now.map_or(0.0, |now| now.as_secs_f64()).to_le_bytes());
    key(&mut event, 2, VARINT);
    varint(&mut event, step);
    event
}

/// Iterates over the entries of a file and their records, up to the first that is incomplete or damaged.
fn entries(file: &[u8]) -> impl Iterator<Item = (Event, &[u8])> {
    records(file).map_while(|(event, record)| Some((parse(event)?, record)))
}

fn parse(event: &[u8]) -> Option<Event> {
    let mut parsed = Event::default();
    for field in fields(event) {
        match field? {
            (2, Field::Number(step)) => parsed.step = step,
            (5, Field::Bytes(summary)) => {
                for value in fields(summary) {
                    let (1, Field::Bytes(value)) = value? else {
                        continue;
                    };
                    parsed.values.extend(parse_value(value)?);
                }
            }
            _ => {}
        }
    }
    Some(parsed)
}

/// Parses a tag and its value. Returns `Some(None)` for a kind of value that this module does not
/// write.
fn parse_value(value: &[u8]) -> Option<Option<(String, Value)>> {
    let (mut tag, mut content) = (String::new(), None);
    for field in fields(value) {
        match field? {
            (1, Field::Bytes(text)) => tag = String::from_utf8_lossy(text).into_owned(),
            (2, Field::Four(number)) => content = Some(Value::Scalar(f32::from_le_bytes(number))),
            (4, Field::Bytes(image)) => {
                for field in fields(image) {
                    if let (4, Field::Bytes(png)) = field? {
                        content = Some(Value::Image(png.to_vec()));
                    }
                }
            }
            _ => {}
        }
    }
    Some(content.map(|content| (tag, content)))
}

fn named(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use metrics::figures::Figure;

    use super::*;

    fn steps(log: &EventLog) -> Vec<u64> {
        let events = EventLog::read(&log.path).unwrap();
        events.iter().map(|event| event.step).collect()
    }

    #[test]
    fn written_entries_are_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = EventLog::open(folder.path(), 0).unwrap();
        let figures = Figures::from([(Figure::Loss, 0.5), (Figure::LearningRate, 1e-4)]);
        log.scalars(300, &figures).unwrap();
        log.image(70_000, "samples", b"png", (640, 480)).unwrap();
        let events = EventLog::read(&log.path).unwrap();
        assert_eq!(events[0], Event::default());
        let scalars = [
            ("loss".to_owned(), Value::Scalar(0.5)),
            ("lr".to_owned(), Value::Scalar(1e-4)),
        ];
        assert_eq!((events[1].step, &events[1].values[..]), (300, &scalars[..]));
        let image = ("samples".to_owned(), Value::Image(b"png".to_vec()));
        assert_eq!((events[2].step, &events[2].values), (70_000, &vec![image]));
        assert_eq!(events.len(), 3);
    }

    /// The first record, with a fixed time, as TensorBoard's own writer writes it.
    #[test]
    fn records_follow_tensorflows_format() {
        let mut event = event_at(0);
        event[1..9].copy_from_slice(&1.5e9_f64.to_le_bytes());
        event.truncate(9);
        bytes(&mut event, 3, VERSION.as_bytes());
        let record = record(&event);
        assert_eq!(record[..8], 24_u64.to_le_bytes());
        assert_eq!(record[12..16], [9, 0, 0, 0]);
    }

    #[test]
    fn a_resumed_run_removes_entries_that_it_will_write_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = EventLog::open(folder.path(), 0).unwrap();
        for step in 1..=5 {
            let figures = Figures::from([(Figure::Loss, step as f64)]);
            log.scalars(step, &figures).unwrap();
        }
        let path = log.path.clone();
        // As if the run was killed during a write.
        let mut truncated = fs::read(&path).unwrap();
        truncated.truncate(truncated.len() - 3);
        fs::write(&path, &truncated).unwrap();
        let mut log = EventLog::open(folder.path(), 3).unwrap();
        assert_eq!(steps(&log), [0, 1, 2, 3]);
        log.scalars(4, &Figures::from([(Figure::Loss, 4.0)]))
            .unwrap();
        assert_eq!(steps(&log), [0, 1, 2, 3, 4]);
        let log = EventLog::open(folder.path(), 0).unwrap();
        assert_eq!(steps(&log), [0]);
    }

    #[test]
    fn an_image_replaces_an_earlier_one_of_the_same_step() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = EventLog::open(folder.path(), 0).unwrap();
        log.scalars(2, &Figures::from([(Figure::Loss, 1.0)]))
            .unwrap();
        for png in [b"one", b"two"] {
            log.image(2, "samples", png, (1, 1)).unwrap();
            log.image(1, "samples", png, (1, 1)).unwrap();
        }
        assert_eq!(steps(&log), [0, 2, 2, 1]);
        let events = EventLog::read(&log.path).unwrap();
        assert_eq!(events[2].values[0].1, Value::Image(b"two".to_vec()));
    }

    #[test]
    fn a_file_without_records_is_an_empty_log() {
        let folder = tempfile::tempdir().unwrap();
        for bytes in [&b"rubbish that is no record at all"[..], &[0xff; 64]] {
            fs::write(EventLog::path_in(folder.path()), bytes).unwrap();
            let log = EventLog::open(folder.path(), 9).unwrap();
            assert_eq!(steps(&log), [0]);
        }
        let place = Path::new("/nowhere");
        let error = EventLog::open(place, 0).unwrap_err().to_string();
        assert!(error.contains("/nowhere/events"), "{error}");
    }
}
