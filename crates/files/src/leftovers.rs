//! Temporary names, and what writers that were killed left behind.

use std::fs;
use std::io;
use std::path::Path;

use crate::{Owner, State};

/// How temporary names end.
pub(crate) const SUFFIX: &str = ".tmp";
/// Longest part of a name that its temporary name repeats, in bytes: file systems allow 255 for the whole.
const LONGEST: usize = 120;

/// Which temporary files and folders are leftovers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Those of processes that are known to have ended. For folders in which several processes write.
    Ended,
    /// Also those of processes of other hosts, containers and boots. For folders that only one process may write, which
    /// holds their lock.
    Own,
}

/// Removes temporary files and folders in `folder` whose writers have ended. Those of running processes stay.
///
/// # Errors
/// The folder cannot be listed, or a leftover cannot be removed. A folder that does not exist has none.
pub fn remove_leftovers(folder: &Path, scope: Scope) -> io::Result<()> {
    remove(folder, ".", scope)
}

/// As [`remove_leftovers`], of the file or folder `path` alone, and of processes that are known to have ended.
///
/// # Errors
/// As [`remove_leftovers`].
pub fn remove_leftovers_of(path: &Path) -> io::Result<()> {
    let (Some(start), Some(folder)) = (start(path), path.parent()) else {
        return Ok(());
    };
    let folder = match folder.as_os_str().is_empty() {
        true => Path::new("."),
        false => folder,
    };
    remove(folder, &start, Scope::Ended)
}

fn remove(folder: &Path, start: &str, scope: Scope) -> io::Result<()> {
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
            .filter(|name| name.starts_with(start))
            .and_then(owner_of)
        else {
            continue;
        };
        let is_leftover = match owner.state() {
            State::Running => false,
            State::Ended => true,
            State::Unknown => scope == Scope::Own,
        };
        if !is_leftover {
            continue;
        }
        let removed = match entry.file_type()?.is_dir() {
            true => fs::remove_dir_all(entry.path()),
            false => fs::remove_file(entry.path()),
        };
        match removed {
            // Another process was faster.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            removed => removed?,
        }
    }
    Ok(())
}

/// How temporary names for `path` begin: `.NAME.OWNER-`, before what is random.
pub(crate) fn prefix(path: &Path) -> Option<String> {
    Some(format!("{}{}-", start(path)?, Owner::current().tag()))
}

/// The part before the owner.
fn start(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_string_lossy();
    let end = name.floor_char_boundary(LONGEST);
    Some(format!(".{}.", &name[..end]))
}

/// The owner in a temporary name; `None` for other names.
fn owner_of(name: &str) -> Option<Owner> {
    let stem = name.strip_prefix('.')?.strip_suffix(SUFFIX)?;
    let (_, rest) = stem.rsplit_once('.')?;
    let (tag, _random) = rest.rsplit_once('-')?;
    Owner::of_tag(tag)
}
