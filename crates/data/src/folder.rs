//! Image folders: one folder a class, as `torchvision.datasets.ImageFolder` reads them.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::dataset::{
    Dataset, Entry, Fingerprint, ONLY_CLASS, OpenOptions, distinct_name, sorted_entries,
};
use crate::error::DataError;
use crate::formats;
use crate::sample::{Image, KnownWhole, Sample};

/// File names of these extensions, in any case, are images; which of the formats that are read one has, its bytes say.
const EXTENSIONS: [&str; 10] = [
    "png", "apng", "jpg", "jpeg", "jpe", "jfif", "jif", "pjpeg", "pjp", "webp",
];

/// Names in one message.
const NAMED: usize = 20;

/// A folder of class folders, or a flat folder of images without labels.
///
/// Classes are the subfolders in the order of their names; a class's images are all PNG, JPEG and
/// WebP files below its folder, each folder in the order of names. Left out are hidden files and folders, and what
/// operating systems add (`__MACOSX`, `@eaDir`). Files with other extensions are passed over and counted in a warning. A folder
/// that holds images and no class folders has the one class `all`.
///
/// Names that are not UTF-8 stay distinct: other bytes are written as `\xE9`, and backslashes are doubled.
#[derive(Debug)]
pub struct FolderDataset {
    name: String,
    class_names: Vec<String>,
    files: Vec<(PathBuf, i64)>,
    fingerprint: String,
    whole: KnownWhole,
}

impl FolderDataset {
    /// Lists the folder, and looks at the first bytes of some images.
    ///
    /// # Errors
    ///
    /// [`DataError::Layout`] if there is no image, class folders are empty, there are images
    /// beside class folders, links lead nowhere or back to a folder that holds them, or the files are something else
    /// than images; [`DataError::Io`] if a folder cannot be listed.
    pub fn open(root: &Path, name: String, options: &OpenOptions) -> Result<Self, DataError> {
        let layout = |path: &Path, problem: String, fix| DataError::Layout {
            path: path.to_path_buf(),
            problem,
            fix,
        };
        let identity = fs::metadata(root).map_err(DataError::io(root, "list the folder"))?;
        let mut listing = Listing {
            passed_over: BTreeMap::new(),
            broken: Vec::new(),
            above: vec![(identity.dev(), identity.ino())],
        };
        let (folders, loose): (Vec<_>, Vec<_>) = sorted_entries(root)?
            .into_iter()
            .partition(|entry| entry.is_dir);
        let mut loose_images = Vec::new();
        for entry in loose {
            listing.sort(entry, &mut loose_images);
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
                format!("has links that lead nowhere: {}", some_of(&listing.broken)),
                "remove them, or put back what they lead to",
            ));
        }
        let empty: Vec<_> = classes
            .iter()
            .filter(|(_, images)| images.is_empty())
            .map(|(folder, _)| format!("`{}`", folder.name))
            .collect();
        match loose.first() {
            None if empty.len() == classes.len() => {
                let found = match listing.passed_over.is_empty() {
                    true => String::new(),
                    false => format!(" that is read; it has files of {}", listing.counts()),
                };
                return Err(layout(
                    root,
                    format!("holds no image{found}"),
                    "looked for state.json (Hugging Face `save_to_disk`), and for .png, .jpg, \
                     .jpeg and .webp files in class folders",
                ));
            }
            None if !empty.is_empty() => {
                return Err(layout(
                    root,
                    match empty.len() {
                        1 => format!("the class folder {} holds no image", empty[0]),
                        count => {
                            format!("{count} class folders hold no image: {}", some_of(&empty))
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
        if !listing.passed_over.is_empty() {
            let count: u64 = listing.passed_over.values().sum();
            tracing::warn!(
                "{}: passed over {count} files that are not PNG, JPEG or WebP: {}",
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
            // One that cannot be opened is found when it is read.
            Ok(first_bytes(&files[index as usize].0).unwrap_or_default())
        })?;
        if let (Some((index, other)), true) = (survey.refused, survey.all) {
            return Err(layout(
                &files[index as usize].0,
                format!("the file is {other}"),
                "put PNG, JPEG or WebP images in place of such files",
            ));
        }
        Ok(Self {
            name,
            class_names,
            whole: KnownWhole::none_of(files.len() as u64),
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

/// What was found while folders were listed.
struct Listing {
    /// Files that are no images, by extension.
    passed_over: BTreeMap<String, u64>,
    /// Links that lead nowhere.
    broken: Vec<String>,
    /// The folders that hold the one being listed.
    above: Vec<(u64, u64)>,
}

impl Listing {
    /// Adds the images below a folder; their names become paths relative to the data set.
    fn collect(&mut self, folder: &Entry, images: &mut Vec<Entry>) -> Result<(), DataError> {
        if self.above.contains(&folder.identity) {
            return Err(DataError::Layout {
                path: folder.path.clone(),
                problem: "this link leads back to a folder that holds it".to_owned(),
                fix: "remove the link",
            });
        }
        self.above.push(folder.identity);
        for mut entry in sorted_entries(&folder.path)? {
            entry.name = format!("{}/{}", folder.name, entry.name);
            match entry.is_dir {
                true => self.collect(&entry, images)?,
                false => self.sort(entry, images),
            }
        }
        self.above.pop();
        Ok(())
    }

    /// Adds a file to the images, or counts it.
    fn sort(&mut self, entry: Entry, images: &mut Vec<Entry>) {
        if let Some(problem) = &entry.broken {
            self.broken.push(format!("`{}` {problem}", entry.name));
            return;
        }
        let extension = entry.path.extension().map(distinct_name);
        let extension = extension.unwrap_or_default().to_ascii_lowercase();
        match EXTENSIONS.contains(&extension.as_str()) {
            true => images.push(entry),
            false => *self.passed_over.entry(extension).or_default() += 1,
        }
    }

    /// The files passed over, most first: `.bmp` 5, `.tif` 2.
    fn counts(&self) -> String {
        let mut counts: Vec<_> = self.passed_over.iter().collect();
        counts.sort_by_key(|&(_, count)| Reverse(count));
        let counts = counts
            .iter()
            .map(|(extension, count)| match extension.as_str() {
                "" => format!("no extension {count}"),
                extension => format!("`.{extension}` {count}"),
            });
        some_of(&counts.collect::<Vec<_>>())
    }
}

/// The first of some names.
fn some_of(names: &[String]) -> String {
    let shown = names.get(..NAMED).unwrap_or(names).join(", ");
    match names.len().saturating_sub(NAMED) {
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
        let image = Image::decode_sample(&bytes, index, &self.whole).map_err(|error| {
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
