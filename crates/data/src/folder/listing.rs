//! Lists the files of an image folder.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::index::{Index, Rules};
use crate::entries::{Entry, distinct_name};
use crate::error::DataError;
use crate::subset::evenly_spaced;

/// Extensions of image files, in any case. The format is detected from the bytes of the file.
const EXTENSIONS: [&str; 10] = [
    "png", "apng", "jpg", "jpeg", "jpe", "jfif", "jif", "pjpeg", "pjp", "webp",
];

/// Largest number of names in one message.
const MAX_NAMES: usize = 20;

/// The content of an image folder.
pub(super) struct Listing {
    /// The subfolders with the images below them, whose names are paths relative to the data set.
    pub classes: Vec<(Entry, Vec<Entry>)>,
    /// Images outside of the subfolders.
    pub loose: Vec<Entry>,
    /// Number of files that are not images, by extension.
    pub skipped: BTreeMap<String, u64>,
    /// Broken symbolic links.
    pub broken: Vec<String>,
    /// The index that was used, with the folders that were listed.
    pub index: Index,
    /// Device and inode number of the folder being listed and of its ancestors, to detect loops.
    ancestors: Vec<(u64, u64)>,
}

impl Listing {
    /// Lists a folder, with the help of its index if there is one.
    pub(super) fn of(root: &Path, rules: &Rules) -> Result<Self, DataError> {
        let listing = Self::with(root, Index::load(root, rules))?;
        match listing.index.was_used() && !listing.sizes_agree() {
            true => Self::with(root, Index::empty(root, rules)),
            false => Ok(listing),
        }
    }

    fn with(root: &Path, index: Index) -> Result<Self, DataError> {
        let identity = fs::metadata(root).map_err(DataError::io(root, "list the folder"))?;
        let mut listing = Self {
            classes: Vec::new(),
            loose: Vec::new(),
            skipped: BTreeMap::new(),
            broken: Vec::new(),
            index,
            ancestors: vec![(identity.dev(), identity.ino())],
        };
        let (folders, files): (Vec<_>, Vec<_>) = listing
            .index
            .entries(root)?
            .into_iter()
            .partition(|entry| entry.is_dir);
        let mut loose = Vec::new();
        for entry in files {
            listing.add_file(entry, &mut loose);
        }
        listing.loose = loose;
        for folder in folders {
            let mut images = Vec::new();
            listing.collect(&folder, &mut images)?;
            listing.classes.push((folder, images));
        }
        Ok(listing)
    }

    /// Adds the images below a folder. Their names become paths relative to the data set.
    fn collect(&mut self, folder: &Entry, images: &mut Vec<Entry>) -> Result<(), DataError> {
        if self.ancestors.contains(&folder.identity) {
            return Err(DataError::Layout {
                path: folder.path.clone(),
                problem: "this link leads to one of its parent folders".to_owned(),
                fix: "remove the link",
            });
        }
        self.ancestors.push(folder.identity);
        for mut entry in self.index.entries(&folder.path)? {
            entry.name = format!("{}/{}", folder.name, entry.name);
            match entry.is_dir {
                true => self.collect(&entry, images)?,
                false => self.add_file(entry, images),
            }
        }
        self.ancestors.pop();
        Ok(())
    }

    /// Adds a file to the images, or records why it is not one.
    fn add_file(&mut self, entry: Entry, images: &mut Vec<Entry>) {
        if let Some(problem) = &entry.broken {
            self.broken.push(format!("`{}` {problem}", entry.name));
            return;
        }
        match is_image_name(&entry.path) {
            true => images.push(entry),
            false => *self.skipped.entry(extension_of(&entry.path)).or_default() += 1,
        }
    }

    /// Whether a selection of images still has the listed sizes. A file that is written again in place does not change its
    /// folder.
    fn sizes_agree(&self) -> bool {
        const CHECKED: u64 = 1000;
        let classes = self.classes.iter().flat_map(|(_, images)| images);
        let images: Vec<&Entry> = classes.chain(&self.loose).collect();
        let len = images.len() as u64;
        evenly_spaced(len.min(CHECKED), len)
            .into_iter()
            .all(|index| {
                let image = images[index as usize];
                fs::metadata(&image.path).is_ok_and(|found| found.len() == image.size)
            })
    }
}

/// The numbers of skipped files, in descending order: `.bmp` 5, `.tif` 2.
pub(super) fn counts(skipped: &BTreeMap<String, u64>) -> String {
    let mut counts: Vec<_> = skipped.iter().collect();
    counts.sort_by_key(|&(_, count)| Reverse(count));
    let counts = counts
        .iter()
        .map(|(extension, count)| match extension.as_str() {
            "" => format!("no extension {count}"),
            extension => format!("`.{extension}` {count}"),
        });
    abbreviated(&counts.collect::<Vec<_>>())
}

/// Whether a file has the extension of an image.
pub(crate) fn is_image_name(path: &Path) -> bool {
    EXTENSIONS.contains(&extension_of(path).as_str())
}

/// The extension of a file in lower case.
fn extension_of(path: &Path) -> String {
    let extension = path.extension().map(distinct_name);
    extension.unwrap_or_default().to_ascii_lowercase()
}

/// The first [`MAX_NAMES`] names, and the number of further ones.
pub(super) fn abbreviated(names: &[String]) -> String {
    let shown = names.get(..MAX_NAMES).unwrap_or(names).join(", ");
    match names.len().saturating_sub(MAX_NAMES) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
