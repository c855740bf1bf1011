//! The manifest of a checkpoint: what it is of, and the size and SHA-256 of each file.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use data::Cursor;
use files::Checksum;
use serde::{Deserialize, Serialize};

use super::error::{CheckpointError, FORMAT};
use super::folder::is_absent;

const MANIFEST: &str = "manifest.json";

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    format: u32,
    pub(super) step: u64,
    pub(super) cursor: Cursor,
    pub(super) config_hash: String,
    pub(super) files: BTreeMap<String, FileEntry>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileEntry {
    bytes: u64,
    sha256: String,
}

/// The step and the configuration of a checkpoint, as its manifest states them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointId {
    /// Number of optimiser steps done.
    pub step: u64,
    /// [`Config::training_hash`](crate::Config::training_hash) of the run.
    pub config_hash: String,
}

impl CheckpointId {
    /// Reads the manifest of the checkpoint folder `path`, and no other file.
    ///
    /// # Errors
    /// The manifest is missing or cannot be read, or has another format.
    pub fn read(path: &Path) -> Result<Self, CheckpointError> {
        let manifest = Manifest::read(path)?;
        Ok(Self {
            step: manifest.step,
            config_hash: manifest.config_hash,
        })
    }
}

impl Manifest {
    pub(super) fn new(
        id: CheckpointId,
        cursor: Cursor,
        files: BTreeMap<String, FileEntry>,
    ) -> Self {
        Self {
            format: FORMAT,
            step: id.step,
            cursor,
            config_hash: id.config_hash,
            files,
        }
    }

    /// Reads the manifest of the checkpoint folder `path`.
    pub(super) fn read(path: &Path) -> Result<Self, CheckpointError> {
        let file = path.join(MANIFEST);
        let text = read(path, &file)?;
        if let Some(what) = files::describe_foreign(&text) {
            return Err(CheckpointError::Damaged {
                path: file,
                reason: format!("it is {what}"),
            });
        }
        let manifest: Self =
            serde_json::from_slice(&text).map_err(|source| CheckpointError::Manifest {
                path: file.clone(),
                source,
            })?;
        if manifest.format != FORMAT {
            return Err(CheckpointError::Format {
                path: file,
                found: manifest.format,
            });
        }
        Ok(manifest)
    }

    /// Writes the manifest to the checkpoint folder `folder`.
    pub(super) fn write(&self, folder: &Path) -> Result<(), CheckpointError> {
        let file = folder.join(MANIFEST);
        let text =
            serde_json::to_string_pretty(self).map_err(|source| CheckpointError::Manifest {
                path: file.clone(),
                source,
            })?;
        fs::write(&file, text).map_err(|e| CheckpointError::io("write", &file, e))
    }

    /// Reads the file `name` of the checkpoint in `folder` and verifies its checksum.
    pub(super) fn read_file(&self, folder: &Path, name: &str) -> Result<Vec<u8>, CheckpointError> {
        let file = folder.join(name);
        let Some(entry) = self.files.get(name) else {
            return Err(CheckpointError::Damaged {
                path: folder.join(MANIFEST),
                reason: format!("it does not list {name}"),
            });
        };
        let bytes = read(folder, &file)?;
        if bytes.len() as u64 != entry.bytes {
            return Err(CheckpointError::Damaged {
                path: file,
                reason: match files::describe_foreign(&bytes) {
                    Some(what) => format!("it is {what}"),
                    None => format!(
                        "it is {} bytes long, but the manifest says {}",
                        bytes.len(),
                        entry.bytes
                    ),
                },
            });
        }
        if Checksum::of(&bytes).sha256 != entry.sha256 {
            return Err(CheckpointError::Damaged {
                path: file,
                reason: "its SHA-256 is not that of the manifest".to_owned(),
            });
        }
        Ok(bytes)
    }
}

impl FileEntry {
    /// Describes a file that was written, by reading it.
    pub(super) fn of(path: &Path) -> Result<Self, CheckpointError> {
        let Checksum { bytes, sha256 } = checksum("read back", path)?;
        Ok(Self { bytes, sha256 })
    }
}

/// Reads a file of the checkpoint in `folder`. If only the file is missing, the checkpoint is damaged.
fn read(folder: &Path, file: &Path) -> Result<Vec<u8>, CheckpointError> {
    fs::read(file).map_err(|error| {
        let is_missing = is_absent(file, &error) && fs::metadata(folder).is_ok();
        match is_missing {
            true => CheckpointError::Damaged {
                path: file.to_owned(),
                reason: "the file is missing".to_owned(),
            },
            false => CheckpointError::io("read", file, error),
        }
    })
}

/// Returns the SHA-256 of a file, in hexadecimal.
///
/// # Errors
/// The file cannot be read.
pub fn file_sha256(path: &Path) -> Result<String, CheckpointError> {
    Ok(checksum("read", path)?.sha256)
}

fn checksum(action: &'static str, path: &Path) -> Result<Checksum, CheckpointError> {
    Checksum::of_file(path).map_err(|error| CheckpointError::io(action, path, error))
}
