//! Steps on the probability-flow ODE `dx / dt = v(x, t)`.

use tch::Tensor;

use super::guided_velocity::GuidedVelocity;
use crate::DiffusionError;

/// An Euler step: `x + dt v(x, t)`.
pub(super) fn euler(
    velocity: &GuidedVelocity<'_>,
    x: &Tensor,
    from: f64,
    to: f64,
) -> Result<Tensor, DiffusionError> {
    let slope = slope(velocity, x, from, velocity.guides_at(from))?;
    Ok(slope.f_mul_scalar(to - from)?.f_add_(x)?)
}

/// A step with the mean of the slopes at its start and at the end of an Euler step. Both slopes are
/// guided if the start of the step is in the guidance interval.
pub(super) fn heun(
    velocity: &GuidedVelocity<'_>,
    x: &Tensor,
    from: f64,
    to: f64,
) -> Result<Tensor, DiffusionError> {
    let guide = velocity.guides_at(from);
    let first = slope(velocity, x, from, guide)?;
    let predicted = first.f_mul_scalar(to - from)?.f_add_(x)?;
    let second = slope(velocity, &predicted, to, guide)?;
    let mean = first
        .f_mul_scalar(0.5)?
        .f_add_(&second.f_mul_scalar(0.5)?)?;
    Ok(mean.f_mul_scalar(to - from)?.f_add_(x)?)
}

fn slope(
    velocity: &GuidedVelocity<'_>,
    x: &Tensor,
    t: f64,
    guide: bool,
) -> Result<Tensor, DiffusionError> {
    velocity.drift(x, t, guide, |_, velocity| Ok(velocity))
}
