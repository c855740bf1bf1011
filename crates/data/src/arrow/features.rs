//! Reads the two JSON files beside the Arrow files: `state.json` and `dataset_info.json`.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::columns::{IMAGE_COLUMN, LABEL_COLUMN};
use crate::error::DataError;

const WRITE_AGAIN: &str = "copy the folder again, or write it again with `save_to_disk`";

/// Reads a JSON object.
fn read_object(path: &Path, fix: &'static str) -> Result<Map<String, Value>, DataError> {
    let text = fs::read(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => metadata(path, ".", "the file is missing".to_owned(), fix),
        _ => DataError::io(path, "read the file")(source),
    })?;
    if let Some(what) = ::files::describe_foreign(&text) {
        return Err(metadata(path, ".", format!("the file is {what}"), fix));
    }
    // Some editors put a byte order mark before UTF-8 text.
    let json = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&text);
    match serde_json::from_slice(json) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(metadata(path, ".", "not a JSON object".to_owned(), fix)),
        Err(error) => Err(metadata(path, ".", format!("not valid JSON: {error}"), fix)),
    }
}

fn metadata(path: &Path, key: &str, problem: String, fix: &'static str) -> DataError {
    DataError::Metadata {
        path: path.to_path_buf(),
        key: key.to_owned(),
        problem,
        fix,
    }
}

/// The content of `state.json`: the data files and the fingerprint.
pub(super) struct State {
    pub data_files: Vec<String>,
    pub fingerprint: String,
}

impl State {
    pub(super) fn read(root: &Path) -> Result<Self, DataError> {
        let path = root.join("state.json");
        let state = read_object(&path, WRITE_AGAIN)?;

        const FILES: &str = "_data_files";
        let wrong = |problem: &str| metadata(&path, FILES, problem.to_owned(), WRITE_AGAIN);
        let listed = match state.get(FILES) {
            Some(Value::Array(listed)) => listed,
            Some(_) => return Err(wrong("is not a list of files")),
            None => return Err(wrong("is missing")),
        };
        let mut data_files = Vec::new();
        for entry in listed {
            let name = entry.get("filename").and_then(Value::as_str);
            data_files.push(
                name.ok_or_else(|| wrong("an entry has no `filename`"))?
                    .to_owned(),
            );
        }
        // The list of data files may be empty: `filter` can remove all rows of a split.
        for key in ["_indices_files", "_indices_data_files"] {
            if state
                .get(key)
                .and_then(Value::as_array)
                .is_some_and(|files| !files.is_empty())
            {
                return Err(metadata(
                    &path,
                    key,
                    "the rows are selected by a separate table of indices, which is not supported"
                        .to_owned(),
                    "call `flatten_indices()` on the data set before `save_to_disk`",
                ));
            }
        }
        let fingerprint = state
            .get("_fingerprint")
            .and_then(Value::as_str)
            .unwrap_or_default();
        Ok(Self {
            data_files,
            fingerprint: fingerprint.to_owned(),
        })
    }
}

/// The content of `dataset_info.json`: the columns and their types.
pub(super) struct Features {
    path: PathBuf,
    columns: Map<String, Value>,
}

impl Features {
    pub(super) fn read(root: &Path) -> Result<Self, DataError> {
        let path = root.join("dataset_info.json");
        let mut info = read_object(&path, WRITE_AGAIN)?;
        match info.remove("features") {
            Some(Value::Object(columns)) => Ok(Self { path, columns }),
            Some(_) => Err(metadata(
                &path,
                "features",
                "is not a table of columns".to_owned(),
                WRITE_AGAIN,
            )),
            None => Err(metadata(
                &path,
                "features",
                "is missing".to_owned(),
                WRITE_AGAIN,
            )),
        }
    }

    /// The column of images: `requested`, the only column of type `Image`, or `image`.
    pub(super) fn image_column(&self, requested: Option<&str>) -> Result<String, DataError> {
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
    pub(super) fn label_column(&self, requested: Option<&str>) -> Result<String, DataError> {
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
    pub(super) fn class_names(&self, column: &str) -> Result<Option<Vec<String>>, DataError> {
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
                WRITE_AGAIN,
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
