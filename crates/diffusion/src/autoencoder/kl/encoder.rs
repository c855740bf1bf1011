//! The encoder of the KL autoencoder: pixels to the input of the `quant_conv` that returns moments.

use tch::Tensor;
use torch_ext::Scope;

use super::KlConfig;
use super::blocks::{Downsample, GroupNorm, Level, Middle};
use crate::DiffusionError;
use crate::nn::Conv2d;

/// Maps pixels `[B, 3, H, W]` to `[B, 2 C, H / f, W / f]` (`Encoder` upstream).
#[derive(Debug)]
pub(super) struct Encoder {
    conv_in: Conv2d,
    down: Vec<(Level, Option<Downsample>)>,
    pub mid: Middle,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Encoder {
    pub fn new(scope: &Scope, config: &KlConfig) -> Result<Self, DiffusionError> {
        let last = config.levels() - 1;
        let (lowest, groups) = (config.channels(last), config.norm_groups);
        let conv_in = Conv2d::same(&scope.sub("conv_in"), 3, config.base_channels, 3)?;
        let mut in_channels = config.base_channels;
        let mut down = Vec::with_capacity(config.levels());
        for index in 0..=last {
            let scope = scope.sub("down").sub(index);
            let level = Level::new(&scope, config, index, in_channels, config.num_res_blocks)?;
            in_channels = config.channels(index);
            let downsample = if index < last {
                Some(Downsample::new(&scope, in_channels)?)
            } else {
                None
            };
            down.push((level, downsample));
        }
        Ok(Self {
            conv_in,
            down,
            mid: Middle::new(&scope.sub("mid"), lowest, groups)?,
            norm_out: GroupNorm::new(&scope.sub("norm_out"), lowest, groups)?,
            conv_out: Conv2d::same(
                &scope.sub("conv_out"),
                lowest,
                2 * config.latent_channels,
                3,
            )?,
        })
    }

    pub fn forward(&self, pixels: &Tensor) -> Result<Tensor, DiffusionError> {
        self.head(&self.mid.forward(&self.levels(pixels)?)?)
    }

    /// Runs the layers before the middle blocks.
    pub fn levels(&self, pixels: &Tensor) -> Result<Tensor, DiffusionError> {
        let mut x = self.conv_in.forward(pixels)?;
        for (level, downsample) in &self.down {
            x = level.forward(&x)?;
            if let Some(downsample) = downsample {
                x = downsample.forward(&x)?;
            }
        }
        Ok(x)
    }

    fn head(&self, x: &Tensor) -> Result<Tensor, DiffusionError> {
        self.conv_out.forward(&self.norm_out.forward(x)?.f_silu()?)
    }
}
