//! Image folders with one subfolder per class, as `torchvision.datasets.ImageFolder` reads them.
//!
//! The listing of a folder with 10,000 files or more is kept in an index, the hidden file `.irepa-index` in the folder. If
//! the folder is not writable, or has the images itself, the index is in `$XDG_CACHE_HOME/irepa` or `~/.cache/irepa`. The
//! next time, only subfolders that changed are listed; the data set and its fingerprint are the same as without the index.
//!
//! One change is not seen: an image that is written again in place with another size changes no folder. The image itself is
//! read as it is, but the fingerprint stays. The sizes of 1,000 images are compared with the index, so that rewriting all
//! images is noticed. After rewriting a few, delete the index or `touch` the folders concerned.

mod index;
mod listing;

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use self::index::Rules;
pub(crate) use self::listing::is_image_name;
use self::listing::{Listing, abbreviated, counts};
use crate::dataset::{Dataset, ONLY_CLASS, OpenOptions};
use crate::error::DataError;
use crate::fingerprint::Fingerprint;
use crate::formats;
use crate::sample::{CompleteSamples, Image, Sample};

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
        Self::open_with(root, name, options, &Rules::default())
    }

    fn open_with(
        root: &Path,
        name: String,
        options: &OpenOptions,
        rules: &Rules,
    ) -> Result<Self, DataError> {
        let layout = |path: &Path, problem: String, fix| DataError::Layout {
            path: path.to_path_buf(),
            problem,
            fix,
        };
        let Listing {
            classes,
            loose,
            skipped,
            broken,
            index,
            ..
        } = Listing::of(root, rules)?;
        if !broken.is_empty() {
            return Err(layout(
                root,
                format!("has broken links: {}", abbreviated(&broken)),
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
                let found = match skipped.is_empty() {
                    true => String::new(),
                    false => format!(
                        " of a supported format; files by extension: {}",
                        counts(&skipped)
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
        if !skipped.is_empty() {
            let count: u64 = skipped.values().sum();
            tracing::warn!(
                "{}: skipped {count} files that are not PNG, JPEG or WebP: {}",
                root.display(),
                counts(&skipped)
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
        index.save(rules);
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
