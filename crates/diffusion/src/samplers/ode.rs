//! Steps on the probability-flow ODE `dx / dt = v(x, t)`.

use tch::Tensor;

use super::guidance::GuidedDenoiser;
use crate::DiffusionError;

/// An Euler step: `x + dt v(x, t)`.
pub(super) fn euler(
    guided: &GuidedDenoiser<'_>,
    x: &Tensor,
    from: f64,
    to: f64,
) -> Result<Tensor, DiffusionError> {
    let slope = slope(guided, x, from, guided.guides_at(from))?;
    Ok(slope.f_mul_scalar(to - from)?.f_add_(x)?)
}

/// A step with the mean of the slopes at its start and at the end of an Euler step. Both slopes are
/// guided if the start of the step is in the guidance interval.
pub(super) fn heun(
    guided: &GuidedDenoiser<'_>,
    x: &Tensor,
    from: f64,
    to: f64,
) -> Result<Tensor, DiffusionError> {
    let guide = guided.guides_at(from);
    let first = slope(guided, x, from, guide)?;
    let predicted = first.f_mul_scalar(to - from)?.f_add_(x)?;
    let second = slope(guided, &predicted, to, guide)?;
    let mean = first
        .f_mul_scalar(0.5)?
        .f_add_(&second.f_mul_scalar(0.5)?)?;
    Ok(mean.f_mul_scalar(to - from)?.f_add_(x)?)
}

fn slope(
    guided: &GuidedDenoiser<'_>,
    x: &Tensor,
    t: f64,
    guide: bool,
) -> Result<Tensor, DiffusionError> {
    let velocity = guided.velocity(&guided.batch(x, guide)?, t, guide)?;
    guided.combine(velocity, guide)
}
