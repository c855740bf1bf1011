//! The trait of all data sets, and the function that opens them.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::arrow::ArrowDataset;
use crate::error::DataError;
use crate::folder::FolderDataset;
use crate::sample::Sample;

/// Labelled images with random access.
pub trait Dataset: Send + Sync {
    /// A short name for messages, such as `emoji64/train`.
    fn name(&self) -> &str;

    /// Number of samples.
    fn len(&self) -> u64;

    /// Whether there are no samples.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Names of the classes, indexed by label.
    fn class_names(&self) -> &[String];

    /// Reads and decodes one sample.
    ///
    /// # Errors
    ///
    /// [`DataError::Sample`] if this sample is damaged, [`DataError::Index`] if `index` is out of
    /// range, [`DataError::Io`] if the file system fails.
    fn read(&self, index: u64) -> Result<Sample, DataError>;

    /// Returns the label of one sample, without decoding its image if the data set supports that.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    fn label(&self, index: u64) -> Result<i64, DataError> {
        Ok(self.read(index)?.label)
    }

    /// The image file of one sample, if each sample has its own file.
    fn path(&self, _index: u64) -> Option<&Path> {
        None
    }

    /// A stable hash, 32 hexadecimal digits, that identifies the samples: file names and sizes, the
    /// columns, and the fingerprint that `save_to_disk` recorded. It does not depend on the location of the
    /// folder. Checkpoints and feature caches store it, so that they are not used with other data.
    fn fingerprint(&self) -> &str;
}

/// How to open a data set. By default, split and columns are detected.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OpenOptions {
    /// The split, which is the name of a subfolder, such as `train` or `val`.
    pub split: Option<String>,
    /// Arrow only: the column of encoded images. By default the only column of type `Image`, or `image`.
    pub image_column: Option<String>,
    /// Arrow only: the column of labels. By default `label`, or the only column of type `ClassLabel`.
    pub label_column: Option<String>,
    /// Ignore labels: every label is 0, and the only class is `all`.
    pub unlabelled: bool,
}

/// Name of the only class of a data set without labels.
pub(crate) const ONLY_CLASS: &str = "all";

/// Opens a data set and detects the format of its folder.
///
/// A folder with `state.json` was written by Hugging Face `save_to_disk`. Any other folder is read as
/// class folders of PNG, JPEG and WebP files, or as one flat folder of images. Splits are subfolders.
///
/// # Errors
///
/// The folder is missing, empty or incomplete, or its content cannot be used as a data set; see
/// [`DataError`].
pub fn open(path: impl AsRef<Path>, options: &OpenOptions) -> Result<Arc<dyn Dataset>, DataError> {
    let path = path.as_ref();
    check_folder(path)?;
    let root = find_split(path, options.split.as_deref())?;
    let name = name_of(path, &root);
    if root.join(STATE).is_file() {
        Ok(Arc::new(ArrowDataset::open(&root, name, options)?))
    } else if let Some(found) = save_to_disk_remnant(&root)? {
        Err(DataError::Layout {
            path: root,
            problem: format!("has {found} but no {STATE}"),
            fix: "copy the complete folder that `save_to_disk` wrote, or write it again",
        })
    } else {
        Ok(Arc::new(FolderDataset::open(&root, name, options)?))
    }
}

const STATE: &str = "state.json";

fn check_folder(path: &Path) -> Result<(), DataError> {
    let missing = |found| DataError::NotFound {
        path: path.to_path_buf(),
        found,
        expected: "a folder written by Hugging Face `save_to_disk` (state.json, data-*.arrow), \
                     or a folder of class folders with PNG, JPEG or WebP files",
    };
    match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => Ok(()),
        Ok(_) => Err(missing("is a file")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(missing("no such folder")),
        Err(source) => Err(DataError::io(path, "open the data folder")(source)),
    }
}

