//! Frozen vision encoders behind one trait: TorchScript files and native classic features.
//!
//! An [`Encoder`] maps images u8 `[B, 3, H, W]` to patch [`Tokens`] `[B, T, D]` and, if it has
//! one, a class token. It declares its grid, width and [`Preprocessing`] in an
//! [`EncoderSpec`]. There are two kinds: [`TorchScript`] files, whose spec is a TOML sidecar, and
//! native encoders, which are the hand-crafted features of [`classic`] and networks with random
//! weights. A [`Registry`] finds encoders by name. A
//! [`feature_cache`] stores the tokens of a whole data set on disk. [`Inception`] is not an
//! encoder but the network that FID is computed with.
//!
//! # Example
//!
//! ```
//! use encoders::{LoadOptions, Registry};
//! use tch::{Device, Kind, Tensor};
//!
//! let registry = Registry::new(&[]);
//! let encoder = registry.load("hog", &LoadOptions::default())?;
//! assert_eq!((encoder.spec().grid.tokens(), encoder.spec().width), (256, 128));
//!
//! let images = Tensor::randint(256, [2, 3, 64, 64], (Kind::Uint8, Device::Cpu));
//! assert_eq!(encoder.encode(&images)?.patch.size(), [2, 256, 128]);
//! # Ok::<(), encoders::EncoderError>(())
//! ```
//!
//! # Adding your own encoder
//!
//! Trace a module that takes normalised images `[B, 3, S, S]` and returns patch tokens
//! `[B, T, D]`, save it as `mine.pt`, and write `mine.toml` beside it:
//!
//! ```toml
//! name = "mine"
//! sha256 = "..."            # of mine.pt
//! grid = [16, 16]           # rows and columns; T = 256
//! width = 384               # D
//! input_size = 256          # S
//!
//! [preprocessing]
//! scale = true              # divide by 255
//! order = "resize-first"    # or "normalize-first"
//! resize = "bilinear"       # none, bilinear or bicubic
//! antialias = false
//! mean = [0.485, 0.456, 0.406]
//! std = [0.229, 0.224, 0.225]
//! ```
//!
//! Put both in a folder that the registry searches, or add the folder to `IREPA_ENCODERS`.

#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod catalogue;
pub mod check;
mod chunks;
pub mod classic;
mod embedded;
mod encoder;
mod error;
pub mod feature_cache;
#[cfg(test)]
mod golden;
mod inception;
mod native;
mod precision;
mod preprocess;
mod random;
mod reference;
mod registry;
mod repeatable;
mod tokens;
mod torchscript;

pub use catalogue::{KnownEncoder, catalogue, known};
pub use encoder::{Encoder, EncoderSpec};
pub use error::EncoderError;
pub use inception::{Inception, InceptionFeatures, InceptionReference, InceptionSpec};
pub use precision::{Precision, WeightDtype};
pub use preprocess::{Order, Preprocessing, Resize, resample_pos_embed};
pub use reference::Reference;
pub use registry::{LoadOptions, Registry, Status, named_set, split_names};
pub use tokens::{Grid, Tokens};
pub use torchscript::TorchScript;
