//! `[data]`: the images and how they are read.

use std::num::NonZeroU64;

use data::{Background, OpenOptions};
use serde::{Deserialize, Serialize};

use super::omit::is_default;
use super::path::ConfigPath;

/// Largest default of [`DataConfig::workers`].
const MAX_WORKERS: usize = 16;

/// `[data]`: the images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// A folder of Parquet files, of WebDataset's tar files, of class folders, or that `save_to_disk` wrote.
    pub path: ConfigPath,
    /// The training split, a subfolder or the beginning of the files' names; empty for none.
    pub split: String,
    /// The split with the images that samples are compared with and spatial metrics are computed on;
    /// empty for the training split.
    pub reference_split: String,
    /// Use only so many images of a split, evenly spaced; 0 for all.
    #[serde(skip_serializing_if = "is_default")]
    pub images: u64,
    /// Image column of a Hugging Face data set; if empty, it is found by its type.
    pub image_column: String,
    /// Label column of a Hugging Face data set; if empty, it is found by its type.
    pub label_column: String,
    /// Side of the square images in pixels. Other images are cropped and resized as in ADM.
    pub resolution: u32,
    /// Colour behind transparent pixels.
    pub background: Background,
    /// Mirror each image with probability 1/2.
    pub flip: bool,
    /// Number of threads that decode ahead. The order of the images does not depend on it. By default, as many as this
    /// process has cores, at most 16; several ranks on a machine share its cores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workers: Option<usize>,
    /// Number of batches decoded ahead.
    pub prefetch: usize,
    /// Memory in MiB for the encoder's tokens of the whole data set. If they fit, each image is
    /// encoded only once. CPU only.
    pub token_memory_mib: u64,
    /// Folder of feature caches, one per subfolder (written by `runner prepare features`). If it has
    /// a cache of an encoder, the tokens are read from it and the encoder does not run. Empty for
    /// none.
    #[serde(skip_serializing_if = "is_default")]
    pub token_cache: ConfigPath,
    /// Folder with the moments of the frozen autoencoder's latents (written by `runner prepare
    /// latents`). They are read, and the autoencoder does not encode. Empty for none.
    #[serde(skip_serializing_if = "is_default")]
    pub latent_cache: ConfigPath,
    /// Prepare the next batch, with its latents and tokens, during the current step. The results do not
    /// change. It needs memory for one more batch and, on CUDA, for the encoder's activations during a
    /// step. By default it is on where it saves time: on CUDA, if caches hold latents and tokens, and on
    /// a CPU with at least twice as many cores as libtorch has threads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encode_ahead: Option<bool>,
    /// The run stops if a larger share of the images is unreadable.
    pub max_corrupt_share: f64,
}

impl DataConfig {
    /// Returns the options to open the training split.
    pub fn training_split(&self) -> OpenOptions {
        self.options(&self.split)
    }

    /// Returns the options to open the split that samples are compared with.
    pub fn reference_split(&self) -> OpenOptions {
        if self.reference_split.is_empty() {
            self.training_split()
        } else {
            self.options(&self.reference_split)
        }
    }

    /// Returns the number of threads that decode ahead.
    pub fn decoding_threads(&self) -> usize {
        let default = || {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            // torchrun's number of ranks on this machine. SLURM binds each task to its cores.
            let ranks = std::env::var("LOCAL_WORLD_SIZE").ok();
            let ranks = ranks.and_then(|ranks| ranks.parse().ok()).unwrap_or(1);
            (cores / ranks.max(1)).clamp(1, MAX_WORKERS)
        };
        self.workers.unwrap_or_else(default)
    }

    fn options(&self, split: &str) -> OpenOptions {
        let non_empty = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        OpenOptions {
            split: non_empty(split),
            image_column: non_empty(&self.image_column),
            label_column: non_empty(&self.label_column),
            limit: NonZeroU64::new(self.images),
            ..OpenOptions::default()
        }
    }
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            path: "experiments/data/emoji64".into(),
            split: "train".to_owned(),
            reference_split: String::new(),
            images: 0,
            image_column: String::new(),
            label_column: String::new(),
            resolution: 256,
            background: Background::White,
            flip: true,
            workers: None,
            prefetch: 4,
            token_memory_mib: 1024,
            token_cache: ConfigPath::default(),
            latent_cache: ConfigPath::default(),
            encode_ahead: None,
            max_corrupt_share: 0.01,
        }
    }
}
