//! Layers of [`Jit`](crate::Jit) that [`Sit`](crate::Sit) does not have.

use ops::Norm;
use tch::{Kind, Tensor};
use torch_ext::{Init, Scope};

use super::{JitConfig, Rotary};
use crate::denoiser::Mode;
use crate::layers::{Linear, join_heads};
use crate::{DiffusionError, check};

/// Maps images `[B, C, S, S]` to one token per patch `[B, T, D]`, row-major, through a narrow layer
/// without activation (`BottleneckPatchEmbed` upstream).
#[derive(Debug)]
pub(super) struct BottleneckPatchEmbedder {
    proj1: Tensor,
    proj2: Tensor,
    bias2: Tensor,
    channels: i64,
    size: i64,
    patch: i64,
}

impl BottleneckPatchEmbedder {
    pub fn new(scope: &Scope, config: &JitConfig) -> Result<Self, DiffusionError> {
        let (patch, narrow) = (config.patch_size, config.bottleneck_dim);
        let (channels, width) = (config.in_channels, config.hidden_size);
        let (scope1, scope2) = (scope.sub("proj1"), scope.sub("proj2"));
        let init = Init::XavierUniform;
        Ok(Self {
            proj1: scope1.cast_var("weight", &[narrow, channels, patch, patch], init)?,
            proj2: scope2.cast_var("weight", &[width, narrow, 1, 1], init)?,
            bias2: scope2.cast_var("bias", &[width], Init::Zeros)?,
            channels,
            size: config.input_size,
            patch,
        })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor, DiffusionError> {
        let (channels, size, patch) = (self.channels, self.size, self.patch);
        check::shape("the noisy image", x, &[-1, channels, size, size])?;
        let side = size / patch;
        // Both of upstream's convolutions are linear layers on patches. Linear layers return
        // contiguous tokens; with convolutions, no later block would have them.
        let patches = x
            .f_reshape([-1, channels, side, patch, side, patch])?
            .f_permute([0, 2, 4, 1, 3, 5])?
            .f_reshape([-1, side * side, channels * patch * patch])?;
        let narrow = patches.f_linear::<&Tensor>(&self.proj1.f_flatten(1, -1)?, None)?;
        Ok(narrow.f_linear(&self.proj2.f_flatten(1, -1)?, Some(&self.bias2))?)
    }
}

/// Added to the mean square in RMS norms.
const RMS_EPS: f64 = 1e-6;

/// `x / sqrt(mean(x^2) + 1e-6) * weight` over the last dimension.
#[derive(Debug)]
pub(super) struct RmsNorm {
    weight: Tensor,
}

impl RmsNorm {
    pub fn new(scope: &Scope, width: i64) -> Result<Self, DiffusionError> {
        Ok(Self {
            weight: scope.var("weight", &[width], Init::Ones)?,
        })
    }

    /// `norm(x) (1 + scale) + shift` for `x` `[B, T, D]`, with `shift` and `scale` `[B, 1, D]`.
    pub fn modulated(
        &self,
        x: &Tensor,
        shift: &Tensor,
        scale: &Tensor,
    ) -> Result<Tensor, DiffusionError> {
        let norm = Norm::Rms(&self.weight);
        Ok(ops::norm_modulate(x, norm, shift, scale, RMS_EPS)?)
    }
}

/// Dropout in training, with random numbers from the generator of [`Mode::Train`].
#[derive(Debug)]
struct Dropout {
    rate: f64,
}

impl Dropout {
    fn is_active(&self, mode: &Mode<'_>) -> bool {
        self.rate > 0.0 && matches!(mode, Mode::Train(_))
    }

