//! Data sets in folders written by Hugging Face `save_to_disk`.
//!
//! `state.json` lists the data files, `dataset_info.json` the columns; the data files are Arrow IPC
//! streams. An image column is a struct `{bytes, path}` or plain binary.
//!
//! Opening a data set reads the headers of all record batches and records the file offsets of image bytes
//! and labels. Reading a sample then takes three small positioned reads, independent of the size of the
//! batch. Random access to a data set of any size therefore needs neither a cache nor a memory map.

mod cells;
mod columns;
mod info;
mod locate;
mod malformed;
mod stream;

use std::path::Path;

use self::cells::{ReadError, RowGroup};
use self::columns::Columns;
use self::info::{State, read_features};
use crate::dataset::{Dataset, ONLY_CLASS, OpenOptions};
use crate::error::DataError;
use crate::file_pool::FilePool;
use crate::fingerprint::Fingerprint;
use crate::formats;
use crate::sample::{CompleteSamples, Image, Sample};

/// A data set, or one split of one, written by Hugging Face `save_to_disk`.
#[derive(Debug)]
pub struct ArrowDataset {
    name: String,
    class_names: Vec<String>,
    labelled: bool,
    files: FilePool,
    groups: Vec<Group>,
    len: u64,
    fingerprint: String,
    complete: CompleteSamples,
}

/// A record batch, with its file and its first row in the data set.
#[derive(Debug)]
struct Group {
    file: usize,
    first_row: u64,
    rows: RowGroup,
}

impl ArrowDataset {
    /// Reads the JSON files, indexes the Arrow files and performs the checks that need no decoding: there are
    /// samples, no image is null, a selection of images has supported formats, and all labels are in range.
    ///
    /// # Errors
    ///
    /// [`DataError::Empty`], [`DataError::Images`] and [`DataError::Labels`] if one of these checks fails,
    /// [`DataError::Metadata`] for the JSON files, [`DataError::MissingColumn`] and
    /// [`DataError::ColumnType`] for the columns, [`DataError::Truncated`] and
    /// [`DataError::Malformed`] for the Arrow files, [`DataError::Io`] if a file cannot be read.
    pub fn open(root: &Path, name: String, options: &OpenOptions) -> Result<Self, DataError> {
        let state = State::read(root)?;
        let features = read_features(root)?;
        let columns = Columns {
            image: features.image_column(options.image_column.as_deref())?,
            label: match options.unlabelled {
                true => None,
                false => Some(features.label_column(options.label_column.as_deref())?),
            },
        };

        let mut fingerprint = Fingerprint::default();
        fingerprint.text("arrow");
        fingerprint.text(&state.fingerprint);
        fingerprint.text(&columns.image);
        fingerprint.text(columns.label.as_deref().unwrap_or_default());

        let paths = state.data_files.iter().map(|name| root.join(name));
        let files = FilePool::new(paths.collect());
        let mut groups = Vec::new();
        let mut len = 0;
        for (index, name) in state.data_files.iter().enumerate() {
            let file = files.get(index)?;
            let (size, row_groups) = stream::index(files.path(index), &file, &columns)?;
            fingerprint.text(name);
            fingerprint.number(size);
            for rows in row_groups {
                let first_row = len;
                len += rows.len;
                groups.push(Group {
                    file: index,
                    first_row,
                    rows,
                });
            }
        }
        if len == 0 {
            return Err(DataError::Empty {
                path: root.to_path_buf(),
            });
        }

        let mut dataset = Self {
            name,
            class_names: vec![ONLY_CLASS.to_owned()],
            labelled: columns.label.is_some(),
            files,
            groups,
            len,
            fingerprint: fingerprint.finish(),
            complete: CompleteSamples::new(len),
        };
        dataset.check_images(root, &columns.image)?;
        if let Some(label) = &columns.label {
            let names = features.class_names(label)?;
            let largest = dataset.check_labels(root, label, names.as_ref().map(Vec::len))?;
            dataset.class_names =
                names.unwrap_or_else(|| (0..=largest).map(|label| label.to_string()).collect());
        }
        Ok(dataset)
    }

