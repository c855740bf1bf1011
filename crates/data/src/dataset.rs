//! The trait that all data sets share, and the one function that opens them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

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

    /// Names of the classes, in the order of the labels.
    fn class_names(&self) -> &[String];

    /// Reads and decodes one sample.
    ///
    /// # Errors
    ///
    /// [`DataError::Sample`] if this sample is damaged, [`DataError::Index`] if there is none,
    /// [`DataError::Io`] if the file system fails.
    fn read(&self, index: u64) -> Result<Sample, DataError>;

    /// The label of one sample, without decoding its image where the data set can do that.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    fn label(&self, index: u64) -> Result<i64, DataError> {
        Ok(self.read(index)?.label)
    }

    /// A stable hash, 32 hexadecimal digits, of what the samples are: file names and sizes, columns,
    /// and what `save_to_disk` recorded. It does not depend on where the folder is. Checkpoints and
    /// feature caches keep it, so as not to be used with other data.
    fn fingerprint(&self) -> &str;
}

/// How to open a data set. The default finds out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OpenOptions {
    /// The split, which is the name of a subfolder: `train`, `val`.
    pub split: Option<String>,
    /// Arrow: the column of encoded images. Otherwise the only one of type `Image`, or `image`.
    pub image_column: Option<String>,
    /// Arrow: the column of labels. Otherwise `label`, or the only one of type `ClassLabel`.
    pub label_column: Option<String>,
    /// Ignore labels: all are 0, and the one class is `all`.
    pub unlabelled: bool,
}

/// Name of the one class where there are no labels.
pub(crate) const ONLY_CLASS: &str = "all";

/// Opens a data set, whichever kind the folder is.
///
/// A folder with `state.json` was written by Hugging Face `save_to_disk`; any other is taken as
/// class folders of PNG, JPEG and WebP files, or images in one flat folder. Splits are subfolders.
///
/// # Errors
///
/// Says what was looked for where the folder is missing, empty, or half of something; see
/// [`DataError`].
pub fn open(path: impl AsRef<Path>, options: &OpenOptions) -> Result<Arc<dyn Dataset>, DataError> {
    let path = path.as_ref();
    check_folder(path)?;
    let root = find_split(path, options.split.as_deref())?;
    let name = name_of(path, &root);
    if root.join(STATE).is_file() {
        Ok(Arc::new(ArrowDataset::open(&root, name, options)?))
    } else if let Some(found) = half_of_save_to_disk(&root)? {
        Err(DataError::Layout {
            path: root,
            problem: format!("has {found} but no {STATE}"),
            fix: "copy the whole folder that `save_to_disk` wrote, or write it again",
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
        looked_for: "a folder written by Hugging Face `save_to_disk` (state.json, data-*.arrow), \
                     or a folder of class folders with PNG, JPEG or WebP files",
    };
    match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => Ok(()),
        Ok(_) => Err(missing("is a file")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(missing("no such folder"))
        }
        Err(source) => Err(DataError::io(path, "open the data folder")(source)),
    }
}

/// The folder that holds the samples.
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
                problem: format!("is one split itself, and has no split `{split}` inside"),
                fix: "leave `split` out, or give the folder above",
            }),
            false => Err(failed(
                format!("there is no split `{split}`"),
                subfolders(path)?,
            )),
        };
    }
    if path.join(STATE).is_file() {
        return Ok(path.to_path_buf());
    }
    let folders = subfolders(path)?;
    let saved: Vec<_> = folders
        .iter()
        .filter(|name| path.join(name).join(STATE).is_file())
        .cloned()
        .collect();
    match saved.as_slice() {
        [] => {}
        [only] => return Ok(path.join(only)),
        _ => {
            return Err(failed(
                "has several splits and none was named".to_owned(),
                saved,
            ));
        }
    }
    const SPLITS: [&str; 6] = ["train", "val", "valid", "validation", "test", "eval"];
    if !folders.is_empty() && folders.iter().all(|name| SPLITS.contains(&name.as_str())) {
        return Err(failed(
            "its folders are splits, not classes".to_owned(),
            folders,
        ));
    }
    Ok(path.to_path_buf())
}

fn subfolders(path: &Path) -> Result<Vec<String>, DataError> {
    let entries = sorted_entries(path)?;
    let folders = entries.into_iter().filter(|entry| entry.is_dir);
    Ok(folders.map(|entry| entry.name).collect())
}

fn half_of_save_to_disk(root: &Path) -> Result<Option<String>, DataError> {
    let names = sorted_entries(root)?
        .into_iter()
        .filter(|entry| !entry.is_dir);
    Ok(names
        .map(|entry| entry.name)
        .find(|name| name.ends_with(".arrow") || name == "dataset_info.json"))
}

fn name_of(path: &Path, root: &Path) -> String {
    let last = |path: &Path| {
        path.file_name()
            .map(|name| name.to_string_lossy().into_owned())
    };
    let parent = root.parent().and_then(last);
    match (parent, last(root)) {
        (Some(parent), Some(split)) if root != path => format!("{parent}/{split}"),
        (_, Some(name)) => name,
        (_, None) => root.display().to_string(),
    }
}

/// A file or folder inside a folder.
pub(crate) struct Entry {
    pub name: String,
    pub path: PathBuf,
    pub is_dir: bool,
    /// Size in bytes, of files.
    pub size: u64,
}

/// What is in a folder, by name; hidden entries are left out.
pub(crate) fn sorted_entries(folder: &Path) -> Result<Vec<Entry>, DataError> {
    let listing = fs::read_dir(folder).map_err(DataError::io(folder, "list the folder"))?;
    let mut entries = Vec::new();
    for entry in listing {
        let entry = entry.map_err(DataError::io(folder, "list the folder"))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        let path = entry.path();
        // Follows links, as image folders are often made of them.
        let meta = fs::metadata(&path).map_err(DataError::io(&path, "read the size"))?;
        entries.push(Entry {
            name,
            path,
            is_dir: meta.is_dir(),
            size: meta.len(),
        });
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name).then_with(|| a.path.cmp(&b.path)));
    Ok(entries)
}

/// Hashes the parts of a fingerprint, each with its length, so that none runs into the next.
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
