//! Names of temporary files, and removal of those that killed processes left behind.

use std::fs;
use std::io;
use std::path::Path;

use crate::{Owner, OwnerState};

/// The suffix of temporary names.
pub(crate) const SUFFIX: &str = ".tmp";
/// Largest number of bytes of the final name that a temporary name repeats. File systems limit names to 255 bytes.
const MAX_NAME_BYTES: usize = 120;

/// Which temporary files and folders count as leftovers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeftoverScope {
    /// Those of processes that are known to have ended. For folders that several processes write.
    Ended,
    /// Also those of other hosts, containers and boots, whose processes cannot be checked. For folders that only the
    /// holder of their lock writes.
    EndedOrUnknown,
}

/// Removes the temporary files and folders in `folder` whose writers have ended. Those of running processes stay.
///
/// # Errors
/// The folder cannot be listed, or a leftover cannot be removed. A folder that does not exist is not an error.
pub fn remove_leftovers(folder: &Path, scope: LeftoverScope) -> io::Result<()> {
    remove(folder, ".", scope)
}

/// As [`remove_leftovers`] with [`LeftoverScope::Ended`], but only for temporary names of the file or folder `path`.
///
/// # Errors
/// As [`remove_leftovers`].
pub fn remove_leftovers_of(path: &Path) -> io::Result<()> {
    let (Some(name_prefix), Some(folder)) = (name_prefix(path), path.parent()) else {
        return Ok(());
    };
    let folder = match folder.as_os_str().is_empty() {
        true => Path::new("."),
        false => folder,
    };
    remove(folder, &name_prefix, LeftoverScope::Ended)
}

fn remove(folder: &Path, name_prefix: &str, scope: LeftoverScope) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let Some(owner) = name
            .to_str()
            .filter(|name| name.starts_with(name_prefix))
            .and_then(owner_of)
        else {
            continue;
        };
        let is_leftover = match owner.state() {
            OwnerState::Running => false,
            OwnerState::Ended => true,
            OwnerState::Unknown => scope == LeftoverScope::EndedOrUnknown,
        };
        if !is_leftover {
            continue;
        }
        let removed = match entry.file_type()?.is_dir() {
            true => fs::remove_dir_all(entry.path()),
            false => fs::remove_file(entry.path()),
        };
        match removed {
            // Another process has removed it already.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            removed => removed?,
        }
    }
    Ok(())
}

/// The prefix of temporary names for `path`: `.NAME.OWNER-`. A random part follows.
pub(crate) fn prefix(path: &Path) -> Option<String> {
    Some(format!("{}{}-", name_prefix(path)?, Owner::current().tag()))
}

/// The part of the prefix before the owner: `.NAME.`.
fn name_prefix(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_string_lossy();
    let end = name.floor_char_boundary(MAX_NAME_BYTES);
    Some(format!(".{}.", &name[..end]))
}

/// The owner that a temporary name records; `None` for other names.
fn owner_of(name: &str) -> Option<Owner> {
    let stem = name.strip_prefix('.')?.strip_suffix(SUFFIX)?;
    let (_, rest) = stem.rsplit_once('.')?;
    let (tag, _random) = rest.rsplit_once('-')?;
    Owner::of_tag(tag)
}
