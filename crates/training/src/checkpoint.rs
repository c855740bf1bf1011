//! Checkpoints: a folder of safetensors files and a manifest, valid as a whole or not at all.
//!
//! ```text
//! checkpoints/step-0000300/
//!   model.safetensors       weights under upstream's names, heads as `projectors.N...`
//!   ema.safetensors         their moving average
//!   ema2.safetensors        a second one, where the run keeps it
//!   optimizer.safetensors   `exp_avg.NAME` and `exp_avg_sq.NAME`
//!   random.safetensors      states of the generators
//!   manifest.json           step, data cursor, configuration's hash, size and SHA-256 of each file
//! ```
//!
//! A checkpoint is written under a temporary name, synced and renamed, so a folder called
//! `step-N` was complete when it was written; the checksums find out whether it still is.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};

use data::Cursor;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tch::{TchError, Tensor};
use thiserror::Error;

use crate::tensor_file;

const MANIFEST: &str = "manifest.json";
const EXTENSION: &str = ".safetensors";
const MODEL: &str = "model.safetensors";
const EMA: &str = "ema.safetensors";
const SECOND_EMA: &str = "ema2.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const RANDOM: &str = "random.safetensors";
const FORMAT: u32 = 1;

/// Why a checkpoint could not be written or read.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// A file operation failed.
    #[error("cannot {action} {}: {source}{}", path.display(), hint(source))]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },

    /// A safetensors file is damaged, or could not be written.
    #[error("{}: {source}", path.display())]
    Tensors {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: safetensors::SafeTensorError,
    },

    /// A tensor's dtype cannot be stored.
    #[error("tensor `{name}` has dtype {found}, which checkpoints do not hold")]
    Dtype {
        /// Name of the tensor.
        name: String,
        /// Its dtype.
        found: String,
    },

    /// The manifest cannot be understood.
    #[error("{}: {source}", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// The reason, with line and column.
        source: serde_json::Error,
    },

    /// The manifest is of another version of the format.
    #[error("{} is of format {found}, this program reads format {FORMAT}", path.display())]
    Format {
        /// The manifest.
        path: PathBuf,
        /// Its format.
        found: u32,
    },

    /// A file is not the one that the manifest describes.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// In which way.
        reason: String,
    },

    /// libtorch refused.
    #[error(transparent)]
    Tch(#[from] TchError),
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull => {
            "; free some space and start again, the run goes on from its last checkpoint"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; choose another folder with --out"
        }
        _ => "",
    }
}

impl CheckpointError {
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }
}

/// Name, among [`Checkpoint::others`], of the weights of an autoencoder that is trained.
pub const VAE: &str = "vae";

/// What a checkpoint holds.
#[derive(Debug)]
pub struct Checkpoint {
    /// Optimiser steps done.
    pub step: u64,
    /// Where the data stream stood after the last batch of that step.
    pub cursor: Cursor,
    /// Hash of the configuration it belongs to.
    pub config_hash: String,
    /// Weights and buffers.
    pub model: Vec<(String, Tensor)>,
    /// Their moving average.
    pub ema: Vec<(String, Tensor)>,
    /// A second moving average, with another decay.
    pub second_ema: Option<Vec<(String, Tensor)>>,
    /// Moments of the optimiser.
    pub optimizer: Vec<(String, Tensor)>,
    /// States of the random generators.
    pub random: Vec<(String, Tensor)>,
    /// What else a variant trains, by the name of its file without extension: REPA-E's `vae` and
    /// `discriminator`, and the moments of their optimisers.
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

/// Which checkpoint it is, by its manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Optimiser steps that are behind it.
    pub step: u64,
    /// [`Config::training_hash`](crate::Config::training_hash) of the run.
    pub config_hash: String,
}

impl Identity {
    /// That of the checkpoint in the folder `path`, whose other files are not looked at.
    ///
    /// # Errors
    /// There is no manifest, or none of this version.
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
    let text = fs::read(&file).map_err(|e| CheckpointError::io("read", &file, e))?;
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

impl Checkpoint {
    /// Writes the checkpoint to `folder/step-NNNNNNN` and returns that path. A checkpoint of the
    /// same step that is there already is replaced.
    ///
    /// # Errors
    /// Disk full, no permission and the like; then nothing named `step-...` has changed.
    pub fn save(&self, folder: &Path) -> Result<PathBuf, CheckpointError> {
        let path = folder.join(folder_name(self.step));
        let temporary = folder.join(format!(".step-{:07}.partial", self.step));
        let written = self.write_to(folder, &temporary, &path);
        if written.is_err() {
            // Best effort: the space may be what the user needs.
            let _removed = fs::remove_dir_all(&temporary);
        }
        written.map(|()| path)
    }

