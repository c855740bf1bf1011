//! An experiment file, and the cells that it plans.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use encoders::Registry;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};
use training::{Config, NO_ENCODER};

use crate::config_file::{self, ConfigError, Layers};

/// The recipe without alignment. It makes one cell for all encoders.
pub const BASELINE: &str = "none";

/// The training variant that changes nothing in the base configuration.
pub(crate) const PLAIN_VARIANT: &str = "sit";

/// An experiment file: a base configuration and the grid of what varies.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Experiment {
    /// Name of the run folder.
    pub name: String,
    /// What the experiment asks, for the report.
    #[serde(default)]
    pub description: String,
    /// Configuration that every cell starts from, relative to this file.
    pub base: PathBuf,
    /// Folder of recipe files, relative to this file.
    #[serde(default = "default_recipes")]
    pub recipes: PathBuf,
    /// Folder of variant files, relative to this file.
    #[serde(default = "default_variants")]
    pub variants: PathBuf,
    /// What varies.
    pub grid: Grid,
    /// Settings of every cell, over base and recipe.
    #[serde(default)]
    pub set: Table,
    /// Changes where the experiment runs on the CPU.
    #[serde(default)]
    pub cpu: DeviceSection,
    /// Changes where it runs on CUDA.
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
    /// Files of the recipe folder, without `.toml`; `none` is the baseline. For a variant, a file
    /// of that name in the sub-folder `VARIANT` comes first.
    pub recipe: Option<Vec<String>>,
    /// Denoisers such as `SiT-B/2`; by default the one of base and variant.
    pub model: Option<Vec<String>>,
    /// Files of the variant folder, without `.toml`; `sit` is the base as it is.
    pub variant: Option<Vec<String>>,
    /// Seeds.
    pub seed: Option<Vec<u64>>,
}

/// What an experiment changes on one kind of device.
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
    /// Settings over `[set]`.
    pub set: Table,
}

/// One training run of a sweep.
#[derive(Debug, Clone)]
pub struct Cell {
    /// Readable and unique in the sweep: `sit-xs4.irepa.hog.s0`.
    pub id: String,
    /// Encoder, or `none`.
    pub encoder: String,
    /// Recipe.
    pub recipe: String,
    /// Model.
    pub model: String,
    /// Variant.
    pub variant: String,
    /// Seed.
    pub seed: u64,
    /// Everything, resolved.
    pub config: Config,
}

/// The cells of a sweep, in the order in which they run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Name of the experiment.
    pub name: String,
    /// Its description.
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
    /// The file, its base, a recipe or a setting is missing or wrong, or a name is unknown.
    pub fn read(
        path: &Path,
        device: DeviceKind,
        registry: &Registry,
        settings: &[String],
    ) -> Result<Self, ConfigError> {
        Self::read_for(path, device, registry, settings, &|_| true)
    }

    /// As [`Plan::read`], with settings for the cells whose ids `is_selected` takes. The other cells get the
    /// settings that they have.
    ///
    /// # Errors
    /// As [`Plan::read`]; a setting that the grid decides for a selected cell.
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

struct Resolver<'a> {
    path: &'a Path,
    experiment: &'a Experiment,
    section: &'a DeviceSection,
    /// Its key in the file.
    section_name: &'static str,
    registry: &'a Registry,
    settings: &'a [String],
    is_selected: &'a dyn Fn(&str) -> bool,
}

