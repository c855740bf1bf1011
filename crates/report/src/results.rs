//! Reads and writes `results.csv`, which has one row per cell of a sweep.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The columns of `results.csv` in order. They are the fields of [`ResultRow`].
pub const COLUMNS: [&str; 26] = [
    "cell",
    "status",
    "encoder",
    "recipe",
    "model",
    "variant",
    "seed",
    "steps",
    "denoising_loss",
    "alignment_loss",
    "fid",
    "sfid",
    "inception_score",
    "precision",
    "recall",
    "kid",
    "fd_encoder",
    "fd",
    "lds",
    "cds",
    "srss",
    "rmsc",
    "linear_probe",
    "steps_per_s",
    "peak_memory_mib",
    "reason",
];

/// The status of a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Trained and evaluated.
    Done,
    /// Stopped by an error, which [`ResultRow::reason`] states.
    Failed,
    /// Not started, because a file that it needs is not installed.
    Skipped,
    /// The result has other settings, data or encoders than the plan; [`ResultRow::reason`] states the difference. It is
    /// not compared with other results.
    Stale,
}

impl Status {
    /// The word in the `status` column.
    pub fn name(self) -> &'static str {
        match self {
            Status::Done => "done",
            Status::Failed => "failed",
            Status::Skipped => "skipped",
            Status::Stale => "stale",
        }
    }
}

/// One cell of a sweep. Numbers that were not computed are `None` and empty in the file; texts that do not apply are
/// empty.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResultRow {
    /// Readable id, which is also the name of the cell's folder: `sit-xs4.irepa.hog.s0`.
    pub cell: String,
    /// Status of the cell.
    pub status: Status,
    /// Encoder that the cell aligns to; `none` or empty for the baseline.
    pub encoder: String,
    /// `irepa`, `repa`, ..., or `none` for the baseline without alignment.
    pub recipe: String,
    /// Denoiser, such as `sit-xs4`.
    pub model: String,
    /// Training variant, such as `velocity` or `meanflow`.
    pub variant: String,
    /// Seed of the cell.
    pub seed: u64,
    /// Optimiser steps completed.
    pub steps: Option<u64>,
    /// Denoising loss at the end of training.
    pub denoising_loss: Option<f64>,
    /// Alignment loss at the end of training, before its coefficient.
    pub alignment_loss: Option<f64>,
    /// Frechet distance on Inception features.
    pub fid: Option<f64>,
    /// Frechet distance on spatial Inception features.
    pub sfid: Option<f64>,
    /// Inception score.
    pub inception_score: Option<f64>,
    /// Share of samples inside the manifold of real images, 0 to 1.
    pub precision: Option<f64>,
    /// Share of real images inside the manifold of samples, 0 to 1.
    pub recall: Option<f64>,
    /// Kernel Inception distance.
    pub kid: Option<f64>,
    /// Encoder on whose features `fd` is computed.
    pub fd_encoder: String,
    /// Frechet distance on the features of `fd_encoder`.
    pub fd: Option<f64>,
    /// Local against distant similarity of the encoder's tokens.
    pub lds: Option<f64>,
    /// Correlation decay slope of the encoder's tokens.
    pub cds: Option<f64>,
    /// Semantic-region self-similarity of the encoder's tokens.
    pub srss: Option<f64>,
    /// Root-mean-square spatial contrast of the encoder's tokens.
    pub rmsc: Option<f64>,
    /// Accuracy of a linear probe on the encoder's tokens, 0 to 1.
    pub linear_probe: Option<f64>,
    /// Optimiser steps per second.
    pub steps_per_s: Option<f64>,
    /// Peak memory in MiB while the cell was trained and measured, including its encoder: of the allocator on CUDA, of the
    /// process on the CPU. Present only if the process ran no other cell at the same time.
    pub peak_memory_mib: Option<f64>,
    /// Why the cell failed, was skipped or is stale.
    pub reason: String,
}

impl ResultRow {
    /// A row that contains only the id and the status of a cell.
    pub fn empty(cell: &str, status: Status) -> Self {
        Self {
            cell: cell.to_owned(),
            status,
            encoder: String::new(),
            recipe: String::new(),
            model: String::new(),
            variant: String::new(),
            seed: 0,
            steps: None,
            denoising_loss: None,
            alignment_loss: None,
            fid: None,
            sfid: None,
            inception_score: None,
            precision: None,
            recall: None,
            kid: None,
            fd_encoder: String::new(),
            fd: None,
            lds: None,
            cds: None,
            srss: None,
            rmsc: None,
            linear_probe: None,
            steps_per_s: None,
            peak_memory_mib: None,
            reason: String::new(),
        }
    }

    /// Returns whether the cell trains without alignment: its recipe is `none` or empty.
    pub fn is_baseline(&self) -> bool {
        self.recipe.is_empty() || self.recipe == "none"
    }
}

