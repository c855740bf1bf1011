//! Chooses the columns of images and labels by the types that Hugging Face `datasets` records.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::error::DataError;

/// The option that names the image column, for error messages.
pub(crate) const IMAGE_COLUMN: &str = "image_column";
/// The option that names the label column, for error messages.
pub(crate) const LABEL_COLUMN: &str = "label_column";

/// The error for JSON of the wrong form.
pub(crate) fn metadata(path: &Path, key: &str, problem: String, fix: &'static str) -> DataError {
    DataError::Metadata {
        path: path.to_path_buf(),
        key: key.to_owned(),
        problem,
        fix,
    }
}

/// The columns of a data set and their types, as Hugging Face `datasets` describes them.
pub(crate) struct Features {
    path: PathBuf,
    columns: Map<String, Value>,
    fix: &'static str,
}

impl Features {
    /// Takes the features from `info`, the content of `dataset_info.json` or of the same form in the file `path`. `fix` tells
    /// how to repair a wrong file.
    pub(crate) fn of_info(
        path: PathBuf,
        info: &mut Map<String, Value>,
        fix: &'static str,
    ) -> Result<Self, DataError> {
        let problem = match info.remove("features") {
            Some(Value::Object(columns)) => return Ok(Self { path, columns, fix }),
            Some(_) => "is not a table of columns",
            None => "is missing",
        };
        Err(metadata(&path, "features", problem.to_owned(), fix))
    }

    /// The features of columns whose types are not recorded, given by name and whether the values are images.
    pub(crate) fn of_columns(path: PathBuf, columns: impl Iterator<Item = (String, bool)>) -> Self {
        let feature = |is_image| match is_image {
            true => json!({ "_type": "Image" }),
            false => json!({}),
        };
        Self {
            path,
            columns: columns
                .map(|(name, is_image)| (name, feature(is_image)))
                .collect(),
            fix: "",
        }
    }

    /// The column of images: `requested`, the only column of type `Image`, or `image`.
    pub(crate) fn image_column(&self, requested: Option<&str>) -> Result<String, DataError> {
        match (requested, self.of_type("Image").as_slice()) {
            (Some(requested), _) => self.existing(IMAGE_COLUMN, requested),
            (None, [only]) => Ok((*only).to_owned()),
            (None, []) => self.existing(IMAGE_COLUMN, "image"),
            (None, several) if several.contains(&"image") => Ok("image".to_owned()),
            (None, _) => {
                Err(self.missing(IMAGE_COLUMN, "several columns have type Image".to_owned()))
            }
        }
    }

    /// The column of labels: `requested`, `label`, or the only column of type `ClassLabel`.
    pub(crate) fn label_column(&self, requested: Option<&str>) -> Result<String, DataError> {
        match (requested, self.of_type("ClassLabel").as_slice()) {
            (Some(requested), _) => self.existing(LABEL_COLUMN, requested),
            (None, _) if self.columns.contains_key("label") => Ok("label".to_owned()),
            (None, [only]) => Ok((*only).to_owned()),
            (None, []) => Err(self.missing(
                LABEL_COLUMN,
                "there is no column `label` and none of type ClassLabel (if the data set has no labels, set \
                 `unlabelled` to true)"
                    .to_owned(),
            )),
            (None, _) => Err(self.missing(
                LABEL_COLUMN,
                "several columns have type ClassLabel".to_owned(),
            )),
        }
    }

    /// The class names of a `ClassLabel` column, or `None` for a column of any other type.
    pub(crate) fn class_names(&self, column: &str) -> Result<Option<Vec<String>>, DataError> {
        let Some(feature) = self.columns.get(column) else {
            return Ok(None);
        };
        if type_of(feature) != Some("ClassLabel") {
            return Ok(None);
        }
        let names = feature.get("names").and_then(Value::as_array);
        let names: Option<Vec<String>> = names.and_then(|names| {
            names
                .iter()
                .map(|name| name.as_str().map(str::to_owned))
                .collect()
        });
        match names {
            Some(names) if !names.is_empty() => Ok(Some(names)),
            _ => Err(metadata(
                &self.path,
                &format!("features.{column}.names"),
                "a ClassLabel needs a list of class names".to_owned(),
                self.fix,
            )),
        }
    }

    fn of_type(&self, wanted: &str) -> Vec<&str> {
        let of_type = self
            .columns
            .iter()
            .filter(|(_, feature)| type_of(feature) == Some(wanted));
        of_type.map(|(name, _)| name.as_str()).collect()
    }

    /// Returns `column` if it exists.
    fn existing(&self, key: &'static str, column: &str) -> Result<String, DataError> {
        match self.columns.contains_key(column) {
            true => Ok(column.to_owned()),
            false => Err(self.missing(key, format!("there is no column `{column}`"))),
        }
    }

    fn missing(&self, key: &'static str, problem: String) -> DataError {
        DataError::MissingColumn {
            path: self.path.clone(),
            key,
            problem,
            available: self.columns.keys().cloned().collect(),
        }
    }
}

fn type_of(feature: &Value) -> Option<&str> {
    feature.get("_type").and_then(Value::as_str)
}
