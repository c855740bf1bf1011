//! Paths of configuration files.

use std::path::{Path, PathBuf};

/// Removes `.` and `folder/..` parts from a path. `..` after a symbolic link stays, because it is the parent of the
/// link's target.
pub(crate) fn tidy(path: &Path) -> PathBuf {
    use std::path::Component;
    let mut tidy = PathBuf::new();
    for part in path.components() {
        let follows_name = matches!(tidy.components().next_back(), Some(Component::Normal(_)));
        match part {
            Component::CurDir => {}
            Component::ParentDir if follows_name && !tidy.is_symlink() => {
                tidy.pop();
            }
            _ => tidy.push(part),
        }
    }
    match tidy.as_os_str().is_empty() && !path.as_os_str().is_empty() {
        true => PathBuf::from("."),
        false => tidy,
    }
}

/// The folder of a file.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}
