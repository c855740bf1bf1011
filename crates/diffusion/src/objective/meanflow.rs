//! MeanFlow: predict the average velocity between two times (arXiv 2505.13447; `SILoss` of
//! github.com/zhuyu-cs/MeanFlow).
//!
//! The average velocity `u` satisfies `u = v - (t - r) du/dt` (equation 6). The derivative is taken
//! along the path, that is, in direction `(v, 0, 1)` of `(z, r, t)`. The target of the network is the
//! right-hand side, computed from the network's own `u` without gradient.
//!
//! A step has four parts, so that only the network runs under autocast: [`MeanFlow::draw`];
//! [`MeanFlow::guide`], which runs the network without gradient; [`MeanFlow::forward`], which runs
//! it with gradient; [`MeanFlow::loss`].

mod time;
mod weighting;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use torch_ext::Generator;

use crate::denoiser::Denoiser;
use crate::guidance::with_and_without_class;
use crate::interpolant::Interpolant;
use crate::models::meanflow::{Direction, Jvp, MeanFlowSit};
use crate::{DiffusionError, check};

pub use time::{TimeDistribution, TimeSampling, Times};
pub use weighting::Weighting;

/// The MeanFlow objective and its settings.
///
/// ```
/// use diffusion::SitConfig;
/// use diffusion::models::meanflow::MeanFlowSit;
/// use diffusion::objective::meanflow::MeanFlow;
/// use tch::{Device, Kind, Tensor};
/// use torch_ext::{Generator, Params};
///
/// # fn main() -> Result<(), diffusion::DiffusionError> {
/// let config = SitConfig { input_size: 16, ..SitConfig::named("SiT-XS/4")? };
/// let params = Params::new(Device::Cpu, 0)?;
/// let network = MeanFlowSit::new(&params.root(), &config)?;
/// let mut generator = Generator::new(Device::Cpu, 1)?;
///
/// let x0 = generator.randn(&[2, 4, 16, 16], Kind::Float)?;
/// let labels = Tensor::from_slice(&[3i64, 5]);
/// let objective = MeanFlow { cfg_omega: 0.2, cfg_kappa: 0.92, ..MeanFlow::default() };
/// objective.validate()?;
/// let noisy = objective.draw(&network, &x0, &labels, &mut generator)?;
/// let noisy = objective.guide(&network, noisy)?;
/// let output = objective.forward(&network, &noisy, &[2])?;
/// let loss = objective.loss(&output, &noisy)?;
/// assert_eq!(loss.value.size(), [2]);
/// assert_eq!(output.hidden[0].size(), [2, 16, 128]); // for alignment, as in SiT
/// loss.value.mean(None).backward();
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MeanFlow {
    /// The interpolant between images and noise.
    pub path: Interpolant,
    /// How the two times are drawn.
    pub time: TimeSampling,
    /// How the error of each sample is weighted.
    pub weighting: Weighting,
    /// The power `p` of an adaptive weighting, 0 or more. At 0, all samples have the same weight.
    pub adaptive_p: f64,
    /// Guidance in training: weight of the sample's own velocity (omega in the paper). The value 1
    /// with `cfg_kappa = 0` means no guidance.
    pub cfg_omega: f64,
    /// Guidance in training: weight of the network's velocity for the class (kappa in the paper).
    /// The weight of its velocity for the null class is `1 - cfg_omega - cfg_kappa`.
    pub cfg_kappa: f64,
    /// Lower end of the guidance interval in `t`, inclusive.
    pub cfg_min_t: f64,
    /// Upper end of the guidance interval in `t`, inclusive.
    pub cfg_max_t: f64,
}

impl Default for MeanFlow {
    /// The paper's settings: `r` differs from `t` in 25 % of the samples, adaptive weighting with
    /// power 1, and no guidance.
    fn default() -> Self {
        Self {
            path: Interpolant::Linear,
            time: TimeSampling::default(),
            weighting: Weighting::Adaptive,
            adaptive_p: 1.0,
            cfg_omega: 1.0,
            cfg_kappa: 0.0,
            cfg_min_t: 0.0,
            cfg_max_t: 1.0,
        }
    }
}

/// The random inputs of a training step.
#[derive(Debug)]
pub struct RandomInputs {
    /// Which labels become the null class, `[B]` boolean.
    pub dropped: Tensor,
    /// Start times, `[B]`.
    pub r: Tensor,
    /// End times, `[B]`, not before the start times.
    pub t: Tensor,
    /// Standard normal noise, `[B, C, H, W]`.
    pub noise: Tensor,
}

