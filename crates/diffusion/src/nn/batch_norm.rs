//! Batch normalisation with running statistics, like `torch.nn.BatchNorm2d`.

use tch::{Device, Kind, Tensor};
use torch_ext::distributed::SharedGroup;
use torch_ext::{Scope, TorchError, optim};

use super::shared_group;
use crate::{DiffusionError, check};

/// Which mean and variance a batch normalisation uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Statistics {
    /// Those of the batch, with the biased variance. The running statistics are updated from them,
    /// with the unbiased variance (training mode in PyTorch).
    Batch,
    /// The running statistics, which do not change (evaluation mode in PyTorch).
    Running,
}

/// `(x - mean) / sqrt(var + eps)` per channel, with or without a learned scale and shift.
#[derive(Debug)]
pub(crate) struct BatchNorm2d {
    /// `[C]`.
    pub running_mean: Tensor,
    /// `[C]`.
    pub running_var: Tensor,
    num_batches_tracked: Tensor,
    affine: Option<(Tensor, Tensor)>,
    momentum: f64,
    eps: f64,
    channels: i64,
}

impl BatchNorm2d {
    /// Declares the buffers `running_mean`, `running_var` and `num_batches_tracked`. `affine` holds
    /// scale and shift, `[C]` each, which the caller has declared.
    pub fn new(
        scope: &Scope,
        channels: i64,
        affine: Option<(Tensor, Tensor)>,
        momentum: f64,
        eps: f64,
    ) -> Result<Self, DiffusionError> {
        check::setting(
            momentum > 0.0 && momentum <= 1.0,
            "momentum of the batch normalisation",
            momentum,
            "above 0 and at most 1, usually 0.1",
        )?;
        let cpu = (Kind::Float, Device::Cpu);
        let count = Tensor::f_zeros([0; 0], (Kind::Int64, Device::Cpu))?;
        Ok(Self {
            running_mean: scope.buffer("running_mean", Tensor::f_zeros([channels], cpu)?)?,
            running_var: scope.buffer("running_var", Tensor::f_ones([channels], cpu)?)?,
            num_batches_tracked: scope.buffer("num_batches_tracked", count)?,
            affine,
            momentum,
            eps,
            channels,
        })
    }

    /// The scale and the shift, or nothing if the norm is not affine.
    pub fn weights(&self) -> impl Iterator<Item = &Tensor> {
        self.affine.iter().flat_map(|(scale, shift)| [scale, shift])
    }

    /// `x` is `[B, C, H, W]`.
    pub fn forward(&self, x: &Tensor, statistics: Statistics) -> Result<Tensor, DiffusionError> {
        check::shape(
            "the input of the batch normalisation",
            x,
            &[-1, self.channels, -1, -1],
        )?;
        let train = statistics == Statistics::Batch;
        if train {
            let values = x.numel() as i64 / self.channels;
            check::setting(
                values > 1,
                "the number of values per channel",
                values,
                "at least 2, for the statistics of a batch",
            )?;
            let _count = self.num_batches_tracked.shallow_clone().f_add_scalar_(1)?;
            if let Some(group) = shared_group() {
                return self.forward_shared(x, &group);
            }
        }
        Ok(x.f_batch_norm(
            self.affine.as_ref().map(|(scale, _)| scale),
            self.affine.as_ref().map(|(_, shift)| shift),
            Some(&self.running_mean),
            Some(&self.running_var),
            train,
            self.momentum,
            self.eps,
            true,
        )?)
    }

    /// Normalises with the statistics of the batches of all processes of `group`, and updates the running statistics.
    fn forward_shared(&self, x: &Tensor, group: &SharedGroup) -> Result<Tensor, DiffusionError> {
        let mean_of = |x: &Tensor| -> Result<Tensor, TorchError> {
            group.mean(&x.f_mean_dim([0i64, 2, 3].as_slice(), true, None)?)
        };
        let mean = mean_of(x)?;
        let centred = x.f_sub(&mean)?;
        let variance = mean_of(&centred.f_square()?)?;
        let count = (x.numel() as i64 / self.channels) as f64 * group.size() as f64;
        let running = [&self.running_mean, &self.running_var].map(Tensor::shallow_clone);
        let batch = [
            mean.f_detach()?,
            variance.f_detach()?.f_mul_scalar(count / (count - 1.0))?,
        ];
        let batch = [batch[0].f_flatten(0, -1)?, batch[1].f_flatten(0, -1)?];
        optim::ema_(&running, &batch, 1.0 - self.momentum)?;
        let y = centred.f_mul(&variance.f_add_scalar(self.eps)?.f_rsqrt()?)?;
        let Some((scale, shift)) = &self.affine else {
            return Ok(y);
        };
        let per_channel = |weight: &Tensor| weight.f_view([1, self.channels, 1, 1]);
        Ok(y.f_mul(&per_channel(scale)?)?.f_add(&per_channel(shift)?)?)
    }
}
