//! Data sets in tar files, as the Python library `webdataset` writes and reads them.
//!
//! A sample is a group of consecutive files with the same key, which is the path up to the first dot of the file name:
//! `KEY.jpg` (or `.jpeg`, `.png`, `.webp`) is the image, and `KEY.cls` the label in decimal digits. Without `KEY.cls`,
//! the integer `label` of `KEY.json` is the label. Other files are ignored.
//!
//! The names of the classes are the lines of `classnames.txt` in the folder of the tar files or its parent, as in the
//! data sets of CLIP benchmark; without it, they are the labels as text.
//!
//! Opening a data set reads the headers of all tar files, several files at once, and the labels. Reading a sample then
//! takes one positioned read. An indexed sample takes 20 bytes of memory.

mod shard;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use self::shard::{ImageSpan, Shard};
use crate::dataset::{Dataset, ONLY_CLASS, OpenOptions};
use crate::entries::distinct_name;
use crate::error::DataError;
use crate::file_pool::FilePool;
use crate::fingerprint::Fingerprint;
use crate::formats;
use crate::sample::{CompleteSamples, Image, Sample};

/// The file with the names of the classes, one per line.
const CLASS_NAMES: &str = "classnames.txt";

/// A data set, or one split of one, in tar files.
#[derive(Debug)]
pub struct WebDataset {
    name: String,
    class_names: Vec<String>,
    files: FilePool,
    /// Index of the first sample of each file.
    first_samples: Vec<u64>,
    images: Vec<ImageSpan>,
    /// Empty if the data set is opened without labels.
    labels: Vec<u32>,
    fingerprint: String,
    complete: CompleteSamples,
}

impl WebDataset {
    /// Indexes tar files in the folder `root`, and checks that every sample has an image and a label and that a selection
    /// of images has supported formats. Samples have the order of `files` and of their position in the file.
    ///
    /// # Errors
    ///
    /// [`DataError::Malformed`] if a file is damaged or cut short, a sample lacks its image or its label, or there are
    /// fewer class names than labels; [`DataError::Layout`] if the images have an unsupported format,
    /// [`DataError::Empty`] if there are no samples, [`DataError::Io`] if a file cannot be read.
    pub fn open(
        root: &Path,
        files: Vec<PathBuf>,
        name: String,
        options: &OpenOptions,
    ) -> Result<Self, DataError> {
        let count = files.len();
        let files = FilePool::new(files);
        let labelled = !options.unlabelled;
        let index = |file: usize| Shard::index(files.path(file), files.get(file)?, labelled);
        let shards: Vec<_> = (0..count).into_par_iter().map(index).collect();

        let mut fingerprint = Fingerprint::default();
        fingerprint.text("webdataset");
        fingerprint.number(u64::from(labelled));
        let (mut first_samples, mut images, mut labels) = (Vec::new(), Vec::new(), Vec::new());
        for (file, shard) in shards.into_iter().enumerate() {
            let shard = shard?;
            let name = files.path(file).file_name().unwrap_or_default();
            fingerprint.text(&distinct_name(name));
            fingerprint.number(shard.size);
            first_samples.push(images.len() as u64);
            images.extend(shard.images);
            labels.extend(shard.labels);
        }
        if images.is_empty() {
            return Err(DataError::Empty {
                path: root.to_path_buf(),
            });
        }
        images.shrink_to_fit();
        labels.shrink_to_fit();
        let class_names = match labels.iter().max() {
            None => vec![ONLY_CLASS.to_owned()],
            Some(&largest) => class_names(root, largest)?,
        };
        let dataset = Self {
            name,
            class_names,
            files,
            first_samples,
            complete: CompleteSamples::new(images.len() as u64),
            images,
            labels,
            fingerprint: fingerprint.finish(),
        };
        dataset.check_formats()?;
        Ok(dataset)
    }

