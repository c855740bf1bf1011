//! Many samples of a checkpoint: to a folder of PNG files or an `.npz`, on several devices, and
//! on from where an interrupted call stopped.
//!
//! Everything about an image follows from its index: the class from a [`ClassRule`], the pixels as
//! [`Sampling::sample`] says. How many are wanted, how often the call was interrupted and how many
//! devices share the work therefore change no byte.

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
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A stored image is not what was stored.
    #[error("{}: {reason}; remove it, and the same command draws it again", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A class that the model does not have.
    #[error("class {class}: the model has classes 0 to {}", classes - 1)]
    Class {
        /// The class asked for.
        class: i64,
        /// How many there are.
        classes: i64,
    },
    /// The place holds something else.
    #[error("{}: {reason}; name another place with --out, or --fresh to draw anew", path.display())]
    Occupied {
        /// The folder or file.
        path: PathBuf,
        /// What it holds.
        reason: String,
    },
    /// Another process draws into the folder.
    #[error("another process is drawing into this folder: {0}")]
    Locked(LockError),
    /// A worker ended without a word.
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

    /// Whether the call was wrong, rather than its execution.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Class { .. } | Self::Occupied { .. })
    }
}

/// What the bytes of an image follow from, besides its index. Written beside the images, so that a
/// call with other settings does not add to them.
#[derive(Debug, Clone, Serialize)]
pub struct Recipe {
    /// SHA-256 of the file of weights.
    pub weights: String,
    /// Model, objective, sampler and seed.
    pub settings: serde_json::Value,
    /// Classes by index.
    pub classes: ClassRule,
    /// Kind of device: `cpu` or `cuda`. Their rounding and their random numbers differ.
    pub device: &'static str,
}

impl Recipe {
    /// Of weights with checksum `weights` under `config`.
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

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Images that were there before.
    pub found: u64,
    /// Images that were drawn now.
    pub drawn: u64,
    /// Whether it was interrupted; the same call goes on.
    pub interrupted: bool,
}

/// Draws what is missing of the first `count` images into `folder`, with one of `samplers` a
/// device. `progress` is told the number of images that are there.
///
/// # Errors
/// The denoiser failed, or an image cannot be written; what was written stays.
pub fn draw(
    folder: &SampleFolder,
    samplers: Vec<Sampling>,
    classes: &ClassRule,
    count: u64,
    interrupted: &AtomicBool,
    mut progress: impl FnMut(u64),
) -> Result<Outcome, SamplingError> {
    let missing = folder.missing(count)?;
    let found = count - missing.len() as u64;
    progress(found);
    let batch = samplers.first().map_or(1, Sampling::batch_size).max(1) as u64;
    let batches: Vec<&[u64]> = missing
        .chunk_by(|left, right| left / batch == right / batch)
        .collect();
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let worker = |sampling: Sampling, done: mpsc::Sender<u64>| -> Result<(), SamplingError> {
        while !interrupted.load(Ordering::Relaxed) && !failed.load(Ordering::Relaxed) {
            let Some(wanted) = batches.get(next.fetch_add(1, Ordering::Relaxed)) else {
                break;
            };
            let drawn = match draw_batch(folder, &sampling, classes, wanted, interrupted) {
                Err(SamplingError::Train(TrainError::Interrupted)) => break,
                Err(error) => {
                    failed.store(true, Ordering::Relaxed);
                    return Err(error);
                }
                Ok(drawn) => drawn,
            };
            // The receiver lives as long as the workers.
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
            progress(found + drawn);
        }
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or(Err(SamplingError::Thread)))
            .collect()
    });
    ends.into_iter().collect::<Result<(), _>>()?;
    Ok(Outcome {
        found,
        drawn,
        interrupted: found + drawn < count,
    })
}

/// Draws the images from the first to the last of `wanted`, and writes these.
fn draw_batch(
    folder: &SampleFolder,
    sampling: &Sampling,
    classes: &ClassRule,
    wanted: &[u64],
    interrupted: &AtomicBool,
) -> Result<u64, SamplingError> {
    let (Some(&first), Some(&last)) = (wanted.first(), wanted.last()) else {
        return Ok(0);
    };
    let labels: Vec<i64> = (first..=last).map(|index| classes.class(index)).collect();
    let images =
        crate::image_array(&sampling.sample_until(interrupted, first, &labels, |_| {})?)?;
    wanted.par_iter().try_for_each(|index| {
        let image = images.index_axis(Axis(0), (index - first) as usize);
        folder.write(*index, image)
    })?;
    Ok(wanted.len() as u64)
}
