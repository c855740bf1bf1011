//! Layers that diffusion transformers are built from.
//!
//! A layer is a plain struct of weights with a `new` that declares them below a [`torch_ext::Scope`], under the names
//! of upstream's state dicts, and a `forward` on [`tch::Tensor`]s. The fused operations behind them are those of
//! [`ops`]. [`models`](crate::models) composes the layers; `examples/sit_variant.rs` of this crate composes its own
//! model.
//!
//! | layer | used by |
//! | --- | --- |
//! | [`PatchEmbedder`], [`TimestepEmbedder`], [`LabelEmbedder`], [`position_embedding`] | SiT; the last three in JiT too |
//! | [`Attention`], [`Mlp`] | SiT |
//! | [`BottleneckPatchEmbedder`], [`RotaryAttention`], [`Rotary`], [`SwiGlu`] | JiT |
//! | [`Modulation`], [`Norm`], [`gated_residual`], [`FinalLayer`], [`unpatchify`] | both |

mod attention;
mod batch_norm;
mod conv;
mod dropout;
mod embedding;
mod linear;
mod mlp;
mod modulation;
mod norm;
mod patches;
mod rotary;
mod rotary_attention;
mod shared_statistics;

pub use attention::Attention;
pub(crate) use attention::{heads_first, join_heads};
pub(crate) use batch_norm::BatchNorm2d;
pub use batch_norm::Statistics;
pub(crate) use conv::{Conv2d, default_init};
pub use dropout::Dropout;
pub use embedding::{
    LabelEmbedder, TimestepEmbedder, position_embedding, sincos_2d, timestep_sinusoids,
};
pub(crate) use embedding::{sinusoids, sinusoids_derivative};
pub use linear::Linear;
pub use mlp::{Mlp, SwiGlu};
pub use modulation::{FinalLayer, Modulation, gated_residual};
pub use norm::{AffineLayerNorm, LayerNorm, Norm, RmsNorm};
pub use patches::{BottleneckPatchEmbedder, PatchEmbedder, unpatchify};
pub use rotary::Rotary;
pub use rotary_attention::RotaryAttention;
pub use shared_statistics::with_shared_statistics;
pub(crate) use shared_statistics::{shared_group, shared_mean};