    fn write_to(
        &self,
        folder: &Path,
        temporary: &Path,
        path: &Path,
    ) -> Result<(), CheckpointError> {
        fs::create_dir_all(folder).map_err(|e| CheckpointError::io("create", folder, e))?;
        remove_folder(temporary)?;
        fs::create_dir(temporary).map_err(|e| CheckpointError::io("create", temporary, e))?;
        let mut files = BTreeMap::new();
        for (name, tensors) in self.parts() {
            let file = temporary.join(&name);
            tensor_file::write(&file, tensors)?;
            sync(&file)?;
            files.insert(name, describe(&file)?);
        }
        let manifest = Manifest {
            format: FORMAT,
            step: self.step,
            cursor: self.cursor,
            config_hash: self.config_hash.clone(),
            files,
        };
        let file = temporary.join(MANIFEST);
        let text = serde_json::to_string_pretty(&manifest).map_err(|source| {
            CheckpointError::Manifest {
                path: file.clone(),
                source,
            }
        })?;
        let mut out = File::create(&file).map_err(|e| CheckpointError::io("create", &file, e))?;
        out.write_all(text.as_bytes())
            .and_then(|()| out.sync_all())
            .map_err(|e| CheckpointError::io("write", &file, e))?;
        sync(temporary)?;
        let rename = |from: &Path, to: &Path| {
            fs::rename(from, to).map_err(|e| CheckpointError::io("rename to", to, e))
        };
        if !path.exists() {
            rename(temporary, path)?;
            return sync(folder);
        }
        // Removing takes time, in which there would be neither.
        let old = temporary.with_extension("replaced.partial");
        remove_folder(&old)?;
        rename(path, &old)?;
        if let Err(error) = rename(temporary, path) {
            rename(&old, path)?;
            return Err(error);
        }
        sync(folder)?;
        remove_folder(&old)
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

    /// Reads and checks one checkpoint folder.
    ///
    /// # Errors
    /// A file is missing, cut short or changed.
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
            let bytes = fs::read(&file).map_err(|e| CheckpointError::io("read", &file, e))?;
            if bytes.len() as u64 != entry.bytes {
                return Err(CheckpointError::Damaged {
                    path: file,
                    reason: format!(
                        "{} bytes long, the manifest says {}",
                        bytes.len(),
                        entry.bytes
                    ),
                });
            }
            if hex(&Sha256::digest(&bytes)) != entry.sha256 {
                return Err(CheckpointError::Damaged {
                    path: file,
                    reason: "its SHA-256 is not the manifest's".to_owned(),
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
                    // A manifest names files beside it, nothing elsewhere.
                    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
                    stem.chars().all(plain).then_some(())?;
                    Some(part(name).map(|tensors| (stem.to_owned(), tensors)))
                })
                .collect::<Result<_, _>>()?,
            step: manifest.step,
            cursor: manifest.cursor,
            config_hash: manifest.config_hash,
        })
    }

    /// The newest checkpoint below `folder` that is whole, belongs to `config_hash`, and has no more than
    /// `steps` behind it; others are passed over with a warning. `None` where there is none.
    pub fn newest(folder: &Path, config_hash: &str, steps: u64) -> Option<Self> {
        let passed_over = |path: &Path, reason: &dyn std::fmt::Display| {
            tracing::warn!("{} {reason}; passed over", path.display());
        };
        list(folder).into_iter().rev().find_map(|path| {
            let fits = Identity::read(&path).and_then(|identity| {
                if identity.config_hash != config_hash {
                    passed_over(&path, &"is of another configuration");
                } else if identity.step > steps {
                    passed_over(&path, &format!("is beyond train.steps = {steps}"));
                } else {
                    return Self::load(&path).map(Some);
                }
                Ok(None)
            });
            fits.unwrap_or_else(|error| {
                tracing::warn!("{error}; passed over");
                None
            })
        })
    }
}

