//! Rotary position embedding on a grid of tokens (RoPE, arXiv 2104.09864).

use ops::Rotations;
use tch::{Device, Kind, Tensor};

use crate::{DiffusionError, check};

/// Longest period of the angles.
const THETA: f64 = 10_000.0;

/// Rotates queries and keys by angles that encode the position of a token
/// (`VisionRotaryEmbeddingFast` upstream).
///
/// Each pair of neighbouring numbers of a head is a complex number. The first half of a head is
/// rotated according to the token's row, the second half according to its column: pair `k` of a half
/// by the angle `p theta^(-4 k / head_width)` for row or column `p`, with `theta = 10000`. In-context
/// tokens come first and are not rotated. The state dict contains none of these tables.
///
/// ```
/// use diffusion::nn::Rotary;
/// use tch::{Device, Kind, Tensor};
///
/// # fn main() -> Result<(), diffusion::DiffusionError> {
/// let rotary = Rotary::new(16, 8, 4, Device::Cpu)?;
/// for tokens in [8 * 8, 4 + 8 * 8] {
///     let queries = Tensor::randn([2, 3, tokens, 16], (Kind::Float, Device::Cpu));
///     assert_eq!(rotary.forward(&queries)?.size(), [2, 3, tokens, 16]);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Rotary {
    /// Of `in_context + side * side` tokens.
    rotations: Rotations,
    head_width: i64,
    patches: i64,
}

impl Rotary {
    /// The rotations of `in_context` in-context tokens followed by a grid of `side * side` tokens, for
    /// heads of width `head_width`, a multiple of 4.
    ///
    /// # Errors
    /// A number is out of range; the error names it.
    pub fn new(
        head_width: i64,
        side: i64,
        in_context: i64,
        device: Device,
    ) -> Result<Self, DiffusionError> {
        let fits = head_width > 0 && head_width % 4 == 0;
        check::setting(fits, "the width of a head", head_width, "a multiple of 4")?;
        check::setting(side > 0, "the grid of tokens", side, "at least 1 x 1")?;
        check::setting(in_context >= 0, "in_context_len", in_context, "0 or more")?;
        let (half, quarter) = (head_width / 2, head_width / 4);
        let cpu = (Kind::Float, Device::Cpu);
        let exponents = Tensor::f_arange(quarter, cpu)?
            .f_mul_scalar(2.0)?
            .f_div_scalar(half)?;
        // In float32 and in upstream's order: each rounding is visible in an angle of several radians.
        let frequencies = Tensor::f_pow_scalar(THETA, &exponents)?.f_reciprocal()?;
        let angles = Tensor::f_arange(side, cpu)?.f_outer(&frequencies)?; // [side, quarter]
        let rows = angles
            .f_unsqueeze(1)?
            .f_expand([side, side, quarter], false)?;
        let columns = angles
            .f_unsqueeze(0)?
            .f_expand([side, side, quarter], false)?;
        let angles = Tensor::f_cat(&[rows, columns], -1)?.f_flatten(0, 1)?; // [side * side, half]
        let context = Tensor::f_zeros([in_context, half], cpu)?;
        let angles = Tensor::f_cat(&[context, angles], 0)?;
        let (cosines, sines) = (angles.f_cos()?, angles.f_sin()?);
        Ok(Self {
            rotations: Rotations::new(&cosines, &sines, device)?,
            head_width,
            patches: side * side,
        })
    }

    /// The rotations of the last `tokens` tokens: those of the grid, or all.
    pub(crate) fn rotations(&self, tokens: i64) -> Result<Rotations, DiffusionError> {
        Ok(self.rotations.last(tokens)?)
    }

    /// Rotates queries or keys `x` `[B, heads, T, head_width]` of the grid's tokens, or of all tokens
    /// with the in-context tokens first. The result is float32.
    ///
    /// # Errors
    /// `x` has another shape.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, DiffusionError> {
        let all = self.rotations.factors().size2()?.0;
        let tokens = match x.size().get(2) {
            Some(&tokens) if tokens == self.patches => tokens,
            _ => all,
        };
        check::shape("queries or keys", x, &[-1, -1, tokens, self.head_width])?;
        Ok(self.rotations(tokens)?.rotate(x)?)
    }

    /// Cosines and sines as upstream stores them (`freqs_cos`, `freqs_sin`), each
    /// `[in_context + side * side, head_width]`, float32. Every number appears twice in succession.
    ///
    /// # Errors
    /// libtorch failed.
    pub fn tables(&self) -> Result<(Tensor, Tensor), DiffusionError> {
        let twice = |table: Tensor| table.f_repeat_interleave_self_int(2, 1, None);
        Ok((
            twice(self.rotations.factors().f_real()?)?,
            twice(self.rotations.factors().f_imag()?)?,
        ))
    }
}
