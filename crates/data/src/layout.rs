//! Finds the samples in a folder: their format, their split and their files.

mod contents;

use std::path::{Path, PathBuf};

use self::contents::{Contents, Kind, SPLITS, STATE, name_of};
use crate::error::DataError;

/// The folder of a data set on the Hugging Face Hub that holds the Parquet files.
const HUB_FOLDER: &str = "data";

/// Where the samples of one split are, and in which format.
pub(crate) struct Layout {
    /// The folder with the files of the split.
    pub root: PathBuf,
    /// The name of the split, unless the folder that was opened is the split itself.
    pub split: Option<String>,
    pub format: Format,
}

/// The format of a data set.
pub(crate) enum Format {
    /// A folder of `save_to_disk`.
    Arrow,
    /// Parquet files, sorted by name.
    Parquet(Vec<PathBuf>),
    /// Tar files of WebDataset, sorted by name.
    Tar(Vec<PathBuf>),
    /// Image files, in class folders or not.
    Images,
}

impl Layout {
    /// Finds the split in an existing folder. Without a name, the folder must have only one split.
    pub(crate) fn find(path: &Path, split: Option<&str>) -> Result<Self, DataError> {
        let contents = Contents::of(path)?;
        match split {
            Some(split) => named(path, contents, split),
            None => only(path, contents),
        }
    }
}

fn named(path: &Path, contents: Contents, split: &str) -> Result<Layout, DataError> {
    let inside = !split.is_empty() && !split.contains(['/', '\\']) && split != "..";
    let folder = path.join(split);
    if inside && folder.is_dir() {
        return Contents::of(&folder)?.into_layout(folder, Some(split), split);
    }
    let mut available: Vec<_> = contents.folders.iter().map(|path| name_of(path)).collect();
    let hub = hub_contents(path, &contents)?;
    if hub.is_some() {
        available.retain(|name| name != HUB_FOLDER);
    }
    let is_split = contents.has_state || contents.is_one_split_without_name();
    for (root, contents) in [(path.to_path_buf(), Some(contents))]
        .into_iter()
        .chain([(path.join(HUB_FOLDER), hub)])
    {
        let Some(contents) = contents else { continue };
        let splits = contents.splits();
        if splits.contains_key(&Some(split.to_owned())) {
            return contents.into_layout(root, Some(split), split);
        }
        available.extend(splits.into_keys().flatten());
    }
    match is_split {
        true => Err(DataError::Layout {
            path: path.to_path_buf(),
            problem: format!("is a single split itself and contains no split `{split}`"),
            fix: "omit `split`, or set the path to the parent folder",
        }),
        false => Err(DataError::Split {
            path: path.to_path_buf(),
            problem: format!("there is no split `{split}`"),
            available,
        }),
    }
}

fn only(path: &Path, contents: Contents) -> Result<Layout, DataError> {
    if contents.has_state || contents.has_shards() {
        return contents.into_layout(path.to_path_buf(), None, "");
    }
    if let Some(hub) = hub_contents(path, &contents)? {
        return hub.into_layout(path.join(HUB_FOLDER), None, "");
    }
    let failed = |problem: &str, available| DataError::Split {
        path: path.to_path_buf(),
        problem: problem.to_owned(),
        available,
    };
    let (mut saved, mut shards, mut has_images) = (Vec::new(), Vec::new(), false);
    for folder in &contents.folders {
        match Kind::of(folder)? {
            _ if folder.join(STATE).is_file() => saved.push(folder),
            Kind::Images => has_images = true,
            Kind::Shards => shards.push(folder),
            Kind::Other => {}
        }
    }
    // Beside class folders, a folder of tar files is not a split.
    if !has_images {
        saved.extend(shards);
        saved.sort();
    }
    match saved.as_slice() {
        [] => {}
        [folder] => {
            let name = name_of(folder);
            return Contents::of(folder)?.into_layout(folder.to_path_buf(), Some(&name), &name);
        }
        _ => {
            let names = saved.into_iter().map(|folder| name_of(folder)).collect();
            return Err(failed("has several splits, and `split` is not set", names));
        }
    }
    let names: Vec<_> = contents.folders.iter().map(|path| name_of(path)).collect();
    if !names.is_empty() && names.iter().all(|name| SPLITS.contains(&name.as_str())) {
        return Err(failed(
            "its subfolders are splits, not classes, and `split` is not set",
            names,
        ));
    }
    contents.into_layout(path.to_path_buf(), None, "")
}

/// The subfolder `data`, if it has Parquet or tar files.
fn hub_contents(path: &Path, contents: &Contents) -> Result<Option<Contents>, DataError> {
    if !contents
        .folders
        .iter()
        .any(|path| path.ends_with(HUB_FOLDER))
    {
        return Ok(None);
    }
    let hub = Contents::of(&path.join(HUB_FOLDER))?;
    Ok(hub.has_shards().then_some(hub))
}
