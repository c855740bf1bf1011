//! Reads the footer of a Parquet file: the columns, the row groups and the labels.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use ::parquet::basic::{Compression, ConvertedType, Type};
use ::parquet::data_type::{Int32Type, Int64Type};
use ::parquet::errors::ParquetError;
use ::parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData, ParquetMetaDataReader};
use ::parquet::schema::types::{ColumnDescriptor, SchemaDescriptor};
use serde_json::Value;

use super::pages::{Chunk, SharedFile, guarded};
use crate::dataset::OpenOptions;
use crate::error::DataError;
use crate::features::{Features, IMAGE_COLUMN, LABEL_COLUMN};
use crate::formats::HEAD;

const DAMAGED: &str = "the file is damaged: copy or download it again";
const IMAGE_TYPES: &str = "struct {bytes: binary, path: string} or binary with encoded images (in Python: \
                           `cast_column(name, datasets.Image())`, then `to_parquet`)";
const LABEL_TYPES: &str = "integers (in Python: `class_encode_column(name)`, then `to_parquet`)";

/// Limits the number of classes that one wrong label can create.
const MAX_CLASSES: usize = 1_000_000;

/// The columns to read.
pub(super) struct Columns {
    pub image: String,
    pub label: Option<String>,
    /// The names that `datasets` records for the column of labels.
    pub class_names: Option<Vec<String>>,
}

impl Columns {
    /// Chooses the columns by the features in the first file of a data set.
    pub(super) fn choose(
        path: &Path,
        file: Arc<File>,
        options: &OpenOptions,
    ) -> Result<Self, DataError> {
        let (footer, _) = read_footer(path, &file)?;
        let features = features(path, &footer)?;
        let label = match options.unlabelled {
            true => None,
            false => Some(features.label_column(options.label_column.as_deref())?),
        };
        let class_names = match &label {
            Some(label) => features.class_names(label)?,
            None => None,
        };
        Ok(Self {
            image: features.image_column(options.image_column.as_deref())?,
            label,
            class_names,
        })
    }

    /// Refuses a column with `nulls` null images among `len`.
    pub(super) fn check_nulls(&self, root: &Path, nulls: u64, len: u64) -> Result<(), DataError> {
        if nulls == 0 {
            return Ok(());
        }
        Err(DataError::Images {
            path: root.to_path_buf(),
            column: self.image.clone(),
            problem: match nulls >= len {
                true => "all images are null: the data set has only the paths of images that are stored elsewhere"
                    .to_owned(),
                false => format!("{nulls} of {len} images are null"),
            },
            fix: "write the data set with `push_to_hub` or with `embed_external_files`; remove rows without an image \
                  with `filter`",
        })
    }

    /// The error for `wrong` labels out of range, the first of which is `label` of sample `index`.
    pub(super) fn wrong_label(
        &self,
        root: &Path,
        index: u64,
        label: String,
        wrong: u64,
        len: u64,
    ) -> DataError {
        let last = self.max_classes() - 1;
        DataError::Labels {
            path: root.to_path_buf(),
            column: self.label.clone().unwrap_or_default(),
            index,
            label,
            range: match &self.class_names {
                Some(names) => format!("0..{last}, the {} names of its ClassLabel", names.len()),
                None => format!("0..{last}"),
            },
            wrong,
            len,
        }
    }

    fn max_classes(&self) -> usize {
        self.class_names.as_ref().map_or(MAX_CLASSES, Vec::len)
    }
}

/// What is kept of one file.
pub(super) struct FileIndex {
    /// Size of the file.
    pub size: u64,
    /// The number of rows of each row group, and its column of images.
    pub groups: Vec<(u64, Chunk)>,
    pub null_images: u64,
    /// Empty if labels were not requested.
    pub labels: Vec<u32>,
    /// Number of labels that are null or have no class.
    pub wrong_labels: u64,
    /// The first of them, with its row in the file.
    pub first_wrong_label: Option<(u64, String)>,
}

