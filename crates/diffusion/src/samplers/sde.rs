//! Steps on the reverse SDE with diffusion `w(t) = 2 t`.

use tch::{Kind, Tensor};

use super::guided_velocity::GuidedVelocity;
use crate::DiffusionError;
use crate::interpolant::Interpolant;

/// Start time of the last step, which adds no noise: the score is unbounded as t approaches 0.
pub(super) const LAST_TIME: f64 = 0.04;

/// An Euler-Maruyama step: `x + d dt + sqrt(w |dt|) noise` with the drift `d = v - w / 2 score`.
/// Guidance is applied to the drift. Without `noise` the step is deterministic.
pub(super) fn euler_maruyama(
    velocity: &GuidedVelocity<'_>,
    interpolant: Interpolant,
    x: &Tensor,
    from: f64,
    to: f64,
    noise: Option<&Tensor>,
) -> Result<Tensor, DiffusionError> {
    let guide = velocity.guides_at(from);
    let diffusion = 2.0 * from;
    let dt = to - from;
    let drift = velocity.drift(x, from, guide, |batch, velocity| {
        let times = Tensor::f_full([batch.size4()?.0], from, (Kind::Double, batch.device()))?;
        let score = interpolant.score(&velocity, batch, &times)?;
        Ok(velocity.f_sub(&score.f_mul_scalar(0.5 * diffusion)?)?)
    })?;
    let mut next = drift.f_mul_scalar(dt)?.f_add_(x)?;
    if let Some(noise) = noise {
        let step = noise
            .f_mul_scalar(dt.abs().sqrt())?
            .f_mul_scalar_(diffusion.sqrt())?;
        next = next.f_add_(&step)?;
    }
    Ok(next)
}