/// Why `results.csv` could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum ResultsError {
    /// The file could not be written; an existing file is unchanged.
    #[error("cannot write {}: check that its folder exists, is writable and has space left", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        #[source]
        source: io::Error,
    },
    /// The file could not be opened or read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        #[source]
        source: io::Error,
    },
    /// The header does not contain each column of [`COLUMNS`] exactly once.
    #[error("{}:1: {problem}; the columns are: {}", path.display(), COLUMNS.join(", "))]
    Header {
        /// The file.
        path: PathBuf,
        /// The column and the problem.
        problem: String,
    },
    /// A row has a value that is invalid for its column.
    #[error("{}:{line}: {problem}", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// Line in the file, from 1.
        line: u64,
        /// The column, what was found and what is allowed.
        problem: String,
    },
}

/// Writes a header line and `rows`. The file appears complete or not at all: it is written under a temporary name, flushed
/// to the disk and renamed. Floats have the fewest digits that read back to the same bits.
///
/// # Errors
/// [`ResultsError::Write`] if the folder is missing or not writable, or the disk is full.
pub fn write_csv(path: &Path, rows: &[ResultRow]) -> Result<(), ResultsError> {
    files::write(path, |file| {
        let mut csv = csv::WriterBuilder::new()
            .has_headers(false)
            .from_writer(file);
        csv.write_record(COLUMNS).map_err(io::Error::from)?;
        for row in rows {
            csv.serialize(row).map_err(io::Error::from)?;
        }
        csv.flush()
    })
    .map_err(|source| ResultsError::Write {
        path: path.to_owned(),
        source,
    })
}

