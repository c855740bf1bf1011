//! What a folder has: the files of which formats, and of which splits.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::{Format, Layout};
use crate::entries::{distinct_name, is_left_by_tools};
use crate::error::DataError;
use crate::folder::is_image_name;

/// The file that every folder of `save_to_disk` has.
pub(super) const STATE: &str = "state.json";

/// Common names of splits.
pub(super) const SPLITS: [&str; 6] = ["train", "val", "valid", "validation", "test", "eval"];

/// The name of a file or folder as text.
pub(super) fn name_of(path: &Path) -> String {
    path.file_name().map(distinct_name).unwrap_or_default()
}

/// What a folder has, by name.
#[derive(Default)]
pub(super) struct Contents {
    pub(super) has_state: bool,
    /// A file that `save_to_disk` writes, other than `state.json`.
    saved: Option<String>,
    parquet: Vec<PathBuf>,
    tars: Vec<PathBuf>,
    compressed_tar: Option<String>,
    image: Option<String>,
    /// The subfolders, sorted.
    pub(super) folders: Vec<PathBuf>,
}

impl Contents {
    /// Lists a folder. Only links are looked up: a folder can have a million files.
    pub(super) fn of(folder: &Path) -> Result<Self, DataError> {
        let mut contents = Self::default();
        let failed = |error| DataError::io(folder, "list the folder")(error);
        for entry in fs::read_dir(folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let file_name = entry.file_name();
            if is_left_by_tools(&file_name) {
                continue;
            }
            let path = entry.path();
            let name = distinct_name(&file_name);
            let kind = entry.file_type().map_err(failed)?;
            if is_image_name(&path) && !kind.is_dir() {
                contents.image.get_or_insert(name);
                continue;
            }
            if kind.is_dir() || (kind.is_symlink() && path.is_dir()) {
                contents.folders.push(path);
                continue;
            }
            match ShardFormat::of(&name) {
                Some(ShardFormat::Parquet) => contents.parquet.push(path),
                Some(ShardFormat::Tar) => contents.tars.push(path),
                Some(ShardFormat::CompressedTar) => contents.compressed_tar = Some(name),
                None if name == STATE => contents.has_state = true,
                None if name.ends_with(".arrow") || name == "dataset_info.json" => {
                    contents.saved = Some(name);
                }
                None => {}
            }
        }
        contents.parquet.sort();
        contents.tars.sort();
        contents.folders.sort();
        Ok(contents)
    }

    pub(super) fn has_shards(&self) -> bool {
        !self.parquet.is_empty() || !self.tars.is_empty()
    }

    /// The Parquet or tar files by the split in their names.
    pub(super) fn splits(&self) -> BTreeMap<Option<String>, Vec<PathBuf>> {
        let mut splits = BTreeMap::<_, Vec<PathBuf>>::new();
        for file in self.parquet.iter().chain(&self.tars) {
            splits.entry(split_of(file)).or_default().push(file.clone());
        }
        splits
    }

    pub(super) fn is_one_split_without_name(&self) -> bool {
        self.splits().keys().eq([&None])
    }

    /// The layout of the folder `root`. If its files belong to several splits, those of `preferred` are used.
    pub(super) fn into_layout(
        self,
        root: PathBuf,
        split: Option<&str>,
        preferred: &str,
    ) -> Result<Layout, DataError> {
        self.check_formats(&root)?;
        let mut splits = self.splits();
        let files = match (splits.remove(&Some(preferred.to_owned())), splits.len()) {
            (Some(files), _) => files,
            (None, 0) => Vec::new(),
            (None, 1) => splits.into_values().flatten().collect(),
            (None, _) => {
                return Err(DataError::Split {
                    path: root,
                    problem: "has files of several splits, and none of them is chosen".to_owned(),
                    available: splits.into_keys().flatten().collect(),
                });
            }
        };
        let format = match (
            self.has_state,
            self.parquet.is_empty(),
            self.tars.is_empty(),
        ) {
            (true, ..) => Format::Arrow,
            (false, false, _) => Format::Parquet(files),
            (false, true, false) => Format::Tar(files),
            (false, true, true) => Format::Images,
        };
        Ok(Layout {
            root,
            split: split.map(str::to_owned),
            format,
        })
    }

