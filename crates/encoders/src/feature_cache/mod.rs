//! A cache of features on disk, computed once for a whole data set: the tokens of an encoder, or
//! the moments of an autoencoder's posterior.
//!
//! A cache is a folder. Its `cache.json` describes the source of the features ([`CacheKey`]) and
//! their storage format ([`CacheLayout`]). The features are in shards
//! `tokens-NNNNN.safetensors` or `moments-NNNNN.safetensors`, which repeat this description in
//! their headers. A [`CacheWriter`] writes the folder shard by shard and resumes an interrupted
//! cache. A [`FeatureCache`] maps the shards into memory and returns the features of a batch; it
//! refuses a folder that was computed from another encoder file or another data set.
//!
//! Moments `[2 C, h, w]` are stored as `h w` patch tokens of width `2 C`: the means of a latent
//! pixel, then its standard deviations.
//!
//! Each row, the tokens of one variant of one image, has a CRC-32 that is checked when the row is
//! first read. A shard must not be modified in place while it is mapped: truncating the file
//! terminates the program that has mapped it.
//!
//! # Tensors of a shard
//!
//! | tensor | dtype | shape |
//! | --- | --- | --- |
//! | `patch` | [`CacheLayout::stored`] | `[N, V, T, D]`: samples, variants (unchanged, mirrored), patch tokens |
//! | `class` | [`CacheLayout::stored`] | `[N, V, D]`, if the encoder has a class token |
//! | `crc32` | i64 | `[N, V]`: checksum of the row's bytes in `patch`, then in `class` |
//! | `present` | u8 | `[N]`: 0 for a sample that could not be read |

mod error;
mod features;
mod reader;
mod shard;
mod writer;

use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{EncoderSpec, Grid, Precision, Preprocessing};

pub use error::CacheError;
pub use features::Features;
pub use reader::FeatureCache;
pub use writer::{CacheWriter, Claim, ClaimedShard, Rows};

/// Source of the features of a cache. Two caches with the same key contain the same features up to
/// rounding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheKey {
    /// Kind of the features.
    #[serde(default)]
    pub features: Features,
    /// Name of the encoder, or layout of the autoencoder.
    pub encoder: String,
    /// Identity of that model, such as the SHA-256 of its file; see
    /// [`Registry::identity`](crate::Registry::identity).
    pub identity: String,
    /// Precision in which the model computed the features.
    pub precision: Precision,
    /// Conversion from image bytes to the network's input.
    pub preprocessing: Preprocessing,
    /// Side of the network's input in pixels.
    pub input_size: i64,
    /// Fingerprint of the data set.
    pub data: String,
    /// Number of samples in the data set.
    pub samples: u64,
    /// Side in pixels of the images after cropping and resizing.
    pub resolution: u32,
    /// Background behind transparent pixels.
    pub background: String,
}

impl CacheKey {
    /// Creates a key whose encoder fields are filled in; the fields of the data are empty or zero.
    pub fn of_encoder(spec: &EncoderSpec, identity: String, precision: Precision) -> Self {
        Self {
            features: Features::Tokens,
            encoder: spec.name.clone(),
            identity,
            precision,
            preprocessing: spec.preprocessing,
            input_size: spec.input_size,
            data: String::new(),
            samples: 0,
            resolution: 0,
            background: String::new(),
        }
    }

    /// Creates a key whose autoencoder fields are filled in, for an autoencoder of `layout` and images
    /// of `resolution` pixels; the other fields of the data are empty or zero.
    pub fn of_autoencoder(layout: String, identity: String, resolution: u32) -> Self {
        Self {
            features: Features::Moments,
            encoder: layout,
            identity,
            precision: Precision::Fp32,
            preprocessing: Preprocessing::SIGNED,
            input_size: i64::from(resolution),
            data: String::new(),
            samples: 0,
            resolution,
            background: String::new(),
        }
    }

