//! `[alignment]`: encoder, normalisation, head and losses.

use alignment::{HeadConfig, LossConfig, LossKind, SpatialNorm};
use serde::{Deserialize, Serialize};

/// `[alignment]`: encoder, normalisation, head, losses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AlignmentConfig {
    /// Name of the encoder, several names separated by commas, or `none`.
    pub encoder: String,
    /// Dtype of the encoder's weights and computation. Its tokens are float32.
    pub encoder_precision: encoders::Precision,
    /// Normalisation of the encoder's tokens.
    pub spatial_norm: SpatialNorm,
    /// Projection of the hidden tokens.
    pub head: HeadConfig,
    /// Losses and their coefficients.
    pub losses: Vec<LossConfig>,
    /// If the encoder's token grid is a multiple of the denoiser's, average its tokens over blocks
    /// before the normalisation. If this is off, grids that differ are refused, as upstream does.
    pub pool_tokens: bool,
}

/// The value of `alignment.encoder` for a run without alignment.
pub const NO_ENCODER: &str = "none";

impl AlignmentConfig {
    /// Returns the encoders' names; empty without alignment.
    pub fn encoders(&self) -> Vec<String> {
        self.encoder
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty() && *name != NO_ENCODER)
            .map(str::to_owned)
            .collect()
    }
}

impl Default for AlignmentConfig {
    fn default() -> Self {
        Self {
            encoder: NO_ENCODER.to_owned(),
            encoder_precision: encoders::Precision::default(),
            spatial_norm: SpatialNorm::default(),
            head: HeadConfig::default(),
            losses: vec![LossConfig {
                kind: LossKind::Cosine,
                coefficient: 1.0,
            }],
            pool_tokens: false,
        }
    }
}