    /// Refuses a folder with files of several formats, and one whose only files are an incomplete or unreadable data
    /// set.
    fn check_formats(&self, root: &Path) -> Result<(), DataError> {
        let refused = |problem: String, fix| {
            Err(DataError::Layout {
                path: root.to_path_buf(),
                problem,
                fix,
            })
        };
        let saved = match self.has_state {
            true => Some(STATE),
            false => self
                .saved
                .as_deref()
                .filter(|name| name.ends_with(".arrow")),
        };
        let name = |files: &[PathBuf]| files.first().map(|path| name_of(path));
        let images = match (&self.image, self.has_shards()) {
            (None, true) => self.first_image_folder()?,
            (image, _) => image.clone(),
        };
        let found = [
            ("Arrow files of `save_to_disk`", saved.map(str::to_owned)),
            ("Parquet files", name(&self.parquet)),
            ("tar files", name(&self.tars)),
            ("images", images.filter(|_| self.has_shards())),
        ];
        let found: Vec<String> = found
            .into_iter()
            .filter_map(|(what, name)| name.map(|name| format!("{what} (`{name}`)")))
            .collect();
        if found.len() > 1 {
            return refused(
                format!("has data of several formats: {}", found.join(" and ")),
                "keep one format in this folder and move the other files elsewhere",
            );
        }
        let complete = self.has_state || self.has_shards();
        if let (Some(saved), false) = (&self.saved, complete) {
            return refused(
                format!("has {saved} but no {STATE}"),
                "copy the complete folder that `save_to_disk` wrote, or write it again",
            );
        }
        let other = complete || self.image.is_some() || !self.folders.is_empty();
        if let (Some(compressed), false) = (&self.compressed_tar, other) {
            return refused(
                format!(
                    "has the compressed tar file `{compressed}`, in which single samples cannot be read"
                ),
                "decompress such files to .tar",
            );
        }
        Ok(())
    }

    /// The first subfolder with images, which would be a class folder.
    fn first_image_folder(&self) -> Result<Option<String>, DataError> {
        for folder in &self.folders {
            if Kind::of(folder)? == Kind::Images {
                return Ok(Some(format!("{}/", name_of(folder))));
            }
        }
        Ok(None)
    }
}

/// What the files of a subfolder are.
#[derive(PartialEq, Eq)]
pub(super) enum Kind {
    Images,
    Shards,
    Other,
}

impl Kind {
    /// Lists the folder up to the first image.
    pub(super) fn of(folder: &Path) -> Result<Self, DataError> {
        let failed = |error| DataError::io(folder, "list the folder")(error);
        let mut kind = Kind::Other;
        for entry in fs::read_dir(folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            if is_left_by_tools(&name) {
                continue;
            }
            if is_image_name(&entry.path()) {
                return Ok(Kind::Images);
            }
            let format = ShardFormat::of(&distinct_name(&name));
            if matches!(format, Some(ShardFormat::Parquet | ShardFormat::Tar)) {
                kind = Kind::Shards;
            }
        }
        Ok(kind)
    }
}

/// The format of a file with many samples, by its name.
enum ShardFormat {
    Parquet,
    Tar,
    CompressedTar,
}

impl ShardFormat {
    fn of(name: &str) -> Option<Self> {
        const COMPRESSED: [&str; 6] = [
            ".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2", ".tar.lz4",
        ];
        // `datasets` reads this file as the labels of an image folder.
        const METADATA: &str = "metadata.parquet";
        let name = name.to_ascii_lowercase();
        if name.ends_with(".parquet") && name != METADATA {
            Some(ShardFormat::Parquet)
        } else if name.ends_with(".tar") {
            Some(ShardFormat::Tar)
        } else if COMPRESSED.iter().any(|end| name.ends_with(end)) {
            Some(ShardFormat::CompressedTar)
        } else {
            None
        }
    }
}

/// The split that the name of a file states: `train` for `train-00000-of-00260.parquet`, `imagenet1k-train-0000.tar`
/// and `test.tar`.
fn split_of(file: &Path) -> Option<String> {
    let stem = distinct_name(file.file_stem()?);
    let is_parquet = file
        .extension()
        .is_some_and(|end| end.eq_ignore_ascii_case("parquet"));
    if is_parquet && let Some((split, _)) = stem.split_once('-') {
        return Some(split.to_owned());
    }
    let mut words = stem.split(|letter: char| !letter.is_alphanumeric());
    words.find(|word| SPLITS.contains(word)).map(str::to_owned)
}