    fn forward(&self, x: Tensor, mode: &mut Mode<'_>) -> Result<Tensor, DiffusionError> {
        match mode {
            Mode::Train(generator) if self.rate > 0.0 => {
                let draws = generator.rand(&x.size(), Kind::Float)?;
                let kept = draws.f_ge(self.rate)?.f_to_device(x.device())?;
                Ok(x.f_mul(&kept)?.f_div_scalar(1.0 - self.rate)?)
            }
            _ => Ok(x),
        }
    }
}

/// Multi-head self-attention with RMS norm and rotary embedding of queries and keys.
#[derive(Debug)]
pub(super) struct Attention {
    qkv: Linear,
    q_norm: RmsNorm,
    k_norm: RmsNorm,
    attn_drop: Dropout,
    proj: Linear,
    proj_drop: Dropout,
    heads: i64,
}

impl Attention {
    pub fn new(
        scope: &Scope,
        width: i64,
        heads: i64,
        (attn_dropout, proj_dropout): (f64, f64),
    ) -> Result<Self, DiffusionError> {
        let head_width = width / heads;
        let init = Init::XavierUniform;
        Ok(Self {
            qkv: Linear::new(&scope.sub("qkv"), width, 3 * width, init)?,
            q_norm: RmsNorm::new(&scope.sub("q_norm"), head_width)?,
            k_norm: RmsNorm::new(&scope.sub("k_norm"), head_width)?,
            attn_drop: Dropout { rate: attn_dropout },
            proj: Linear::new(&scope.sub("proj"), width, width, init)?,
            proj_drop: Dropout { rate: proj_dropout },
            heads,
        })
    }

    /// `x` is `[B, T, D]`.
    pub fn forward(
        &self,
        x: &Tensor,
        rotary: &Rotary,
        mode: &mut Mode<'_>,
    ) -> Result<Tensor, DiffusionError> {
        let qkv = self.qkv.forward(x)?; // [B, T, 3 D]
        let heads = ops::norm_rotate(
            &qkv,
            self.heads,
            [&self.q_norm.weight, &self.k_norm.weight],
            &rotary.rotations(qkv.size3()?.1)?,
            RMS_EPS,
        )?;
        let mixed = match self.attn_drop.is_active(mode) {
            true => self.attention_with_dropout(heads.split()?, mode)?,
            false => heads.attention()?,
        }; // [B, T, D]
        self.proj_drop.forward(self.proj.forward(&mixed)?, mode)
    }

    /// `q`, `k` and `v` are `[B, heads, T, d]`.
    fn attention_with_dropout(
        &self,
        [q, k, v]: [Tensor; 3],
        mode: &mut Mode<'_>,
    ) -> Result<Tensor, DiffusionError> {
        // libtorch's attention would draw dropout from the process-wide generator.
        let (.., head_width) = q.size4()?;
        let weights = q
            .f_matmul(&k.f_transpose(-2, -1)?)?
            .f_div_scalar((head_width as f64).sqrt())?
            .f_softmax(-1, Kind::Float)?; // [B, heads, T, T]
        let weights = self.attn_drop.forward(weights, mode)?;
        join_heads(&weights.f_to_kind(v.kind())?.f_matmul(&v)?)
    }
}

/// `w3(silu(x1) x2)` with `[x1, x2] = w12(x)` (`SwiGLUFFN` upstream).
#[derive(Debug)]
pub(super) struct SwiGlu {
    w12: Linear,
    w3: Linear,
    ffn_dropout: Dropout,
}

impl SwiGlu {
    pub fn new(
        scope: &Scope,
        width: i64,
        inner: i64,
        dropout: f64,
    ) -> Result<Self, DiffusionError> {
        let init = Init::XavierUniform;
        Ok(Self {
            w12: Linear::new(&scope.sub("w12"), width, 2 * inner, init)?,
            w3: Linear::new(&scope.sub("w3"), inner, width, init)?,
            ffn_dropout: Dropout { rate: dropout },
        })
    }

    pub fn forward(&self, x: &Tensor, mode: &mut Mode<'_>) -> Result<Tensor, DiffusionError> {
        let x = self.w12.forward(x)?; // [B, T, 2 inner]
        let x = ops::swiglu(&x)?;
        self.w3.forward(&self.ffn_dropout.forward(x, mode)?)
    }
}
