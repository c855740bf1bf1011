//! Dropout with random numbers from a generator of the caller.

use tch::{Kind, Tensor};

use crate::{DiffusionError, Mode};

/// Dropout in training, with random numbers from the generator of [`Mode::Train`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// Fraction of the numbers that become zero, in [0, 1).
    pub rate: f64,
}

impl Dropout {
    /// Whether [`Dropout::forward`] changes its input.
    pub fn is_active(&self, mode: &Mode<'_>) -> bool {
        self.rate > 0.0 && matches!(mode, Mode::Train(_))
    }

    /// Sets numbers of `x`, of any shape, to zero, and divides the others by `1 - rate`. Returns `x` unchanged in
    /// [`Mode::Eval`].
    ///
    /// # Errors
    /// libtorch failed.
    pub fn forward(&self, x: Tensor, mode: &mut Mode<'_>) -> Result<Tensor, DiffusionError> {
        match mode {
            Mode::Train(generator) if self.rate > 0.0 => {
                let draws = generator.rand(&x.size(), Kind::Float)?;
                let kept = draws.f_ge(self.rate)?.f_to_device(x.device())?;
                Ok(x.f_mul(&kept)?.f_div_scalar(1.0 - self.rate)?)
            }
            _ => Ok(x),
        }
    }
}
