//! Folders written by Hugging Face `save_to_disk`.
//!
//! `state.json` lists the data files, `dataset_info.json` the columns; the files are Arrow IPC
//! streams. An image column is a struct `{bytes, path}` or plain binary.
//!
//! Opening a data set reads the headers of all record batches and notes where the image bytes and
//! labels lie. Reading a sample then takes three small positioned reads, however large the batch.
//! So shuffled access to a set of any size needs neither a cache nor a memory map.

mod cells;
mod features;
mod stream;
mod walk;

use std::fs::File;
use std::path::{Path, PathBuf};

use arrow_schema::DataType;

use self::cells::{CellError, RowGroup};
use self::features::{Features, State};
use self::stream::Columns;
use crate::dataset::{Dataset, Fingerprint, ONLY_CLASS, OpenOptions};
use crate::error::DataError;
use crate::sample::{Image, Sample};

/// The option that names the image column, for messages.
const IMAGE_COLUMN: &str = "image_column";
/// The option that names the label column, for messages.
const LABEL_COLUMN: &str = "label_column";

/// A data set, or one split of one, written by Hugging Face `save_to_disk`.
#[derive(Debug)]
pub struct ArrowDataset {
    name: String,
    class_names: Vec<String>,
    labelled: bool,
    files: Vec<(PathBuf, File)>,
    groups: Vec<Group>,
    len: u64,
    fingerprint: String,
}

/// A record batch, and its place in the data set.
#[derive(Debug)]
struct Group {
    file: usize,
    first_row: u64,
    rows: RowGroup,
}

impl ArrowDataset {
    /// Reads the JSON pages and indexes the Arrow files. All files stay open.
    ///
    /// # Errors
    ///
    /// [`DataError::Metadata`] for the JSON pages, [`DataError::MissingColumn`] and
    /// [`DataError::ColumnType`] for the columns, [`DataError::Truncated`] and
    /// [`DataError::Malformed`] for the Arrow files, [`DataError::Io`] if one cannot be read.
    pub fn open(root: &Path, name: String, options: &OpenOptions) -> Result<Self, DataError> {
        let state = State::read(root)?;
        let features = Features::read(root)?;
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

        let mut files = Vec::new();
        let mut groups = Vec::new();
        let mut len = 0;
        for (index, name) in state.data_files.iter().enumerate() {
            let path = root.join(name);
            let file = File::open(&path).map_err(DataError::io(&path, "open the Arrow file"))?;
            let (size, row_groups) = stream::index(&path, &file, &columns)?;
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
            files.push((path, file));
        }

        let mut dataset = Self {
            name,
            class_names: vec![ONLY_CLASS.to_owned()],
            labelled: columns.label.is_some(),
            files,
            groups,
            len,
            fingerprint: fingerprint.finish(),
        };
        if let Some(label) = &columns.label {
            dataset.class_names = match features.class_names(label)? {
                Some(names) => names,
                None => dataset.numbered_classes(label)?,
            };
        }
        Ok(dataset)
    }

    /// Class names for a column of plain integers: `0` up to the largest label.
    fn numbered_classes(&self, column: &str) -> Result<Vec<String>, DataError> {
        const MOST_CLASSES: i64 = 1_000_000;
        let mut largest = 0;
        for group in &self.groups {
            let (path, file) = &self.files[group.file];
            let found = group.rows.largest_label(file);
            largest = largest.max(found.map_err(DataError::io(path, "read the labels"))?);
        }
        if largest >= MOST_CLASSES {
            return Err(DataError::ColumnType {
                path: self
                    .files
                    .first()
                    .map(|(path, _)| path.clone())
                    .unwrap_or_default(),
                key: LABEL_COLUMN,
                column: column.to_owned(),
                found: format!("integer with values up to {largest}"),
                allowed: "class numbers below 1000000, or ClassLabel",
            });
        }
        Ok((0..=largest).map(|label| label.to_string()).collect())
    }

    /// The record batch of a sample that is there, and its row in it.
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

    fn cell_error(&self, file: usize, index: u64, column: &str, error: CellError) -> DataError {
        match error {
            CellError::Io(source) => DataError::Io {
                path: self.files[file].0.clone(),
                action: "read a sample",
                source,
            },
            CellError::Broken(reason) => self.corrupt(index, format!("{column}: {reason}")),
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
        let (_, file) = &self.files[group.file];
        let bytes = group
            .rows
            .image(file, row)
            .map_err(|error| self.cell_error(group.file, index, "image", error))?;
        let image =
            Image::decode(&bytes).map_err(|error| self.corrupt(index, error.to_string()))?;
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
        let (_, file) = &self.files[group.file];
        let label = group
            .rows
            .label(file, row)
            .map_err(|error| self.cell_error(group.file, index, "label", error))?;
        if self.labelled
            && usize::try_from(label).map_or(true, |label| label >= self.class_names.len())
        {
            let classes = self.class_names.len();
            return Err(self.corrupt(
                index,
                format!("label {label}, and there are {classes} classes"),
            ));
        }
        Ok(label)
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

/// The error for a column whose type is not read.
fn column_type(
    path: &Path,
    key: &'static str,
    column: &str,
    found: &DataType,
    allowed: &'static str,
) -> DataError {
    DataError::ColumnType {
        path: path.to_path_buf(),
        key,
        column: column.to_owned(),
        found: found.to_string(),
        allowed,
    }
}
