//! RMS norm and rotation of queries and keys.

mod cpu;
mod function;
mod kernel;
mod rotations;
#[cfg(test)]
mod tests;

use half::bf16;
use tch::{Device, Kind, Tensor};
use torch_ext::{TorchError, autograd};

use self::function::{NormRotate, Passes};
use crate::attention::{attention, check_heads, self_attention, split_heads};
use crate::composed::is_composed;
use crate::modulation::rms_norm;

pub use self::rotations::Rotations;

/// Queries, keys and values of all heads, in the layout of the form of [`norm_rotate`] that computed them.
#[derive(Debug)]
pub struct Heads(Layout);

#[derive(Debug)]
enum Layout {
    /// `[B, T, 3 D]` with the heads of the queries, then of the keys, then of the values; and their number.
    Packed(Tensor, i64),
    /// `[B, heads, T, d]` each.
    Separate([Tensor; 3]),
}

impl Heads {
    /// [`attention`](crate::attention) of these queries, keys and values, `[B, T, heads d]`.
    ///
    /// # Errors
    /// Memory is exhausted.
    pub fn attention(&self) -> Result<Tensor, TorchError> {
        match &self.0 {
            Layout::Packed(qkv, heads) => self_attention(qkv, *heads),
            Layout::Separate([q, k, v]) => attention(q, k, v),
        }
    }

    /// Queries, keys and values, `[B, heads, T, d]` each.
    ///
    /// # Errors
    /// Memory is exhausted.
    pub fn split(self) -> Result<[Tensor; 3], TorchError> {
        match self.0 {
            Layout::Packed(qkv, heads) => split_heads(&qkv, heads),
            Layout::Separate(heads) => Ok(heads),
        }
    }
}

/// Normalises and rotates the queries and keys of `qkv` `[B, T, 3 D]` with `heads` heads: divides each head by its root
/// mean square, `sqrt(mean(x^2) + eps)`, multiplies it by the `weights` `[d]` (of queries, of keys), and rotates it.
/// Values do not change. The result has the dtype of `qkv`.
///
/// A kernel runs on the CPU for float32 or bfloat16 with float32 weights, and for float64 with float64 weights. Its
/// result is one tensor, which the kernel of attention takes without copying the heads. Otherwise libtorch's
/// operators run; they compute in float32 and round to the dtype of `qkv` after the norm and after the rotation.
///
/// # Errors
/// The shapes do not fit each other; memory is exhausted.
pub fn norm_rotate(
    qkv: &Tensor,
    heads: i64,
    weights: [&Tensor; 2],
    rotations: &Rotations,
    eps: f64,
) -> Result<Heads, TorchError> {
    check_heads(qkv, heads)?;
    let fits = qkv.size()[2] == 3 * heads * weights[0].numel() as i64;
    if fits
        && !is_composed()
        && let Some(rotated) = kernel(qkv, weights, rotations, eps)?
    {
        return Ok(Heads(Layout::Packed(rotated, heads)));
    }
    let heads = compose(qkv, heads, weights, rotations, eps)?;
    Ok(Heads(Layout::Separate(heads)))
}

fn compose(
    qkv: &Tensor,
    heads: i64,
    [of_queries, of_keys]: [&Tensor; 2],
    rotations: &Rotations,
    eps: f64,
) -> Result<[Tensor; 3], TorchError> {
    let [q, k, v] = split_heads(qkv, heads)?;
    let q = rotations.rotate(&rms_norm(&q, of_queries, eps)?)?;
    let k = rotations.rotate(&rms_norm(&k, of_keys, eps)?)?;
    Ok([q.f_to_kind(v.kind())?, k.f_to_kind(v.kind())?, v])
}

fn kernel(
    qkv: &Tensor,
    weights: [&Tensor; 2],
    rotations: &Rotations,
    eps: f64,
) -> Result<Option<Tensor>, TorchError> {
    let size = qkv.size();
    let &[batch, count, width] = size.as_slice() else {
        return Ok(None);
    };
    let head = weights[0].numel() as i64;
    let tables = [&rotations.cosines, &rotations.sines];
    let fits = head > 0
        && head % 2 == 0
        && width % (3 * head) == 0
        && batch * count * width > 0
        && weights.iter().all(|weight| weight.size() == [head])
        && tables.iter().all(|table| table.size() == [count, head])
        && [qkv]
            .iter()
            .chain(&weights)
            .chain(&tables)
            .all(|t| t.device() == Device::Cpu);
    if !fits {
        return Ok(None);
    }
    let passes = match (qkv.f_kind()?, weights[0].f_kind()?, weights[1].f_kind()?) {
        (Kind::Float, Kind::Float, Kind::Float) => Passes::of::<f32>(),
        (Kind::BFloat16, Kind::Float, Kind::Float) => Passes::of::<bf16>(),
        (Kind::Double, Kind::Double, Kind::Double) => Passes::of::<f64>(),
        _ => return Ok(None),
    };
    let kind = weights[0].f_kind()?;
    let [cosines, sines] = [tables[0].f_to_kind(kind)?, tables[1].f_to_kind(kind)?];
    let inputs = [qkv, weights[0], weights[1], &cosines, &sines];
    let rotated = autograd::apply(NormRotate { passes, eps }, &inputs)?;
    Ok(rotated.into_iter().next())
}