    /// Refuses a column with null images, according to the counts in the headers, or with images of an unsupported
    /// format, according to the first bytes of a selection of images.
    fn check_images(&self, root: &Path, column: &str) -> Result<(), DataError> {
        let failed = |problem: String, fix| DataError::Images {
            path: root.to_path_buf(),
            column: column.to_owned(),
            problem,
            fix,
        };
        let null: u64 = self
            .groups
            .iter()
            .map(|group| group.rows.images.nulls)
            .sum();
        if null > 0 {
            let problem = match null >= self.len {
                true => "all images are null: the data set has only the paths of images that are stored elsewhere"
                    .to_owned(),
                false => format!("{null} of {} images are null", self.len),
            };
            return Err(failed(
                problem,
                "embed them: in Python, call `cast_column(name, datasets.Image())` on a machine with access to the \
                 image files, then `save_to_disk`; remove rows without an image with `filter`",
            ));
        }
        let head = |index| {
            let (group, row) = self.group_of(index);
            let file = self.files.get(group.file)?;
            let head = group.rows.image_head(&file, row, formats::HEAD);
            // Damage concerns this sample only and is reported when the sample is read.
            match head {
                Ok(head) => Ok(head),
                Err(ReadError::Corrupt(_)) => Ok(Vec::new()),
                Err(error) => Err(self.read_error(group.file, index, column, error)),
            }
        };
        let survey = formats::survey(self.len, head)?;
        match survey.unsupported {
            Some((index, format)) if format.is_tiff() => Err(failed(
                format!(
                    "the image of sample {index} is stored as TIFF; supported: PNG, JPEG and WebP"
                ),
                "`datasets` stores images of the modes CMYK, P, F, I and others as TIFF: convert them with \
                 `image.convert(\"RGB\")` before `save_to_disk`",
            )),
            Some((index, format)) if survey.all_unsupported => Err(failed(
                format!("the image of sample {index} is {format}; supported: PNG, JPEG and WebP"),
                "store the images as PNG, JPEG or WebP: in Python, call `image.convert(\"RGB\")` before \
                 `save_to_disk`",
            )),
            _ => Ok(()),
        }
    }

    /// Refuses labels that are null or have no class. Returns the largest label. `classes` is the number of class
    /// names, if the column has names.
    fn check_labels(
        &self,
        root: &Path,
        column: &str,
        classes: Option<usize>,
    ) -> Result<i64, DataError> {
        /// Limits the number of classes that one wrong label can create.
        const MAX_CLASSES: usize = 1_000_000;
        let limit = classes.unwrap_or(MAX_CLASSES);
        let (mut largest, mut wrong, mut first) = (0, 0, None);
        for group in &self.groups {
            let file = self.files.get(group.file)?;
            let labels = group.rows.labels(&file);
            let labels = labels.map_err(DataError::io(
                self.files.path(group.file),
                "read the labels",
            ))?;
            for (index, label) in (group.first_row..).zip(labels) {
                match label {
                    Some(label) if usize::try_from(label).is_ok_and(|label| label < limit) => {
                        largest = largest.max(label);
                    }
                    wrong_label => {
                        wrong += 1;
                        first.get_or_insert((index, wrong_label));
                    }
                }
            }
        }
        let Some((index, label)) = first else {
            return Ok(largest);
        };
        Err(DataError::Labels {
            path: root.to_path_buf(),
            column: column.to_owned(),
            index,
            label: label.map_or("null".to_owned(), |label| label.to_string()),
            range: match classes {
                Some(classes) => {
                    format!("0..{}, the {classes} names of its ClassLabel", classes - 1)
                }
                None => format!("0..{}", MAX_CLASSES - 1),
            },
            wrong,
            len: self.len,
        })
    }

    /// The record batch of an existing sample, and the row of the sample in it.
    fn group_of(&self, index: u64) -> (&Group, u64) {
        let group = self
            .groups
            .partition_point(|group| group.first_row <= index)
            - 1;
        let group = &self.groups[group];
        (group, index - group.first_row)
    }

    fn corrupt(&self, index: u64, reason: String) -> DataError {
        DataError::Sample {
            dataset: self.name.clone(),
            index,
            reason,
        }
    }

    fn read_error(&self, file: usize, index: u64, column: &str, error: ReadError) -> DataError {
        match error {
            ReadError::Io(source) => DataError::Io {
                path: self.files.path(file).to_path_buf(),
                action: "read a sample",
                source,
            },
            ReadError::Corrupt(reason) => self.corrupt(index, format!("{column}: {reason}")),
        }
    }
}

impl Dataset for ArrowDataset {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn class_names(&self) -> &[String] {
        &self.class_names
    }

    fn read(&self, index: u64) -> Result<Sample, DataError> {
        let label = self.label(index)?;
        let (group, row) = self.group_of(index);
        let file = self.files.get(group.file)?;
        let bytes = group
            .rows
            .image(&file, row)
            .map_err(|error| self.read_error(group.file, index, "image", error))?;
        let image = Image::decode_sample(&bytes, index, &self.complete)
            .map_err(|error| self.corrupt(index, error.to_string()))?;
        Ok(Sample {
            index,
            image,
            label,
        })
    }

    fn label(&self, index: u64) -> Result<i64, DataError> {
        if index >= self.len {
            return Err(DataError::Index {
                dataset: self.name.clone(),
                index,
                len: self.len,
            });
        }
        let (group, row) = self.group_of(index);
        let file = self.files.get(group.file)?;
        let label = group
            .rows
            .label(&file, row)
            .map_err(|error| self.read_error(group.file, index, "label", error))?;
        if self.labelled
            && usize::try_from(label).map_or(true, |label| label >= self.class_names.len())
        {
            let classes = self.class_names.len();
            return Err(self.corrupt(
                index,
                format!("label {label} is out of range: there are {classes} classes"),
            ));
        }
        Ok(label)
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}
