//! Checkpoints: each is a folder of safetensors files and a manifest, valid as a whole or not at all.
//!
//! ```text
//! checkpoints/step-0000300/
//!   model.safetensors       weights under upstream's names, heads as `projectors.N...`
//!   ema.safetensors         moving average of the weights
//!   ema2.safetensors        second moving average, if the run keeps one
//!   optimizer.safetensors   `exp_avg.NAME` and `exp_avg_sq.NAME`
//!   random.safetensors      states of the random generators
//!   history.safetensors     figures of the last steps, from which a collapse is detected
//!   manifest.json           step, data cursor, configuration hash, size and SHA-256 of each file
//! ```
//!
//! A checkpoint is written under a temporary name, synced and renamed, so a folder called `step-N`
//! was complete when it was written. The checksums detect later damage.

pub(crate) mod error;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use data::Cursor;
use files::{AtomicFolder, Checksum, LeftoverScope};
use serde::{Deserialize, Serialize};
use tch::Tensor;

pub use self::error::CheckpointError;
use self::error::FORMAT;
use crate::tensor_file;

const MANIFEST: &str = "manifest.json";
const EXTENSION: &str = ".safetensors";
const MODEL: &str = "model.safetensors";
const EMA: &str = "ema.safetensors";
const SECOND_EMA: &str = "ema2.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const RANDOM: &str = "random.safetensors";

/// Key in [`Checkpoint::others`] of the weights of a trained autoencoder.
pub const VAE: &str = "vae";

/// Key in [`Checkpoint::others`] of the state of [`CollapseWatch`](crate::CollapseWatch).
pub(crate) const HISTORY: &str = "history";

/// The contents of a checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    /// Number of optimiser steps done.
    pub step: u64,
    /// Position of the data stream after the last batch of that step.
    pub cursor: Cursor,
    /// [`Config::training_hash`](crate::Config::training_hash) of the run.
    pub config_hash: String,
    /// Weights and buffers.
    pub model: Vec<(String, Tensor)>,
    /// Moving average of weights and buffers.
    pub ema: Vec<(String, Tensor)>,
    /// A second moving average, with another decay.
    pub second_ema: Option<Vec<(String, Tensor)>>,
    /// Moments of the optimiser.
    pub optimizer: Vec<(String, Tensor)>,
    /// States of the random generators.
    pub random: Vec<(String, Tensor)>,
    /// Further tensors, by the name of their file without extension: REPA-E's `vae` and
    /// `discriminator` with the moments of their optimisers, and the `history` of the figures.
    pub others: BTreeMap<String, Vec<(String, Tensor)>>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    format: u32,
    step: u64,
    cursor: Cursor,
    config_hash: String,
    files: BTreeMap<String, FileEntry>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileEntry {
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
        let manifest = read_manifest(path)?;
        Ok(Self {
            step: manifest.step,
            config_hash: manifest.config_hash,
        })
    }
}