/// A noisy batch, and the direction in which the network is differentiated.
#[derive(Debug)]
pub struct NoisyBatch {
    /// Noisy images at time `t`, `[B, C, H, W]`.
    pub z: Tensor,
    /// Start times, `[B]`.
    pub r: Tensor,
    /// End times, `[B]`.
    pub t: Tensor,
    /// Classes for the network, `[B]`, with the null class in place of dropped labels.
    pub labels: Tensor,
    /// Which samples are guided, `[B]` boolean: those with `t` in the guidance interval whose label
    /// was not dropped.
    pub guided: Tensor,
    /// The velocity at `z`, `[B, C, H, W]`: that of the interpolant, or after [`MeanFlow::guide`]
    /// the guided velocity.
    pub velocity: Tensor,
}

/// The loss of a batch.
#[derive(Debug)]
pub struct Loss {
    /// The weighted loss to minimise, per sample, `[B]`.
    pub value: Tensor,
    /// The squared error summed over C, H and W, per sample, `[B]`, without gradient. It shows the
    /// progress of training, which the adaptively weighted loss does not: that stays near 1.
    pub squared_error: Tensor,
}

/// The rows of a batch on which [`MeanFlow::guide`] runs the network.
enum GuidedRows {
    /// Those that are guided. Finding them waits for the device.
    Selected,
    /// All of them, so that the number of rows is known without waiting.
    All,
}

impl MeanFlow {
    /// Checks the settings.
    ///
    /// # Errors
    /// The first setting with an invalid value, by name.
    pub fn validate(&self) -> Result<(), DiffusionError> {
        self.time.validate()?;
        let (low, high) = (self.cfg_min_t, self.cfg_max_t);
        let fits = self.adaptive_p.is_finite() && self.adaptive_p >= 0.0;
        check::setting(fits, "adaptive_p", self.adaptive_p, "0 or more")?;
        for (name, value) in [("cfg_omega", self.cfg_omega), ("cfg_kappa", self.cfg_kappa)] {
            check::setting(value.is_finite(), name, value, "a finite number")?;
        }
        let fits = (0.0..=1.0).contains(&low);
        check::setting(fits, "cfg_min_t", low, "between 0 and 1")?;
        let fits = (low..=1.0).contains(&high);
        let allowed = format!("between cfg_min_t = {low} and 1");
        check::setting(fits, "cfg_max_t", high, allowed)
    }

    /// Whether [`MeanFlow::guide`] changes the velocity. If so, it needs a network with a null class.
    pub fn trains_with_guidance(&self) -> bool {
        self.cfg_omega != 1.0 || self.cfg_kappa != 0.0
    }

    /// Draws the random inputs and adds noise to images `x0` `[B, C, H, W]` of classes `labels`
    /// `[B]`. Numbers are drawn in upstream's order: label dropout at the network's rate, the two
    /// times, which samples have `r = t`, noise. They are drawn on the generator's device and moved
    /// to the device of the images.
    ///
    /// # Errors
    /// [`MeanFlow::validate`] rejects the settings, or the shapes do not match.
    pub fn draw(
        &self,
        network: &MeanFlowSit,
        x0: &Tensor,
        labels: &Tensor,
        generator: &mut Generator,
    ) -> Result<NoisyBatch, DiffusionError> {
        check::shape("the batch of images", x0, &[-1, -1, -1, -1])?;
        self.validate()?;
        let (batch, ..) = x0.size4()?;
        let dropped = match network.dimensions().null_class {
            Some(_) => generator
                .rand(&[batch], Kind::Float)?
                .f_lt(network.config().class_dropout)?,
            None => Tensor::f_zeros([batch], (Kind::Bool, generator.device()))?,
        };
        let Times { r, t, .. } = self.time.draw(batch, generator)?;
        let noise = generator.randn(&x0.size(), x0.kind())?;
        let random_inputs = RandomInputs {
            dropped,
            r,
            t,
            noise,
        };
        self.add_noise(network, x0, labels, &random_inputs)
    }

