//! SiT that predicts an average velocity, as MeanFlow trains it (arXiv 2505.13447).
//!
//! `u(z, r, t)` is the mean of the velocity over the times from `r` to `t` on the path through
//! `z` at time `t`. One step can therefore reach the image: `z_r = z_t - (t - r) u(z_t, r, t)`. The
//! network is a [`Sit`] with an additional embedder of `t - r`. Training also needs the derivative
//! of `u` along the path; [`MeanFlowSit::jvp`] computes it in the same pass. Weights have the names
//! and shapes of the state dict of github.com/zhuyu-cs/MeanFlow (`sit.py`).

mod attention;
mod dual;
mod layers;
mod tangent;
#[cfg(test)]
mod tests;

use tch::Tensor;
use torch_ext::Scope;

use super::sit::{Sit, SitConfig};
use crate::denoiser::{Denoiser, Dimensions, Mode, Output};
use crate::nn::TimestepEmbedder;
use crate::{DiffusionError, check};
use dual::Dual;

/// A SiT that predicts the average velocity `u(z, r, t)`.
///
/// As a [`Denoiser`] it predicts the velocity at time `t`, `u(z, t, t)`, which every sampler of
/// [`crate::samplers`] can integrate. [`crate::samplers::meanflow`] takes long steps with `u`.
///
/// ```
/// use diffusion::SitConfig;
/// use diffusion::models::meanflow::{Direction, MeanFlowSit};
/// use tch::{Device, Kind, Tensor};
/// use torch_ext::Params;
///
/// # fn main() -> Result<(), diffusion::DiffusionError> {
/// let config = SitConfig { input_size: 16, ..SitConfig::named("SiT-XS/4")? };
/// let params = Params::new(Device::Cpu, 0)?;
/// let network = MeanFlowSit::new(&params.root(), &config)?;
///
/// let z = Tensor::randn([2, 4, 16, 16], (Kind::Float, Device::Cpu));
/// let r = Tensor::from_slice(&[0.0f32, 0.5]);
/// let t = Tensor::from_slice(&[1.0f32, 0.7]);
/// let labels = Tensor::from_slice(&[7i64, 1000]); // 1000 is the null class
/// let velocity = z.randn_like();
/// let output = network.jvp(&z, &r, &t, &labels, &Direction::along(&velocity), &[2])?;
/// assert_eq!(output.u.size(), z.size());
/// assert_eq!(output.dudt.size(), z.size());
/// assert!(output.u.requires_grad() && !output.dudt.requires_grad());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct MeanFlowSit {
    sit: Sit,
    r_embedder: TimestepEmbedder,
}

/// The direction in which a network is differentiated.
#[derive(Debug)]
pub struct Direction<'a> {
    /// Component for `z`, `[B, C, H, W]`.
    pub z: &'a Tensor,
    /// Component for `r`, the same for every sample.
    pub r: f64,
    /// Component for `t`, the same for every sample.
    pub t: f64,
}

impl<'a> Direction<'a> {
    /// `(v, 0, 1)`: along the path towards noise, with `velocity` `v` `[B, C, H, W]`.
    pub fn along(velocity: &'a Tensor) -> Self {
        Self {
            z: velocity,
            r: 0.0,
            t: 1.0,
        }
    }
}

/// An average velocity and its directional derivative.
#[derive(Debug)]
pub struct Jvp {
    /// `u(z, r, t)`, `[B, C, H, W]`.
    pub u: Tensor,
    /// The derivative of `u` in the requested direction, `[B, C, H, W]`, without gradient.
    pub dudt: Tensor,
    /// Tokens after each of the requested blocks, `[B, T, D]`.
    pub hidden: Vec<Tensor>,
}

impl MeanFlowSit {
    /// Declares the weights below `scope` and initialises them as [`Sit::new`] does.
    ///
    /// # Errors
    /// As [`Sit::new`].
    pub fn new(scope: &Scope, config: &SitConfig) -> Result<Self, DiffusionError> {
        Ok(Self {
            sit: Sit::new(scope, config)?,
            r_embedder: TimestepEmbedder::new(&scope.sub("r_embedder"), config.hidden_size)?,
        })
    }

    /// The settings that the network was built with.
    pub fn config(&self) -> &SitConfig {
        self.sit.config()
    }

    /// The input of the first block; see [`Sit::tokens`].
    ///
    /// # Errors
    /// As [`Sit::tokens`].
    pub fn tokens(&self, z: &Tensor) -> Result<Tensor, DiffusionError> {
        self.sit.tokens(z)
    }

    /// The embeddings `[B, D]` of `t` and of `t - r`, for times `r` and `t` `[B]`.
    ///
    /// # Errors
    /// The shapes of `r` and `t` differ, or are not `[B]`.
    pub fn embed_times(&self, r: &Tensor, t: &Tensor) -> Result<[Tensor; 2], DiffusionError> {
        check::shape("r", r, &t.size())?;
        Ok([
            self.sit.t_embedder.forward(t)?,
            self.r_embedder.forward(&t.f_sub(r)?)?,
        ])
    }