    /// Describes how `self`, the key of a cache, differs from the key `wanted`.
    fn differences(&self, wanted: &Self) -> Vec<String> {
        let mut found = Vec::new();
        let mut compare = |what: &str, cached: String, wanted: String| {
            if cached != wanted {
                found.push(format!("{what} is {cached}, expected {wanted}"));
            }
        };
        let [cached, noun] = [self, wanted].map(|key| key.features.noun().to_owned());
        compare("the kind of features", cached, noun);
        let model = wanted.features.model();
        compare(
            &format!("the {model}"),
            self.encoder.clone(),
            wanted.encoder.clone(),
        );
        compare(
            &format!("the {model}'s file (SHA-256)"),
            self.identity.clone(),
            wanted.identity.clone(),
        );
        compare(
            &format!("the {model}'s precision"),
            self.precision.name().to_owned(),
            wanted.precision.name().to_owned(),
        );
        compare(
            "the preprocessing",
            format!("{:?}", self.preprocessing),
            format!("{:?}", wanted.preprocessing),
        );
        compare(
            "the network's input",
            format!("{} px", self.input_size),
            format!("{} px", wanted.input_size),
        );
        compare(
            "the data set (fingerprint)",
            self.data.clone(),
            wanted.data.clone(),
        );
        compare(
            "the number of samples",
            self.samples.to_string(),
            wanted.samples.to_string(),
        );
        compare(
            "the resolution",
            self.resolution.to_string(),
            wanted.resolution.to_string(),
        );
        compare(
            "the background",
            self.background.clone(),
            wanted.background.clone(),
        );
        found
    }
}

/// Storage format of the tokens of a cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheLayout {
    /// Rows and columns of the patch tokens.
    pub grid: Grid,
    /// Width of a token, `D`.
    pub width: usize,
    /// Whether class tokens are stored.
    pub class_token: bool,
    /// Dtype of the stored tokens.
    pub stored: Precision,
    /// Whether the tokens of the mirrored images are stored too.
    pub mirrored: bool,
    /// Device that the encoder ran on: `cpu` or `cuda`.
    pub device: String,
    /// Samples per shard; the last shard may have fewer.
    pub shard_samples: u64,
}

impl CacheLayout {
    /// Creates the layout for an encoder's tokens, in shards of about `shard_bytes` bytes.
    pub fn of_encoder(
        spec: &EncoderSpec,
        stored: Precision,
        mirrored: bool,
        device: &str,
        shard_bytes: u64,
    ) -> Self {
        let layout = Self {
            grid: spec.grid,
            width: spec.width,
            class_token: spec.class_token,
            stored,
            mirrored,
            device: device.to_owned(),
            shard_samples: 1,
        };
        layout.with_shard_bytes(shard_bytes)
    }

    /// Creates the layout for the moments of latents `[C, h, w]`, in shards of about `shard_bytes`
    /// bytes.
    pub fn of_moments(
        [channels, height, width]: [usize; 3],
        stored: Precision,
        mirrored: bool,
        device: &str,
        shard_bytes: u64,
    ) -> Self {
        let layout = Self {
            grid: Grid { height, width },
            width: 2 * channels,
            class_token: false,
            stored,
            mirrored,
            device: device.to_owned(),
            shard_samples: 1,
        };
        layout.with_shard_bytes(shard_bytes)
    }

    fn with_shard_bytes(self, shard_bytes: u64) -> Self {
        let sample_bytes = self.row_bytes() as u64 * self.variants();
        Self {
            shard_samples: (shard_bytes / sample_bytes.max(1)).max(1),
            ..self
        }
    }

    /// Number of stored variants of an image: 2 if the mirrored image is stored too, else 1.
    pub fn variants(&self) -> u64 {
        if self.mirrored { 2 } else { 1 }
    }

    fn patch_bytes(&self) -> usize {
        self.grid.tokens() * self.width * self.stored.kind().elt_size_in_bytes()
    }

