//! Writes the files of a run folder: `plan.toml` and `results.csv`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::thread;
use std::time::Duration;

use files::{Lock, LockError};
use report::results::{self, ResultRow, Status};
use training::SettingEffect;

use crate::cell_folder::{CellFolder, CellFolderError, CellResult};
use crate::experiment::{Cell, Plan};
use crate::planned::empty_row;
use crate::{SweepError, resume};

/// Creates the run folder and writes `plan.toml`.
pub(crate) fn create_run_folder(
    folder: &Path,
    plan: &Plan,
    device: &str,
    hashes: &BTreeMap<String, String>,
) -> Result<(), SweepError> {
    let out = |path: &Path, source| SweepError::Out {
        path: path.to_owned(),
        source,
    };
    fs::create_dir_all(folder)
        .and_then(|()| files::remove_leftovers(folder, files::LeftoverScope::Ended))
        .map_err(|source| out(folder, source))?;
    let path = folder.join("plan.toml");
    let text = toml::to_string(&plan.file(device, hashes))
        .map_err(|error| out(&path, io::Error::other(error)))?;
    files::write(&path, |file| file.write_all(text.as_bytes())).map_err(|source| out(&path, source))
}

/// Locks `results.csv` for this process, waiting until it is free. Results must be read and written under this lock, so
/// that a process does not overwrite newer rows of another process with older ones.
pub(crate) fn lock_results(folder: &Path) -> Result<Lock, SweepError> {
    let path = folder.join(".lock");
    loop {
        match Lock::take(&path) {
            Err(error @ LockError::Held { .. }) if !error.is_abandoned() => {
                tracing::debug!("{error}");
                thread::sleep(Duration::from_millis(20));
            }
            lock => return Ok(lock.map_err(CellFolderError::from)?),
        }
    }
}

/// Writes `results.csv` from the results in the cells' folders, in the order of the plan. Returns the rows.
pub(crate) fn write_results(
    folder: &Path,
    plan: &Plan,
    missing: &BTreeMap<String, String>,
    hashes: &BTreeMap<String, String>,
) -> Result<Vec<ResultRow>, SweepError> {
    let mut rows = Vec::new();
    for cell in &plan.cells {
        let cell_folder = CellFolder::new(folder, &cell.id);
        let hash = hashes.get(&cell.id).map(String::as_str);
        let row = match (row(cell, &cell_folder, hash), missing.get(&cell.id)) {
            (Ok(Some(row)), _) => Some(row),
            (Ok(None), Some(reason)) => Some(ResultRow {
                reason: reason.clone(),
                ..empty_row(cell, Status::Skipped)
            }),
            (Ok(None), None) => None,
            (Err(error), _) => Some(ResultRow {
                reason: error.to_string(),
                ..empty_row(cell, Status::Failed)
            }),
        };
        rows.extend(row);
    }
    results::write_csv(&folder.join("results.csv"), &rows)?;
    Ok(rows)
}

/// The row of a cell's result. Its status is `stale` if the result was computed with other settings or inputs than those
/// of the plan. `hash` is `None` if an input is missing; then only the settings are compared, and only a result that is
/// done is returned.
fn row(
    cell: &Cell,
    folder: &CellFolder,
    hash: Option<&str>,
) -> Result<Option<ResultRow>, SweepError> {
    let Some(CellResult {
        hash: found, row, ..
    }) = folder.result()?
    else {
        return Ok(None);
    };
    let counts = |key: &str| cell.config.effect_of(key) != SettingEffect::Nothing;
    let reason = match hash {
        Some(hash) if hash == found => None,
        Some(_) => Some(resume::describe_differences(
            folder.path(),
            &cell.config,
            counts,
        )?),
        None if row.status != Status::Done => return Ok(None),
        None => resume::stale(folder.path(), &cell.config)?,
    };
    Ok(Some(match reason {
        None => row,
        Some(reason) => ResultRow {
            status: Status::Stale,
            reason,
            ..row
        },
    }))
}
