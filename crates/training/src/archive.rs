//! What a run's folder held before: it is kept in `before/N`, never overwritten.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::EventLog;
use crate::checkpoint::{self, CHECKPOINTS, CheckpointError};

/// Where it is kept, in a run's folder.
const BEFORE: &str = "before";
/// A run's files and folders beside its checkpoints.
const FILES: [&str; 4] = ["config.toml", "metrics.jsonl", "result.json", "samples"];

/// Makes room in a run's folder for a run that resumes from `step`, or begins, without losing what is there, and
/// returns the folder `before/N` that keeps it:
///
/// - for a run that begins, the files, samples and checkpoints of the run that is there, if it got as far as a logged
///   step, a sample, a checkpoint or a result;
/// - for a run that resumes, checkpoints after that step, which are damaged or of another run, with copies of the files.
///
/// # Errors
/// The folder cannot be read, or the system refused to move something.
pub fn set_aside(run: &Path, step: Option<u64>) -> Result<Option<PathBuf>, CheckpointError> {
    let checkpoints = run.join(CHECKPOINTS);
    let mut foreign = checkpoint::list(&checkpoints)?;
    if let Some(step) = step {
        foreign.retain(|path| checkpoint::step_of(path) > Some(step));
    }
    let files = files(run)?;
    let is_worth_keeping = match step {
        Some(_) => !foreign.is_empty(),
        None => !foreign.is_empty() || holds_results(run, &files)?,
    };
    if !is_worth_keeping {
        return Ok(None);
    }
    let before = new_folder(run)?;
    for path in files {
        let to = before.join(path.file_name().unwrap_or_default());
        match step {
            None => rename(&path, &to)?,
            Some(_) => copy(&path, &to)?,
        }
    }
    let kept = before.join(CHECKPOINTS);
    if !foreign.is_empty() {
        fs::create_dir(&kept).map_err(|e| CheckpointError::io("create", &kept, e))?;
    }
    // Last: as long as they are here, what was broken off is done again.
    for path in foreign {
        rename(&path, &kept.join(path.file_name().unwrap_or_default()))?;
    }
    sync(&before)?;
    Ok(Some(before))
}

/// Copies a run's files and samples to a new `before/N`, where they are about to be replaced by those of the same run
/// made longer or measured otherwise. Its checkpoints are not copied.
///
/// # Errors
/// The folder cannot be read, or a copy cannot be written.
pub fn keep_copies(run: &Path) -> Result<PathBuf, CheckpointError> {
    let files = files(run)?;
    let before = new_folder(run)?;
    for path in files {
        copy(&path, &before.join(path.file_name().unwrap_or_default()))?;
    }
    sync(&before)?;
    Ok(before)
}

/// What is there of [`FILES`], and event files.
fn files(run: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let failed = |e| CheckpointError::io("read", run, e);
    let mut found = Vec::new();
    for entry in fs::read_dir(run).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let is_own = FILES.iter().any(|own| name == *own)
            || name.to_string_lossy().starts_with(EventLog::NAME_START);
        if is_own {
            found.push(run.join(name));
        }
    }
    found.sort();
    Ok(found)
}

/// Whether there is more than what every run begins with: its configuration, and logs without entries.
fn holds_results(run: &Path, files: &[PathBuf]) -> Result<bool, CheckpointError> {
    for path in files {
        let failed = |e| CheckpointError::io("read", path, e);
        let name = path.file_name().unwrap_or_default();
        let holds = if name == "config.toml" {
            false
        } else if name == "metrics.jsonl" {
            fs::metadata(path).map_err(failed)?.len() > 0
        } else if name == "samples" {
            fs::read_dir(path).map_err(failed)?.next().is_some()
        } else if path == &EventLog::path_in(run) {
            let events = EventLog::read(path).map_err(failed)?;
            events.iter().any(|event| !event.values.is_empty())
        } else {
            true
        };
        if holds {
            return Ok(true);
        }
    }
    Ok(false)
}

fn new_folder(run: &Path) -> Result<PathBuf, CheckpointError> {
    let all = run.join(BEFORE);
    fs::create_dir_all(&all).map_err(|e| CheckpointError::io("create", &all, e))?;
    let mut index = 1_u64;
    loop {
        let folder = all.join(index.to_string());
        match fs::create_dir(&folder) {
            Ok(()) => return Ok(folder),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => index += 1,
            Err(error) => return Err(CheckpointError::io("create", &folder, error)),
        }
    }
}

fn rename(from: &Path, to: &Path) -> Result<(), CheckpointError> {
    fs::rename(from, to).map_err(|e| CheckpointError::io("rename to", to, e))
}

/// Copies a file, or a folder of files.
fn copy(from: &Path, to: &Path) -> Result<(), CheckpointError> {
    let failed = |e| CheckpointError::io("write", to, e);
    if !fs::metadata(from)
        .map_err(|e| CheckpointError::io("read", from, e))?
        .is_dir()
    {
        return fs::copy(from, to).map(|_| ()).map_err(failed);
    }
    fs::create_dir(to).map_err(failed)?;
    let unreadable = |e| CheckpointError::io("read", from, e);
    for entry in fs::read_dir(from).map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name();
        copy(&from.join(&name), &to.join(&name))?;
    }
    Ok(())
}

fn sync(before: &Path) -> Result<(), CheckpointError> {
    files::sync_folder(before).map_err(|e| CheckpointError::io("write", before, e))
}