impl FileIndex {
    pub(super) fn read(path: &Path, file: Arc<File>, columns: &Columns) -> Result<Self, DataError> {
        let (footer, size) = read_footer(path, &file)?;
        let schema = footer.file_metadata().schema_descr();
        let image_leaf = image_leaf(path, schema, &columns.image)?;
        let label = columns.label.as_deref();
        let label_leaf = label
            .map(|label| label_leaf(path, schema, label))
            .transpose()?;
        let mut index = Self {
            size,
            groups: Vec::new(),
            null_images: 0,
            labels: Vec::new(),
            wrong_labels: 0,
            first_wrong_label: None,
        };
        let failed = |error| failed(path, error);
        for group in footer.row_groups() {
            let Ok(rows @ 1..) = u64::try_from(group.num_rows()) else {
                continue;
            };
            let images = group.column(image_leaf);
            check_compression(path, images)?;
            let nulls = images
                .statistics()
                .and_then(|statistics| statistics.null_count_opt());
            index.null_images += nulls.unwrap_or(0);
            let chunk = Chunk::new(images, group.num_rows(), size).map_err(failed)?;
            index.groups.push((rows, chunk));
            if let Some(leaf) = label_leaf {
                let labels = group.column(leaf);
                check_compression(path, labels)?;
                let chunk = Chunk::new(labels, group.num_rows(), size).map_err(failed)?;
                let file =
                    SharedFile::new(Arc::clone(&file)).map_err(|error| failed(error.into()))?;
                match labels.column_type() {
                    Type::INT32 => {
                        let labels = chunk.values::<Int32Type>(file).map_err(failed)?;
                        let labels = labels.into_iter().map(|label| label.map(i64::from));
                        index.add_labels(labels, columns.max_classes());
                    }
                    _ => {
                        let labels = chunk.values::<Int64Type>(file).map_err(failed)?;
                        index.add_labels(labels.into_iter(), columns.max_classes());
                    }
                }
            }
        }
        Ok(index)
    }

    fn add_labels(&mut self, labels: impl Iterator<Item = Option<i64>>, classes: usize) {
        for label in labels {
            let number = label.and_then(|label| u32::try_from(label).ok());
            let number = number.filter(|number| (*number as usize) < classes);
            if number.is_none() {
                let text = label.map_or("null".to_owned(), |label| label.to_string());
                self.first_wrong_label
                    .get_or_insert((self.labels.len() as u64, text));
                self.wrong_labels += 1;
            }
            self.labels.push(number.unwrap_or(0));
        }
    }
}

/// Reads the footer. Also returns the size of the file.
fn read_footer(path: &Path, file: &Arc<File>) -> Result<(ParquetMetaData, u64), DataError> {
    let mut head = [0; HEAD];
    let read = file.read_at(&mut head, 0);
    let read = read.map_err(DataError::io(path, "read the Parquet file"))?;
    if let Some(what) = ::files::describe_foreign(&head[..read]) {
        return Err(DataError::Malformed {
            path: path.to_path_buf(),
            problem: format!("this is {what}"),
            fix: "replace it with the Parquet file",
        });
    }
    let shared = SharedFile::new(Arc::clone(file)).map_err(DataError::io(path, "read the size"))?;
    let size = ::parquet::file::reader::Length::len(&shared);
    let footer = guarded(|| ParquetMetaDataReader::new().parse_and_finish(&shared));
    Ok((footer.map_err(|error| failed(path, error))?, size))
}

/// The features that `datasets` records in a file. Without them, the names of the columns and which of them have the form
/// of images.
fn features(path: &Path, footer: &ParquetMetaData) -> Result<Features, DataError> {
    const WRITE_AGAIN: &str = "write the file again with `to_parquet` or `push_to_hub`";
    let metadata = footer.file_metadata().key_value_metadata();
    let recorded = metadata
        .into_iter()
        .flatten()
        .find(|entry| entry.key == "huggingface")
        .and_then(|entry| serde_json::from_str::<Value>(entry.value.as_deref()?).ok());
    if let Some(Value::Object(mut recorded)) = recorded
        && let Some(Value::Object(info)) = recorded.get_mut("info")
    {
        return Features::of_info(path.to_path_buf(), info, WRITE_AGAIN);
    }
    let fields = footer
        .file_metadata()
        .schema_descr()
        .root_schema()
        .get_fields();
    let columns = fields.iter().map(|field| {
        let is_image = field.is_group()
            && field
                .get_fields()
                .iter()
                .any(|child| child.name() == "bytes");
        (field.name().to_owned(), is_image)
    });
    Ok(Features::of_columns(path.to_path_buf(), columns))
}

