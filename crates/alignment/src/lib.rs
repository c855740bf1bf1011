//! Projection heads, spatial normalisation and alignment losses of REPA and iREPA.
//!
//! Training a diffusion transformer with representation alignment adds one term to its loss:
//! hidden tokens at some depth, projected by a trained head, are pulled towards the patch tokens
//! that a frozen vision encoder computes from the clean image. REPA (arXiv 2410.06940) projects
//! with an MLP. iREPA (arXiv 2512.10794) projects with a 3x3 convolution, and first normalises the
//! encoder's tokens over space. The crate has three main types, in the order of the computation:
//!
//! - [`SpatialNorm`] maps the encoder's tokens `[B, T, D]` to the targets, of the same shape;
//! - [`Head`] projects the hidden tokens `[B, T, hidden]` to `[B, T, D]`;
//! - [`AlignmentLoss`] compares the two, over one or more encoders and losses. Each loss is a
//!   [`TokenLoss`]; [`CosineLoss`] is the paper's.
//!
//! [`HeadConfig`], [`SpatialNorm`] and [`LossConfig`] are read from configuration files.
//!
//! # Example
//!
//! ```
//! use alignment::{AlignmentLoss, Head, HeadConfig, LossConfig, LossKind, SpatialNorm};
//! use tch::{Device, Kind, Tensor};
//! use torch_ext::Params;
//!
//! # fn main() -> Result<(), alignment::AlignmentError> {
//! let cpu = (Kind::Float, Device::Cpu);
//! let encoder_tokens = Tensor::randn([2, 16, 112], cpu);
//! let hidden = Tensor::randn([2, 16, 64], cpu);
//!
//! // iREPA: 3x3 convolution, z-score with alpha 0.6, coefficient 1.
//! let params = Params::new(Device::Cpu, 0)?;
//! let heads = Head::projectors(&params.root(), &HeadConfig::default(), 64, &[112])?;
//! let loss = AlignmentLoss::new(&[LossConfig { kind: LossKind::Cosine, coefficient: 1.0 }])?;
//!
//! let target = SpatialNorm::default().forward(&encoder_tokens)?;
//! let projected = heads[0].forward(&hidden)?;
//! let output = loss.forward(&[&target], &[&projected])?;
//! output.total.backward();
//! assert!(params.trainable().iter().all(|weight| weight.grad().defined()));
//! # Ok(())
//! # }
//! ```

#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod cosine;
mod error;
mod head;
mod loss;
mod spatial_norm;
mod tokens;

pub use cosine::CosineLoss;
pub use error::AlignmentError;
pub use head::{Head, HeadConfig, KernelSize};
pub use loss::{AlignmentLoss, AlignmentOutput, LossConfig, LossKind, LossTerm, TokenLoss};
pub use spatial_norm::{SpatialNorm, token_statistics};
