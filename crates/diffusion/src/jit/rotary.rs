//! Rotary position embedding on a grid of tokens (arXiv 2104.09864).

use tch::{Device, Kind, Tensor};

use crate::{DiffusionError, check};

/// Longest period of the angles.
const THETA: f64 = 10_000.0;

/// Turns queries and keys by angles that say where a token is (`VisionRotaryEmbeddingFast`
/// upstream).
///
/// Neighbouring numbers of a head are the real and the imaginary part of one complex number. The
/// first half of a head turns by the token's row `i`, the second by its column `j`, number `k` of
/// either half by `i theta^(-4 k / head_width)`. In-context tokens stand in front and do not turn.
/// Nothing of this is in the state dict.
///
/// ```
/// use diffusion::jit::Rotary;
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
    /// `cos + i sin`, `[in_context + side * side, head_width / 2]`.
    rotations: Tensor,
    /// By what each number of a head is multiplied, and what is added of the other one of its pair:
    /// `[in_context + side * side, head_width]`.
    real: [Tensor; 2],
    head_width: i64,
    patches: i64,
}

impl Rotary {
    /// The turns of a grid of `side * side` tokens after `in_context` others, for heads of
    /// `head_width`, a multiple of 4.
    ///
    /// # Errors
    /// Names the number that is out of range.
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
        // In float32 and in upstream's order: an angle of some radians shows each rounding.
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
        let rotations = Tensor::f_complex(&cosines, &sines)?;
        let pairs = |first: &Tensor, second: &Tensor| {
            let pairs = Tensor::f_stack(&[first, second], -1)?;
            pairs.f_flatten(-2, -1)?.f_to_device(device)
        };
        Ok(Self {
            rotations: rotations.f_to_device(device)?,
            real: [pairs(&cosines, &cosines)?, pairs(&sines.f_neg()?, &sines)?],
            head_width,
            patches: side * side,
        })
    }

    /// For `tokens` tokens, those of the grid or all: by what each number of a head is multiplied, and what
    /// of the other one of its pair is added, `[T, head_width]` each, float32.
    pub(crate) fn rotation_tables(&self, tokens: i64) -> Result<[Tensor; 2], DiffusionError> {
        let all = self.rotations.size2()?.0;
        let [cosines, sines] = &self.real;
        let of = |table: &Tensor| table.f_narrow(0, all - tokens, tokens);
        Ok([of(cosines)?, of(sines)?])
    }

    /// Turns `x` `[B, heads, T, head_width]`, queries or keys of the grid's tokens alone or of all,
    /// in-context ones first. The result is float32.
    ///
    /// # Errors
    /// Another shape than these.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, DiffusionError> {
        let all = self.rotations.size2()?.0;
        let tokens = match x.size().get(2) {
            Some(&tokens) if tokens == self.patches => tokens,
            _ => all,
        };
        check::shape("queries or keys", x, &[-1, -1, tokens, self.head_width])?;
        let (batch, heads, ..) = x.size4()?;
        let rotations = self.rotations.f_narrow(0, all - tokens, tokens)?;
        Ok(x.f_to_kind(Kind::Float)?
            .f_reshape([batch, heads, tokens, self.head_width / 2, 2])?
            .f_view_as_complex()?
            .f_mul(&rotations)?
            .f_view_as_real()?
            .f_flatten(-2, -1)?)
    }

    /// Cosines and sines as upstream keeps them (`freqs_cos`, `freqs_sin`), each
    /// `[in_context + side * side, head_width]`, float32: every number twice in a row.
    ///
    /// # Errors
    /// libtorch failed.
    pub fn tables(&self) -> Result<(Tensor, Tensor), DiffusionError> {
        let twice = |table: Tensor| table.f_repeat_interleave_self_int(2, 1, None);
        Ok((
            twice(self.rotations.f_real()?)?,
            twice(self.rotations.f_imag()?)?,
        ))
    }
}