/// Returns the folder that holds the samples.
fn find_split(path: &Path, split: Option<&str>) -> Result<PathBuf, DataError> {
    let failed = |problem: String, available| DataError::Split {
        path: path.to_path_buf(),
        problem,
        available,
    };
    if let Some(split) = split {
        let folder = path.join(split);
        let inside = !split.is_empty() && !split.contains(['/', '\\']) && split != "..";
        return match inside && folder.is_dir() {
            true => Ok(folder),
            false if path.join(STATE).is_file() => Err(DataError::Layout {
                path: path.to_path_buf(),
                problem: format!("is a single split itself and contains no split `{split}`"),
                fix: "omit `split`, or set the path to the parent folder",
            }),
            false => Err(failed(
                format!("there is no split `{split}`"),
                subfolders(path)?
                    .into_iter()
                    .map(|folder| folder.name)
                    .collect(),
            )),
        };
    }
    if path.join(STATE).is_file() {
        return Ok(path.to_path_buf());
    }
    let folders = subfolders(path)?;
    let saved: Vec<_> = folders
        .iter()
        .filter(|folder| folder.path.join(STATE).is_file())
        .collect();
    match saved.as_slice() {
        [] => {}
        [only] => return Ok(only.path.clone()),
        _ => {
            return Err(failed(
                "has several splits, and `split` is not set".to_owned(),
                saved
                    .into_iter()
                    .map(|folder| folder.name.clone())
                    .collect(),
            ));
        }
    }
    let folders: Vec<_> = folders.into_iter().map(|folder| folder.name).collect();
    const SPLITS: [&str; 6] = ["train", "val", "valid", "validation", "test", "eval"];
    if !folders.is_empty() && folders.iter().all(|name| SPLITS.contains(&name.as_str())) {
        return Err(failed(
            "its subfolders are splits, not classes, and `split` is not set".to_owned(),
            folders,
        ));
    }
    Ok(path.to_path_buf())
}

fn subfolders(path: &Path) -> Result<Vec<Entry>, DataError> {
    let entries = sorted_entries(path)?;
    Ok(entries.into_iter().filter(|entry| entry.is_dir).collect())
}

/// The name of a file that `save_to_disk` writes, if the folder has one.
fn save_to_disk_remnant(root: &Path) -> Result<Option<String>, DataError> {
    let names = sorted_entries(root)?
        .into_iter()
        .filter(|entry| !entry.is_dir);
    Ok(names
        .map(|entry| entry.name)
        .find(|name| name.ends_with(".arrow") || name == "dataset_info.json"))
}

/// The name of a data set in messages: `FOLDER/SPLIT`, or the folder alone if it is the split itself.
fn name_of(path: &Path, root: &Path) -> String {
    let last = |path: &Path| path.file_name().map(distinct_name);
    let parent = root.parent().and_then(last);
    match (parent, last(root)) {
        (Some(parent), Some(split)) if root != path => format!("{parent}/{split}"),
        (_, Some(name)) => name,
        (_, None) => root.display().to_string(),
    }
}

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
    /// For a broken symbolic link, what is wrong with it.
    pub broken: Option<String>,
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

/// Lists a folder, sorted by name, without hidden entries and those of [`LEFT_BY_TOOLS`].
pub(crate) fn sorted_entries(folder: &Path) -> Result<Vec<Entry>, DataError> {
    let listing = fs::read_dir(folder).map_err(DataError::io(folder, "list the folder"))?;
    let mut entries = Vec::new();
    for entry in listing {
        let entry = entry.map_err(DataError::io(folder, "list the folder"))?;
        let name = entry.file_name();
        let hidden = name.as_encoded_bytes().starts_with(b".");
        if hidden || LEFT_BY_TOOLS.iter().any(|&left| name == left) {
            continue;
        }
        let path = entry.path();
        let name = distinct_name(&name);
        // Follows symbolic links, because image folders often consist of them.
        match fs::metadata(&path) {
            Ok(meta) => entries.push(Entry {
                name,
                path,
                is_dir: meta.is_dir(),
                size: meta.len(),
                identity: (meta.dev(), meta.ino()),
                broken: None,
            }),
            Err(error) => {
                let Ok(target) = fs::read_link(&path) else {
                    return Err(DataError::io(&path, "read the size")(error));
                };
                let is_loop = error.raw_os_error() == Some(Errno::LOOP.raw_os_error());
                let problem = match error.kind() {
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => "does not exist",
                    _ if is_loop => "is part of a loop of links",
                    _ => return Err(DataError::io(&path, "read the size")(error)),
                };
                entries.push(Entry {
                    broken: Some(format!("-> `{}`, which {problem}", target.display())),
                    name,
                    path,
                    is_dir: false,
                    size: 0,
                    identity: (0, 0),
                });
            }
        }
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

/// Hashes the parts of a fingerprint. The length of each text is hashed too, so that different sequences of texts
/// never give the same input.
#[derive(Default)]
pub(crate) struct Fingerprint(Sha256);

impl Fingerprint {
    pub(crate) fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.0.update(text.as_bytes());
    }

    pub(crate) fn number(&mut self, number: u64) {
        self.0.update(number.to_le_bytes());
    }

    pub(crate) fn finish(self) -> String {
        self.0
            .finalize()
            .iter()
            .take(16)
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}