impl Resolver<'_> {
    fn plan(&self) -> Result<Plan, ConfigError> {
        let experiment = self.experiment;
        self.check_name()?;
        let (key, base) = self.place("base", &self.section.base, &experiment.base);
        let from = format!("`{key}` in {}", self.path.display());
        let base = config_file::read_layers_named_by(&base, Some(from))?;
        let (top, own) = (&self.section.grid, &experiment.grid);
        let mut owners = self.owners();
        let section = (self.section_name, self.section);
        owners.check(self.path, self.settings, experiment, section)?;
        let encoders = self.encoders(axis(&top.encoder, &own.encoder))?;
        let recipe_names = axis(&top.recipe, &own.recipe);
        let aligned = recipe_names.iter().find(|name| *name != BASELINE);
        if let (Some(recipe), true) = (aligned, encoders.is_empty()) {
            return Err(self.name_error(
                "grid.encoder",
                format!("the recipe `{recipe}` aligns with an encoder, and none is named here"),
            ));
        }
        let variants = self.variants(axis(&top.variant, &own.variant))?;
        let models: Vec<Option<String>> =
            axis(&top.model, &own.model).into_iter().map(Some).collect();
        let seeds = axis(&top.seed, &own.seed);
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
                    let mut baseline = false;
                    for (recipe, overlay) in &recipes {
                        // Encoders vary fastest among the aligned cells below.
                        if recipe == BASELINE && !std::mem::replace(&mut baseline, true) {
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
        if let Some(twice) = cells.iter().find(|cell| !seen.insert(cell.id.clone())) {
            return Err(self.name_error("grid", format!("the cell {} is planned twice", twice.id)));
        }
        if cells.is_empty() {
            return Err(self.name_error(
                "grid",
                "it plans no cell; grid.recipe must name at least one recipe".to_owned(),
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
    /// The key of a path that the device's section may replace, and the path, which is beside the
    /// experiment file.
    fn place(&self, key: &str, top: &Option<PathBuf>, own: &Path) -> (String, PathBuf) {
        let (key, path) = match top {
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

    /// The name becomes a folder's, so it must not lead elsewhere.
    fn check_name(&self) -> Result<(), ConfigError> {
        let name = &self.experiment.name;
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
            return Err(self.name_error(
                "name",
                format!("`{name}` cannot name a folder; use letters, digits, `-`, `_` and `.`"),
            ));
        }
        Ok(())
    }

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

    fn recipes(
        &self,
        names: &[String],
        variant: &str,
    ) -> Result<Vec<(String, Layers)>, ConfigError> {
        let (key, folder) = self.place("recipes", &self.section.recipes, &self.experiment.recipes);
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

    fn variants(&self, names: Vec<String>) -> Result<Vec<(String, Layers)>, ConfigError> {
        let (own, top) = (&self.experiment.variants, &self.section.variants);
        let (key, folder) = self.place("variants", top, own);
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

    fn cell(&self, base: &Layers, recipe_layer: &Layers, axes: Axes) -> Result<Cell, ConfigError> {
        let folder = config_file::folder_of(self.path);
        let mut layers = base.clone();
        layers.merge(recipe_layer.clone());
        for set in [&self.experiment.set, &self.section.set] {
            layers.merge(Layers::new(set.clone(), folder));
        }
        layers.merge(Layers::new(axes.layer(), folder));
        let plain = layers.clone();
        config_file::apply_settings(&mut layers, self.settings)?;
        let model = layers
            .table()
            .get("model")
            .and_then(|model| model.get("name")?.as_str())
            .map_or_else(|| Config::default().model.name, str::to_owned);
        let id = axes.id(&model);
        let origin = format!("{}: cell {id}", self.path.display());
        let config = match config_file::resolve(layers, &origin) {
            Err(_) if !(self.is_selected)(&id) => self.with_own_settings(plain, &origin)?,
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
    /// The seed of an experiment without that axis.
    fn default_seed(&self, base: &Layers, default: &Config) -> Result<u64, ConfigError> {
        let folder = config_file::folder_of(self.path);
        let mut layers = base.clone();
        for set in [&self.experiment.set, &self.section.set] {
            layers.merge(Layers::new(set.clone(), folder));
        }
        config_file::apply_settings(&mut layers, self.settings)?;
        let train = layers.table().get("train");
        let seed = train.and_then(|train| train.get("seed"));
        // Anything but a number is refused where the cells are resolved.
        let seed = seed.and_then(Value::as_integer).map(i64::cast_unsigned);
        Ok(seed.unwrap_or(default.train.seed))
    }

    /// The configuration of a cell that is not selected: of the settings on the command line, those that it has.
    fn with_own_settings(&self, mut layers: Layers, origin: &str) -> Result<Config, ConfigError> {
        for setting in self.settings {
            let mut changed = layers.clone();
            config_file::apply_settings(&mut changed, std::slice::from_ref(setting))?;
            if config_file::resolve(changed.clone(), origin).is_ok() {
                layers = changed;
            }
        }
        config_file::resolve(layers, origin)
    }

    /// The settings that the axes decide.
    fn owners(&self) -> Owners {
        let (top, own) = (&self.section.grid, &self.experiment.grid);
        let axis = |name: &'static str, on_device: bool| match on_device {
            true => format!("{}.grid.{name}", self.section_name),
            false => format!("grid.{name}"),
        };
        let is_set = |len: Option<usize>| len.is_some_and(|len| len > 0);
        let mut axes = vec![("alignment.encoder", axis("encoder", top.encoder.is_some()))];
        let models = top.model.as_ref().or(own.model.as_ref()).map(Vec::len);
        if is_set(models) {
            axes.push(("model.name", axis("model", top.model.is_some())));
        }
        let seeds = top.seed.as_ref().or(own.seed.as_ref()).map(Vec::len);
        if is_set(seeds) {
            axes.push(("train.seed", axis("seed", top.seed.is_some())));
        }
        let variant = axis("variant", top.variant.is_some());
        let variants = top.variant.as_ref().or(own.variant.as_ref()).map(Vec::len);
        if is_set(variants) {
            axes.push(("objective.kind", variant.clone()));
        }
        Owners {
            axes,
            recipe: axis("recipe", top.recipe.is_some()),
            variant,
            recipes: BTreeMap::new(),
            variants: BTreeMap::new(),
        }
    }
}

/// Which settings the grid decides: those of its axes, and those in the files that its axes name. A cell is called
/// by them, so nothing else may change them.
struct Owners {
    /// Keys, and the axes that decide them.
    axes: Vec<(&'static str, String)>,
    /// Names of two axes.
    recipe: String,
    variant: String,
    /// What the files of the selected cells set, by name and leaf.
    recipes: BTreeMap<String, BTreeMap<String, Value>>,
    variants: BTreeMap<String, BTreeMap<String, Value>>,
}

impl Owners {
    /// Refuses settings of axes, on the command line and in the experiment's `set` tables, where they would have
    /// no effect.
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
                        message: format!("`{axis}` decides `{owned}` for each cell; name it there"),
                    });
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, cell: &Cell, recipe: &Table, variant: &Table) {
        self.recipes
            .entry(cell.recipe.clone())
            .or_insert_with(|| config_file::leaves(recipe));
        self.variants
            .entry(cell.variant.clone())
            .or_insert_with(|| config_file::leaves(variant));
    }

    /// Refuses settings that recipes of selected cells make, and those of training in which their variants differ.
    fn check_files(&self, path: &Path, settings: &[String]) -> Result<(), ConfigError> {
        for setting in settings {
            for key in leaves_of(setting)?.keys() {
                for (recipe, leaves) in &self.recipes {
                    if let Some(owned) = leaves.keys().find(|owned| overlap(owned, key)) {
                        let by = format!(": its file `{recipe}.toml` sets it");
                        return Err(decided(path, setting, owned, &self.recipe, &by));
                    }
                }
                // How samples are drawn and measured makes no variant what it is.
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

/// Leaves of what a `key=value` setting sets.
fn leaves_of(setting: &str) -> Result<BTreeMap<String, Value>, ConfigError> {
    let mut layers = Layers::default();
    config_file::apply_settings(&mut layers, &[setting.to_owned()])?;
    Ok(config_file::leaves(layers.table()))
}

/// Whether one of two dotted keys is the other, or a table around it.
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
    /// `None`: the configuration's own.
    model: Option<&'a str>,
    variant: &'a str,
    seed: u64,
}

impl Axes<'_> {
    /// What the point sets in a configuration.
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

    /// `SiT-XS/4`, `irepa`, `hog`, seed 0 become `sit-xs4.irepa.hog.s0`.
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
        // JiT's models say already which variant they are.
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

/// A plan as `plan.toml` states it.
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
    /// As in `result.json`; left out where an input is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    hash: Option<&'a str>,
    config: &'a Config,
}

impl Plan {
    /// What is written to `plan.toml`. `hashes` are those of configuration and inputs, by the cells' ids.
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
