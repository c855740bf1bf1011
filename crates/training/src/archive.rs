//! Keeps the previous contents of a run's folder in `before/N`, so that no run overwrites another.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::EventLog;
use crate::checkpoint::{self, CHECKPOINTS, CheckpointError};

/// The archive's folder inside a run's folder.
const BEFORE: &str = "before";
/// A run's files and folders besides its checkpoints.
const FILES: [&str; 4] = ["config.toml", "metrics.jsonl", "result.json", "samples"];

/// Prepares a run's folder for a run that resumes from `step`, or that starts anew if it is `None`. Files that the new
/// run would overwrite are moved to a new folder `before/N`, which is returned:
///
/// - for a run that starts anew, the files, samples and checkpoints of the previous run, if it has a logged step, a
///   sample, a checkpoint or a result;
/// - for a run that resumes, the checkpoints after `step`, which are damaged or belong to another run, with copies of
///   the files.
///
/// # Errors
/// The folder cannot be read, or a file or folder cannot be moved.
pub fn set_aside(run: &Path, step: Option<u64>) -> Result<Option<PathBuf>, CheckpointError> {
    let checkpoints = run.join(CHECKPOINTS);
    let mut unused = checkpoint::list(&checkpoints)?;
    if let Some(step) = step {
        unused.retain(|path| checkpoint::step_of(path) > Some(step));
    }
    let files = files(run)?;
    let is_worth_keeping = match step {
        Some(_) => !unused.is_empty(),
        None => !unused.is_empty() || holds_results(run, &files)?,
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
    if !unused.is_empty() {
        fs::create_dir(&kept).map_err(|e| CheckpointError::io("create", &kept, e))?;
    }
    // The checkpoints are moved last: if this is interrupted, they are still in place and the next call repeats it.
    for path in unused {
        rename(&path, &kept.join(path.file_name().unwrap_or_default()))?;
    }
    sync(&before)?;
    Ok(Some(before))
}

/// Copies a run's files and samples to a new folder `before/N`, which it returns. Call it before the same run replaces
/// them because it was made longer or is measured otherwise. Checkpoints are not copied.
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

/// Returns the existing files and folders of [`FILES`], and the event files.
fn files(run: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let failed = |e| CheckpointError::io("read", run, e);
    let mut found = Vec::new();
    for entry in fs::read_dir(run).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let is_file_of_run = FILES.iter().any(|file| name == *file)
            || name.to_string_lossy().starts_with(EventLog::NAME_START);
        if is_file_of_run {
            found.push(run.join(name));
        }
    }
    found.sort();
    Ok(found)
}

/// Whether a run's folder holds more than its configuration and empty logs, with which every run starts.
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

/// Copies a file, or a folder with its contents.
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
