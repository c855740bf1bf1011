//! Building blocks of the encoder and the decoder.

use tch::Tensor;
use torch_ext::{Init, Scope};

use super::KlConfig;
use crate::DiffusionError;
use crate::nn::{Conv2d, default_init};

/// Group norm with a learned scale and shift (`Normalize` upstream).
#[derive(Debug)]
pub(super) struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: i64,
}

impl GroupNorm {
    pub fn new(scope: &Scope, channels: i64, groups: i64) -> Result<Self, DiffusionError> {
        Ok(Self {
            weight: scope.var("weight", &[channels], Init::Ones)?,
            bias: scope.var("bias", &[channels], Init::Zeros)?,
            groups,
        })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor, DiffusionError> {
        let (weight, bias) = (Some(&self.weight), Some(&self.bias));
        Ok(x.f_group_norm(self.groups, weight, bias, 1e-6, true)?)
    }
}

/// Two convolutions with a residual connection (`ResnetBlock` upstream). The residual connection has
/// a 1x1 convolution if the number of channels changes.
#[derive(Debug)]
pub(super) struct ResidualBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    norm2: GroupNorm,
    conv2: Conv2d,
    nin_shortcut: Option<Conv2d>,
}

impl ResidualBlock {
    pub fn new(
        scope: &Scope,
        in_channels: i64,
        out_channels: i64,
        groups: i64,
    ) -> Result<Self, DiffusionError> {
        Ok(Self {
            norm1: GroupNorm::new(&scope.sub("norm1"), in_channels, groups)?,
            conv1: Conv2d::same(&scope.sub("conv1"), in_channels, out_channels, 3)?,
            norm2: GroupNorm::new(&scope.sub("norm2"), out_channels, groups)?,
            conv2: Conv2d::same(&scope.sub("conv2"), out_channels, out_channels, 3)?,
            nin_shortcut: if in_channels == out_channels {
                None
            } else {
                let scope = scope.sub("nin_shortcut");
                Some(Conv2d::same(&scope, in_channels, out_channels, 1)?)
            },
        })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor, DiffusionError> {
        let h = self.conv1.forward(&self.norm1.forward(x)?.f_silu()?)?;
        let h = self.conv2.forward(&self.norm2.forward(&h)?.f_silu()?)?;
        match &self.nin_shortcut {
            Some(shortcut) => Ok(shortcut.forward(x)?.f_add(&h)?),
            None => Ok(x.f_add(&h)?),
        }
    }
}

/// Single-head attention over all pixels, with a residual connection (`AttnBlock` upstream).
#[derive(Debug)]
pub(super) struct AttentionBlock {
    norm: GroupNorm,
    q: Conv2d,
    k: Conv2d,
    v: Conv2d,
    proj_out: Conv2d,
}

impl AttentionBlock {
    pub fn new(scope: &Scope, channels: i64, groups: i64) -> Result<Self, DiffusionError> {
        let conv = |name: &str| Conv2d::same(&scope.sub(name), channels, channels, 1);
        Ok(Self {
            norm: GroupNorm::new(&scope.sub("norm"), channels, groups)?,
            q: conv("q")?,
            k: conv("k")?,
            v: conv("v")?,
            proj_out: conv("proj_out")?,
        })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor, DiffusionError> {
        let (batch, channels, height, width) = x.size4()?;
        let h = self.norm.forward(x)?;
        let tokens = |conv: &Conv2d| -> Result<Tensor, DiffusionError> {
            let image = conv.forward(&h)?;
            Ok(image.f_flatten(2, 3)?.f_transpose(1, 2)?.f_unsqueeze(1)?) // [B, 1, H W, C]
        };
        let (q, k, v) = (tokens(&self.q)?, tokens(&self.k)?, tokens(&self.v)?);
        let mixed = Tensor::f_scaled_dot_product_attention::<&Tensor>(
            &q, &k, &v, None, 0.0, false, None, false,
        )?;
        let mixed = mixed
            .f_squeeze_dim(1)?
            .f_transpose(1, 2)?
            .f_reshape([batch, channels, height, width])?;
        Ok(x.f_add(&self.proj_out.forward(&mixed)?)?)
    }
}

/// The residual blocks of one resolution, each followed by attention if the configuration asks for it.
#[derive(Debug)]
pub(super) struct Level {
    block: Vec<ResidualBlock>,
    attn: Vec<AttentionBlock>,
}

impl Level {
    pub fn new(
        scope: &Scope,
        config: &KlConfig,
        level: usize,
        in_channels: i64,
        count: i64,
    ) -> Result<Self, DiffusionError> {
        let (channels, groups) = (config.channels(level), config.norm_groups);
        let block = (0..count)
            .map(|index| {
                let in_channels = if index == 0 { in_channels } else { channels };
                let scope = scope.sub("block").sub(index);
                ResidualBlock::new(&scope, in_channels, channels, groups)
            })
            .collect::<Result<_, _>>()?;
        let attentions = if config.attention_levels.contains(&level) {
            count
        } else {
            0
        };
        let attn = (0..attentions)
            .map(|index| AttentionBlock::new(&scope.sub("attn").sub(index), channels, groups))
            .collect::<Result<_, _>>()?;
        Ok(Self { block, attn })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor, DiffusionError> {
        let mut x = x.shallow_clone();
        for (index, block) in self.block.iter().enumerate() {
            x = block.forward(&x)?;
            if let Some(attention) = self.attn.get(index) {
                x = attention.forward(&x)?;
            }
        }
        Ok(x)
    }
}

/// The middle blocks of an encoder or a decoder, at the lowest resolution.
#[derive(Debug)]
pub(super) struct Middle {
    pub block_1: ResidualBlock,
    pub attn_1: AttentionBlock,
    pub block_2: ResidualBlock,
}

impl Middle {
    pub fn new(scope: &Scope, channels: i64, groups: i64) -> Result<Self, DiffusionError> {
        let block = |name: &str| ResidualBlock::new(&scope.sub(name), channels, channels, groups);
        Ok(Self {
            block_1: block("block_1")?,
            attn_1: AttentionBlock::new(&scope.sub("attn_1"), channels, groups)?,
            block_2: block("block_2")?,
        })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor, DiffusionError> {
        let x = self.block_1.forward(x)?;
        let x = self.attn_1.forward(&x)?;
        self.block_2.forward(&x)
    }
}

/// Halves height and width: pads one row and one column of zeros at the bottom and right, then applies a
/// 3x3 convolution with stride 2.
#[derive(Debug)]
pub(super) struct Downsample(Conv2d);

impl Downsample {
    pub fn new(scope: &Scope, channels: i64) -> Result<Self, DiffusionError> {
        let scope = scope.sub("downsample").sub("conv");
        let shape = [channels, channels, 3, 3];
        Ok(Self(Conv2d {
            weight: scope.var("weight", &shape, default_init(&shape))?,
            bias: Some(scope.var("bias", &[channels], default_init(&shape))?),
            stride: 2,
            padding: 0,
        }))
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor, DiffusionError> {
        self.0.forward(&x.f_constant_pad_nd([0, 1, 0, 1])?)
    }
}

/// Doubles height and width by nearest-neighbour interpolation, then applies a 3x3 convolution.
#[derive(Debug)]
pub(super) struct Upsample(Conv2d);

impl Upsample {
    pub fn new(scope: &Scope, channels: i64) -> Result<Self, DiffusionError> {
        let scope = scope.sub("upsample").sub("conv");
        Ok(Self(Conv2d::same(&scope, channels, channels, 3)?))
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor, DiffusionError> {
        let (_, _, height, width) = x.size4()?;
        let size = [2 * height, 2 * width];
        self.0.forward(&x.f_upsample_nearest2d(size, 2.0, 2.0)?)
    }
}
