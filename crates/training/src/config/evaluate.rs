//! `[evaluate]`: measurements during and at the end of a run.

use metrics::quality::SampleMetric;
use serde::{Deserialize, Serialize};

use super::omit::is_default;
use super::path::ConfigPath;

/// `[evaluate]`: measurements at the end of a run, and during it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvaluateConfig {
    /// Encoder in whose feature space samples are compared with real images; empty for none.
    pub fd_encoder: String,
    /// Further metrics of samples, on Inception features. They are computed if Inception is installed,
    /// and omitted otherwise.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub inception: Vec<SampleMetric>,
    /// An `.npz` with published statistics of real images, such as ADM's `VIRTUAL_imagenet256_labeled.npz`, with which
    /// `inception` compares samples, as in the papers. Empty for the images of `data.reference_split`.
    #[serde(skip_serializing_if = "is_default")]
    pub reference: ConfigPath,
    /// Number of steps between evaluations during the run, which are logged to `metrics.jsonl`; 0 for
    /// none. They use the same metrics and the same samples as the final evaluation.
    #[serde(skip_serializing_if = "is_default")]
    pub every: u64,
    /// Number of real images that samples are compared with; 0 for all.
    pub reference_images: usize,
    /// Number of images on which LDS, CDS, SRSS and RMSC of the aligned encoder are computed; 0 for
    /// none.
    pub spatial_images: usize,
    /// Largest number of images for the linear probe of the aligned encoder; 0 for no probe. The probe is
    /// trained on mean patch tokens of that many images of the training split, and scored on that many
    /// of the reference split.
    #[serde(skip_serializing_if = "is_default")]
    pub probe_images: usize,
}

impl Default for EvaluateConfig {
    fn default() -> Self {
        Self {
            fd_encoder: String::new(),
            inception: Vec::new(),
            reference: ConfigPath::default(),
            every: 0,
            reference_images: 0,
            spatial_images: 64,
            probe_images: 0,
        }
    }
}

impl EvaluateConfig {
    /// Whether samples are evaluated after `step`, during the run.
    pub fn is_due(&self, step: u64) -> bool {
        self.every > 0 && step > 0 && step.is_multiple_of(self.every)
    }
}
