//! The folder of a run's checkpoints.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use files::LeftoverScope;

use super::error::CheckpointError;

/// Lists the checkpoint folders below `folder`, oldest first, without unfinished ones. The list is empty if `folder`
/// does not exist.
///
/// # Errors
/// The folder cannot be read.
pub fn list(folder: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let failed = |e| CheckpointError::io("read", folder, e);
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if is_absent(folder, &error) => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if let Some(step) = step_of(&path) {
            found.push((step, path));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// Whether an error means that nothing exists at `path`. A dangling symbolic link does exist: the disk of its target
/// may not be mounted.
pub(super) fn is_absent(path: &Path, error: &io::Error) -> bool {
    let is_no_link = |path: &Path| match fs::symlink_metadata(path) {
        Ok(_) => false,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    };
    error.kind() == io::ErrorKind::NotFound && is_no_link(path)
}

pub(super) fn folder_name(step: u64) -> String {
    format!("step-{step:07}")
}

pub(crate) fn step_of(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?;
    name.strip_prefix("step-")?.parse().ok()
}

/// Name of the folder of a run's checkpoints.
pub(crate) const CHECKPOINTS: &str = "checkpoints";

/// Removes all checkpoints but the newest `keep` and `protected`, and the leftovers of interrupted saves.
///
/// # Errors
/// A folder cannot be removed.
pub fn prune(folder: &Path, keep: usize, protected: Option<&Path>) -> Result<(), CheckpointError> {
    let mut old = list(folder)?;
    old.truncate(old.len().saturating_sub(keep));
    old.retain(|path| Some(path.as_path()) != protected);
    for path in old {
        remove_folder(&path)?;
    }
    files::remove_leftovers(folder, LeftoverScope::EndedOrUnknown)
        .map_err(|e| CheckpointError::io("clean up", folder, e))
}

fn remove_folder(path: &Path) -> Result<(), CheckpointError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(CheckpointError::io("remove", path, error))
        }
        _ => Ok(()),
    }
}