/// Reads a file that [`write_csv`] wrote. The columns may be in any order.
///
/// # Errors
/// [`ResultsError::Read`] if the file is missing, [`ResultsError::Header`] for a missing, unknown or repeated column,
/// [`ResultsError::Row`] with the line for an invalid value.
pub fn read_csv(path: &Path) -> Result<Vec<ResultRow>, ResultsError> {
    let read_error = |source| ResultsError::Read {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(read_error)?;
    let mut csv = csv::Reader::from_reader(file);
    let header = match csv.headers() {
        Ok(header) => header.clone(),
        Err(error) => return Err(row_error(path, error, None)),
    };
    check_header(&header).map_err(|problem| ResultsError::Header {
        path: path.to_owned(),
        problem,
    })?;
    let mut rows = Vec::new();
    for record in csv.records() {
        let record = record.map_err(|error| row_error(path, error, None))?;
        let row = record
            .deserialize(Some(&header))
            .map_err(|error| row_error(path, error, Some((&header, &record))))?;
        rows.push(row);
    }
    Ok(rows)
}

fn check_header(header: &csv::StringRecord) -> Result<(), String> {
    if let Some(unknown) = header.iter().find(|name| !COLUMNS.contains(name)) {
        return Err(format!("unknown column `{unknown}`"));
    }
    for column in COLUMNS {
        match header.iter().filter(|name| *name == column).count() {
            0 => return Err(format!("column `{column}` is missing")),
            1 => {}
            _ => return Err(format!("column `{column}` appears more than once")),
        }
    }
    Ok(())
}

fn row_error(
    path: &Path,
    error: csv::Error,
    context: Option<(&csv::StringRecord, &csv::StringRecord)>,
) -> ResultsError {
    let line = error
        .position()
        .map(|position| position.line())
        .or_else(|| context.and_then(|(_, record)| record.position().map(|p| p.line())))
        .unwrap_or(1);
    let problem = match error.into_kind() {
        csv::ErrorKind::Io(source) => {
            return ResultsError::Read {
                path: path.to_owned(),
                source,
            };
        }
        csv::ErrorKind::UnequalLengths {
            expected_len, len, ..
        } => format!("{len} columns, expected {expected_len}"),
        csv::ErrorKind::Utf8 { .. } => "not UTF-8 text".to_owned(),
        csv::ErrorKind::Deserialize { err, .. } => {
            let cell = err.field().and_then(|field| {
                let (header, record) = context?;
                let index = usize::try_from(field).ok()?;
                Some((header.get(index)?, record.get(index)?))
            });
            match cell {
                Some((column, found)) => {
                    format!("column `{column}`: found `{found}`: {}", err.kind())
                }
                None => err.to_string(),
            }
        }
        other => format!("{other:?}"),
    };
    ResultsError::Row {
        path: path.to_owned(),
        line,
        problem,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;

    fn row() -> ResultRow {
        ResultRow {
            cell: "sit-xs4.irepa.hog.s0".into(),
            status: Status::Done,
            encoder: "hog".into(),
            recipe: "irepa".into(),
            model: "sit-xs4".into(),
            variant: "velocity".into(),
            seed: u64::MAX,
            steps: Some(400),
            denoising_loss: Some(0.1 + 0.2),
            alignment_loss: Some(-0.71),
            fid: None,
            sfid: None,
            inception_score: None,
            precision: None,
            recall: None,
            kid: Some(1e-9),
            fd_encoder: "efficientnet-lite2".into(),
            fd: Some(12.0),
            lds: Some(f64::MIN_POSITIVE),
            cds: None,
            srss: None,
            rmsc: None,
            linear_probe: None,
            steps_per_s: Some(1.0 / 3.0),
            peak_memory_mib: Some(1e300),
            reason: "a, \"quoted\"\nreason".into(),
        }
    }

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn rows_read_back_to_the_same_bits() {
        let folder = folder();
        let path = folder.path().join("results.csv");
        let rows = [row(), row()];
        write_csv(&path, &rows).unwrap();
        assert_eq!(read_csv(&path).unwrap(), rows);
    }

    #[test]
    fn nan_stays_nan() {
        let folder = folder();
        let path = folder.path().join("results.csv");
        let mut nan = row();
        nan.srss = Some(f64::NAN);
        write_csv(&path, &[nan]).unwrap();
        assert!(read_csv(&path).unwrap()[0].srss.unwrap().is_nan());
    }

    #[test]
    fn columns_are_the_fields_in_order() {
        let mut csv = csv::Writer::from_writer(Vec::new());
        csv.serialize(row()).unwrap();
        let text = String::from_utf8(csv.into_inner().unwrap()).unwrap();
        assert_eq!(text.lines().next().unwrap(), COLUMNS.join(","));
    }

    #[test]
    fn floats_have_the_fewest_digits() {
        let folder = folder();
        let path = folder.path().join("results.csv");
        let mut short = row();
        short.fd = Some(0.1);
        write_csv(&path, &[short]).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("efficientnet-lite2,0.1,"), "{text}");
    }

    #[test]
    fn a_file_without_rows_has_a_header() {
        let folder = folder();
        let path = folder.path().join("results.csv");
        write_csv(&path, &[]).unwrap();
        assert_eq!(read_csv(&path).unwrap(), []);
        assert_eq!(fs::read_to_string(&path).unwrap().trim(), COLUMNS.join(","));
    }

    #[test]
    fn an_invalid_number_is_named_with_line_and_column() {
        let folder = folder();
        let path = folder.path().join("results.csv");
        let mut plain = row();
        plain.reason.clear();
        write_csv(&path, &[plain.clone(), plain]).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let at = text.rfind("400").unwrap();
        fs::write(&path, format!("{}4oo{}", &text[..at], &text[at + 3..])).unwrap();
        let message = read_csv(&path).unwrap_err().to_string();
        assert!(message.contains("results.csv:3"), "{message}");
        assert!(message.contains("`steps`"), "{message}");
        assert!(message.contains("`4oo`"), "{message}");
    }

    #[test]
    fn an_incomplete_row_is_named_with_its_line() {
        let folder = folder();
        let path = folder.path().join("results.csv");
        fs::write(&path, format!("{}\na,done,hog\n", COLUMNS.join(","))).unwrap();
        let message = read_csv(&path).unwrap_err().to_string();
        assert!(message.contains(":2: 3 columns, expected 26"), "{message}");
    }

    #[test]
    fn an_unknown_status_is_rejected_with_the_allowed_values() {
        let folder = folder();
        let path = folder.path().join("results.csv");
        write_csv(&path, &[row()]).unwrap();
        let text = fs::read_to_string(&path).unwrap().replace("done", "dnoe");
        fs::write(&path, text).unwrap();
        let message = read_csv(&path).unwrap_err().to_string();
        assert!(message.contains("`dnoe`"), "{message}");
        assert!(message.contains("`skipped`"), "{message}");
    }

    #[test]
    fn unknown_missing_and_repeated_columns_are_rejected() {
        let folder = folder();
        let path = folder.path().join("results.csv");
        for (header, problem) in [
            (COLUMNS.join(",").replace("fid", "fidd"), "`fidd`"),
            (COLUMNS.join(",").replace(",kid", ""), "`kid` is missing"),
            (COLUMNS.join(",") + ",kid", "`kid` appears more than once"),
        ] {
            fs::write(&path, header + "\n").unwrap();
            let message = read_csv(&path).unwrap_err().to_string();
            assert!(message.contains(problem), "{message}");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let message = read_csv(Path::new("/nowhere/results.csv"))
            .unwrap_err()
            .to_string();
        assert!(message.contains("/nowhere/results.csv"), "{message}");
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let folder = folder();
        let path = folder.path().join("results.csv");
        write_csv(&path, &[row()]).unwrap();
        let before = fs::read(&path).unwrap();
        let error = files::write(&path, |file| {
            file.write_all(b"half")?;
            Err(io::Error::from(io::ErrorKind::StorageFull))
        })
        .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(fs::read(&path).unwrap(), before);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn writing_into_a_missing_folder_names_the_file() {
        let folder = folder();
        let path = folder.path().join("no/results.csv");
        let message = write_csv(&path, &[]).unwrap_err().to_string();
        assert!(message.contains("no/results.csv"), "{message}");
    }
}