/// Checkpoint folders below `folder`, oldest first. Unfinished ones are not among them.
pub fn list(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut found: Vec<(u64, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| Some((step_of(&entry.path())?, entry.path())))
        .collect();
    found.sort();
    found.into_iter().map(|(_, path)| path).collect()
}

fn folder_name(step: u64) -> String {
    format!("step-{step:07}")
}

fn step_of(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?;
    name.strip_prefix("step-")?.parse().ok()
}

/// The folder of a run's checkpoints.
pub(crate) const CHECKPOINTS: &str = "checkpoints";
/// Where [`set_aside`] puts what it finds, in a run's folder.
const BEFORE: &str = "before";

/// Makes room in a run's folder for a run that goes on from `step`, or begins, without losing what is there:
/// checkpoints after that step, which are damaged or of another run, go to `before/N` with copies of the run's
/// files; for a run that begins, all that is there goes, if checkpoints are. Returns that folder.
///
/// # Errors
/// The system refused.
pub(crate) fn set_aside(run: &Path, step: Option<u64>) -> Result<Option<PathBuf>, CheckpointError> {
    let checkpoints = run.join(CHECKPOINTS);
    let mut foreign = list(&checkpoints);
    if let Some(step) = step {
        let own = checkpoints.join(folder_name(step));
        foreign.retain(|path| step_of(path) > Some(step) && *path != own);
    }
    if foreign.is_empty() {
        return Ok(None);
    }
    let free = (1..).map(|index: u32| run.join(BEFORE).join(index.to_string()));
    let Some(before) = free.into_iter().find(|path| !path.exists()) else {
        return Ok(None);
    };
    let kept = before.join(CHECKPOINTS);
    fs::create_dir_all(&kept).map_err(|e| CheckpointError::io("create", &kept, e))?;
    let entries = fs::read_dir(run).map_err(|e| CheckpointError::io("read", run, e))?;
    for entry in entries.flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        if [CHECKPOINTS, BEFORE].iter().any(|own| name == *own) || name == ".lock" {
            continue;
        }
        let to = before.join(&name);
        if step.is_none() {
            fs::rename(&path, &to).map_err(|e| CheckpointError::io("rename to", &to, e))?;
        } else if path.is_file() {
            fs::copy(&path, &to).map_err(|e| CheckpointError::io("write", &to, e))?;
        }
    }
    // Last: as long as they are here, what was broken off is done again.
    for path in foreign {
        let to = kept.join(path.file_name().unwrap_or_default());
        fs::rename(&path, &to).map_err(|e| CheckpointError::io("rename to", &to, e))?;
    }
    Ok(Some(before))
}

/// Removes all but the newest `keep` checkpoints, and what an interrupted save left behind.
///
/// # Errors
/// A folder cannot be removed.
pub fn prune(folder: &Path, keep: usize) -> Result<(), CheckpointError> {
    let mut old = list(folder);
    old.truncate(old.len().saturating_sub(keep));
    let partial = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with(".step-") && name.ends_with(".partial")
        })
        .map(|entry| entry.path());
    for path in old.into_iter().chain(partial) {
        remove_folder(&path)?;
    }
    Ok(())
}

fn remove_folder(path: &Path) -> Result<(), CheckpointError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(CheckpointError::io("remove", path, error))
        }
        _ => Ok(()),
    }
}

fn sync(path: &Path) -> Result<(), CheckpointError> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(|e| CheckpointError::io("sync", path, e))
}

fn describe(path: &Path) -> Result<FileEntry, CheckpointError> {
    let (bytes, sha256) = checksum("read back", path)?;
    Ok(FileEntry { bytes, sha256 })
}

/// SHA-256 of a file, in hexadecimal.
///
/// # Errors
/// It cannot be read.
pub fn file_sha256(path: &Path) -> Result<String, CheckpointError> {
    Ok(checksum("read", path)?.1)
}

/// Length and SHA-256 of a file.
fn checksum(action: &'static str, path: &Path) -> Result<(u64, String), CheckpointError> {
    let read = |e| CheckpointError::io(action, path, e);
    let mut file = File::open(path).map_err(read)?;
    let (mut hasher, mut bytes) = (Sha256::new(), 0);
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer).map_err(read)?;
        if n == 0 {
            break;
        }
        hasher.update(&buffer[..n]);
        bytes += n as u64;
    }
    Ok((bytes, hex(&hasher.finalize())))
}

pub(crate) fn hex(digest: &[u8]) -> String {
    digest.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}
