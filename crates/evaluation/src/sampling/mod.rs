//! Draws many samples from a checkpoint into a folder of PNG files or an `.npz`, on several devices, and resumes after an
//! interruption.
//!
//! Each image depends only on its index: a [`ClassRule`] chooses the class, [`Sampling::sample`] computes the pixels. The
//! number of images, interruptions and the number of devices therefore do not change a byte of any image.

mod classes;
mod folder;
mod npz;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use files::LockError;
use ndarray::Axis;
use rayon::prelude::*;
use serde::Serialize;
use thiserror::Error;
use training::{Config, Sampling, TrainError};

pub use classes::{ClassOrder, ClassRule};
pub use folder::SampleFolder;
pub use npz::pack;

use report::image_grid::ImageGridError;

/// Why samples could not be drawn or stored.
#[derive(Debug, Error)]
pub enum SamplingError {
    /// The denoiser or the sampler failed.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// libtorch failed.
    #[error(transparent)]
    Tch(#[from] tch::TchError),
    /// An image could not be written.
    #[error(transparent)]
    Image(#[from] ImageGridError),
    /// A file operation failed.
    #[error("cannot {action} {}: {source}; check its permissions and the space left", path.display())]
    Io {
        /// The operation.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// A stored image is missing, damaged or has another size than the others.
    #[error("{}: {reason}; remove it, and the same command draws it again", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// The problem.
        reason: String,
    },
    /// A class that the model does not have.
    #[error("class {class}: the model has classes 0 to {}", classes - 1)]
    Class {
        /// The requested class.
        class: i64,
        /// The number of classes of the model.
        classes: i64,
    },
    /// The output path contains something else.
    #[error("{}: {reason}; choose another path with --out, or draw all images again with --fresh", path.display())]
    Occupied {
        /// The folder or file.
        path: PathBuf,
        /// What it contains.
        reason: String,
    },
    /// Another process draws into the folder.
    #[error("another process is drawing into this folder: {0}")]
    Locked(LockError),
    /// A worker thread panicked.
    #[error("a sampling thread ended unexpectedly")]
    Thread,
}

impl From<LockError> for SamplingError {
    fn from(error: LockError) -> Self {
        match error {
            LockError::Io {
                action,
                path,
                source,
            } => Self::Io {
                action,
                path,
                source,
            },
            held => Self::Locked(held),
        }
    }
}

impl SamplingError {
    pub(crate) fn io<'a>(
        action: &'static str,
        path: &'a Path,
    ) -> impl FnOnce(io::Error) -> Self + use<'a> {
        move |source| Self::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }

    /// Returns whether the request was invalid, as opposed to a failure while it was executed.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Class { .. } | Self::Occupied { .. })
    }
}

/// Everything that determines the bytes of an image besides its index. It is stored next to the images, so that images of
/// other settings are not added to them.
#[derive(Debug, Clone, Serialize)]
pub struct Recipe {
    /// SHA-256 of the file that contains the weights.
    pub weights: String,
    /// Model, objective, sampler and seed.
    pub settings: serde_json::Value,
    /// Chooses the class of each index.
    pub classes: ClassRule,
    /// Kind of device, `cpu` or `cuda`; rounding and random numbers differ between them.
    pub device: &'static str,
}

impl Recipe {
    /// The recipe of images that the weights with SHA-256 `weights` generate with the settings of `config`.
    pub fn new(weights: String, config: &Config, classes: ClassRule, device: tch::Device) -> Self {
        let settings = serde_json::json!({
            "model": config.model,
            "resolution": config.data.resolution,
            "objective": config.objective,
            "precision": config.train.precision,
            "sampler": config.sample.sampler,
            "seed": config.sample.seed,
        });
        Self {
            weights,
            settings,
            classes,
            device: match device {
                tch::Device::Cpu => "cpu",
                _ => "cuda",
            },
        }
    }
}

/// The result of [`draw`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Images that existed before the call.
    pub existing: u64,
    /// Images that the call drew.
    pub drawn: u64,
    /// Whether the call was interrupted; the same call then resumes.
    pub interrupted: bool,
}

/// Draws those of the first `count` images that are missing in `folder`, with one sampler per device. `progress` receives
/// the number of existing images.
///
/// # Errors
/// The denoiser failed, or an image cannot be written. Images that were written are kept.
pub fn draw(
    folder: &SampleFolder,
    samplers: Vec<Sampling>,
    classes: &ClassRule,
    count: u64,
    interrupted: &AtomicBool,
    mut progress: impl FnMut(u64),
) -> Result<Outcome, SamplingError> {
    let missing = folder.missing(count)?;
    let existing = count - missing.len() as u64;
    progress(existing);
    let batch = samplers.first().map_or(1, Sampling::batch_size).max(1) as u64;
    let batches: Vec<&[u64]> = missing
        .chunk_by(|left, right| left / batch == right / batch)
        .collect();
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let worker = |sampling: Sampling, done: mpsc::Sender<u64>| -> Result<(), SamplingError> {
        while !interrupted.load(Ordering::Relaxed) && !failed.load(Ordering::Relaxed) {
            let Some(indices) = batches.get(next.fetch_add(1, Ordering::Relaxed)) else {
                break;
            };
            let drawn = match draw_batch(folder, &sampling, classes, indices, interrupted) {
                Err(SamplingError::Train(TrainError::Interrupted)) => break,
                Err(error) => {
                    failed.store(true, Ordering::Relaxed);
                    return Err(error);
                }
                Ok(drawn) => drawn,
            };
            // Cannot fail: the receiver outlives the workers.
            let _received = done.send(drawn);
        }
        Ok(())
    };
    let mut drawn = 0;
    let ends: Vec<Result<(), SamplingError>> = thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        let workers: Vec<_> = samplers
            .into_iter()
            .map(|sampling| {
                let (worker, sender) = (&worker, sender.clone());
                scope.spawn(move || worker(sampling, sender))
            })
            .collect();
        drop(sender);
        for written in receiver {
            drawn += written;
            progress(existing + drawn);
        }
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or(Err(SamplingError::Thread)))
            .collect()
    });
    ends.into_iter().collect::<Result<(), _>>()?;
    Ok(Outcome {
        existing,
        drawn,
        interrupted: existing + drawn < count,
    })
}

/// Draws all images from the first to the last of `indices`, and writes those of `indices`.
fn draw_batch(
    folder: &SampleFolder,
    sampling: &Sampling,
    classes: &ClassRule,
    indices: &[u64],
    interrupted: &AtomicBool,
) -> Result<u64, SamplingError> {
    let (Some(&first), Some(&last)) = (indices.first(), indices.last()) else {
        return Ok(0);
    };
    let labels: Vec<i64> = (first..=last).map(|index| classes.class(index)).collect();
    let images =
        crate::image_array(&sampling.sample_until(interrupted, first, &labels, |_| {})?)?;
    indices.par_iter().try_for_each(|index| {
        let image = images.index_axis(Axis(0), (index - first) as usize);
        folder.write(*index, image)
    })?;
    Ok(indices.len() as u64)
}
