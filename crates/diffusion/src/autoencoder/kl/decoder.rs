//! The decoder of the KL autoencoder: latents to pixels.

use tch::Tensor;
use torch_ext::Scope;

use super::KlConfig;
use super::blocks::{GroupNorm, Level, Middle, Upsample};
use crate::DiffusionError;
use crate::nn::Conv2d;

/// Maps latents `[B, C, h, w]` to pixels `[B, 3, f h, f w]` (`Decoder` upstream).
#[derive(Debug)]
pub(super) struct Decoder {
    pub conv_in: Conv2d,
    pub mid: Middle,
    /// One entry per level, finest first as in the state dict. Levels run from last to first.
    up: Vec<(Level, Option<Upsample>)>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    pub fn new(scope: &Scope, config: &KlConfig) -> Result<Self, DiffusionError> {
        let last = config.levels() - 1;
        let (finest, lowest) = (config.channels(0), config.channels(last));
        let groups = config.norm_groups;
        let conv_in = Conv2d::same(&scope.sub("conv_in"), config.latent_channels, lowest, 3)?;
        let mid = Middle::new(&scope.sub("mid"), lowest, groups)?;
        let mut up = Vec::with_capacity(config.levels());
        for index in 0..=last {
            let scope = scope.sub("up").sub(index);
            let in_channels = config.channels(last.min(index + 1));
            let count = config.num_res_blocks + 1;
            let level = Level::new(&scope, config, index, in_channels, count)?;
            let upsample = if index > 0 {
                Some(Upsample::new(&scope, config.channels(index))?)
            } else {
                None
            };
            up.push((level, upsample));
        }
        Ok(Self {
            conv_in,
            mid,
            up,
            norm_out: GroupNorm::new(&scope.sub("norm_out"), finest, groups)?,
            conv_out: Conv2d::same(&scope.sub("conv_out"), finest, 3, 3)?,
        })
    }

    pub fn forward(&self, latents: &Tensor) -> Result<Tensor, DiffusionError> {
        let mut x = self.mid.forward(&self.conv_in.forward(latents)?)?;
        for (level, upsample) in self.up.iter().rev() {
            x = level.forward(&x)?;
            if let Some(upsample) = upsample {
                x = upsample.forward(&x)?;
            }
        }
        self.conv_out.forward(&self.norm_out.forward(&x)?.f_silu()?)
    }
}
