use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};
use torch_ext::Generator;

use crate::{DiffusionError, check};

/// How the times `r <= t` of a step are drawn (`sample_time_steps` upstream).
///
/// Two numbers are drawn per sample: the smaller is `r`, the larger is `t`. For a fraction of the
/// samples, `r` is then set to `t`; there the objective is plain flow matching.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TimeSampling {
    /// The distribution of the two numbers.
    pub distribution: TimeDistribution,
    /// Logit-normal: the mean before the sigmoid.
    pub mu: f64,
    /// Logit-normal: the standard deviation before the sigmoid, 0 or more.
    pub sigma: f64,
    /// The fraction of samples in which `r` differs from `t`, in [0, 1].
    pub ratio_r_not_equal_t: f64,
}

impl Default for TimeSampling {
    /// The paper's settings: logit-normal(-0.4, 1), and `r` differs from `t` in 25 % of the samples.
    fn default() -> Self {
        Self {
            distribution: TimeDistribution::LogitNormal,
            mu: -0.4,
            sigma: 1.0,
            ratio_r_not_equal_t: 0.25,
        }
    }
}

/// A distribution of times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TimeDistribution {
    /// Uniform in [0, 1).
    Uniform,
    /// The sigmoid of a normal number.
    LogitNormal,
}

/// The times of a batch.
#[derive(Debug)]
pub struct Times {
    /// Start times, `[B]`.
    pub r: Tensor,
    /// End times, `[B]`.
    pub t: Tensor,
    /// Where `r` was set to `t`, `[B]` boolean.
    pub equal: Tensor,
}

impl TimeSampling {
    /// Checks the settings.
    ///
    /// # Errors
    /// The first setting with an invalid value, by name.
    pub fn validate(&self) -> Result<(), DiffusionError> {
        let Self {
            mu,
            sigma,
            ratio_r_not_equal_t: ratio,
            ..
        } = *self;
        check::setting(mu.is_finite(), "mu", mu, "a finite number")?;
        let fits = sigma.is_finite() && sigma >= 0.0;
        check::setting(fits, "sigma", sigma, "0 or more")?;
        let fits = (0.0..=1.0).contains(&ratio);
        check::setting(fits, "ratio_r_not_equal_t", ratio, "between 0 and 1")
    }

    /// Draws the times of `batch` samples, float32 on the generator's device: first the times of all
    /// samples, then which samples have `r = t`.
    ///
    /// # Errors
    /// `batch` is negative.
    pub fn draw(&self, batch: i64, generator: &mut Generator) -> Result<Times, DiffusionError> {
        let size = [batch, 2];
        let numbers = match self.distribution {
            TimeDistribution::Uniform => generator.rand(&size, Kind::Float)?,
            TimeDistribution::LogitNormal => generator.randn(&size, Kind::Float)?,
        };
        self.times_from(&numbers, &generator.rand(&[batch], Kind::Float)?)
    }

    /// Maps random numbers to times. `numbers` `[B, 2]` are uniform or standard normal, according to
    /// the distribution; `mask` `[B]` is uniform and decides which samples have `r = t`.
    ///
    /// # Errors
    /// The shapes do not match.
    pub fn times_from(&self, numbers: &Tensor, mask: &Tensor) -> Result<Times, DiffusionError> {
        check::shape("the numbers for times", numbers, &[-1, 2])?;
        let (batch, _) = numbers.size2()?;
        check::shape("the numbers for r = t", mask, &[batch])?;
        let times = match self.distribution {
            TimeDistribution::Uniform => numbers.shallow_clone(),
            TimeDistribution::LogitNormal => numbers
                .f_mul_scalar(self.sigma)?
                .f_add_scalar_(self.mu)?
                .f_sigmoid_()?,
        };
        let (start, t) = times.f_aminmax(1, false)?;
        let equal = mask.f_lt(1.0 - self.ratio_r_not_equal_t)?;
        Ok(Times {
            r: t.f_where_self(&equal, &start)?,
            t,
            equal,
        })
    }
}
