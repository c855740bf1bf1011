//! The layers of [`Sit`] on dual numbers: the forward passes of [`nn`](crate::nn) and of
//! [`Block`], with the same weights.

use super::dual::Dual;
use crate::DiffusionError;
use crate::denoiser::HiddenTokens;
use crate::models::sit::{Block, Sit};
use crate::nn::{
    Attention, FinalLayer, LayerNorm, Linear, Mlp, Modulation, TimestepEmbedder, unpatchify,
};
use tch::Tensor;

/// [`Sit::tokens`].
pub(super) fn tokens(sit: &Sit, x: &Dual) -> Result<Dual, DiffusionError> {
    let layer = &sit.x_embedder;
    x.map(layer.patchify())?
        .linear(&layer.weight.f_flatten(1, -1)?, &layer.bias)?
        .add_constant(&sit.pos_embed)
}

/// [`TimestepEmbedder::forward`].
pub(super) fn embed_times(layer: &TimestepEmbedder, t: &Dual) -> Result<Dual, DiffusionError> {
    let x = t.sinusoids(&layer.frequencies, TimestepEmbedder::WIDTH)?;
    linear(&layer.second, &linear(&layer.first, &x)?.silu()?)
}

/// The prediction and the hidden tokens for tokens `x` `[B, T, D]` and the conditioning vector `c` `[B, D]`.
pub(super) fn denoise(
    sit: &Sit,
    mut x: Dual,
    c: &Dual,
    depths: &[i64],
) -> Result<(Dual, Vec<Tensor>), DiffusionError> {
    let config = sit.config();
    let mut hidden = HiddenTokens::new(depths, config.depth)?;
    let c = c.silu()?;
    for layer in &sit.blocks {
        x = block(layer, &x, &c)?;
        hidden.after_block(|| Ok(x.value.shallow_clone()))?;
    }
    let x = final_layer(&sit.final_layer, &x, &c)?;
    let (channels, size, patch) = (config.in_channels, config.input_size, config.patch_size);
    let image = x.map(move |x| unpatchify(x, channels, size, patch))?;
    Ok((image, hidden.into_tokens()))
}

/// [`Block::forward`].
#[rustfmt::skip] // The names of the modulation on one line, as in the paper.
fn block(layer: &Block, x: &Dual, c: &Dual) -> Result<Dual, DiffusionError> {
    let [shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp] = modulation(&layer.modulation, c)?;
    let x = x.gated_residual(&gate_msa, &attention(&layer.attn, &x.modulated(&shift_msa, &scale_msa)?)?)?;
    x.gated_residual(&gate_mlp, &mlp(&layer.mlp, &x.modulated(&shift_mlp, &scale_mlp)?)?)
}

fn modulation<const N: usize>(
    layer: &Modulation<N>,
    c: &Dual,
) -> Result<[Dual; N], DiffusionError> {
    linear(&layer.linear, c)?
        .map(layer.parts())?
        .unbind(1, "a modulation")
}

pub(super) fn attention(layer: &Attention, x: &Dual) -> Result<Dual, DiffusionError> {
    let qkv = linear(&layer.qkv, x)?;
    let mixed = match &layer.norms {
        None => qkv.self_attention(layer.heads)?,
        Some([q_norm, k_norm]) => {
            let [q, k, v] = qkv.split_heads(layer.heads)?;
            Dual::attention([q.layer_norm(q_norm)?, k.layer_norm(k_norm)?, v])?
        }
    };
    linear(&layer.proj, &mixed)
}

pub(super) fn mlp(layer: &Mlp, x: &Dual) -> Result<Dual, DiffusionError> {
    linear(&layer.fc2, &linear(&layer.fc1, x)?.gelu()?)
}

fn final_layer(layer: &FinalLayer<LayerNorm>, x: &Dual, c: &Dual) -> Result<Dual, DiffusionError> {
    let [shift, scale] = modulation(&layer.modulation, c)?;
    linear(&layer.linear, &x.modulated(&shift, &scale)?)
}

fn linear(layer: &Linear, x: &Dual) -> Result<Dual, DiffusionError> {
    x.linear(&layer.weight, &layer.bias)
}