    /// The conditioning vector `[B, D]` of times `r` and `t` `[B]` and `labels` `[B]`.
    ///
    /// # Errors
    /// As [`MeanFlowSit::forward`].
    pub fn conditioning(
        &self,
        r: &Tensor,
        t: &Tensor,
        labels: &Tensor,
    ) -> Result<Tensor, DiffusionError> {
        let [t, difference] = self.embed_times(r, t)?;
        let labels = self.sit.y_embedder.forward(labels, Mode::Eval)?;
        Ok(t.f_add(&difference)?.f_add(&labels)?)
    }

    /// The average velocity at `z` `[B, C, H, W]` from times `r` to `t` `[B]`, all of one dtype, for
    /// classes `labels` `[B]`, int64. Returns the hidden tokens after the blocks `depths`, counted from 1. It drops no
    /// labels: the objective does.
    ///
    /// # Errors
    /// As [`Denoiser::forward`].
    pub fn forward(
        &self,
        z: &Tensor,
        r: &Tensor,
        t: &Tensor,
        labels: &Tensor,
        depths: &[i64],
    ) -> Result<Output, DiffusionError> {
        let x = self.tokens(z)?;
        check_batch(x.size3()?.0, r, t, labels)?;
        let c = self.conditioning(r, t, labels)?;
        self.sit.denoise(x, &c, depths)
    }

    /// As [`MeanFlowSit::forward`], with the Jacobian-vector product in `direction`.
    ///
    /// The tangents are computed from the activations that are kept for the gradient, so values are
    /// computed only once. Tangents record no gradient, and each is freed after its last use.
    ///
    /// # Errors
    /// As [`MeanFlowSit::forward`]; the shapes of the direction and `z` differ.
    pub fn jvp(
        &self,
        z: &Tensor,
        r: &Tensor,
        t: &Tensor,
        labels: &Tensor,
        direction: &Direction<'_>,
        depths: &[i64],
    ) -> Result<Jvp, DiffusionError> {
        check::shape("the direction of z", direction.z, &z.size())?;
        let z = Dual::input(z.shallow_clone(), direction.z)?;
        let x = layers::tokens(&self.sit, &z)?;
        check_batch(x.value.size3()?.0, r, t, labels)?;

        let difference = Dual::input(t.f_sub(r)?, &t.f_full_like(direction.t - direction.r)?)?;
        let t = Dual::input(t.shallow_clone(), &t.f_full_like(direction.t)?)?;
        let t = layers::embed_times(&self.sit.t_embedder, &t)?;
        let difference = layers::embed_times(&self.r_embedder, &difference)?;
        let labels = self.sit.y_embedder.forward(labels, Mode::Eval)?;
        let c = t.add(&difference)?.add_constant(&labels)?;

        let (u, hidden) = layers::denoise(&self.sit, x, &c, depths)?;
        Ok(Jvp {
            u: u.value,
            dudt: u.tangent.compute()?,
            hidden,
        })
    }

    /// As [`MeanFlowSit::jvp`], but in two passes as upstream: one that records the gradient of `u`,
    /// and one for values and tangents that records none. It is slower and serves as a reference.
    ///
    /// # Errors
    /// As [`MeanFlowSit::jvp`].
    pub fn jvp_in_two_passes(
        &self,
        z: &Tensor,
        r: &Tensor,
        t: &Tensor,
        labels: &Tensor,
        direction: &Direction<'_>,
        depths: &[i64],
    ) -> Result<Jvp, DiffusionError> {
        let output = self.forward(z, r, t, labels, depths)?;
        let dudt = tch::no_grad(|| self.jvp(z, r, t, labels, direction, &[]))?.dudt;
        Ok(Jvp {
            u: output.prediction,
            dudt,
            hidden: output.hidden,
        })
    }
}

fn check_batch(batch: i64, r: &Tensor, t: &Tensor, labels: &Tensor) -> Result<(), DiffusionError> {
    for (what, tensor) in [("r", r), ("t", t), ("labels", labels)] {
        check::shape(what, tensor, &[batch])?;
    }
    Ok(())
}

impl Denoiser for MeanFlowSit {
    fn forward(
        &self,
        x: &Tensor,
        t: &Tensor,
        labels: &Tensor,
        depths: &[i64],
        mode: Mode<'_>,
    ) -> Result<Output, DiffusionError> {
        let labels = self.sit.y_embedder.drop(labels, mode)?;
        self.forward(x, t, t, &labels, depths)
    }

    fn dimensions(&self) -> Dimensions {
        self.sit.dimensions()
    }
}
