//! The velocity that a denoiser predicts, with classifier-free guidance.

use std::ops::RangeInclusive;

use tch::{Kind, Tensor};

use crate::DiffusionError;
use crate::denoiser::{Denoiser, Mode};
use crate::guidance::Guidance;

/// A denoiser with its guidance.
pub(super) struct GuidedVelocity<'a> {
    pub denoiser: &'a dyn Denoiser,
    pub guidance: Guidance<'a>,
    /// The times at which guidance is on.
    pub interval: RangeInclusive<f64>,
    /// The dtype in which the denoiser runs.
    pub kind: Kind,
}

impl GuidedVelocity<'_> {
    /// Whether `t` is in the guidance interval.
    pub fn guides_at(&self, t: f64) -> bool {
        self.interval.contains(&t)
    }

    /// A drift of state `x` `[B, C, H, W]` at time `t`, float64. `drift` maps a batch of states and its velocity to its
    /// drift; guidance, if `guide` is true, combines the drifts with and without a class.
    pub fn drift(
        &self,
        x: &Tensor,
        t: f64,
        guide: bool,
        drift: impl FnOnce(&Tensor, Tensor) -> Result<Tensor, DiffusionError>,
    ) -> Result<Tensor, DiffusionError> {
        self.guidance.apply(x, guide, |batch, labels| {
            let x = batch.f_to_kind(self.kind)?;
            let t = Tensor::f_full(labels.size(), t, (self.kind, batch.device()))?;
            let output = self.denoiser.forward(&x, &t, labels, &[], Mode::Eval)?;
            drift(batch, output.prediction.f_to_kind(Kind::Double)?)
        })
    }
}
