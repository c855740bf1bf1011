//! Image folders with one subfolder per class, as `torchvision.datasets.ImageFolder` reads them.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::dataset::{Dataset, ONLY_CLASS, OpenOptions};
use crate::entries::{Entry, distinct_name, sorted_entries};
use crate::error::DataError;
use crate::fingerprint::Fingerprint;
use crate::formats;
use crate::sample::{CompleteSamples, Image, Sample};

/// Extensions of image files, in any case. The format is detected from the bytes of the file.
const EXTENSIONS: [&str; 10] = [
    "png", "apng", "jpg", "jpeg", "jpe", "jfif", "jif", "pjpeg", "pjp", "webp",
];

/// Largest number of names in one message.
const MAX_NAMES: usize = 20;

/// A folder of class folders, or a flat folder of images without labels.
///
/// Classes are the subfolders, sorted by name. The images of a class are all PNG, JPEG and WebP files
/// below its folder; each folder is sorted by name. Hidden files and folders are ignored, as are those that
/// operating systems add (`__MACOSX`, `@eaDir`). Files with other extensions are skipped and counted in a
/// warning. A folder with images and without class folders has the single class `all`.
///
/// Names that are not UTF-8 stay distinct: their invalid bytes are written as `\xE9`, and backslashes are doubled.
#[derive(Debug)]
pub struct FolderDataset {
    name: String,
    class_names: Vec<String>,
    files: Vec<(PathBuf, i64)>,
    fingerprint: String,
    complete: CompleteSamples,
}

impl FolderDataset {
    /// Lists the folder, and checks the first bytes of some images.
    ///
    /// # Errors
    ///
    /// [`DataError::Layout`] if there is no image, a class folder is empty, there are images beside class
    /// folders, a symbolic link is broken or leads to a parent folder, or none of the checked files is an image of
    /// a supported format; [`DataError::Io`] if a folder cannot be listed.
    pub fn open(root: &Path, name: String, options: &OpenOptions) -> Result<Self, DataError> {
        let layout = |path: &Path, problem: String, fix| DataError::Layout {
            path: path.to_path_buf(),
            problem,
            fix,
        };
        let identity = fs::metadata(root).map_err(DataError::io(root, "list the folder"))?;
        let mut listing = Listing {
            skipped: BTreeMap::new(),
            broken: Vec::new(),
            ancestors: vec![(identity.dev(), identity.ino())],
        };
        let (folders, loose): (Vec<_>, Vec<_>) = sorted_entries(root)?
            .into_iter()
            .partition(|entry| entry.is_dir);
        let mut loose_images = Vec::new();
        for entry in loose {
            listing.add_file(entry, &mut loose_images);
        }
        let loose = loose_images;
        let mut classes = Vec::new();
        for folder in folders {
            let mut images = Vec::new();
            listing.collect(&folder, &mut images)?;
            classes.push((folder, images));
        }
        if !listing.broken.is_empty() {
            return Err(layout(
                root,
                format!("has broken links: {}", abbreviated(&listing.broken)),
                "remove the links, or restore their targets",
            ));
        }
        let empty: Vec<_> = classes
            .iter()
            .filter(|(_, images)| images.is_empty())
            .map(|(folder, _)| format!("`{}`", folder.name))
            .collect();
        match loose.first() {
            None if empty.len() == classes.len() => {
                let found = match listing.skipped.is_empty() {
                    true => String::new(),
                    false => format!(
                        " of a supported format; files by extension: {}",
                        listing.counts()
                    ),
                };
                return Err(layout(
                    root,
                    format!("has no image{found}"),
                    "expected state.json (Hugging Face `save_to_disk`), .parquet files, .tar files (WebDataset), or .png, .jpg, .jpeg \
                     and .webp files in class folders",
                ));
            }
            None if !empty.is_empty() => {
                return Err(layout(
                    root,
                    match empty.len() {
                        1 => format!("the class folder {} has no image", empty[0]),
                        count => {
                            format!(
                                "{count} class folders have no image: {}",
                                abbreviated(&empty)
                            )
                        }
                    },
                    "remove them, or put .png, .jpg, .jpeg or .webp files into them",
                ));
            }
            Some(image) if !classes.is_empty() => {
                return Err(layout(
                    root,
                    format!("has the image `{}` beside class folders", image.name),
                    "keep all images in class folders, or all in one folder without subfolders",
                ));
            }
            _ => {}
        }
        if !listing.skipped.is_empty() {
            let count: u64 = listing.skipped.values().sum();
            tracing::warn!(
                "{}: skipped {count} files that are not PNG, JPEG or WebP: {}",
                root.display(),
                listing.counts()
            );
        }

        let mut fingerprint = Fingerprint::default();
        fingerprint.text("folder");
        fingerprint.number(u64::from(options.unlabelled));
        let one_class = options.unlabelled || classes.is_empty();
        let class_names = match one_class {
            true => vec![ONLY_CLASS.to_owned()],
            false => classes
                .iter()
                .map(|(folder, _)| folder.name.clone())
                .collect(),
        };
        let mut files = Vec::new();
        let groups = classes.into_iter().map(|(_, images)| images);
        for (label, images) in groups.chain([loose]).enumerate() {
            for image in images {
                fingerprint.text(&image.name);
                fingerprint.number(image.size);
                files.push((image.path, if one_class { 0 } else { label as i64 }));
            }
        }
        let survey = formats::survey(files.len() as u64, |index| {
            // A file that cannot be opened is reported when it is read.
            Ok(first_bytes(&files[index as usize].0).unwrap_or_default())
        })?;
        if let (Some((index, unsupported)), true) = (survey.unsupported, survey.all_unsupported) {
            return Err(layout(
                &files[index as usize].0,
                format!("the file is {unsupported}"),
                "replace such files with PNG, JPEG or WebP images",
            ));
        }
        Ok(Self {
            name,
            class_names,
            complete: CompleteSamples::new(files.len() as u64),
            files,
            fingerprint: fingerprint.finish(),
        })
    }

