//! Resolves the cells of an experiment.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use encoders::Registry;
use toml::Value;
use training::{Config, NO_ENCODER};

use super::decided_settings::DecidedSettings;
use super::file::{BASELINE, DeviceSection, Experiment, PLAIN_VARIANT};
use super::grid_point::GridPoint;
use super::plan::{Cell, Plan};
use crate::config_file::{self, ConfigError, Layers};

/// Resolves the cells of an experiment for one kind of device.
pub(super) struct Resolver<'a> {
    pub(super) path: &'a Path,
    pub(super) experiment: &'a Experiment,
    pub(super) section: &'a DeviceSection,
    /// Key of `section` in the file.
    pub(super) section_name: &'static str,
    pub(super) registry: &'a Registry,
    pub(super) settings: &'a [String],
    pub(super) is_selected: &'a dyn Fn(&str) -> bool,
}

impl Resolver<'_> {
    /// Resolves all cells of the grid.
    pub(super) fn plan(&self) -> Result<Plan, ConfigError> {
        let experiment = self.experiment;
        self.check_name()?;
        let (key, base) = self.locate("base", &self.section.base, &experiment.base);
        let from = format!("`{key}` in {}", self.path.display());
        let base = config_file::read_layers_named_by(&base, Some(from))?;
        let (on_device, own) = (&self.section.grid, &experiment.grid);
        let mut decided = self.decided_settings();
        let section = (self.section_name, self.section);
        decided.check_axes(self.path, self.settings, experiment, section)?;
        let encoders = self.encoders(axis(&on_device.encoder, &own.encoder))?;
        let recipe_names = axis(&on_device.recipe, &own.recipe);
        let aligned = recipe_names.iter().find(|name| *name != BASELINE);
        if let (Some(recipe), true) = (aligned, encoders.is_empty()) {
            return Err(self.name_error(
                "grid.encoder",
                format!("the recipe `{recipe}` aligns with an encoder, but no encoder is named"),
            ));
        }
        let variants = self.variants(axis(&on_device.variant, &own.variant))?;
        let models: Vec<Option<String>> = axis(&on_device.model, &own.model)
            .into_iter()
            .map(Some)
            .collect();
        let seeds = axis(&on_device.seed, &own.seed);
        let default = config_file::resolve(base.clone(), &self.origin("base"))?;
        let models = non_empty(models, None);
        let seeds = non_empty(seeds, self.default_seed(&base, &default)?);

        let mut cells = Vec::new();
        for (variant, layer) in &variants {
            let recipes = self.recipes(&recipe_names, variant)?;
            let mut base = base.clone();
            base.merge(layer.clone());
            for model in &models {
                for seed in &seeds {
                    let point = |encoder, recipe| GridPoint {
                        encoder,
                        recipe,
                        model: model.as_deref(),
                        variant,
                        seed: *seed,
                    };
                    let mut add = |point: GridPoint, overlay: &Layers| -> Result<(), ConfigError> {
                        let cell = self.cell(&base, overlay, point)?;
                        if (self.is_selected)(&cell.id) {
                            decided.add(&cell, overlay.table(), layer.table());
                        }
                        cells.push(cell);
                        Ok(())
                    };
                    let mut has_baseline = false;
                    for (recipe, overlay) in &recipes {
                        if recipe == BASELINE && !std::mem::replace(&mut has_baseline, true) {
                            add(point(NO_ENCODER, recipe), overlay)?;
                        }
                    }
                    for encoder in &encoders {
                        for (recipe, overlay) in recipes.iter().filter(|(name, _)| name != BASELINE)
                        {
                            add(point(encoder, recipe), overlay)?;
                        }
                    }
                }
            }
        }
        decided.check_files(self.path, self.settings)?;
        let mut seen = BTreeSet::new();
        if let Some(cell) = cells.iter().find(|cell| !seen.insert(cell.id.clone())) {
            return Err(self.name_error("grid", format!("the cell {} is planned twice", cell.id)));
        }
        if cells.is_empty() {
            return Err(self.name_error(
                "grid",
                "the grid has no cells; grid.recipe must name at least one recipe".to_owned(),
            ));
        }
        Ok(Plan {
            name: experiment.name.clone(),
            description: experiment.description.clone(),
            cells,
        })
    }
}

