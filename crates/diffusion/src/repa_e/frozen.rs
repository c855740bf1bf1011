use tch::Tensor;

use crate::DiffusionError;

/// Weights that record no gradient while this lives; a graph built meanwhile never reaches them,
/// also when its backward pass runs later.
#[derive(Debug)]
pub(crate) struct Frozen(Vec<Tensor>);

impl Frozen {
    /// Freezes those of `weights` that are trained.
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
            // Leaves of floating-point dtype, which they were before: libtorch has nothing to
            // refuse, and a failure could not be reported here.
            let _trained = weight.f_set_requires_grad(true);
        }
    }
}
