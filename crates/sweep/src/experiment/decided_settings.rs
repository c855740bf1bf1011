//! Refuses settings that the grid of an experiment decides.

use std::collections::BTreeMap;
use std::path::Path;

use toml::{Table, Value};

use super::file::{DeviceSection, Experiment};
use super::plan::Cell;
use crate::config_file::{self, ConfigError, Layers};

/// The settings that the grid decides: those of its axes, and those in the recipe and variant files that its axes name.
/// The ids of cells are built from them, so nothing else may change them.
pub(super) struct DecidedSettings {
    /// Keys of the configuration, each with the axis that decides it.
    pub(super) axes: Vec<(&'static str, String)>,
    /// Key of the axis of recipes in the experiment file.
    pub(super) recipe: String,
    /// Key of the axis of variants in the experiment file.
    pub(super) variant: String,
    /// Settings in the recipe files of the selected cells, by recipe and dotted key.
    pub(super) recipes: BTreeMap<String, BTreeMap<String, Value>>,
    /// Settings in the variant files of the selected cells, by variant and dotted key.
    pub(super) variants: BTreeMap<String, BTreeMap<String, Value>>,
}

impl DecidedSettings {
    /// Refuses keys of axes on the command line and in the `set` tables of the experiment, where they would have no
    /// effect.
    pub(super) fn check_axes(
        &self,
        path: &Path,
        settings: &[String],
        experiment: &Experiment,
        (section_name, section): (&str, &DeviceSection),
    ) -> Result<(), ConfigError> {
        let owner = |key: &str| self.axes.iter().find(|(owned, _)| overlap(owned, key));
        for setting in settings {
            for key in leaves_of(setting)?.keys() {
                if let Some((owned, axis)) = owner(key) {
                    return Err(decided(path, setting, owned, axis, ""));
                }
            }
        }
        for (name, set) in [
            ("set".to_owned(), &experiment.set),
            (format!("{section_name}.set"), &section.set),
        ] {
            for key in config_file::leaves(set).keys() {
                if let Some((owned, axis)) = owner(key) {
                    return Err(ConfigError::Name {
                        origin: format!("{}: `{name}.{key}`", path.display()),
                        message: format!(
                            "`{axis}` decides `{owned}` for each cell; change that axis instead"
                        ),
                    });
                }
            }
        }
        Ok(())
    }

    /// Adds the files of a selected cell.
    pub(super) fn add(&mut self, cell: &Cell, recipe: &Table, variant: &Table) {
        self.recipes
            .entry(cell.recipe.clone())
            .or_insert_with(|| config_file::leaves(recipe));
        self.variants
            .entry(cell.variant.clone())
            .or_insert_with(|| config_file::leaves(variant));
    }

    /// Refuses settings that are also in recipe files of selected cells, and training settings in which the variants of
    /// selected cells differ.
    pub(super) fn check_files(&self, path: &Path, settings: &[String]) -> Result<(), ConfigError> {
        for setting in settings {
            for key in leaves_of(setting)?.keys() {
                for (recipe, leaves) in &self.recipes {
                    if let Some(owned) = leaves.keys().find(|owned| overlap(owned, key)) {
                        let by = format!(": its file `{recipe}.toml` sets it");
                        return Err(decided(path, setting, owned, &self.recipe, &by));
                    }
                }
                // Settings of sampling and evaluation do not define a variant.
                if ["sample", "evaluate"].iter().any(|part| overlap(part, key)) {
                    continue;
                }
                let mut values = self.variants.iter().map(|(variant, leaves)| {
                    let own = leaves.iter().filter(|(owned, _)| overlap(owned, key));
                    (variant, own.collect::<Vec<_>>())
                });
                let Some((first, value)) = values.next() else {
                    continue;
                };
                if let Some((second, _)) = values.find(|(_, other)| *other != value) {
                    let by = format!(": `{first}` and `{second}` differ in it");
                    return Err(decided(path, setting, key, &self.variant, &by));
                }
            }
        }
        Ok(())
    }
}

/// The error that the grid decides a setting of the command line.
fn decided(path: &Path, setting: &str, key: &str, axis: &str, by: &str) -> ConfigError {
    ConfigError::Name {
        origin: format!("--set {setting}"),
        message: format!(
            "`{key}` is decided for each cell by `{axis}` of {}{by}; select cells with --only, or change the \
             experiment",
            path.display()
        ),
    }
}

/// The values that a `key=value` setting sets, by dotted key.
fn leaves_of(setting: &str) -> Result<BTreeMap<String, Value>, ConfigError> {
    let mut layers = Layers::default();
    config_file::apply_settings(&mut layers, &[setting.to_owned()])?;
    Ok(config_file::leaves(layers.table()))
}

/// Whether two dotted keys are equal, or one is a table that contains the other.
fn overlap(left: &str, right: &str) -> bool {
    let (short, long) = match left.len() <= right.len() {
        true => (left, right),
        false => (right, left),
    };
    long.strip_prefix(short)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}