impl Resolver<'_> {
    /// The key and the value of a path that the section of the device may replace. The path is resolved against the
    /// folder of the experiment file.
    fn locate(&self, key: &str, on_device: &Option<PathBuf>, own: &Path) -> (String, PathBuf) {
        let (key, path) = match on_device {
            Some(path) => (format!("{}.{key}", self.section_name), path.as_path()),
            None => (key.to_owned(), own),
        };
        let folder = config_file::folder_of(self.path);
        (key, config_file::tidy(&folder.join(path)))
    }

    fn origin(&self, key: &str) -> String {
        format!("{}: `{key}`", self.path.display())
    }

    fn check_folder(&self, key: &str, folder: &Path) -> Result<(), ConfigError> {
        if folder.is_dir() {
            return Ok(());
        }
        Err(self.name_error(key, format!("there is no folder {}", folder.display())))
    }

    fn name_error(&self, key: &str, message: String) -> ConfigError {
        ConfigError::Name {
            origin: self.origin(key),
            message,
        }
    }

    /// Checks the name of the experiment, which becomes the name of the run folder.
    fn check_name(&self) -> Result<(), ConfigError> {
        let name = &self.experiment.name;
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || name.starts_with('.') || !name.chars().all(is_allowed) {
            return Err(self.name_error(
                "name",
                format!("`{name}` cannot name a folder; use letters, digits, `-`, `_` and `.`"),
            ));
        }
        Ok(())
    }

    /// Expands named sets and checks the names of encoders. Each encoder is returned once.
    fn encoders(&self, names: Vec<String>) -> Result<Vec<String>, ConfigError> {
        let mut encoders = Vec::new();
        for name in names {
            if let Some(set) = encoders::named_set(&name) {
                encoders.extend(set.iter().map(|name| (*name).to_owned()));
                continue;
            }
            for part in encoders::split_names(&name) {
                self.registry
                    .check_name(&part)
                    .map_err(|error| self.name_error("grid.encoder", error.to_string()))?;
            }
            encoders.push(name);
        }
        let mut seen = BTreeSet::new();
        encoders.retain(|name| seen.insert(name.clone()));
        Ok(encoders)
    }

    /// Reads the recipe files of a variant.
    fn recipes(
        &self,
        names: &[String],
        variant: &str,
    ) -> Result<Vec<(String, Layers)>, ConfigError> {
        let (on_device, own) = (&self.section.recipes, &self.experiment.recipes);
        let (key, folder) = self.locate("recipes", on_device, own);
        names
            .iter()
            .map(|name| {
                let of_variant = folder.join(variant).join(format!("{name}.toml"));
                let path = match of_variant.is_file() {
                    true => of_variant,
                    false => folder.join(format!("{name}.toml")),
                };
                if !path.is_file() {
                    self.check_folder(&key, &folder)?;
                    let message = unknown_file("recipe", name, &folder);
                    return Err(self.name_error("grid.recipe", message));
                }
                Ok((name.clone(), config_file::read_layers(&path)?))
            })
            .collect()
    }

    /// Reads the variant files; the plain variant needs none.
    fn variants(&self, names: Vec<String>) -> Result<Vec<(String, Layers)>, ConfigError> {
        let (on_device, own) = (&self.section.variants, &self.experiment.variants);
        let (key, folder) = self.locate("variants", on_device, own);
        non_empty(names, PLAIN_VARIANT.to_owned())
            .into_iter()
            .map(|name| {
                let path = folder.join(format!("{name}.toml"));
                if path.is_file() {
                    return Ok((name, config_file::read_layers(&path)?));
                }
                if name == PLAIN_VARIANT {
                    return Ok((name, Layers::default()));
                }
                self.check_folder(&key, &folder)?;
                let message = unknown_file("variant", &name, &folder);
                Err(self.name_error("grid.variant", message))
            })
            .collect()
    }

    /// Resolves the configuration of one cell.
    fn cell(
        &self,
        base: &Layers,
        recipe_layer: &Layers,
        point: GridPoint,
    ) -> Result<Cell, ConfigError> {
        let folder = config_file::folder_of(self.path);
        let mut layers = base.clone();
        layers.merge(recipe_layer.clone());
        for set in [&self.experiment.set, &self.section.set] {
            layers.merge(Layers::new(set.clone(), folder));
        }
        layers.merge(Layers::new(point.layer(), folder));
        let without_settings = layers.clone();
        config_file::apply_settings(&mut layers, self.settings)?;
        let model = layers
            .table()
            .get("model")
            .and_then(|model| model.get("name")?.as_str())
            .map_or_else(|| Config::default().model.name, str::to_owned);
        let id = point.id(&model);
        let origin = format!("{}: cell {id}", self.path.display());
        let config = match config_file::resolve(layers, &origin) {
            Err(_) if !(self.is_selected)(&id) => {
                self.with_valid_settings(without_settings, &origin)?
            }
            config => config?,
        };
        let judge = &config.evaluate.fd_encoder;
        if !judge.is_empty() {
            self.registry
                .check_name(judge)
                .map_err(|error| self.name_error("evaluate.fd_encoder", error.to_string()))?;
        }
        Ok(Cell {
            encoder: point.encoder.to_owned(),
            recipe: point.recipe.to_owned(),
            model: config.model.name.clone(),
            variant: point.variant.to_owned(),
            seed: config.train.seed,
            id,
            config,
        })
    }
}