fn read_manifest(path: &Path) -> Result<Manifest, CheckpointError> {
    let file = path.join(MANIFEST);
    let text = read(path, &file)?;
    if let Some(what) = files::describe_foreign(&text) {
        return Err(CheckpointError::Damaged {
            path: file,
            reason: format!("it is {what}"),
        });
    }
    let manifest: Manifest =
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

impl Checkpoint {
    /// Writes the checkpoint to `folder/step-NNNNNNN` and returns that path. An existing checkpoint of
    /// the same step is replaced.
    ///
    /// # Errors
    /// The checkpoint cannot be written, for example because the disk is full. No folder `step-...`
    /// has changed then.
    pub fn save(&self, folder: &Path) -> Result<PathBuf, CheckpointError> {
        let path = folder.join(folder_name(self.step));
        fs::create_dir_all(folder).map_err(|e| CheckpointError::io("create", folder, e))?;
        let new =
            AtomicFolder::create(&path).map_err(|e| CheckpointError::io("create", &path, e))?;
        self.write_to(new.path())?;
        new.commit()
            .map_err(|e| CheckpointError::io("write", &path, e))?;
        Ok(path)
    }

    fn write_to(&self, folder: &Path) -> Result<(), CheckpointError> {
        let mut files = BTreeMap::new();
        for (name, tensors) in self.parts() {
            let file = folder.join(&name);
            tensor_file::write(&file, tensors)?;
            files.insert(name, describe(&file)?);
        }
        let manifest = Manifest {
            format: FORMAT,
            step: self.step,
            cursor: self.cursor,
            config_hash: self.config_hash.clone(),
            files,
        };
        let file = folder.join(MANIFEST);
        let text = serde_json::to_string_pretty(&manifest).map_err(|source| {
            CheckpointError::Manifest {
                path: file.clone(),
                source,
            }
        })?;
        fs::write(&file, text).map_err(|e| CheckpointError::io("write", &file, e))
    }

    fn parts(&self) -> Vec<(String, &[(String, Tensor)])> {
        let mut parts: Vec<(String, &[(String, Tensor)])> = vec![
            (MODEL.to_owned(), &self.model),
            (EMA.to_owned(), &self.ema),
            (OPTIMIZER.to_owned(), &self.optimizer),
            (RANDOM.to_owned(), &self.random),
        ];
        if let Some(second) = &self.second_ema {
            parts.push((SECOND_EMA.to_owned(), second));
        }
        for (name, tensors) in &self.others {
            parts.push((format!("{name}{EXTENSION}"), tensors));
        }
        parts
    }

    /// Reads the checkpoint folder `path` and verifies its checksums.
    ///
    /// # Errors
    /// A file is missing, truncated or changed, or cannot be read.
    pub fn load(path: &Path) -> Result<Self, CheckpointError> {
        let manifest = read_manifest(path)?;
        let part = |name: &str| {
            let file = path.join(name);
            let Some(entry) = manifest.files.get(name) else {
                return Err(CheckpointError::Damaged {
                    path: path.join(MANIFEST),
                    reason: format!("it does not list {name}"),
                });
            };
            let bytes = read(path, &file)?;
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
            tensor_file::parse(&file, &bytes)
        };
        Ok(Self {
            model: part(MODEL)?,
            ema: part(EMA)?,
            second_ema: match manifest.files.contains_key(SECOND_EMA) {
                true => Some(part(SECOND_EMA)?),
                false => None,
            },
            optimizer: part(OPTIMIZER)?,
            random: part(RANDOM)?,
            others: manifest
                .files
                .keys()
                .filter(|name| {
                    ![MODEL, EMA, SECOND_EMA, OPTIMIZER, RANDOM].contains(&name.as_str())
                })
                .filter_map(|name| {
                    let stem = name.strip_suffix(EXTENSION)?;
                    // Only files in the checkpoint's own folder are read, whatever the manifest names.
                    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
                    stem.chars().all(is_plain).then_some(())?;
                    Some(part(name).map(|tensors| (stem.to_owned(), tensors)))
                })
                .collect::<Result<_, _>>()?,
            step: manifest.step,
            cursor: manifest.cursor,
            config_hash: manifest.config_hash,
        })
    }

    /// Loads the newest checkpoint below `folder` that is undamaged, has the hash `config_hash`, and is of
    /// step `steps` or earlier. Other checkpoints are skipped with a warning. `None` if no checkpoint is left.
    ///
    /// # Errors
    /// The folder or a checkpoint cannot be read for a reason other than damage.
    pub fn newest(
        folder: &Path,
        config_hash: &str,
        steps: u64,
    ) -> Result<Option<Self>, CheckpointError> {
        let warn_skipped = |path: &Path, reason: &dyn std::fmt::Display| {
            tracing::warn!("skipped checkpoint {}: {reason}", path.display());
        };
        for path in list(folder)?.into_iter().rev() {
            let loaded = CheckpointId::read(&path).and_then(|id| {
                if id.config_hash != config_hash {
                    warn_skipped(&path, &"it is of another configuration");
                } else if id.step > steps {
                    warn_skipped(&path, &format!("its step is beyond train.steps = {steps}"));
                } else {
                    return Self::load(&path).map(Some);
                }
                Ok(None)
            });
            match loaded {
                Ok(None) => {}
                Ok(checkpoint) => return Ok(checkpoint),
                Err(error) if error.is_damage() => {
                    tracing::warn!("skipped a checkpoint: {error}");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}

/// Lists the checkpoint folders below `folder`, oldest first, without unfinished ones. The list is empty if `folder`
/// does not exist.
///
/// # Errors
/// The folder cannot be read.
pub fn list(folder: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let failed = |e| CheckpointError::io("read", folder, e);
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if is_absent(folder, &error) => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if let Some(step) = step_of(&path) {
            found.push((step, path));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// Whether an error means that nothing exists at `path`. A dangling symbolic link does exist: the disk of its target
/// may not be mounted.
fn is_absent(path: &Path, error: &io::Error) -> bool {
    let is_no_link = |path: &Path| match fs::symlink_metadata(path) {
        Ok(_) => false,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    };
    error.kind() == io::ErrorKind::NotFound && is_no_link(path)
}

fn folder_name(step: u64) -> String {
    format!("step-{step:07}")
}

pub(crate) fn step_of(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?;
    name.strip_prefix("step-")?.parse().ok()
}

/// Name of the folder of a run's checkpoints.
pub(crate) const CHECKPOINTS: &str = "checkpoints";

/// Removes all checkpoints but the newest `keep` and `protected`, and the leftovers of interrupted saves.
///
/// # Errors
/// A folder cannot be removed.
pub fn prune(folder: &Path, keep: usize, protected: Option<&Path>) -> Result<(), CheckpointError> {
    let mut old = list(folder)?;
    old.truncate(old.len().saturating_sub(keep));
    old.retain(|path| Some(path.as_path()) != protected);
    for path in old {
        remove_folder(&path)?;
    }
    files::remove_leftovers(folder, LeftoverScope::EndedOrUnknown)
        .map_err(|e| CheckpointError::io("clean up", folder, e))
}

fn remove_folder(path: &Path) -> Result<(), CheckpointError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(CheckpointError::io("remove", path, error))
        }
        _ => Ok(()),
    }
}

fn describe(path: &Path) -> Result<FileEntry, CheckpointError> {
    let Checksum { bytes, sha256 } = checksum("read back", path)?;
    Ok(FileEntry { bytes, sha256 })
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
