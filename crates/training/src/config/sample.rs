//! `[sample]`: samples drawn from the averaged weights.

use diffusion::samplers::SamplerConfig;
use serde::{Deserialize, Serialize};

/// `[sample]`: samples drawn from the averaged weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SampleConfig {
    /// Integrator, number of steps and guidance.
    pub sampler: SamplerConfig,
    /// Number of images in the sample grid; 0 for no grid.
    pub grid: usize,
    /// Number of samples for the metrics; 0 for none.
    pub count: usize,
    /// Number of samples drawn at once. On the CPU it is always 8. Batches are always full, so that an
    /// image does not depend on the number of samples.
    pub batch_size: usize,
    /// Seed of noise and labels.
    pub seed: u64,
}

impl Default for SampleConfig {
    fn default() -> Self {
        Self {
            sampler: SamplerConfig::default(),
            grid: 64,
            count: 0,
            batch_size: 64,
            seed: 0,
        }
    }
}
