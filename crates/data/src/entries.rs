//! Lists the files and folders of a folder.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::error::DataError;

/// A file or folder inside a folder.
pub(crate) struct Entry {
    /// Its name as text, unique within the folder; see [`distinct_name`].
    pub name: String,
    pub path: PathBuf,
    pub is_dir: bool,
    /// Size in bytes; meaningful for files only.
    pub size: u64,
    /// Device and inode number, which a folder shares with the symbolic links to it.
    pub identity: (u64, u64),
    /// Whether it is a symbolic link, which is followed.
    pub is_link: bool,
    /// For a broken symbolic link, what is wrong with it.
    pub broken: Option<String>,
}

impl Entry {
    /// A file that is not a link and has this size.
    pub(crate) fn of_file(path: PathBuf, size: u64) -> Self {
        Self {
            name: path.file_name().map(distinct_name).unwrap_or_default(),
            is_dir: false,
            size,
            identity: (0, 0),
            is_link: false,
            broken: None,
            path,
        }
    }

    /// Looks up a file or folder. Follows symbolic links, because image folders often consist of them.
    pub(crate) fn look_up(path: PathBuf, is_link: bool) -> Result<Self, DataError> {
        let entry = Self {
            is_link,
            ..Self::of_file(path, 0)
        };
        let error = match fs::metadata(&entry.path) {
            Ok(meta) => {
                return Ok(Self {
                    is_dir: meta.is_dir(),
                    size: meta.len(),
                    identity: (meta.dev(), meta.ino()),
                    ..entry
                });
            }
            Err(error) => error,
        };
        let Ok(target) = fs::read_link(&entry.path) else {
            return Err(DataError::io(&entry.path, "read the size")(error));
        };
        let is_loop = error.raw_os_error() == Some(Errno::LOOP.raw_os_error());
        let problem = match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => "does not exist",
            _ if is_loop => "is part of a loop of links",
            _ => return Err(DataError::io(&entry.path, "read the size")(error)),
        };
        Ok(Self {
            broken: Some(format!("-> `{}`, which {problem}", target.display())),
            ..entry
        })
    }
}

/// Files and folders that operating systems and tools create, in addition to hidden ones.
const LEFT_BY_TOOLS: [&str; 10] = [
    "__MACOSX",
    "@eaDir",
    "@Recycle",
    "#recycle",
    "$RECYCLE.BIN",
    "System Volume Information",
    "lost+found",
    "__pycache__",
    "Thumbs.db",
    "desktop.ini",
];

/// Whether a file or folder is hidden or one of [`LEFT_BY_TOOLS`].
pub(crate) fn is_left_by_tools(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".") || LEFT_BY_TOOLS.iter().any(|&left| name == left)
}

/// Lists a folder, sorted by name, without hidden entries and those of [`LEFT_BY_TOOLS`].
pub(crate) fn sorted_entries(folder: &Path) -> Result<Vec<Entry>, DataError> {
    let listing = fs::read_dir(folder).map_err(DataError::io(folder, "list the folder"))?;
    let mut entries = Vec::new();
    for entry in listing {
        let entry = entry.map_err(DataError::io(folder, "list the folder"))?;
        let name = entry.file_name();
        if is_left_by_tools(&name) {
            continue;
        }
        let kind = entry
            .file_type()
            .map_err(DataError::io(folder, "list the folder"))?;
        entries.push(Entry::look_up(entry.path(), kind.is_symlink())?);
    }
    entries.sort_by(|a, b| a.path.file_name().cmp(&b.path.file_name()));
    Ok(entries)
}

/// A file name as text, such that distinct names have distinct texts. Bytes that are not UTF-8 are written as `\xE9`,
/// and backslashes are doubled.
pub(crate) fn distinct_name(name: &OsStr) -> String {
    let plain = name.to_str().filter(|name| !name.contains('\\'));
    if let Some(plain) = plain {
        return plain.to_owned();
    }
    let mut text = String::new();
    for chunk in name.as_encoded_bytes().utf8_chunks() {
        text.push_str(&chunk.valid().replace('\\', "\\\\"));
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02X}"));
        }
    }
    text
}
