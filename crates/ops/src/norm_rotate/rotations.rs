//! The rotations of queries and keys (rotary embedding).

use tch::{Device, Kind, Tensor};
use torch_ext::TorchError;

/// The rotations of each token's queries and keys (rotary embedding). Each pair of successive numbers of a head is
/// multiplied, as a complex number, by `cos + i sin` of its angle.
#[derive(Debug)]
pub struct Rotations {
    /// Complex `[T, d / 2]`.
    factors: Tensor,
    /// For the kernel, `[T, d]`, float32: `y_i = x_i cos_i + x_j sin_i`, where `j` is the other number of the pair of
    /// `i`. The sines are negated for the first number of each pair.
    pub(super) cosines: Tensor,
    pub(super) sines: Tensor,
}

impl Rotations {
    /// Rotations on `device` with these `cosines` and `sines` `[T, d / 2]`, float32.
    ///
    /// # Errors
    /// The shapes or dtypes differ; memory is exhausted.
    pub fn new(cosines: &Tensor, sines: &Tensor, device: Device) -> Result<Self, TorchError> {
        let pairs = |first: &Tensor, second: &Tensor| {
            let pairs = Tensor::f_stack(&[first, second], -1)?;
            pairs.f_flatten(-2, -1)?.f_to_device(device)
        };
        Ok(Self {
            factors: Tensor::f_complex(cosines, sines)?.f_to_device(device)?,
            cosines: pairs(cosines, cosines)?,
            sines: pairs(&sines.f_neg()?, sines)?,
        })
    }

    /// The complex factors `[T, d / 2]`.
    pub fn factors(&self) -> &Tensor {
        &self.factors
    }

    /// The rotations of the last `count` tokens.
    ///
    /// # Errors
    /// There are fewer tokens.
    pub fn last(&self, count: i64) -> Result<Self, TorchError> {
        let start = self.factors.size2()?.0 - count;
        let last = |table: &Tensor| table.f_narrow(0, start, count);
        Ok(Self {
            factors: last(&self.factors)?,
            cosines: last(&self.cosines)?,
            sines: last(&self.sines)?,
        })
    }

    /// Rotates `x` `[B, heads, T, d]`. Computes in float32 and returns float32.
    ///
    /// # Errors
    /// The shape of `x` does not fit.
    pub fn rotate(&self, x: &Tensor) -> Result<Tensor, TorchError> {
        let (batch, heads, count, width) = x.size4()?;
        Ok(x.f_to_kind(Kind::Float)?
            .f_reshape([batch, heads, count, width / 2, 2])?
            .f_view_as_complex()?
            .f_mul(&self.factors)?
            .f_view_as_real()?
            .f_flatten(-2, -1)?)
    }
}