    /// Refuses images of an unsupported format, according to the first bytes of a selection of images.
    fn check_formats(&self) -> Result<(), DataError> {
        let survey = formats::survey(self.len(), |index| {
            let (file, span) = self.locate(index)?;
            let head = ImageSpan {
                len: span.len.min(formats::HEAD as u32),
                ..span
            };
            self.bytes(file, head)
        })?;
        let (Some((index, format)), true) = (survey.unsupported, survey.all_unsupported) else {
            return Ok(());
        };
        let (file, span) = self.locate(index)?;
        Err(DataError::Layout {
            path: self.files.path(file).to_path_buf(),
            problem: format!("the image at byte {} is {format}", span.start),
            fix: "write the files again with PNG, JPEG or WebP images",
        })
    }

    /// The file of a sample, and the position of its image.
    fn locate(&self, index: u64) -> Result<(usize, ImageSpan), DataError> {
        let span = usize::try_from(index)
            .ok()
            .and_then(|index| self.images.get(index));
        let span = span.ok_or_else(|| DataError::Index {
            dataset: self.name.clone(),
            index,
            len: self.len(),
        })?;
        let file = self.first_samples.partition_point(|&first| first <= index) - 1;
        Ok((file, *span))
    }

    fn bytes(&self, file: usize, span: ImageSpan) -> Result<Vec<u8>, DataError> {
        let opened = self.files.get(file)?;
        let read = |opened: &File| -> io::Result<Vec<u8>> {
            let mut bytes = vec![0; span.len as usize];
            opened.read_exact_at(&mut bytes, span.start)?;
            Ok(bytes)
        };
        read(&opened).map_err(DataError::io(self.files.path(file), "read a sample"))
    }

    /// Names a damaged image by its file and the name in its header.
    fn corrupt(&self, index: u64, file: usize, span: ImageSpan, reason: String) -> DataError {
        let header_start = span.start.checked_sub(shard::BLOCK);
        let header = header_start.and_then(|start| {
            let mut header = tar::Header::new_old();
            let opened = self.files.get(file).ok()?;
            opened.read_exact_at(header.as_mut_bytes(), start).ok()?;
            Some(String::from_utf8_lossy(&header.path_bytes()).into_owned())
        });
        DataError::Sample {
            dataset: self.name.clone(),
            index,
            reason: format!(
                "{}: {}: {reason}",
                self.files.path(file).display(),
                header.unwrap_or_else(|| format!("byte {}", span.start)),
            ),
        }
    }
}

/// The names of the classes 0 to `largest`: the lines of [`CLASS_NAMES`] in `root` or its parent, or the numbers.
fn class_names(root: &Path, largest: u32) -> Result<Vec<String>, DataError> {
    for folder in [Some(root), root.parent()].into_iter().flatten() {
        let path = folder.join(CLASS_NAMES);
        let text = match ::files::read_text(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(DataError::io(&path, "read the class names")(error)),
        };
        let names: Vec<String> = text.lines().map(|line| line.trim().to_owned()).collect();
        if names.len() <= largest as usize {
            return Err(DataError::Malformed {
                path,
                problem: format!(
                    "it names {} classes, but the tar files have the label {largest}",
                    names.len()
                ),
                fix: "add the missing names, one per line, or remove the file to use the labels as names",
            });
        }
        return Ok(names);
    }
    Ok((0..=largest).map(|label| label.to_string()).collect())
}

impl Dataset for WebDataset {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> u64 {
        self.images.len() as u64
    }

    fn class_names(&self) -> &[String] {
        &self.class_names
    }

    fn read(&self, index: u64) -> Result<Sample, DataError> {
        let (file, span) = self.locate(index)?;
        let bytes = self.bytes(file, span)?;
        let image = Image::decode_sample(&bytes, index, &self.complete)
            .map_err(|error| self.corrupt(index, file, span, error.to_string()))?;
        Ok(Sample {
            index,
            image,
            label: self.label(index)?,
        })
    }

    fn label(&self, index: u64) -> Result<i64, DataError> {
        self.locate(index)?;
        let label = self.labels.get(index as usize);
        Ok(label.copied().map_or(0, i64::from))
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}
