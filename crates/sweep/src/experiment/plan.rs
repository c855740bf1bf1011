//! The cells of a sweep.

use training::Config;

/// One training run of a sweep.
#[derive(Debug, Clone)]
pub struct Cell {
    /// Id, unique in the sweep: `sit-xs4.irepa.hog.s0`.
    pub id: String,
    /// Name of the encoder, joined encoders (`a,b`), or `none`.
    pub encoder: String,
    /// Name of the recipe.
    pub recipe: String,
    /// Name of the denoiser.
    pub model: String,
    /// Name of the training variant.
    pub variant: String,
    /// Training seed.
    pub seed: u64,
    /// The complete configuration.
    pub config: Config,
}

/// The cells of a sweep, in the order in which they run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Name of the experiment.
    pub name: String,
    /// Description of the experiment.
    pub description: String,
    /// The cells.
    pub cells: Vec<Cell>,
}

/// The kinds of device that an experiment file distinguishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    /// The CPU.
    Cpu,
    /// CUDA.
    Cuda,
}
