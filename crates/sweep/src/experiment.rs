//! Expands an experiment file into the cells of its grid.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use encoders::Registry;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};
use training::{Config, NO_ENCODER};

use crate::config_file::{self, ConfigError, Layers};

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

/// Resolves the cells of an experiment for one kind of device.
struct Resolver<'a> {
    path: &'a Path,
    experiment: &'a Experiment,
    section: &'a DeviceSection,
    /// Key of `section` in the file.
    section_name: &'static str,
    registry: &'a Registry,
    settings: &'a [String],
    is_selected: &'a dyn Fn(&str) -> bool,
}

impl Resolver<'_> {
    fn plan(&self) -> Result<Plan, ConfigError> {
        let experiment = self.experiment;
        self.check_name()?;
        let (key, base) = self.locate("base", &self.section.base, &experiment.base);
        let from = format!("`{key}` in {}", self.path.display());
        let base = config_file::read_layers_named_by(&base, Some(from))?;
        let (on_device, own) = (&self.section.grid, &experiment.grid);
        let mut owners = self.owners();
        let section = (self.section_name, self.section);
        owners.check(self.path, self.settings, experiment, section)?;
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
                    let axes = |encoder, recipe| Axes {
                        encoder,
                        recipe,
                        model: model.as_deref(),
                        variant,
                        seed: *seed,
                    };
                    let mut add = |axes: Axes, overlay: &Layers| -> Result<(), ConfigError> {
                        let cell = self.cell(&base, overlay, axes)?;
                        if (self.is_selected)(&cell.id) {
                            owners.add(&cell, overlay.table(), layer.table());
                        }
                        cells.push(cell);
                        Ok(())
                    };
                    let mut has_baseline = false;
                    for (recipe, overlay) in &recipes {
                        if recipe == BASELINE && !std::mem::replace(&mut has_baseline, true) {
                            add(axes(NO_ENCODER, recipe), overlay)?;
                        }
                    }
                    for encoder in &encoders {
                        for (recipe, overlay) in recipes.iter().filter(|(name, _)| name != BASELINE)
                        {
                            add(axes(encoder, recipe), overlay)?;
                        }
                    }
                }
            }
        }
        owners.check_files(self.path, self.settings)?;
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
    fn cell(&self, base: &Layers, recipe_layer: &Layers, axes: Axes) -> Result<Cell, ConfigError> {
        let folder = config_file::folder_of(self.path);
        let mut layers = base.clone();
        layers.merge(recipe_layer.clone());
        for set in [&self.experiment.set, &self.section.set] {
            layers.merge(Layers::new(set.clone(), folder));
        }
        layers.merge(Layers::new(axes.layer(), folder));
        let without_settings = layers.clone();
        config_file::apply_settings(&mut layers, self.settings)?;
        let model = layers
            .table()
            .get("model")
            .and_then(|model| model.get("name")?.as_str())
            .map_or_else(|| Config::default().model.name, str::to_owned);
        let id = axes.id(&model);
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
            encoder: axes.encoder.to_owned(),
            recipe: axes.recipe.to_owned(),
            model: config.model.name.clone(),
            variant: axes.variant.to_owned(),
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
    fn owners(&self) -> Owners {
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
        Owners {
            axes,
            recipe: axis("recipe", on_device.recipe.is_some()),
            variant,
            recipes: BTreeMap::new(),
            variants: BTreeMap::new(),
        }
    }
}

