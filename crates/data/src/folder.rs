//! Image folders: one folder a class, as `torchvision.datasets.ImageFolder` reads them.

use std::fs;
use std::path::{Path, PathBuf};

use crate::dataset::{Dataset, Entry, Fingerprint, ONLY_CLASS, OpenOptions, sorted_entries};
use crate::error::DataError;
use crate::sample::{Image, Sample};

const EXTENSIONS: [&str; 4] = ["png", "jpg", "jpeg", "webp"];

/// A folder of class folders, or a flat folder of images without labels.
///
/// Classes are the subfolders in the order of their names; a class's images are all PNG, JPEG and
/// WebP files below its folder, each folder in the order of names. Hidden files are left out. A folder
/// that holds images and no class folders has the one class `all`.
#[derive(Debug)]
pub struct FolderDataset {
    name: String,
    class_names: Vec<String>,
    files: Vec<(PathBuf, i64)>,
    fingerprint: String,
}

impl FolderDataset {
    /// Lists the folder.
    ///
    /// # Errors
    ///
    /// [`DataError::Layout`] if there is no image, a class folder is empty, or there are images
    /// beside class folders; [`DataError::Io`] if a folder cannot be listed.
    pub fn open(root: &Path, name: String, options: &OpenOptions) -> Result<Self, DataError> {
        let layout = |path: &Path, problem: String, fix| DataError::Layout {
            path: path.to_path_buf(),
            problem,
            fix,
        };
        let (folders, loose): (Vec<_>, Vec<_>) = sorted_entries(root)?
            .into_iter()
            .partition(|entry| entry.is_dir);
        let loose: Vec<_> = loose.into_iter().filter(is_image).collect();

        let mut classes = Vec::new();
        for folder in folders {
            let mut images = Vec::new();
            collect_images(&folder.path, &folder.name, &mut images)?;
            classes.push((folder, images));
        }
        match (
            loose.first(),
            classes.iter().find(|(_, images)| images.is_empty()),
        ) {
            (None, _) if classes.iter().all(|(_, images)| images.is_empty()) => {
                return Err(layout(
                    root,
                    "holds no image".to_owned(),
                    "looked for state.json (Hugging Face `save_to_disk`), and for .png, .jpg, \
                     .jpeg and .webp files in class folders",
                ));
            }
            (None, Some((empty, _))) => {
                return Err(layout(
                    &empty.path,
                    "this class folder holds no image".to_owned(),
                    "remove it, or put .png, .jpg, .jpeg or .webp files into it",
                ));
            }
            (Some(image), _) if !classes.is_empty() => {
                return Err(layout(
                    root,
                    format!("has the image `{}` beside class folders", image.name),
                    "keep all images in class folders, or all in one folder without subfolders",
                ));
            }
            _ => {}
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
        Ok(Self {
            name,
            class_names,
            files,
            fingerprint: fingerprint.finish(),
        })
    }

    /// The file of a sample.
    pub fn path(&self, index: u64) -> Option<&Path> {
        let (path, _) = self.file(index).ok()?;
        Some(path)
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

fn is_image(entry: &Entry) -> bool {
    let extension = entry
        .path
        .extension()
        .and_then(|extension| extension.to_str());
    extension.is_some_and(|extension| {
        EXTENSIONS
            .iter()
            .any(|known| extension.eq_ignore_ascii_case(known))
    })
}

/// Adds the images below a folder; their names become paths relative to the data set.
fn collect_images(folder: &Path, prefix: &str, images: &mut Vec<Entry>) -> Result<(), DataError> {
    for mut entry in sorted_entries(folder)? {
        entry.name = format!("{prefix}/{}", entry.name);
        if entry.is_dir {
            collect_images(&entry.path, &entry.name, images)?;
        } else if is_image(&entry) {
            images.push(entry);
        }
    }
    Ok(())
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
        let image = Image::decode(&bytes).map_err(|error| DataError::Sample {
            dataset: self.name.clone(),
            index,
            reason: format!("{}: {error}", path.display()),
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

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}
