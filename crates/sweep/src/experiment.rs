//! Expands an experiment file into the cells of its grid.

mod decided_settings;
mod file;
mod grid_point;
mod plan;
mod plan_file;
mod resolver;

use std::path::Path;

use encoders::Registry;

use crate::config_file::{self, ConfigError};
use resolver::Resolver;

pub(crate) use file::PLAIN_VARIANT;
pub use file::{BASELINE, DeviceSection, Experiment, Grid};
pub use plan::{Cell, DeviceKind, Plan};
pub use plan_file::PlanFile;

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
