//! Weights that temporarily record no gradient.

use tch::Tensor;

use crate::DiffusionError;

/// A guard: until it is dropped, the weights record no gradient. A graph that is built meanwhile never
/// reaches them, even if its backward pass runs later.
#[derive(Debug)]
pub(crate) struct Frozen(Vec<Tensor>);

impl Frozen {
    /// Freezes those of `weights` that require a gradient.
    pub fn new(weights: &[Tensor]) -> Result<Self, DiffusionError> {
        let mut frozen = Self(Vec::with_capacity(weights.len()));
        for weight in weights.iter().filter(|weight| weight.requires_grad()) {
            frozen.0.push(weight.f_set_requires_grad(false)?);
        }
        Ok(frozen)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        for weight in &self.0 {
            // These are leaves of floating-point dtype, so libtorch has no reason to fail. A failure
            // could not be reported here.
            let _trained = weight.f_set_requires_grad(true);
        }
    }
}