    fn class_bytes(&self) -> usize {
        match self.class_token {
            true => self.width * self.stored.kind().elt_size_in_bytes(),
            false => 0,
        }
    }

    /// Size in bytes of one variant of one image.
    pub fn row_bytes(&self) -> usize {
        self.patch_bytes() + self.class_bytes()
    }
}

/// Contents of `cache.json`, which each shard repeats in its header.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contents {
    format: u32,
    /// Source of the features.
    pub key: CacheKey,
    /// Storage format of the features.
    pub layout: CacheLayout,
}

const FORMAT: u32 = 1;
const CONTENTS_FILE: &str = "cache.json";

impl Contents {
    /// Describes a cache that is about to be written.
    pub fn new(key: CacheKey, layout: CacheLayout) -> Self {
        Self {
            format: FORMAT,
            key,
            layout,
        }
    }

    /// Reads the description of the cache in `folder`; `None` if there is no cache.
    ///
    /// # Errors
    /// `cache.json` cannot be read, is invalid, or has another format version.
    pub fn read(folder: &Path) -> Result<Option<Self>, CacheError> {
        let path = folder.join(CONTENTS_FILE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(CacheError::io("read", &path, source)),
        };
        let damaged = |reason: String| CacheError::Damaged {
            path: path.clone(),
            reason,
        };
        let contents: Self = serde_json::from_slice(&text).map_err(|error| {
            damaged(match files::describe_foreign(&text) {
                Some(what) => format!("it is {what}"),
                None => error.to_string(),
            })
        })?;
        if contents.format != FORMAT {
            let found = contents.format;
            return Err(damaged(format!(
                "its format is {found}, this program reads format {FORMAT}"
            )));
        }
        if contents.layout.shard_samples == 0 || contents.layout.row_bytes() == 0 {
            return Err(damaged("it describes empty shards or tokens".to_owned()));
        }
        Ok(Some(contents))
    }

    /// Iterates over the shards; each item is the range of samples of one shard.
    fn shards(&self) -> impl Iterator<Item = Range<u64>> + use<> {
        let (samples, step) = (self.key.samples, self.layout.shard_samples);
        (0..samples.div_ceil(step)).map(move |index| {
            let start = index * step;
            start..(start + step).min(samples)
        })
    }

    /// Size in bytes of the features of `samples` samples.
    pub fn bytes(&self, samples: u64) -> u64 {
        samples * self.layout.variants() * self.layout.row_bytes() as u64
    }

    /// Returns the sample ranges of the shards that are missing from `folder` or damaged, one range
    /// per shard.
    ///
    /// # Errors
    /// A shard exists but cannot be read, so that it is unknown whether it is complete.
    pub fn missing(&self, folder: &Path) -> Result<Vec<Range<u64>>, CacheError> {
        let mut missing = Vec::new();
        for samples in self.shards() {
            if !self.is_written(folder, &samples)? {
                missing.push(samples);
            }
        }
        Ok(missing)
    }

    /// Whether the shard of `samples` is in `folder` and not damaged.
    fn is_written(&self, folder: &Path, samples: &Range<u64>) -> Result<bool, CacheError> {
        let path = shard::path(folder, self, samples);
        match shard::Offsets::read(&path, self, samples) {
            Ok(_) => Ok(true),
            Err(error) if error.is_damage() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Returns the number of shards of the whole cache and the number that are written in `folder`.
    fn progress(&self, folder: &Path) -> Result<(usize, usize), CacheError> {
        let total = self.shards().count();
        Ok((total, total - self.missing(folder)?.len()))
    }
}

/// Returns the folder of an encoder's cache below `root`: `root/NAME`, or `root/NAME@512` for images
/// of 512 pixels.
pub fn folder_of(root: &Path, encoder: &str, resolution: u32) -> PathBuf {
    match resolution {
        ..=256 => root.join(encoder),
        _ => root.join(format!("{encoder}@{resolution}")),
    }
}
