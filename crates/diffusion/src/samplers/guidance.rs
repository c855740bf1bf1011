//! Classifier-free guidance of denoisers that predict a velocity.

use tch::{Kind, Tensor};

use super::SamplerConfig;
use crate::DiffusionError;
use crate::denoiser::{Denoiser, Mode};

/// A denoiser with its labels and guidance settings. A guided batch has twice the size: the first
/// half has the labels, the second half the null class.
#[derive(Debug)]
pub(super) struct GuidedDenoiser<'a> {
    denoiser: &'a dyn Denoiser,
    labels: Tensor,
    doubled_labels: Option<Tensor>,
    scale: f64,
    low: f64,
    high: f64,
    kind: Kind,
}

impl<'a> GuidedDenoiser<'a> {
    /// `kind` is the dtype in which the denoiser runs.
    pub fn new(
        denoiser: &'a dyn Denoiser,
        config: &SamplerConfig,
        labels: &Tensor,
        kind: Kind,
    ) -> Result<Self, DiffusionError> {
        let doubled_labels = if config.cfg_scale > 1.0 {
            let null_class = denoiser
                .null_class()
                .ok_or(DiffusionError::NoNullClass(config.cfg_scale))?;
            let null = labels.f_full_like(null_class)?;
            Some(Tensor::f_cat(&[labels, &null], 0)?)
        } else {
            None
        };
        Ok(Self {
            denoiser,
            labels: labels.shallow_clone(),
            doubled_labels,
            scale: config.cfg_scale,
            low: config.guidance_low,
            high: config.guidance_high,
            kind,
        })
    }

    /// Whether guidance is on and `t` is in the guidance interval.
    pub fn guides_at(&self, t: f64) -> bool {
        self.doubled_labels.is_some() && (self.low..=self.high).contains(&t)
    }

    /// The denoiser's batch for state `x`: two copies of `x` if `guide` is true.
    pub fn batch(&self, x: &Tensor, guide: bool) -> Result<Tensor, DiffusionError> {
        match guide {
            true => Ok(Tensor::f_cat(&[x, x], 0)?),
            false => Ok(x.shallow_clone()),
        }
    }

    /// The velocity, float64, for a batch from [`GuidedDenoiser::batch`] with the same `guide`.
    pub fn velocity(&self, batch: &Tensor, t: f64, guide: bool) -> Result<Tensor, DiffusionError> {
        let labels = match &self.doubled_labels {
            Some(doubled) if guide => doubled,
            _ => &self.labels,
        };
        let x = batch.f_to_kind(self.kind)?;
        let t = Tensor::f_full([batch.size4()?.0], t, (self.kind, batch.device()))?;
        let output = self.denoiser.forward(&x, &t, labels, Mode::Eval)?;
        Ok(output.prediction.f_to_kind(Kind::Double)?)
    }

    /// Combines the two halves of a guided drift: `uncond + scale (cond - uncond)`. Returns an unguided
    /// drift unchanged.
    pub fn combine(&self, drift: Tensor, guide: bool) -> Result<Tensor, DiffusionError> {
        if !guide {
            return Ok(drift);
        }
        let (count, ..) = drift.size4()?;
        let conditional = drift.f_narrow(0, 0, count / 2)?;
        let unconditional = drift.f_narrow(0, count / 2, count / 2)?;
        Ok(conditional
            .f_sub(&unconditional)?
            .f_mul_scalar_(self.scale)?
            .f_add_(&unconditional)?)
    }
}