/// The index of the leaf with encoded images.
fn image_leaf(path: &Path, schema: &SchemaDescriptor, column: &str) -> Result<usize, DataError> {
    let allowed = |leaf: &ColumnDescriptor| {
        leaf.physical_type() == Type::BYTE_ARRAY && leaf.converted_type() == ConvertedType::NONE
    };
    let paths: [&[&str]; 2] = [&[column], &[column, "bytes"]];
    find_leaf(
        path,
        schema,
        (IMAGE_COLUMN, column),
        &paths,
        allowed,
        IMAGE_TYPES,
    )
}

/// The index of the leaf with labels.
fn label_leaf(path: &Path, schema: &SchemaDescriptor, column: &str) -> Result<usize, DataError> {
    let allowed =
        |leaf: &ColumnDescriptor| matches!(leaf.physical_type(), Type::INT32 | Type::INT64);
    find_leaf(
        path,
        schema,
        (LABEL_COLUMN, column),
        &[&[column]],
        allowed,
        LABEL_TYPES,
    )
}

fn find_leaf(
    path: &Path,
    schema: &SchemaDescriptor,
    (key, column): (&'static str, &str),
    paths: &[&[&str]],
    is_allowed: impl Fn(&ColumnDescriptor) -> bool,
    allowed: &'static str,
) -> Result<usize, DataError> {
    let leaves = schema.columns();
    let wanted = leaves
        .iter()
        .position(|leaf| paths.iter().any(|path| leaf.path().parts() == *path));
    let of_type = |found: String| DataError::ColumnType {
        path: path.to_path_buf(),
        key,
        column: column.to_owned(),
        found,
        allowed,
    };
    if let Some(index) = wanted {
        let leaf = &leaves[index];
        return match leaf.max_rep_level() == 0 && is_allowed(leaf) {
            true => Ok(index),
            false => Err(of_type(match leaf.converted_type() {
                ConvertedType::NONE => leaf.physical_type().to_string(),
                converted => format!("{} ({converted})", leaf.physical_type()),
            })),
        };
    }
    let fields = schema.root_schema().get_fields();
    match fields.iter().any(|field| field.name() == column) {
        true => Err(of_type("group".to_owned())),
        false => Err(DataError::MissingColumn {
            path: path.to_path_buf(),
            key,
            problem: format!("there is no column `{column}`"),
            available: fields.iter().map(|field| field.name().to_owned()).collect(),
        }),
    }
}

fn check_compression(path: &Path, chunk: &ColumnChunkMetaData) -> Result<(), DataError> {
    match chunk.compression() {
        Compression::UNCOMPRESSED | Compression::SNAPPY => Ok(()),
        other => Err(DataError::Malformed {
            path: path.to_path_buf(),
            problem: format!(
                "column `{}` is compressed as {other}; supported: SNAPPY and UNCOMPRESSED",
                chunk.column_path().string()
            ),
            fix: "write it again with Snappy, the default of `datasets`",
        }),
    }
}

/// The error of reading a file at opening.
pub(super) fn failed(path: &Path, error: ParquetError) -> DataError {
    match io_error(error) {
        Ok(source) => DataError::io(path, "read the Parquet file")(source),
        Err(error) => DataError::Malformed {
            path: path.to_path_buf(),
            problem: format!("this is not a complete Parquet file: {error}"),
            fix: DAMAGED,
        },
    }
}

/// The error of the operating system in an error, or else the error.
pub(super) fn io_error(error: ParquetError) -> Result<io::Error, ParquetError> {
    match error {
        ParquetError::External(source) => match source.downcast::<io::Error>() {
            Ok(source) if source.raw_os_error().is_some() => Ok(*source),
            Ok(source) => Err(ParquetError::External(source)),
            Err(source) => Err(ParquetError::External(source)),
        },
        error => Err(error),
    }
}
