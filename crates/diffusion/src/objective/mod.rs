//! What a denoiser is trained to predict, one objective a module.

pub mod meanflow;
pub mod velocity;
pub mod x_prediction;
