//! `[model]`: the denoiser.

use diffusion::{DiffusionError, JitConfig, SitConfig};
use serde::{Deserialize, Serialize};

use super::autoencoder::Autoencoder;
use super::omit::is_default;

/// `[model]`: the denoiser.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
    /// A name such as `SiT-B/2` or `JiT-B/16`: family, size and patch side.
    pub name: String,
    /// The map from images to the denoiser's input: `identity` (pixels in [-1, 1]), or a table with
    /// `kind = "kl"` (latents).
    pub autoencoder: Autoencoder,
    /// Apply LayerNorm to queries and keys.
    pub qk_norm: bool,
    /// Probability with which a training sample's label is dropped.
    pub label_dropout: f64,
    /// Dropout of attention weights in JiT's middle blocks.
    #[serde(skip_serializing_if = "is_default")]
    pub attn_dropout: f64,
    /// Dropout after attention and in the MLP of JiT's middle blocks.
    #[serde(skip_serializing_if = "is_default")]
    pub proj_dropout: f64,
    /// Block after which hidden tokens are taken, counted from 1. The default depends on the model's
    /// size: 2 for XS, 4 for S and B, 8 for L and XL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alignment_depth: Option<i64>,
}

impl ModelConfig {
    /// Returns the block after which hidden tokens are aligned: `alignment_depth`, or the paper's for the model.
    ///
    /// # Errors
    /// No model has that name.
    pub(crate) fn alignment_depth(&self) -> Result<i64, DiffusionError> {
        match self.alignment_depth {
            Some(depth) => Ok(depth),
            None if self.is_jit() => JitConfig::alignment_depth(&self.name),
            None => SitConfig::alignment_depth(&self.name),
        }
    }

    /// Whether the model is a JiT, by its name.
    pub(super) fn is_jit(&self) -> bool {
        self.name.to_lowercase().starts_with("jit")
    }
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            name: "SiT-B/2".to_owned(),
            autoencoder: Autoencoder::Identity,
            qk_norm: false,
            label_dropout: 0.1,
            attn_dropout: 0.0,
            proj_dropout: 0.0,
            alignment_depth: None,
        }
    }
}
