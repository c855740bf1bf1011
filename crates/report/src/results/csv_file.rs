//! Reads and writes `results.csv`.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::ResultRow;
use super::column::{Column, Value};

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
    /// The header does not contain each [`Column`] exactly once.
    #[error("{}:1: {problem}; the columns are: {}", path.display(), header().join(", "))]
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
        csv.write_record(header()).map_err(io::Error::from)?;
        for row in rows {
            let values: Vec<Value<'_>> = Column::all().map(|column| column.of(row)).collect();
            csv.serialize(values).map_err(io::Error::from)?;
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

/// The names of the columns.
fn header() -> Vec<&'static str> {
    Column::all().map(Column::name).collect()
}

fn check_header(found: &csv::StringRecord) -> Result<(), String> {
    let columns = header();
    if let Some(unknown) = found.iter().find(|name| !columns.contains(name)) {
        return Err(format!("unknown column `{unknown}`"));
    }
    for column in columns {
        match found.iter().filter(|name| *name == column).count() {
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

    use metrics::figures::{Figure, Figures};

    use super::*;
    use crate::results::Status;

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
            fd_encoder: "efficientnet-lite2".into(),
            figures: Figures::from([
                (Figure::DenoisingLoss, 0.1 + 0.2),
                (Figure::AlignmentLoss, -0.71),
                (Figure::Kid, 1e-9),
                (Figure::Fd, 12.0),
                (Figure::Lds, f64::MIN_POSITIVE),
                (Figure::StepsPerSecond, 1.0 / 3.0),
                (Figure::PeakMemory, 1e300),
            ]),
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
        nan.figures.set(Figure::Srss, f64::NAN);
        write_csv(&path, &[nan]).unwrap();
        let read = read_csv(&path).unwrap();
        assert!(read[0].get(Figure::Srss).unwrap().is_nan());
    }

    #[test]
    fn the_columns_and_their_order_are_fixed() {
        assert_eq!(
            header().join(","),
            "cell,status,encoder,recipe,model,variant,seed,steps,denoising_loss,alignment_loss,fid,sfid,\
             inception_score,precision,recall,kid,fd_encoder,fd,lds,cds,srss,rmsc,linear_probe,steps_per_s,\
             peak_memory_mib,reason"
        );
    }

    #[test]
    fn a_row_is_an_object_with_one_key_per_column() {
        let text = serde_json::to_string(&row()).unwrap();
        let places: Vec<usize> = header()
            .iter()
            .map(|name| text.find(&format!("\"{name}\":")).unwrap())
            .collect();
        assert!(places.is_sorted(), "{text}");
        assert!(text.contains("\"fid\":null,"), "{text}");
        assert_eq!(serde_json::from_str::<ResultRow>(&text).unwrap(), row());

        // Figures may be absent, but not what identifies the cell.
        let read = |text: String| serde_json::from_str::<ResultRow>(&text);
        let mut fewer = row();
        fewer.figures.remove(Figure::Kid);
        assert_eq!(read(text.replace("\"kid\":1e-9,", "")).unwrap(), fewer);
        let error = read(text.replace("\"model\":\"sit-xs4\",", "")).unwrap_err();
        assert!(
            error.to_string().contains("missing field `model`"),
            "{error}"
        );
        let error = read(text.replacen("\"model\"", "\"cell\"", 1)).unwrap_err();
        assert!(
            error.to_string().contains("duplicate field `cell`"),
            "{error}"
        );
    }

    #[test]
    fn floats_have_the_fewest_digits() {
        let folder = folder();
        let path = folder.path().join("results.csv");
        let mut short = row();
        short.figures.set(Figure::Fd, 0.1);
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
        assert_eq!(
            fs::read_to_string(&path).unwrap().trim(),
            header().join(",")
        );
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
        fs::write(&path, format!("{}\na,done,hog\n", header().join(","))).unwrap();
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
            (header().join(",").replace("fid", "fidd"), "`fidd`"),
            (header().join(",").replace(",kid", ""), "`kid` is missing"),
            (header().join(",") + ",kid", "`kid` appears more than once"),
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
