//! Denoising networks: one file each, from the configuration to the forward pass.
//!
//! - [`sit::Sit`]: the transformer of REPA and iREPA, on latents or pixels;
//! - [`jit::Jit`]: a transformer on large patches of pixels that predicts the clean image;
//! - [`meanflow::MeanFlowSit`]: a SiT that predicts an average velocity, and its derivative along the path.
//!
//! They are built from the layers of [`nn`](crate::nn). `examples/sit_variant.rs` of this crate shows how to write
//! another.

pub mod jit;
pub mod meanflow;
pub mod sit;
