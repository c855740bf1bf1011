//! Opens a folder as a data set, in the format that it has.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::arrow::ArrowDataset;
use crate::dataset::{Dataset, OpenOptions};
use crate::entries::distinct_name;
use crate::error::DataError;
use crate::folder::FolderDataset;
use crate::layout::{Format, Layout};
use crate::parquet::ParquetDataset;
use crate::subset::Subset;
use crate::webdataset::WebDataset;

/// Opens a data set and detects the format of its folder.
///
/// | the folder has | format |
/// | --- | --- |
/// | `state.json` | Arrow files of Hugging Face `save_to_disk` ([`arrow`](crate::arrow)) |
/// | `*.parquet` | Parquet files, as on the Hugging Face Hub ([`parquet`](crate::parquet)) |
/// | `*.tar` | WebDataset ([`webdataset`](crate::webdataset)) |
/// | anything else | PNG, JPEG and WebP files in class folders, or in one flat folder ([`folder`](crate::folder)) |
///
/// A split is a subfolder, or the Parquet files whose names begin with its name (`train-00000-of-00260.parquet`), or the
/// tar files whose names contain it (`imagenet1k-train-0000.tar`). Parquet and tar files may also be in the subfolder
/// `data`.
///
/// # Errors
///
/// The folder is missing, empty or incomplete, has files of several formats, or its content cannot be used as a data
/// set; see [`DataError`].
pub fn open(path: impl AsRef<Path>, options: &OpenOptions) -> Result<Arc<dyn Dataset>, DataError> {
    let path = path.as_ref();
    check_folder(path)?;
    let Layout {
        root,
        split,
        format,
    } = Layout::find(path, options.split.as_deref())?;
    let name = name_of(path, split);
    let dataset: Arc<dyn Dataset> = match format {
        Format::Arrow => Arc::new(ArrowDataset::open(&root, name, options)?),
        Format::Tar(files) => Arc::new(WebDataset::open(&root, files, name, options)?),
        Format::Parquet(files) => Arc::new(ParquetDataset::open(&root, files, name, options)?),
        Format::Images => Arc::new(FolderDataset::open(&root, name, options)?),
    };
    Ok(match options.limit {
        Some(limit) => Subset::limit(dataset, limit.get()),
        None => dataset,
    })
}

fn check_folder(path: &Path) -> Result<(), DataError> {
    let missing = |found| DataError::NotFound {
        path: path.to_path_buf(),
        found,
        expected: "a folder written by Hugging Face `save_to_disk` (state.json, data-*.arrow), Parquet files as on \
                   the Hugging Face Hub (data/train-*.parquet), tar files of WebDataset (*.tar), or a folder of class \
                   folders with PNG, JPEG or WebP files",
    };
    match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => Ok(()),
        Ok(_) => Err(missing("is a file")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(missing("no such folder")),
        Err(source) => Err(DataError::io(path, "open the data folder")(source)),
    }
}

/// The name of a data set in messages: `FOLDER/SPLIT`, or the folder alone if it is the split itself.
fn name_of(path: &Path, split: Option<String>) -> String {
    match (path.file_name().map(distinct_name), split) {
        (Some(folder), Some(split)) => format!("{folder}/{split}"),
        (Some(name), None) | (None, Some(name)) => name,
        (None, None) => path.display().to_string(),
    }
}