    /// As [`MeanFlow::draw`], but with the caller's random inputs. Labels are not dropped if the
    /// network has no null class.
    ///
    /// # Errors
    /// The shapes do not match.
    pub fn add_noise(
        &self,
        network: &MeanFlowSit,
        x0: &Tensor,
        labels: &Tensor,
        random_inputs: &RandomInputs,
    ) -> Result<NoisyBatch, DiffusionError> {
        check::shape("labels", labels, &random_inputs.t.size())?;
        check::shape("r", &random_inputs.r, &random_inputs.t.size())?;
        check::shape(
            "the dropped labels",
            &random_inputs.dropped,
            &random_inputs.t.size(),
        )?;
        let (device, kind) = (x0.device(), x0.kind());
        let noise = random_inputs.noise.f_to_device(device)?;
        let [r, t] = [&random_inputs.r, &random_inputs.t].map(|time| time.f_to_device(device));
        let (r, t) = (r?, t?);
        let dropped = random_inputs.dropped.f_to_device(device)?;

        // The ends of the interval are compared in float32, so that t = 0.8 is not above 0.8.
        let t32 = t.f_to_kind(Kind::Float)?;
        let guided = t32
            .f_ge(self.cfg_min_t)?
            .f_logical_and(&t32.f_le(self.cfg_max_t)?)?
            .f_logical_and(&dropped.f_logical_not()?)?;
        let labels = match network.dimensions().null_class {
            Some(null_class) => Tensor::f_where_scalarself(
                &dropped.f_to_device(labels.device())?,
                null_class,
                labels,
            )?,
            None => labels.shallow_clone(),
        };
        let (r, t) = (r.f_to_kind(kind)?, t.f_to_kind(kind)?);
        let (z, velocity) = self.path.interpolate(x0, &noise, &t)?;
        Ok(NoisyBatch {
            z,
            r,
            t,
            labels,
            guided,
            velocity,
        })
    }

    /// Replaces the velocity of guided samples by
    /// `omega v + kappa u(z, t, t, label) + (1 - omega - kappa) u(z, t, t, null)`, computed without
    /// gradient. Without guidance in the settings, it returns `noisy` unchanged and does not run the
    /// network.
    ///
    /// Under autocast, this and [`MeanFlow::forward`] need separate regions. A region caches the
    /// casts of the weights, and casts made without gradient would be reused in the pass that
    /// records one.
    ///
    /// # Errors
    /// As [`MeanFlowSit::forward`]; guidance with a network that has no null class.
    pub fn guide(
        &self,
        network: &MeanFlowSit,
        noisy: NoisyBatch,
    ) -> Result<NoisyBatch, DiffusionError> {
        let rows = match noisy.z.device() {
            Device::Cpu => GuidedRows::Selected,
            _ => GuidedRows::All,
        };
        self.guide_rows(network, noisy, rows)
    }

    fn guide_rows(
        &self,
        network: &MeanFlowSit,
        mut noisy: NoisyBatch,
        rows: GuidedRows,
    ) -> Result<NoisyBatch, DiffusionError> {
        if !self.trains_with_guidance() {
            return Ok(noisy);
        }
        let (omega, kappa) = (self.cfg_omega, self.cfg_kappa);
        let null_class = network
            .dimensions()
            .null_class
            .ok_or(DiffusionError::Setting {
                name: "cfg_omega",
                found: omega.to_string(),
                allowed: "1, with cfg_kappa = 0, for a network without a null class \
                      (class_dropout = 0)"
                    .to_owned(),
            })?;
        let _no_grad = tch::no_grad_guard();
        let guided = |z: &Tensor, t: &Tensor, labels: &Tensor, velocity: &Tensor| {
            let [conditional, unconditional] =
                with_and_without_class(z, labels, null_class, |z, labels| {
                    let t = Tensor::f_cat(&[t, t], 0)?;
                    let output = network.forward(z, &t, &t, labels, &[])?;
                    Ok(output.prediction.f_to_kind(velocity.kind())?)
                })?;
            Ok::<_, DiffusionError>(
                velocity
                    .f_mul_scalar(omega)?
                    .f_add_(&conditional.f_mul_scalar(kappa)?)?
                    .f_add_(&unconditional.f_mul_scalar(1.0 - omega - kappa)?)?,
            )
        };
        let velocity = match rows {
            GuidedRows::Selected => {
                let rows = noisy.guided.f_nonzero()?.f_flatten(0, -1)?;
                if rows.size1()? == 0 {
                    return Ok(noisy);
                }
                let select = |x: &Tensor| x.f_index_select(0, &rows.f_to_device(x.device())?);
                let (z, t) = (select(&noisy.z)?, select(&noisy.t)?);
                let (labels, velocity) = (select(&noisy.labels)?, select(&noisy.velocity)?);
                let guided = guided(&z, &t, &labels, &velocity)?;
                noisy.velocity.f_index_copy(0, &rows, &guided)?
            }
            GuidedRows::All => {
                let guided = guided(&noisy.z, &noisy.t, &noisy.labels, &noisy.velocity)?;
                let chosen = noisy.guided.f_view([-1, 1, 1, 1])?;
                guided.f_where_self(&chosen, &noisy.velocity)?
            }
        };
        noisy.velocity = velocity;
        Ok(noisy)
    }

