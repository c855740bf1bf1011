//! `[alignment]`: encoder, normalisation, head and losses.

use alignment::{HeadConfig, LossConfig, LossKind, Source, SpatialNorm, Term};
use encoders::Precision;
use serde::{Deserialize, Serialize};
use tch::Device;

use super::invalid::InvalidConfig;

/// `[alignment]`: encoder, normalisation, head, losses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AlignmentConfig {
    /// Name of the encoder, several names separated by commas, or `none`.
    pub encoder: String,
    /// Dtype of the encoder's weights and computation: `fp32`, `bf16` or `fp16`. By default it is bf16 on CUDA, since
    /// upstream runs encoders in half precision too, and fp32 on the CPU. The encoder's tokens are float32.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encoder_precision: Option<Precision>,
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

    /// Returns the dtype in which encoders run on `device`.
    pub fn encoder_precision_on(&self, device: Device) -> Precision {
        self.encoder_precision.unwrap_or(match device {
            Device::Cuda(_) => Precision::Bf16,
            _ => Precision::Fp32,
        })
    }

    /// Writes down the dtype in which encoders run on `device`, so that the configuration of a run states it.
    pub fn choose_precision(&mut self, device: Device) {
        self.encoder_precision = Some(self.encoder_precision_on(device));
    }

    /// Returns the terms of the alignment with `encoders` encoders: each loss for each encoder, with hidden tokens
    /// after block `depth`. A loss is averaged over the encoders.
    pub(crate) fn terms(&self, encoders: usize, depth: i64) -> Vec<Term> {
        let terms = self.losses.iter().flat_map(|loss| {
            (0..encoders).map(|encoder| Term {
                source: Source::Encoder(encoder),
                depth,
                head: self.head,
                norm: self.spatial_norm,
                loss: loss.kind.build(),
                coefficient: loss.coefficient / encoders as f64,
            })
        });
        terms.collect()
    }

    /// Checks head, losses and normalisation, also of a run without an encoder: a variant of it may have one.
    pub(super) fn check(&self) -> Result<(), InvalidConfig> {
        if let HeadConfig::Mlp { width } = self.head
            && width < 1
        {
            return Err(InvalidConfig::new(
                "alignment.head.width",
                width,
                "at least 1",
            ));
        }
        if self.losses.is_empty() {
            return Err(InvalidConfig {
                key: "alignment.losses",
                reason: "is empty; for a run without alignment, set alignment.encoder = \"none\""
                    .to_owned(),
            });
        }
        for loss in &self.losses {
            if !loss.coefficient.is_finite() {
                return Err(InvalidConfig {
                    key: "alignment.losses",
                    reason: format!(
                        "has coefficient {}, must be a finite number",
                        loss.coefficient
                    ),
                });
            }
        }
        self.spatial_norm.validate().map_err(|error| InvalidConfig {
            key: "alignment.spatial_norm",
            reason: format!("is invalid: {error}"),
        })
    }
}

impl Default for AlignmentConfig {
    fn default() -> Self {
        Self {
            encoder: NO_ENCODER.to_owned(),
            encoder_precision: None,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;

    fn refused(change: impl FnOnce(&mut Config)) -> Option<String> {
        let mut config = Config::default();
        change(&mut config);
        config.validate().err().map(|error| error.to_string())
    }

    #[test]
    fn encoders_run_in_half_precision_on_cuda_unless_the_configuration_says_otherwise() {
        let mut alignment = AlignmentConfig::default();
        let found = |alignment: &AlignmentConfig| {
            [Device::Cpu, Device::Cuda(1)].map(|device| alignment.encoder_precision_on(device))
        };
        assert_eq!(found(&alignment), [Precision::Fp32, Precision::Bf16]);
        for precision in [Precision::Fp32, Precision::Bf16, Precision::Fp16] {
            alignment.encoder_precision = Some(precision);
            alignment.choose_precision(Device::Cuda(0));
            assert_eq!(found(&alignment), [precision; 2]);
        }
    }

    #[test]
    fn invalid_alignment_settings_are_refused() {
        let norm = |alpha, eps| {
            refused(|config| config.alignment.spatial_norm = SpatialNorm::ZScore { alpha, eps })
        };
        let head = |width| refused(|config| config.alignment.head = HeadConfig::Mlp { width });
        let loss =
            |coefficient| refused(|config| config.alignment.losses[0].coefficient = coefficient);
        for good in [norm(0.6, 1e-6), head(1), loss(0.0), loss(-1.0)] {
            assert_eq!(good, None);
        }
        for (error, key) in [
            (
                norm(f64::NAN, 1e-6),
                "`alignment.spatial_norm` is invalid: alpha",
            ),
            (
                norm(f64::INFINITY, 1e-6),
                "`alignment.spatial_norm` is invalid: alpha",
            ),
            (norm(0.6, 0.0), "`alignment.spatial_norm` is invalid: eps"),
            (norm(0.6, -1.0), "`alignment.spatial_norm` is invalid: eps"),
            (
                norm(0.6, f64::NAN),
                "`alignment.spatial_norm` is invalid: eps",
            ),
            (head(0), "`alignment.head.width` is 0"),
            (head(-3), "`alignment.head.width` is -3"),
            (loss(f64::NAN), "`alignment.losses` has coefficient NaN"),
            (
                loss(f64::INFINITY),
                "`alignment.losses` has coefficient inf",
            ),
            (
                refused(|config| config.alignment.losses.clear()),
                "`alignment.losses` is empty",
            ),
        ] {
            let error = error.unwrap();
            assert!(error.starts_with(key), "{error}");
        }
    }
}
