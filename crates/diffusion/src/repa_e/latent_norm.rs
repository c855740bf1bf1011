//! Batch normalisation between the autoencoder and the denoiser.

use tch::{Kind, Tensor};
use torch_ext::{Scope, optim};

use crate::DiffusionError;
use crate::latents::LatentScaling;
use crate::nn::{BatchNorm2d, Statistics};

/// Batch normalisation of the denoiser's input latents (`SiT.bn` upstream), with eps 1e-4 and an unbiased
/// running variance. It has no learned scale or shift, which the denoiser's loss would misuse.
///
/// It belongs to the denoiser: its statistics are part of the denoiser's state dict and of the moving
/// average of the denoiser's weights.
///
/// ```
/// use diffusion::repa_e::{LatentNorm, Statistics};
/// use tch::{Device, Kind, Tensor};
/// use torch_ext::Params;
///
/// # fn main() -> Result<(), diffusion::DiffusionError> {
/// let params = Params::new(Device::Cpu, 0)?;
/// let norm = LatentNorm::new(&params.root(), 4, LatentNorm::MOMENTUM)?;
/// assert_eq!(params.entries()[0].name, "bn.running_mean");
///
/// let latents = Tensor::randn([8, 4, 16, 16], (Kind::Float, Device::Cpu)) * 5 + 3;
/// let z = norm.forward(&latents, Statistics::Batch)?;
/// assert!((z.std(true).double_value(&[]) - 1.0).abs() < 1e-2);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct LatentNorm(BatchNorm2d);

impl LatentNorm {
    /// Upstream's momentum: the weight of the batch in an update of the running statistics.
    pub const MOMENTUM: f64 = 0.1;
    /// Names of the statistics in the denoiser's state dict. Moving averages of weights average them.
    pub const AVERAGED: [&str; 2] = ["bn.running_mean", "bn.running_var"];
    /// Name of the number of batches seen. Moving averages of weights copy it.
    pub const COUNT: &str = "bn.num_batches_tracked";

    /// Declares the statistics as `bn.running_mean`, `bn.running_var` and
    /// `bn.num_batches_tracked` below `scope`, the denoiser's.
    ///
    /// # Errors
    /// `momentum` is outside (0, 1], or a name is already declared.
    pub fn new(scope: &Scope, channels: i64, momentum: f64) -> Result<Self, DiffusionError> {
        let norm = BatchNorm2d::new(&scope.sub("bn"), channels, None, momentum, 1e-4)?;
        Ok(Self(norm))
    }

    /// Sets the running statistics from the scaling that normalises a data set of latents:
    /// `mean = bias`, `variance = 1 / scale^2` (`init_bn` upstream).
    ///
    /// # Errors
    /// The numbers of channels differ.
    pub fn set_statistics(&self, scaling: &LatentScaling) -> Result<(), DiffusionError> {
        let shape = self.0.running_mean.size();
        let flat = |tensor: &Tensor| tensor.f_flatten(0, -1)?.f_expand(&shape, false);
        let mean = flat(scaling.bias())?;
        let variance = flat(scaling.scale())?.f_reciprocal()?.f_square()?;
        let targets = [&self.0.running_mean, &self.0.running_var].map(Tensor::shallow_clone);
        Ok(optim::copy_(&targets, &[mean, variance])?)
    }

    /// The scaling that corresponds to the running statistics: `scale = 1 / sqrt(variance)` without
    /// eps, and `bias = mean` (`extract_latents_stats` upstream). Waits for the device.
    ///
    /// # Errors
    /// A running variance is zero, or statistics are not finite.
    pub fn scaling(&self) -> Result<LatentScaling, DiffusionError> {
        let values = |tensor: &Tensor| -> Result<Vec<f64>, DiffusionError> {
            Ok(Vec::<f64>::try_from(tensor.f_to_kind(Kind::Double)?)?)
        };
        let scale = values(&self.0.running_var.f_rsqrt()?)?;
        let bias = values(&self.0.running_mean)?;
        LatentScaling::new(&scale, &bias, self.0.running_mean.device())
    }

    /// Normalises `latents` `[B, C, h, w]`.
    ///
    /// # Errors
    /// The number of channels differs; a channel has a single value with [`Statistics::Batch`].
    pub fn forward(
        &self,
        latents: &Tensor,
        statistics: Statistics,
    ) -> Result<Tensor, DiffusionError> {
        self.0.forward(latents, statistics)
    }
}