/// The settings that the grid decides: those of its axes, and those in the recipe and variant files that its axes name.
/// The ids of cells are built from them, so nothing else may change them.
struct Owners {
    /// Keys of the configuration, each with the axis that decides it.
    axes: Vec<(&'static str, String)>,
    /// Key of the axis of recipes in the experiment file.
    recipe: String,
    /// Key of the axis of variants in the experiment file.
    variant: String,
    /// Settings in the recipe files of the selected cells, by recipe and dotted key.
    recipes: BTreeMap<String, BTreeMap<String, Value>>,
    /// Settings in the variant files of the selected cells, by variant and dotted key.
    variants: BTreeMap<String, BTreeMap<String, Value>>,
}

impl Owners {
    /// Refuses keys of axes on the command line and in the `set` tables of the experiment, where they would have no
    /// effect.
    fn check(
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
    fn add(&mut self, cell: &Cell, recipe: &Table, variant: &Table) {
        self.recipes
            .entry(cell.recipe.clone())
            .or_insert_with(|| config_file::leaves(recipe));
        self.variants
            .entry(cell.variant.clone())
            .or_insert_with(|| config_file::leaves(variant));
    }

    /// Refuses settings that are also in recipe files of selected cells, and training settings in which the variants of
    /// selected cells differ.
    fn check_files(&self, path: &Path, settings: &[String]) -> Result<(), ConfigError> {
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

/// A point of the grid.
#[derive(Clone, Copy)]
struct Axes<'a> {
    encoder: &'a str,
    recipe: &'a str,
    /// `None` for the model of the base and variant.
    model: Option<&'a str>,
    variant: &'a str,
    seed: u64,
}

impl Axes<'_> {
    /// The settings of this point.
    fn layer(&self) -> Table {
        let section =
            |key: &str, value: Value| Value::Table(Table::from_iter([(key.to_owned(), value)]));
        let mut layer = Table::from_iter([
            (
                "alignment".to_owned(),
                section("encoder", self.encoder.into()),
            ),
            (
                "train".to_owned(),
                section("seed", Value::Integer(self.seed.cast_signed())),
            ),
        ]);
        if let Some(model) = self.model {
            layer.insert("model".to_owned(), section("name", model.into()));
        }
        layer
    }

    /// The id of the cell: `SiT-XS/4`, `irepa`, `hog` and seed 0 become `sit-xs4.irepa.hog.s0`.
    fn id(&self, model: &str) -> String {
        let plain = |text: &str| {
            text.to_lowercase()
                .replace('/', "")
                .replace(',', "+")
                .replace(
                    |c: char| !(c.is_ascii_alphanumeric() || "-_+".contains(c)),
                    "_",
                )
        };
        let mut parts = vec![plain(model)];
        // The names of JiT models already contain the variant.
        if self.variant != PLAIN_VARIANT && !parts[0].starts_with(self.variant) {
            parts.push(plain(self.variant));
        }
        parts.push(plain(self.recipe));
        if self.encoder != NO_ENCODER {
            parts.push(plain(self.encoder));
        }
        parts.push(format!("s{}", self.seed));
        parts.join(".")
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

/// The contents of `plan.toml`.
#[derive(Debug, Serialize)]
pub struct PlanFile<'a> {
    name: &'a str,
    description: &'a str,
    device: &'a str,
    cell: Vec<PlanEntry<'a>>,
}

#[derive(Debug, Serialize)]
struct PlanEntry<'a> {
    id: &'a str,
    encoder: &'a str,
    recipe: &'a str,
    model: &'a str,
    variant: &'a str,
    seed: u64,
    /// As in `result.json`; omitted if an input is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    hash: Option<&'a str>,
    config: &'a Config,
}

impl Plan {
    /// The contents of `plan.toml`. `hashes` are the hashes of configuration and inputs, by cell id.
    pub fn file<'a>(
        &'a self,
        device: &'a str,
        hashes: &'a BTreeMap<String, String>,
    ) -> PlanFile<'a> {
        PlanFile {
            name: &self.name,
            description: &self.description,
            device,
            cell: self
                .cells
                .iter()
                .map(|cell| PlanEntry {
                    id: &cell.id,
                    encoder: &cell.encoder,
                    recipe: &cell.recipe,
                    model: &cell.model,
                    variant: &cell.variant,
                    seed: cell.seed,
                    hash: hashes.get(&cell.id).map(String::as_str),
                    config: &cell.config,
                })
                .collect(),
        }
    }
}
