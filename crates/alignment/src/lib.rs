//! Projection heads, spatial normalisation and alignment losses of REPA and iREPA.
//!
//! Training a diffusion transformer with representation alignment adds one term to its loss:
//! hidden tokens at some depth, projected by a trained head, are pulled towards the patch tokens
//! that a frozen vision encoder computes from the clean image. REPA (arXiv 2410.06940) projects
//! with an MLP. iREPA (arXiv 2512.10794) projects with a 3x3 convolution, and first normalises the
//! encoder's tokens over space.
//!
//! The unit is the [`Term`]: a source of tokens, the depth of the hidden tokens, a [`Head`] that projects them, a
//! [`SpatialNorm`] of the source's tokens, a [`TokenLoss`] and its coefficient. A run has a list of terms:
//!
//! - [`Heads`] holds the weights that the terms need, and projects hidden tokens `[B, T, hidden]` to `[B, T, D]`;
//! - [`AlignmentLoss`] normalises the source's tokens `[B, T, D]`, compares, and sums. A loss sees the [`Tokens`] of
//!   both sides. [`CosineLoss`] is the paper's.
//!
//! [`HeadConfig`], [`SpatialNorm`] and [`LossConfig`] are read from configuration files.
//!
//! # Example
//!
//! ```
//! use alignment::{AlignmentLoss, HeadConfig, Heads, LossKind, Source, SpatialNorm, Term};
//! use tch::{Device, Kind, Tensor};
//! use torch_ext::Params;
//!
//! # fn main() -> Result<(), alignment::AlignmentError> {
//! let cpu = (Kind::Float, Device::Cpu);
//! let encoder_tokens = Tensor::randn([2, 16, 112], cpu);
//! let hidden = Tensor::randn([2, 16, 64], cpu); // after block 4
//!
//! // iREPA: 3x3 convolution, z-score with alpha 0.6, coefficient 1.
//! let loss = AlignmentLoss::new(vec![Term {
//!     source: Source::Encoder(0),
//!     depth: 4,
//!     head: HeadConfig::default(),
//!     norm: SpatialNorm::default(),
//!     loss: LossKind::Cosine.build(),
//!     coefficient: 1.0,
//! }])?;
//! let params = Params::new(Device::Cpu, 0)?;
//! let heads = Heads::new(&params.root(), loss.projections(), 64, &[112])?;
//!
//! let projected = heads.project(&[hidden.shallow_clone()])?;
//! let output = loss.forward(&[&encoder_tokens], &[&hidden], &[&projected[0]])?;
//! output.total.backward();
//! assert!(params.trainable().iter().all(|weight| weight.grad().defined()));
//! # Ok(())
//! # }
//! ```

#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod cosine;
mod error;
mod head;
mod heads;
mod loss;
mod spatial_norm;
mod term;
mod token_loss;
mod tokens;

pub use cosine::CosineLoss;
pub use error::AlignmentError;
pub use head::{Head, HeadConfig, KernelSize};
pub use heads::Heads;
pub use loss::{AlignmentLoss, AlignmentOutput, LossConfig, LossKind, TermOutput};
pub use spatial_norm::{SpatialNorm, token_statistics};
pub use term::{Projection, Source, Term};
pub use token_loss::{TokenLoss, Tokens};
