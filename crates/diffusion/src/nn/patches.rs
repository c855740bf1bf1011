//! Images to tokens of patches, and back.

use tch::Tensor;
use torch_ext::{Init, Scope};

use crate::{DiffusionError, check};

/// Maps images `[B, C, S, S]` to one token per patch `[B, T, D]`, row-major (`PatchEmbed` of timm).
#[derive(Debug)]
pub struct PatchEmbedder {
    /// `[D, C, patch, patch]`.
    pub weight: Tensor,
    /// `[D]`.
    pub bias: Tensor,
    channels: i64,
    size: i64,
    patch: i64,
}

impl PatchEmbedder {
    /// Declares the weights, Xavier-uniform, for images of `channels` and `size * size` pixels, a multiple of `patch`,
    /// and tokens of `width`.
    ///
    /// # Errors
    /// A weight name is already declared.
    pub fn new(
        scope: &Scope,
        channels: i64,
        size: i64,
        patch: i64,
        width: i64,
    ) -> Result<Self, DiffusionError> {
        let scope = scope.sub("proj");
        let shape = [width, channels, patch, patch];
        Ok(Self {
            weight: scope.cast_var("weight", &shape, Init::XavierUniform)?,
            bias: scope.cast_var("bias", &[width], Init::Zeros)?,
            channels,
            size,
            patch,
        })
    }

    /// Maps images `x` `[B, C, S, S]` to tokens `[B, T, D]`.
    ///
    /// # Errors
    /// `x` has another shape.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, DiffusionError> {
        let patches = self.patchify()(x)?;
        Ok(patches.f_linear(&self.weight.f_flatten(1, -1)?, Some(&self.bias))?)
    }

    /// Maps images `[B, C, S, S]` to the pixels of each patch.
    pub(crate) fn patchify(&self) -> impl Fn(&Tensor) -> Result<Tensor, DiffusionError> + use<> {
        let (channels, size, patch) = (self.channels, self.size, self.patch);
        move |x| patchify(x, channels, size, patch)
    }
}

/// Maps images `[B, C, S, S]` to one token per patch `[B, T, D]`, row-major, through a narrow layer without activation
/// (`BottleneckPatchEmbed` of JiT).
#[derive(Debug)]
pub struct BottleneckPatchEmbedder {
    /// `[narrow, C, patch, patch]`.
    pub proj1: Tensor,
    /// `[D, narrow, 1, 1]`.
    pub proj2: Tensor,
    /// `[D]`.
    pub bias2: Tensor,
    channels: i64,
    size: i64,
    patch: i64,
}

impl BottleneckPatchEmbedder {
    /// Declares the weights, Xavier-uniform, as [`PatchEmbedder::new`], with a bottleneck of width `narrow`.
    ///
    /// # Errors
    /// A weight name is already declared.
    pub fn new(
        scope: &Scope,
        channels: i64,
        size: i64,
        patch: i64,
        [narrow, width]: [i64; 2],
    ) -> Result<Self, DiffusionError> {
        let (scope1, scope2) = (scope.sub("proj1"), scope.sub("proj2"));
        let init = Init::XavierUniform;
        Ok(Self {
            proj1: scope1.cast_var("weight", &[narrow, channels, patch, patch], init)?,
            proj2: scope2.cast_var("weight", &[width, narrow, 1, 1], init)?,
            bias2: scope2.cast_var("bias", &[width], Init::Zeros)?,
            channels,
            size,
            patch,
        })
    }

    /// Maps images `x` `[B, C, S, S]` to tokens `[B, T, D]`.
    ///
    /// # Errors
    /// `x` has another shape.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, DiffusionError> {
        let patches = patchify(x, self.channels, self.size, self.patch)?;
        let narrow = patches.f_linear::<&Tensor>(&self.proj1.f_flatten(1, -1)?, None)?;
        Ok(narrow.f_linear(&self.proj2.f_flatten(1, -1)?, Some(&self.bias2))?)
    }
}

/// The pixels of each patch `[B, T, C patch patch]`, channels first, of images `[B, C, S, S]`.
///
/// A convolution whose stride equals its kernel size is a linear layer on these. The linear layer returns contiguous
/// tokens; with a convolution, no later block would have them.
fn patchify(x: &Tensor, channels: i64, size: i64, patch: i64) -> Result<Tensor, DiffusionError> {
    check::shape("the noisy image", x, &[-1, channels, size, size])?;
    let side = size / patch;
    Ok(x.f_reshape([-1, channels, side, patch, side, patch])?
        .f_permute([0, 2, 4, 1, 3, 5])?
        .f_reshape([-1, side * side, channels * patch * patch])?)
}

/// Maps tokens `[B, T, patch * patch * C]`, row-major and with channels last, to images `[B, C, S, S]`.
///
/// # Errors
/// The number of tokens is not `(size / patch)^2`.
pub fn unpatchify(
    x: &Tensor,
    channels: i64,
    size: i64,
    patch: i64,
) -> Result<Tensor, DiffusionError> {
    let side = size / patch;
    Ok(x.f_reshape([-1, side, side, patch, patch, channels])?
        .f_permute([0, 5, 1, 3, 2, 4])?
        .f_reshape([-1, channels, size, size])?)
}