    fn file(&self, index: u64) -> Result<(&Path, i64), DataError> {
        let entry = usize::try_from(index)
            .ok()
            .and_then(|index| self.files.get(index));
        let (path, label) = entry.ok_or_else(|| DataError::Index {
            dataset: self.name.clone(),
            index,
            len: self.len(),
        })?;
        Ok((path, *label))
    }
}

/// The state of listing an image folder.
struct Listing {
    /// Number of files that are not images, by extension.
    skipped: BTreeMap<String, u64>,
    /// Broken symbolic links.
    broken: Vec<String>,
    /// Device and inode number of the folder being listed and of its ancestors, to detect loops.
    ancestors: Vec<(u64, u64)>,
}

impl Listing {
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
        for mut entry in sorted_entries(&folder.path)? {
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

    /// The numbers of skipped files, in descending order: `.bmp` 5, `.tif` 2.
    fn counts(&self) -> String {
        let mut counts: Vec<_> = self.skipped.iter().collect();
        counts.sort_by_key(|&(_, count)| Reverse(count));
        let counts = counts
            .iter()
            .map(|(extension, count)| match extension.as_str() {
                "" => format!("no extension {count}"),
                extension => format!("`.{extension}` {count}"),
            });
        abbreviated(&counts.collect::<Vec<_>>())
    }
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
fn abbreviated(names: &[String]) -> String {
    let shown = names.get(..MAX_NAMES).unwrap_or(names).join(", ");
    match names.len().saturating_sub(MAX_NAMES) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

fn first_bytes(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = fs::File::open(path)?;
    file.take(formats::HEAD as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl Dataset for FolderDataset {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> u64 {
        self.files.len() as u64
    }

    fn class_names(&self) -> &[String] {
        &self.class_names
    }

    fn read(&self, index: u64) -> Result<Sample, DataError> {
        let (path, label) = self.file(index)?;
        let bytes = fs::read(path).map_err(DataError::io(path, "read the image"))?;
        let image = Image::decode_sample(&bytes, index, &self.complete).map_err(|error| {
            DataError::Sample {
                dataset: self.name.clone(),
                index,
                reason: format!("{}: {error}", path.display()),
            }
        })?;
        Ok(Sample {
            index,
            image,
            label,
        })
    }

    fn label(&self, index: u64) -> Result<i64, DataError> {
        Ok(self.file(index)?.1)
    }

    fn path(&self, index: u64) -> Option<&Path> {
        let (path, _) = self.file(index).ok()?;
        Some(path)
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}
