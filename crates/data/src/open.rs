//! Opens a folder as a data set, in the format that it has.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::arrow::ArrowDataset;
use crate::dataset::{Dataset, OpenOptions};
use crate::entries::{Entry, distinct_name, sorted_entries};
use crate::error::DataError;
use crate::folder::FolderDataset;
use crate::subset::Subset;

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
    let dataset: Arc<dyn Dataset> = if root.join(STATE).is_file() {
        Arc::new(ArrowDataset::open(&root, name, options)?)
    } else if let Some(found) = save_to_disk_remnant(&root)? {
        return Err(DataError::Layout {
            path: root,
            problem: format!("has {found} but no {STATE}"),
            fix: "copy the complete folder that `save_to_disk` wrote, or write it again",
        });
    } else {
        Arc::new(FolderDataset::open(&root, name, options)?)
    };
    Ok(match options.limit {
        Some(limit) => Subset::limit(dataset, limit.get()),
        None => dataset,
    })
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
