//! The columns of images and labels, and the check of their types.

use std::path::Path;

use arrow_schema::{DataType, Schema};

use crate::error::DataError;
use crate::features::{IMAGE_COLUMN, LABEL_COLUMN};

const BINARY: &str = "struct {bytes: binary, path: string} or binary with encoded images (in \
                      Python: `cast_column(name, datasets.Image())`, then `save_to_disk`)";
const INTEGER: &str = "integers (in Python: `class_encode_column(name)`, then `save_to_disk`)";

/// The columns to index.
pub(super) struct Columns {
    pub image: String,
    pub label: Option<String>,
}

/// Checks the names and types of the columns before any data is read.
pub(super) fn check_columns(
    path: &Path,
    schema: &Schema,
    columns: &Columns,
) -> Result<(), DataError> {
    let find = |key, column: &str| {
        schema
            .field_with_name(column)
            .map_err(|_| DataError::MissingColumn {
                path: path.to_path_buf(),
                key,
                problem: format!("there is no column `{column}`"),
                available: schema
                    .fields()
                    .iter()
                    .map(|field| field.name().clone())
                    .collect(),
            })
    };
    let image = find(IMAGE_COLUMN, &columns.image)?;
    let encoded = match image.data_type() {
        DataType::Struct(fields) => fields.find("bytes").map(|(_, field)| field.data_type()),
        other => Some(other),
    };
    if !matches!(encoded, Some(DataType::Binary | DataType::LargeBinary)) {
        return Err(column_type(
            path,
            IMAGE_COLUMN,
            &columns.image,
            image.data_type(),
            BINARY,
        ));
    }
    if let Some(column) = &columns.label {
        let label = find(LABEL_COLUMN, column)?;
        if !label.data_type().is_integer() {
            return Err(column_type(
                path,
                LABEL_COLUMN,
                column,
                label.data_type(),
                INTEGER,
            ));
        }
    }
    Ok(())
}

/// The error for a column of an unsupported type.
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
