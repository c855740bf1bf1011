//! The modulation of a transformer block (adaLN-Zero): norm with shift and scale, and gated residuals.

mod cuda;
mod form;
mod gated_residual;
mod norm_modulate;
#[cfg(test)]
mod tests;

pub use self::gated_residual::gated_residual;
pub(crate) use self::norm_modulate::rms_norm;
pub use self::norm_modulate::{Norm, norm_modulate};
