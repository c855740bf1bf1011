//! Features of a whole data set, computed once and kept on the disk: an encoder's tokens, or the
//! moments of an autoencoder's posterior.
//!
//! A cache is a folder: `cache.json` says what the features are of (its [`CacheKey`]) and how they
//! are stored ([`CacheLayout`]), and they are in shards `tokens-NNNNN.safetensors` or
//! `moments-NNNNN.safetensors`, which repeat it in their headers. A [`CacheWriter`] fills the
//! folder shard by shard and goes on where an earlier one stopped. A [`FeatureCache`] maps the
//! shards into memory and gives the features of a batch; it refuses a folder that was made from
//! another encoder file or another data set.
//!
//! Moments `[2 C, h, w]` are stored as `h w` patch tokens of width `2 C`: the mean of a latent
//! pixel, then its standard deviation.
//!
//! Each row, the tokens of one image, carries a CRC-32 that is checked when the row is first read.
//! A shard must not be changed in place while it is mapped: a file that is cut short under a
//! running program ends that program.
//!
//! # A shard
//!
//! | tensor | dtype | shape |
//! | --- | --- | --- |
//! | `patch` | the layout's | `[N, V, T, D]`: samples, variants (as it is; mirrored), patch tokens |
//! | `class` | the layout's | `[N, V, D]`, where the encoder has a class token |
//! | `crc32` | i64 | `[N, V]`: of the row's bytes in `patch`, then in `class` |
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
pub use writer::{CacheWriter, Rows};

/// What the features of a cache are of. Two caches with the same key hold the same features, but
/// for rounding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheKey {
    /// What they are.
    #[serde(default)]
    pub features: Features,
    /// The encoder's name, or the autoencoder's layout.
    pub encoder: String,
    /// Which one that is: [`Registry::identity`](crate::Registry::identity), the SHA-256 of its
    /// file.
    pub identity: String,
    /// What the encoder computed in.
    pub precision: Precision,
    /// From bytes to the network's input.
    pub preprocessing: Preprocessing,
    /// Side of the network's input in pixels.
    pub input_size: i64,
    /// Fingerprint of the data set.
    pub data: String,
    /// Number of samples in the data set.
    pub samples: u64,
    /// Side in pixels to which the images were cropped and resized.
    pub resolution: u32,
    /// What showed through transparent pixels.
    pub background: String,
}

impl CacheKey {
    /// The part that an encoder determines; the rest is empty.
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

    /// The part that an autoencoder of `layout` determines, for images of `resolution` pixels;
    /// the rest is empty.
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

    /// Where `self`, a cache's, differs from what is `wanted`, in words.
    fn differences(&self, wanted: &Self) -> Vec<String> {
        let mut found = Vec::new();
        let mut compare = |what: &str, cached: String, wanted: String| {
            if cached != wanted {
                found.push(format!("{what} is {cached} there and {wanted} here"));
            }
        };
        let [noun, there] = [wanted, self].map(|key| key.features.noun().to_owned());
        compare("what it holds", there, noun);
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

/// How the tokens of a cache are stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheLayout {
    /// Rows and columns of the patch tokens.
    pub grid: Grid,
    /// Width of a token, `D`.
    pub width: usize,
    /// Whether class tokens are there too.
    pub class_token: bool,
    /// Dtype of the stored tokens.
    pub stored: Precision,
    /// Whether the tokens of the mirrored images are there too.
    pub mirrored: bool,
    /// Where the encoder ran: `cpu` or `cuda`.
    pub device: String,
    /// Samples in a shard; the last one may have fewer.
    pub shard_samples: u64,
}

impl CacheLayout {
    /// The layout for an encoder's tokens, in shards of about `shard_bytes`.
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
        layout.in_shards_of(shard_bytes)
    }

    /// The layout for the moments of latents `[C, h, w]`, in shards of about `shard_bytes`.
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
        layout.in_shards_of(shard_bytes)
    }

    fn in_shards_of(self, shard_bytes: u64) -> Self {
        let sample = self.row_bytes() as u64 * self.variants();
        Self {
            shard_samples: (shard_bytes / sample.max(1)).max(1),
            ..self
        }
    }

    /// Stored variants of an image: as it is, and mirrored where that is stored too.
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

    /// Bytes of one variant of one image.
    pub fn row_bytes(&self) -> usize {
        self.patch_bytes() + self.class_bytes()
    }
}

/// What `cache.json` says, and each shard repeats.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contents {
    format: u32,
    /// What the tokens are of.
    pub key: CacheKey,
    /// How they are stored.
    pub layout: CacheLayout,
}

const FORMAT: u32 = 1;
const CONTENTS: &str = "cache.json";

impl Contents {
    /// A description of tokens that are about to be stored.
    pub fn new(key: CacheKey, layout: CacheLayout) -> Self {
        Self {
            format: FORMAT,
            key,
            layout,
        }
    }

    /// What the cache in `folder` says of itself; `None` if there is none.
    ///
    /// # Errors
    /// `cache.json` cannot be read, or is not one of this version.
    pub fn read(folder: &Path) -> Result<Option<Self>, CacheError> {
        let path = folder.join(CONTENTS);
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
                "it is of format {found}, this program reads {FORMAT}"
            )));
        }
        if contents.layout.shard_samples == 0 || contents.layout.row_bytes() == 0 {
            return Err(damaged("it describes no tokens".to_owned()));
        }
        Ok(Some(contents))
    }

    /// Samples of each shard.
    fn shards(&self) -> impl Iterator<Item = Range<u64>> + use<> {
        let (samples, step) = (self.key.samples, self.layout.shard_samples);
        (0..samples.div_ceil(step)).map(move |index| {
            let start = index * step;
            start..(start + step).min(samples)
        })
    }

    /// Bytes of the tokens of so many samples.
    pub fn bytes(&self, samples: u64) -> u64 {
        samples * self.layout.variants() * self.layout.row_bytes() as u64
    }

    /// Samples of the shards that are not in `folder`, or not whole, a range each.
    ///
    /// # Errors
    /// A shard is there and cannot be read, which says nothing about whether it is whole.
    pub fn missing(&self, folder: &Path) -> Result<Vec<Range<u64>>, CacheError> {
        let mut missing = Vec::new();
        for samples in self.shards() {
            let path = shard::path(folder, self, &samples);
            match shard::Parts::read(&path, self, &samples) {
                Ok(_) => {}
                Err(error) if error.is_damage() => missing.push(samples),
                Err(error) => return Err(error),
            }
        }
        Ok(missing)
    }

    /// How many shards there are, and how many of them are written in `folder`.
    fn progress(&self, folder: &Path) -> Result<(usize, usize), CacheError> {
        let total = self.shards().count();
        Ok((total, total - self.missing(folder)?.len()))
    }
}

/// The folder of an encoder's cache below `root`: `root/NAME`, or `root/NAME@512` for images of
/// 512 pixels.
pub fn folder_of(root: &Path, encoder: &str, resolution: u32) -> PathBuf {
    match resolution {
        ..=256 => root.join(encoder),
        _ => root.join(format!("{encoder}@{resolution}")),
    }
}
