//! The contents of an experiment file.

use std::path::PathBuf;

use serde::Deserialize;
use toml::Table;

/// The recipe without alignment. It has one cell, whatever the number of encoders.
pub const BASELINE: &str = "none";

/// The training variant that leaves the base configuration unchanged.
pub(crate) const PLAIN_VARIANT: &str = "sit";

/// An experiment file: a base configuration and a grid of variations.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Experiment {
    /// Name of the run folder.
    pub name: String,
    /// The question that the experiment answers, for the report.
    #[serde(default)]
    pub description: String,
    /// Base configuration of every cell, relative to this file.
    pub base: PathBuf,
    /// Folder of recipe files, relative to this file.
    #[serde(default = "default_recipes")]
    pub recipes: PathBuf,
    /// Folder of variant files, relative to this file.
    #[serde(default = "default_variants")]
    pub variants: PathBuf,
    /// The axes that vary.
    pub grid: Grid,
    /// Settings of every cell. They override base and recipe.
    #[serde(default)]
    pub set: Table,
    /// Changes for runs on the CPU.
    #[serde(default)]
    pub cpu: DeviceSection,
    /// Changes for runs on CUDA.
    #[serde(default)]
    pub cuda: DeviceSection,
}

fn default_recipes() -> PathBuf {
    PathBuf::from("../configs/recipes")
}

fn default_variants() -> PathBuf {
    PathBuf::from("../configs/variants")
}

/// The axes of an experiment; the cells are all their combinations.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Grid {
    /// Encoders, joined encoders (`a,b`), or named sets such as `paper27`.
    pub encoder: Option<Vec<String>>,
    /// Names of files in the recipe folder, without `.toml`; `none` is the baseline. For a variant, a file of that name in
    /// the sub-folder `VARIANT` takes precedence.
    pub recipe: Option<Vec<String>>,
    /// Denoisers such as `SiT-B/2`; by default the denoiser of base and variant.
    pub model: Option<Vec<String>>,
    /// Names of files in the variant folder, without `.toml`. `sit` needs no file: it is then the unchanged base.
    pub variant: Option<Vec<String>>,
    /// Training seeds.
    pub seed: Option<Vec<u64>>,
}

/// Changes of an experiment for one kind of device.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeviceSection {
    /// Another base configuration.
    pub base: Option<PathBuf>,
    /// Another folder of recipes.
    pub recipes: Option<PathBuf>,
    /// Another folder of variants.
    pub variants: Option<PathBuf>,
    /// Axes that replace those of `[grid]`.
    pub grid: Grid,
    /// Settings that override `[set]`.
    pub set: Table,
}
