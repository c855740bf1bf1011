//! Interpolants between an image (t = 0) and noise (t = 1), and the sampling of training times.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};
use torch_ext::Generator;

use crate::{DiffusionError, check};

/// An interpolant `x_t = alpha(t) x_0 + sigma(t) noise`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interpolant {
    /// `alpha = 1 - t`, `sigma = t`.
    #[default]
    Linear,
    /// `alpha = cos(pi t / 2)`, `sigma = sin(pi t / 2)`.
    Cosine,
}

/// Coefficients of an interpolant at given times; each has the shape and dtype of the times.
#[derive(Debug)]
pub struct Coefficients {
    /// Weight of the image.
    pub alpha: Tensor,
    /// Weight of the noise.
    pub sigma: Tensor,
    /// Time derivative of `alpha`.
    pub d_alpha: Tensor,
    /// Time derivative of `sigma`.
    pub d_sigma: Tensor,
}

impl Interpolant {
    /// The coefficients at times `t` of any shape, a floating-point tensor in [0, 1].
    ///
    /// # Errors
    /// libtorch rejects `t`.
    pub fn coefficients(self, t: &Tensor) -> Result<Coefficients, DiffusionError> {
        Ok(match self {
            Self::Linear => Coefficients {
                alpha: t.f_rsub_scalar(1.0)?,
                sigma: t.shallow_clone(),
                d_alpha: t.f_full_like(-1.0)?,
                d_sigma: t.f_full_like(1.0)?,
            },
            Self::Cosine => {
                let angle = t.f_mul_scalar(PI)?.f_div_scalar(2.0)?;
                let (alpha, sigma) = (angle.f_cos()?, angle.f_sin()?);
                Coefficients {
                    d_alpha: sigma.f_mul_scalar(-PI / 2.0)?,
                    d_sigma: alpha.f_mul_scalar(PI / 2.0)?,
                    alpha,
                    sigma,
                }
            }
        })
    }

    /// The noisy image `x_t` and the velocity `d x_t / dt`, both `[B, ...]`, for `x0` and `noise`
    /// of that shape and times `t` `[B]` of their dtype.
    ///
    /// # Errors
    /// The shapes do not match.
    pub fn interpolate(
        self,
        x0: &Tensor,
        noise: &Tensor,
        t: &Tensor,
    ) -> Result<(Tensor, Tensor), DiffusionError> {
        check::shape("the noise", noise, &x0.size())?;
        let t = per_sample(t, x0)?;
        let c = self.coefficients(&t)?;
        let point = x0.f_mul(&c.alpha)?.f_addcmul_(noise, &c.sigma)?;
        let velocity = match self {
            // The derivatives are -1 and 1, so the difference has the same bits.
            Self::Linear => noise.f_sub(x0)?,
            Self::Cosine => x0.f_mul(&c.d_alpha)?.f_addcmul_(noise, &c.d_sigma)?,
        };
        Ok((point, velocity))
    }

    /// The score `grad log p_t(x)` that corresponds to `velocity` `[B, ...]` at `x` of the same shape
    /// and times `t` `[B]` (`get_score_from_velocity` upstream). It is infinite at `t = 0`.
    ///
    /// # Errors
    /// The shapes do not match.
    pub fn score(
        self,
        velocity: &Tensor,
        x: &Tensor,
        t: &Tensor,
    ) -> Result<Tensor, DiffusionError> {
        check::shape("the velocity", velocity, &x.size())?;
        let c = self.coefficients(&per_sample(t, x)?)?;
        let ratio = c.alpha.f_div(&c.d_alpha)?;
        let variance = c
            .sigma
            .f_square()?
            .f_sub(&ratio.f_mul(&c.d_sigma)?.f_mul(&c.sigma)?)?;
        Ok(ratio.f_mul(velocity)?.f_sub(x)?.f_div(&variance)?)
    }

    /// Times whose noise level `sigma / alpha` is `exp(normal)`, for standard normal numbers of
    /// any shape (upstream's log-normal weighting, which follows EDM).
    ///
    /// # Errors
    /// libtorch rejects `normal`.
    pub fn lognormal_time(self, normal: &Tensor) -> Result<Tensor, DiffusionError> {
        let level = normal.f_exp()?;
        Ok(match self {
            Self::Linear => level.f_div(&level.f_add_scalar(1.0)?)?,
            Self::Cosine => level.f_atan()?.f_mul_scalar(2.0 / PI)?,
        })
    }
}

/// Views `t` `[B]` as `[B, 1, ...]`, with as many dimensions as `like` `[B, ...]`.
pub(crate) fn per_sample(t: &Tensor, like: &Tensor) -> Result<Tensor, DiffusionError> {
    let mut shape = like.size();
    let batch = shape.first().copied().unwrap_or(-1);
    check::shape("t", t, &[batch])?;
    shape.iter_mut().skip(1).for_each(|size| *size = 1);
    Ok(t.f_view(&shape[..])?)
}

/// How training draws times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimeSampling {
    /// Uniform in [0, 1).
    #[default]
    Uniform,
    /// The logarithm of the noise level is standard normal; see [`Interpolant::lognormal_time`].
    LogNormal,
}

impl TimeSampling {
    /// Draws `batch` times `[batch]`, float32 on the generator's device.
    ///
    /// # Errors
    /// `batch` is negative.
    pub fn draw(
        self,
        interpolant: Interpolant,
        batch: i64,
        generator: &mut Generator,
    ) -> Result<Tensor, DiffusionError> {
        match self {
            Self::Uniform => Ok(generator.rand(&[batch], Kind::Float)?),
            Self::LogNormal => interpolant.lognormal_time(&generator.randn(&[batch], Kind::Float)?),
        }
    }
}
