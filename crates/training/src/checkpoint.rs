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
mod folder;
mod manifest;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use data::Cursor;
use files::AtomicFolder;
use tch::Tensor;

pub use self::error::CheckpointError;
use self::folder::folder_name;
pub(crate) use self::folder::{CHECKPOINTS, step_of};
pub use self::folder::{list, prune};
pub use self::manifest::{CheckpointId, file_sha256};
use self::manifest::{FileEntry, Manifest};
use crate::tensor_file;

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
            files.insert(name, FileEntry::of(&file)?);
        }
        let id = CheckpointId {
            step: self.step,
            config_hash: self.config_hash.clone(),
        };
        Manifest::new(id, self.cursor, files).write(folder)
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
        let manifest = Manifest::read(path)?;
        let part = |name: &str| {
            let bytes = manifest.read_file(path, name)?;
            tensor_file::parse(&path.join(name), &bytes)
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