impl Resolver<'_> {
    /// The seed of an experiment without the axis `seed`.
    fn default_seed(&self, base: &Layers, default: &Config) -> Result<u64, ConfigError> {
        let folder = config_file::folder_of(self.path);
        let mut layers = base.clone();
        for set in [&self.experiment.set, &self.section.set] {
            layers.merge(Layers::new(set.clone(), folder));
        }
        config_file::apply_settings(&mut layers, self.settings)?;
        let train = layers.table().get("train");
        let seed = train.and_then(|train| train.get("seed"));
        // A value that is not a number is refused when the cells are resolved.
        let seed = seed.and_then(Value::as_integer).map(i64::cast_unsigned);
        Ok(seed.unwrap_or(default.train.seed))
    }

    /// The configuration of a cell that is not selected, with those settings of the command line that are valid for it.
    fn with_valid_settings(&self, mut layers: Layers, origin: &str) -> Result<Config, ConfigError> {
        for setting in self.settings {
            let mut changed = layers.clone();
            config_file::apply_settings(&mut changed, std::slice::from_ref(setting))?;
            if config_file::resolve(changed.clone(), origin).is_ok() {
                layers = changed;
            }
        }
        config_file::resolve(layers, origin)
    }

    /// The settings that the axes of the grid decide.
    fn decided_settings(&self) -> DecidedSettings {
        let (on_device, own) = (&self.section.grid, &self.experiment.grid);
        let axis = |name: &'static str, is_on_device: bool| match is_on_device {
            true => format!("{}.grid.{name}", self.section_name),
            false => format!("grid.{name}"),
        };
        let is_set = |len: Option<usize>| len.is_some_and(|len| len > 0);
        let mut axes = vec![(
            "alignment.encoder",
            axis("encoder", on_device.encoder.is_some()),
        )];
        let models = on_device
            .model
            .as_ref()
            .or(own.model.as_ref())
            .map(Vec::len);
        if is_set(models) {
            axes.push(("model.name", axis("model", on_device.model.is_some())));
        }
        let seeds = on_device.seed.as_ref().or(own.seed.as_ref()).map(Vec::len);
        if is_set(seeds) {
            axes.push(("train.seed", axis("seed", on_device.seed.is_some())));
        }
        let variant = axis("variant", on_device.variant.is_some());
        let variants = on_device
            .variant
            .as_ref()
            .or(own.variant.as_ref())
            .map(Vec::len);
        if is_set(variants) {
            axes.push(("objective.kind", variant.clone()));
        }
        DecidedSettings {
            axes,
            recipe: axis("recipe", on_device.recipe.is_some()),
            variant,
            recipes: BTreeMap::new(),
            variants: BTreeMap::new(),
        }
    }
}

/// The values of an axis: those of the device's section if it has the axis, else those of `[grid]`.
fn axis<T: Clone>(on_device: &Option<Vec<T>>, own: &Option<Vec<T>>) -> Vec<T> {
    on_device
        .as_ref()
        .or(own.as_ref())
        .cloned()
        .unwrap_or_default()
}

fn non_empty<T>(axis: Vec<T>, default: T) -> Vec<T> {
    if axis.is_empty() { vec![default] } else { axis }
}

/// The message for an unknown recipe or variant, with the known names.
fn unknown_file(what: &str, name: &str, folder: &Path) -> String {
    let mut known: Vec<String> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let path = entry.path();
            let toml = path
                .extension()
                .is_some_and(|extension| extension == "toml");
            let stem = path.file_stem()?.to_str()?.to_owned();
            toml.then_some(stem)
        })
        .collect();
    known.sort();
    let hint = config_file::nearest(name, known.iter().map(String::as_str))
        .map(|nearest| format!("; did you mean `{nearest}`?"))
        .unwrap_or_default();
    format!(
        "unknown {what} `{name}`: {} has {}{hint}",
        folder.display(),
        if known.is_empty() {
            format!("no {what}s")
        } else {
            known.join(", ")
        }
    )
}