    /// The network's average velocity `u`, its derivative along the path, `du/dt`, and the hidden tokens after the
    /// blocks `depths`.
    ///
    /// # Errors
    /// As [`MeanFlowSit::jvp`].
    pub fn forward(
        &self,
        network: &MeanFlowSit,
        noisy: &NoisyBatch,
        depths: &[i64],
    ) -> Result<Jvp, DiffusionError> {
        let direction = Direction::along(&noisy.velocity);
        let NoisyBatch {
            z, r, t, labels, ..
        } = noisy;
        network.jvp(z, r, t, labels, &direction, depths)
    }

    /// The target of `u`, `v - (t - r) du/dt`, in the images' shape and dtype, without gradient.
    ///
    /// # Errors
    /// The shapes of the derivative and the images differ.
    pub fn target(&self, output: &Jvp, noisy: &NoisyBatch) -> Result<Tensor, DiffusionError> {
        check::shape("the derivative", &output.dudt, &noisy.velocity.size())?;
        let _no_grad = tch::no_grad_guard();
        let kind = noisy.velocity.kind();
        let difference = noisy.t.f_sub(&noisy.r)?.f_view([-1, 1, 1, 1])?;
        let correction = output.dudt.f_to_kind(kind)?.f_mul(&difference)?;
        Ok(noisy.velocity.f_sub(&correction)?)
    }

    /// The weighted squared error of `output.u` per sample, in the images' dtype.
    ///
    /// # Errors
    /// The shapes of `output` and the images differ.
    pub fn loss(&self, output: &Jvp, noisy: &NoisyBatch) -> Result<Loss, DiffusionError> {
        check::shape("the prediction", &output.u, &noisy.velocity.size())?;
        let target = self.target(output, noisy)?;
        let error = output.u.f_to_kind(target.kind())?.f_sub(&target)?;
        let squared_error =
            error
                .f_square()?
                .f_flatten(1, -1)?
                .f_sum_dim_intlist(1, false, None::<Kind>)?;
        Ok(Loss {
            value: self.weighting.apply(&squared_error, self.adaptive_p)?,
            squared_error: squared_error.f_detach()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use torch_ext::Params;

    use super::*;
    use crate::SitConfig;

    #[test]
    fn guiding_selected_rows_equals_guiding_all_rows() {
        let config = SitConfig {
            input_size: 8,
            num_classes: 3,
            ..SitConfig::named("SiT-XS/4").unwrap()
        };
        let params = Params::new(Device::Cpu, 0).unwrap();
        let network = MeanFlowSit::new(&params.root(), &config).unwrap();
        let mut generator = Generator::new(Device::Cpu, 1).unwrap();
        for mut weight in params.trainable() {
            generator.normal_(&mut weight, 0.0, 0.1).unwrap();
        }
        let objective = MeanFlow {
            cfg_omega: 0.4,
            cfg_kappa: 0.3,
            cfg_min_t: 0.3,
            cfg_max_t: 0.8,
            ..MeanFlow::default()
        };
        let x0 = generator.randn(&[6, 4, 8, 8], Kind::Float).unwrap();
        let random_inputs = RandomInputs {
            dropped: Tensor::from_slice(&[false, false, true, false, false, false]),
            r: Tensor::from_slice(&[0.0f32, 0.1, 0.2, 0.3, 0.4, 0.5]),
            t: Tensor::from_slice(&[0.1f32, 0.5, 0.6, 0.7, 0.9, 0.8]),
            noise: generator.randn(&[6, 4, 8, 8], Kind::Float).unwrap(),
        };
        let labels = Tensor::from_slice(&[0i64, 1, 2, 0, 1, 2]);
        let draw = || objective.add_noise(&network, &x0, &labels, &random_inputs);
        let guide = |rows| {
            let guided = objective.guide_rows(&network, draw().unwrap(), rows);
            guided.unwrap().velocity
        };
        let (selected, all) = (guide(GuidedRows::Selected), guide(GuidedRows::All));
        let error = (&selected - &all).abs().max().double_value(&[]);
        assert!(error < 1e-5, "{error}");
        let plain = draw().unwrap().velocity;
        for (row, guided) in [false, true, false, true, false, true].iter().enumerate() {
            let changed = all.get(row as i64) != plain.get(row as i64);
            assert_eq!(changed, *guided, "row {row}");
        }
    }
}
