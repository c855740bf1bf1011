//! Expands an experiment file into the cells of its grid.

mod decided_settings;
mod grid_point;
mod plan_file;
mod resolver;

use std::path::{Path, PathBuf};

use encoders::Registry;
use serde::Deserialize;
use toml::Table;
use training::Config;

use crate::config_file::{self, ConfigError};
use resolver::Resolver;

pub use plan_file::PlanFile;

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

impl Plan {
    /// Reads an experiment file and resolves its cells.
    ///
    /// # Errors
    /// The file, its base or a recipe is missing or invalid; a setting is invalid; a name is unknown.
    pub fn read(
        path: &Path,
        device: DeviceKind,
        registry: &Registry,
        settings: &[String],
    ) -> Result<Self, ConfigError> {
        Self::read_for(path, device, registry, settings, &|_| true)
    }

    /// As [`Plan::read`], for a sweep of the cells whose ids satisfy `is_selected`. All `settings` must be valid for the
    /// selected cells. For the other cells, invalid settings are left out.
    ///
    /// # Errors
    /// As [`Plan::read`]; a setting is one that the grid decides for a selected cell.
    pub fn read_for(
        path: &Path,
        device: DeviceKind,
        registry: &Registry,
        settings: &[String],
        is_selected: &dyn Fn(&str) -> bool,
    ) -> Result<Self, ConfigError> {
        let text = config_file::read(path, None)?;
        let experiment: Experiment = config_file::parse(path, &text)?;
        let (section, section_name) = match device {
            DeviceKind::Cpu => (&experiment.cpu, "cpu"),
            DeviceKind::Cuda => (&experiment.cuda, "cuda"),
        };
        Resolver {
            path,
            section,
            section_name,
            experiment: &experiment,
            registry,
            settings,
            is_selected,
        }
        .plan()
    }
}
