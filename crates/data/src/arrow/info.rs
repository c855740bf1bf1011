//! Reads the two JSON files beside the Arrow files: `state.json` and `dataset_info.json`.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::DataError;
use crate::features::{Features, metadata};

const WRITE_AGAIN: &str = "copy the folder again, or write it again with `save_to_disk`";

/// Reads the columns and their types from `dataset_info.json`.
pub(super) fn read_features(root: &Path) -> Result<Features, DataError> {
    let path = root.join("dataset_info.json");
    let mut info = read_object(&path, WRITE_AGAIN)?;
    Features::of_info(path, &mut info, WRITE_AGAIN)
}

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
