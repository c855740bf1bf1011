//! The tangent of attention.

use tch::{Device, Kind, Tensor};

use crate::DiffusionError;

/// Number of attention scores in memory at once. Attention keeps none, so this bounds what the
/// tangent adds to peak memory. On the CPU, this number fits in the cache; other devices need more
/// scores for full utilisation.
fn scores_at_once(device: Device) -> i64 {
    match device {
        Device::Cpu => 1 << 20,
        _ => 1 << 25,
    }
}

/// The tangent of `softmax(q k^T / sqrt(d)) v`, from `q`, `k`, `v` `[B, heads, T, d]` and their
/// tangents:
///
/// `ds = (dq k^T + q dk^T) / sqrt(d)`, `dp = p (ds - sum(p ds))`, `do = dp v + p dv`.
///
/// The weights `p` are recomputed: attention does not keep them, and attention that did would
/// hold them in every block until the backward pass.
pub(super) fn tangent(
    [q, k, v]: [&Tensor; 3],
    [dq, dk, dv]: [&Tensor; 3],
) -> Result<Tensor, DiffusionError> {
    let (batch, heads, count, width) = q.size4()?;
    let scores = (heads * count * count).max(1);
    let samples = (scores_at_once(q.device()) / scores).clamp(1, batch.max(1));
    let mut parts = Vec::new();
    for start in (0..batch).step_by(samples as usize) {
        let length = samples.min(batch - start);
        // [samples * heads, T, d]
        let part = |x: &Tensor| x.f_narrow(0, start, length)?.f_flatten(0, 1);
        let scaled = |x: &Tensor| part(x)?.f_mul_scalar((width as f64).powf(-0.5));
        let (q, dq) = (scaled(q)?, scaled(dq)?);
        let (k, dk) = (part(k)?, part(dk)?);
        let (k, dk) = (k.f_mt()?, dk.f_mt()?);
        let (v, dv) = (part(v)?, part(dv)?);

        let kind = match q.kind() {
            Kind::Double => Kind::Double,
            _ => Kind::Float,
        };
        let weights = q.f_bmm(&k)?.f_softmax(-1, kind)?;
        let slopes = dq.f_bmm(&k)?.f_add_(&q.f_bmm(&dk)?)?.f_to_kind(kind)?;
        let slopes = Tensor::f_internal_softmax_backward_data(&slopes, &weights, -1, kind)?;
        parts.push(slopes.f_bmm(&v)?.f_add_(&weights.f_bmm(&dv)?)?);
    }
    Ok(Tensor::f_cat(&parts, 0)?.f_view([batch, heads, count, -1])?)
}
