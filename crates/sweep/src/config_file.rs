//! Reads configurations: layers of TOML over the defaults.
//!
//! A file may name a `base` file, which it overrides. Recipes, the `[set]` tables of an experiment and `--set key=value`
//! override both. A path is relative to the file that names it. Every file is also checked on its own, so that an error
//! names the file and the line; the merged table is checked again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use thiserror::Error;
use toml::{Table, Value};
use training::{Config, ConfigPath};

/// Maximum length of a chain of `base` files.
const MAX_DEPTH: usize = 16;

/// Why a configuration was refused. The program exits with code 2.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}{}", path.display(), named_by(.from))]
    Read {
        /// The file.
        path: PathBuf,
        /// The key and file that name it, if any.
        from: Option<String>,
        /// The error of the operating system.
        source: std::io::Error,
    },

    /// The file is not valid TOML, or not a valid configuration. The message has the line, the key and the allowed
    /// names.
    #[error("{}: {}{}", path.display(), .source.to_string().trim_end(), suggestion(.source.message()))]
    Toml {
        /// The file.
        path: PathBuf,
        /// The error, with its position.
        source: Box<toml::de::Error>,
    },

    /// The chain of `base` files leads back to itself, or is too long.
    #[error("{}: the chain of `base` files is circular or longer than {MAX_DEPTH}", .0.display())]
    BaseChain(PathBuf),

    /// A `--set` option is not of the form `key=value`.
    #[error("--set {0}: expected key=value, such as --set train.steps=100")]
    Set(String),

    /// The merged settings are not a valid configuration.
    #[error("{origin}: {message}{}", suggestion(.message))]
    Merged {
        /// The file, cell or option that was resolved.
        origin: String,
        /// The error.
        message: String,
    },

    /// A value is out of range.
    #[error("{origin}: {source}")]
    Invalid {
        /// The file, cell or option that was resolved.
        origin: String,
        /// Key, value and allowed range.
        source: training::InvalidConfig,
    },

    /// An experiment names something unknown, or sets something that it may not set.
    #[error("{origin}: {message}")]
    Name {
        /// File and key.
        origin: String,
        /// What was found, and what is allowed.
        message: String,
    },
}

fn named_by(from: &Option<String>) -> String {
    from.as_ref()
        .map(|from| format!(" (named by {from})"))
        .unwrap_or_default()
}

/// For serde's "unknown field `x`, expected one of `a`, `b`": a hint with the most similar name, or an empty string.
fn suggestion(message: &str) -> String {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let Some(found) = quoted.next().filter(|_| message.contains("unknown")) else {
        return String::new();
    };
    nearest(found, quoted)
        .map(|name| format!("\nDid you mean `{name}`?"))
        .unwrap_or_default()
}

/// The candidate that is most similar to `found`, if any is similar enough.
pub(crate) fn nearest<'a>(
    found: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    candidates
        .map(|name| (strsim::jaro_winkler(found, name), name))
        .filter(|(score, _)| *score > 0.75)
        .max_by(|left, right| left.0.total_cmp(&right.0))
        .map(|(_, name)| name)
}

/// The merged settings of several files, and the folder of the file that each string comes from.
///
/// Relative paths are resolved against that folder in one place, when the settings become a [`Config`]. Settings of type
/// [`training::ConfigPath`] are paths.
#[derive(Debug, Clone, Default)]
pub struct Layers {
    table: Table,
    /// Folder of the file that each string comes from, by key.
    folders: BTreeMap<Vec<String>, PathBuf>,
}

impl Layers {
    /// The settings of a file in `folder`.
    pub(crate) fn new(table: Table, folder: &Path) -> Self {
        let mut folders = BTreeMap::new();
        record_folders(&mut Vec::new(), &table, folder, &mut folders);
        Self { table, folders }
    }

    /// The merged settings.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Overrides these settings with `top`. Tables are merged key by key. If the variant of a table changes (its `kind` or
    /// `method`), settings that the new variant does not have are dropped; settings that both variants have stay.
    pub fn merge(&mut self, top: Self) {
        merge(&mut self.table, top.table);
        self.folders.extend(top.folders);
    }

    /// The settings with their paths resolved against the folders of their files. `config` is the configuration parsed
    /// from these settings; it determines which settings are paths.
    fn with_resolved_paths(mut self, config: &Config) -> Table {
        for (key, path) in config.paths() {
            if let (Some(folder), false) = (self.folders.get(&key), path.is_empty()) {
                let path = ConfigPath::from(tidy(&folder.join(&*path)));
                replace(&mut self.table, &key, path.to_text());
            }
        }
        self.table
    }
}

/// Records `folder` for every string of a table.
fn record_folders(
    key: &mut Vec<String>,
    table: &Table,
    folder: &Path,
    folders: &mut BTreeMap<Vec<String>, PathBuf>,
) {
    for (name, value) in table {
        key.push(name.clone());
        match value {
            Value::String(_) => {
                folders.insert(key.clone(), folder.to_owned());
            }
            Value::Table(inner) => record_folders(key, inner, folder, folders),
            _ => {}
        }
        key.pop();
    }
}

/// Replaces the string at `key`; does nothing if there is no string.
fn replace(table: &mut Table, key: &[String], text: String) {
    let Some((first, rest)) = key.split_first() else {
        return;
    };
    let value = rest.iter().fold(table.get_mut(first), |value, key| {
        value.and_then(|value| value.get_mut(key))
    });
    if let Some(Value::String(old)) = value {
        *old = text;
    }
}

/// Reads a configuration file and its chain of `base` files, without the defaults.
///
/// # Errors
/// A file is missing or is not a valid configuration; the chain is too long.
pub fn read_layers(path: &Path) -> Result<Layers, ConfigError> {
    read_layers_named_by(path, None)
}

/// As [`read_layers`]; `from` is the key and file that name `path`, for error messages.
pub(crate) fn read_layers_named_by(
    path: &Path,
    mut from: Option<String>,
) -> Result<Layers, ConfigError> {
    let mut layers = Vec::new();
    let mut next = Some(path.to_owned());
    while let Some(path) = next {
        if layers.len() == MAX_DEPTH {
            return Err(ConfigError::BaseChain(path));
        }
        let text = read(&path, from)?;
        let config: Config = parse(&path, &text)?;
        let mut table: Table = parse(&path, &text)?;
        table.remove("base");
        layers.push(Layers::new(table, folder_of(&path)));
        next = config.base.map(|base| tidy(&folder_of(&path).join(&*base)));
        from = Some(format!("`base` in {}", path.display()));
    }
    let mut merged = Layers::default();
    for layer in layers.into_iter().rev() {
        merged.merge(layer);
    }
    Ok(merged)
}

/// Reads a text file.
pub(crate) fn read(path: &Path, from: Option<String>) -> Result<String, ConfigError> {
    files::read_text(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        from,
        source,
    })
}

/// Parses the text of a TOML file into `T`. Errors have the file, line and key.
pub(crate) fn parse<T: serde::de::DeserializeOwned>(
    path: &Path,
    text: &str,
) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|source| ConfigError::Toml {
        path: path.to_owned(),
        source: Box::new(source),
    })
}

/// The folder of a file.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

/// The configuration as the text of a file. Its paths are absolute, so that the file can be in any folder.
///
/// # Errors
/// TOML cannot represent a value.
pub fn to_file(config: &Config) -> Result<String, toml::ser::Error> {
    let mut table = Table::try_from(config)?;
    for (key, path) in config.paths() {
        // `absolute` fails if there is no working directory; then the path stays relative.
        if let (Ok(path), false) = (std::path::absolute(&*path), path.is_empty()) {
            replace(&mut table, &key, ConfigPath::from(path).to_text());
        }
    }
    toml::to_string(&table)
}

/// Removes `.` and `folder/..` parts from a path. `..` after a symbolic link stays, because it is the parent of the
/// link's target.
pub(crate) fn tidy(path: &Path) -> PathBuf {
    use std::path::Component;
    let mut tidy = PathBuf::new();
    for part in path.components() {
        let follows_name = matches!(tidy.components().next_back(), Some(Component::Normal(_)));
        match part {
            Component::CurDir => {}
            Component::ParentDir if follows_name && !tidy.is_symlink() => {
                tidy.pop();
            }
            _ => tidy.push(part),
        }
    }
    match tidy.as_os_str().is_empty() && !path.as_os_str().is_empty() {
        true => PathBuf::from("."),
        false => tidy,
    }
}

/// As [`Layers::merge`], for tables of whole configurations.
fn merge(below: &mut Table, top: Table) {
    merge_at(&mut Vec::new(), below, top);
}

/// As [`merge`], for the tables at the key `place` of the configuration.
fn merge_at(place: &mut Vec<String>, below: &mut Table, top: Table) {
    if changes_variant(below, &top) {
        keep_common(place, below, &top);
    }
    for (key, value) in top {
        match (below.get_mut(&key), value) {
            (Some(Value::Table(old)), Value::Table(new)) => {
                place.push(key);
                merge_at(place, old, new);
                place.pop();
            }
            (_, value) => {
                below.insert(key, value);
            }
        }
    }
}

/// Whether `new` selects another variant than `old`, or selects one while `old` does not. A key with the same name that
/// does not select a variant, such as a sampler's `method`, is harmless: then nothing is dropped.
fn changes_variant(old: &Table, new: &Table) -> bool {
    ["kind", "method"]
        .iter()
        .any(|tag| new.get(*tag).is_some_and(|new| old.get(*tag) != Some(new)))
}

/// Drops the settings of `old`, at the key `place`, that the variant of `new` does not accept. Whether it accepts a
/// setting is decided by parsing it as a [`Config`].
fn keep_common(place: &[String], old: &mut Table, new: &Table) {
    let accepts = |key: &str, value: &Value| {
        let mut table = new.clone();
        match (value, table.get(key)) {
            (Value::Table(old), Some(Value::Table(new))) => {
                let mut both = old.clone();
                let mut inner = place.to_vec();
                inner.push(key.to_owned());
                merge_at(&mut inner, &mut both, new.clone());
                table.insert(key.to_owned(), both.into());
            }
            // The new value replaces the old one.
            (_, Some(_)) => return true,
            (value, None) => {
                table.insert(key.to_owned(), value.clone());
            }
        }
        let whole = place.iter().rev().fold(Value::Table(table), |inner, key| {
            Value::Table(Table::from_iter([(key.clone(), inner)]))
        });
        match whole.try_into::<Config>() {
            Ok(_) => true,
            // The missing field may be among the other old settings.
            Err(error) => error.message().contains("missing field"),
        }
    };
    old.retain(|key, value| accepts(key, value));
}

/// Applies `key.sub=value` settings of the command line. They form one layer, so that no setting drops another. A value
/// is parsed as TOML; if that fails, it is a string.
///
/// # Errors
/// A setting has no `=`, or its key is inside a value that another setting makes something else than a table.
pub fn apply_settings(layers: &mut Layers, settings: &[String]) -> Result<(), ConfigError> {
    let mut layer = Table::new();
    for setting in settings {
        let bad = || ConfigError::Set(setting.clone());
        let (key, text) = setting.split_once('=').ok_or_else(bad)?;
        let value = toml::from_str::<Table>(&format!("value = {text}"))
            .ok()
            .and_then(|mut parsed| parsed.remove("value"))
            .unwrap_or_else(|| Value::String(text.trim().to_owned()));
        let mut parts: Vec<&str> = key.trim().split('.').collect();
        let last = parts
            .pop()
            .filter(|last| !last.is_empty())
            .ok_or_else(bad)?;
        let mut place = &mut layer;
        for part in parts {
            place = place
                .entry(part)
                .or_insert_with(|| Value::Table(Table::new()))
                .as_table_mut()
                .ok_or_else(bad)?;
        }
        insert_merged(place, last, value);
    }
    layers.merge(Layers::new(layer, Path::new("")));
    Ok(())
}

/// The values of a table that are not tables, by dotted key.
pub(crate) fn leaves(table: &Table) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    for (key, value) in table {
        match value {
            Value::Table(table) => found.extend(
                leaves(table)
                    .into_iter()
                    .map(|(inner, value)| (format!("{key}.{inner}"), value)),
            ),
            value => {
                found.insert(key.clone(), value.clone());
            }
        }
    }
    found
}

/// Inserts `value` at `key` of a table. If both the old and the new value are tables, they are merged.
fn insert_merged(table: &mut Table, key: &str, value: Value) {
    match (table.get_mut(key), value) {
        (Some(Value::Table(old)), Value::Table(new)) => {
            for (key, value) in new {
                insert_merged(old, &key, value);
            }
        }
        (_, value) => {
            table.insert(key.to_owned(), value);
        }
    }
}

/// Converts merged layers to a configuration and checks it. `origin` names what is resolved, for error messages.
///
/// # Errors
/// A key is unknown, or a value has the wrong type or is out of range.
pub fn resolve(layers: Layers, origin: &str) -> Result<Config, ConfigError> {
    resolve_with(layers, origin, |_| {})
}

/// As [`resolve`]; `change` modifies the configuration before it is checked.
fn resolve_with(
    layers: Layers,
    origin: &str,
    change: impl FnOnce(&mut Config),
) -> Result<Config, ConfigError> {
    let parsed = |table: Table| {
        Value::Table(table)
            .try_into::<Config>()
            .map_err(|error| ConfigError::Merged {
                origin: origin.to_owned(),
                message: error.to_string().trim_end().to_owned(),
            })
    };
    let as_written = parsed(layers.table.clone())?;
    let mut config = parsed(layers.with_resolved_paths(&as_written))?;
    change(&mut config);
    config.validate().map_err(|source| ConfigError::Invalid {
        origin: origin.to_owned(),
        source,
    })?;
    Ok(config)
}

/// Logs a warning if alignment settings have no effect because no encoder is named. An explicit encoder `none` causes no
/// warning, because it is how a baseline is written.
fn warn_of_unused_alignment(table: &Table, path: &Path) {
    let Some(Value::Table(alignment)) = table.get("alignment") else {
        return;
    };
    if alignment.contains_key("encoder") {
        return;
    }
    let unused: Vec<String> = ["head", "losses", "spatial_norm"]
        .into_iter()
        .filter(|key| alignment.contains_key(*key))
        .map(|key| format!("alignment.{key}"))
        .collect();
    if !unused.is_empty() {
        tracing::warn!(
            "{}: without alignment.encoder, these settings have no effect: {}; name an encoder, or \"none\"",
            path.display(),
            unused.join(", ")
        );
    }
}

/// Reads `path`, applies `--set` settings, and checks the result.
///
/// # Errors
/// As [`read_layers`], [`apply_settings`] and [`resolve`].
pub fn load(path: &Path, settings: &[String]) -> Result<Config, ConfigError> {
    load_with(path, settings, |_| {})
}

/// As [`load`]; `change`, such as the flags of a command, modifies the configuration before it is checked.
///
/// # Errors
/// As [`load`].
pub fn load_with(
    path: &Path,
    settings: &[String],
    change: impl FnOnce(&mut Config),
) -> Result<Config, ConfigError> {
    let mut layers = read_layers(path)?;
    apply_settings(&mut layers, settings)?;
    warn_of_unused_alignment(&layers.table, path);
    let origin = if settings.is_empty() {
        path.display().to_string()
    } else {
        format!("{} with --set {}", path.display(), settings.join(" --set "))
    };
    resolve_with(layers, &origin, change)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use training::Objective;

    use super::*;

    fn table(text: &str) -> Table {
        toml::from_str(text).unwrap()
    }

    fn set(below: &str, settings: &[&str]) -> Config {
        let mut below = Layers::new(table(below), Path::new(""));
        let settings: Vec<String> = settings.iter().map(|text| (*text).to_owned()).collect();
        apply_settings(&mut below, &settings).unwrap();
        resolve(below, "here").unwrap()
    }

    #[test]
    fn changing_a_samplers_method_keeps_its_other_settings() {
        let below = "[sample.sampler]\nmethod = 'heun'\nnum_steps = 12\ncfg_scale = 1.5\nguidance_high = 0.7";
        let flag = |name: &str| format!("sample.sampler.method={name}");
        for settings in [
            vec![flag("euler")],
            vec!["sample.sampler.num_steps=7".to_owned(), flag("euler")],
            vec![flag("euler"), "sample.sampler.num_steps=7".to_owned()],
        ] {
            let texts: Vec<&str> = settings.iter().map(String::as_str).collect();
            let sampler = set(below, &texts).sample.sampler;
            let steps = if settings.len() == 1 { 12 } else { 7 };
            assert_eq!(sampler.method, diffusion::samplers::Method::Euler);
            assert_eq!((sampler.num_steps, sampler.cfg_scale), (steps, 1.5));
            assert_eq!(sampler.guidance_high, 0.7);
        }
    }

    #[test]
    fn a_change_of_variant_keeps_common_settings_and_drops_the_others() {
        for (below, top, expected) in [
            (
                "objective = { kind = 'velocity', path = 'cosine', time = 'uniform' }",
                "objective = { kind = 'meanflow', cfg_omega = 0.2 }",
                "objective = { kind = 'meanflow', cfg_omega = 0.2, path = 'cosine' }",
            ),
            // Without a `kind`, the table has the default variant.
            (
                "objective = { path = 'cosine' }",
                "objective = { kind = 'repa-e', lpips = 'a' }",
                "objective = { kind = 'repa-e', lpips = 'a', path = 'cosine' }",
            ),
            (
                "objective = { path = 'cosine' }",
                "objective = { kind = 'x-prediction' }",
                "objective = { kind = 'x-prediction' }",
            ),
            (
                "objective = { kind = 'meanflow', time = { mu = 0.5 }, path = 'cosine' }",
                "objective = { kind = 'velocity' }",
                "objective = { kind = 'velocity', path = 'cosine' }",
            ),
            (
                "alignment.head = { kind = 'mlp', width = 64 }",
                "alignment.head = { kind = 'conv' }",
                "alignment.head = { kind = 'conv' }",
            ),
            (
                "alignment.spatial_norm = { method = 'zscore', alpha = 0.8, eps = 1e-3 }",
                "alignment.spatial_norm = { method = 'none' }",
                "alignment.spatial_norm = { method = 'none' }",
            ),
            (
                "model.autoencoder = { kind = 'kl', weights = 'a' }",
                "model.autoencoder = { kind = 'identity' }",
                "model.autoencoder = { kind = 'identity' }",
            ),
            (
                "model.autoencoder = 'identity'",
                "model.autoencoder = { kind = 'kl', weights = 'a' }",
                "model.autoencoder = { kind = 'kl', weights = 'a' }",
            ),
            (
                "sample.sampler = { method = 'heun', num_steps = 3, guidance_low = 0.2 }",
                "sample.sampler = { method = 'euler', num_steps = 4 }",
                "sample.sampler = { method = 'euler', num_steps = 4, guidance_low = 0.2 }",
            ),
        ] {
            let mut merged = table(below);
            merge(&mut merged, table(top));
            assert_eq!(merged, table(expected), "{top} over {below}");
            let _parses: Config = Value::Table(merged).try_into().unwrap();
        }
    }

    #[test]
    fn the_guidance_interval_of_jit_is_converted_to_the_time_of_the_other_samplers() {
        for name in ["jit-b16", "jit-l16"] {
            let path =
                Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../configs/{name}.toml"));
            let sampler = load(&path, &[]).unwrap().sample.sampler;
            // In the paper it is [0.1, 1], with time 0 at the noise.
            assert_eq!(
                (sampler.guidance_low, sampler.guidance_high),
                (0.0, 0.9),
                "{name}"
            );
        }
    }

    #[test]
    fn settings_of_the_command_line_do_not_drop_each_other() {
        let below = table("objective = { kind = 'velocity', path = 'cosine' }");
        let mut below = Layers::new(below, Path::new(""));
        let settings = ["objective.cfg_omga=0.2", "objective.kind=meanflow"].map(str::to_owned);
        apply_settings(&mut below, &settings).unwrap();
        let error = resolve(below, "here").unwrap_err().to_string();
        assert!(error.contains("cfg_omga"), "{error}");
        assert!(error.contains("Did you mean `cfg_omega`?"), "{error}");
        let settings = [
            "objective.cfg_omega=0.2",
            "objective={kind='meanflow', cfg_kappa=0.5}",
            "sample.sampler.method=euler",
        ];
        let Objective::Meanflow(meanflow) = set("", &settings).objective else {
            panic!("another objective");
        };
        assert_eq!((meanflow.cfg_omega, meanflow.cfg_kappa), (0.2, 0.5));
    }

    /// A configuration with all kinds of paths, including `..`.
    const PATHS: &str = r#"
        [data]
        path = "../images"
        token_cache = "tokens"
        [model.autoencoder]
        kind = "kl"
        weights = "../../vae.safetensors"
        train = true
        [objective]
        kind = "repa-e"
        lpips = "."
        discriminator_weights = "/absolute/d.safetensors"
    "#;

    #[test]
    fn a_path_is_relative_to_the_file_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let write = |name: &str, text: &str| {
            fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
            fs::write(root.join(name), text).unwrap();
        };
        write("a/b/base.toml", PATHS);
        // Two files on top of it; one of them replaces a path.
        write(
            "a/mine.toml",
            "base = \"b/base.toml\"\n[data]\ntoken_cache = \"../tokens\"",
        );
        write(
            "far/away.toml",
            "base = \"../a/mine.toml\"\n[data]\nflip = false",
        );
        let settings = ["objective.lpips=other.safetensors".to_owned()];
        let config = load(&root.join("far/away.toml"), &settings).unwrap();
        let found: BTreeMap<String, ConfigPath> = config
            .paths()
            .into_iter()
            .map(|(key, path)| (key.join("."), path))
            .collect();
        for (key, path) in [
            ("data.path", root.join("a/images")),
            ("data.token_cache", root.join("tokens")),
            ("model.autoencoder.weights", root.join("vae.safetensors")),
            // A path of the command line is relative to the working directory.
            ("objective.lpips", "other.safetensors".into()),
            (
                "objective.discriminator_weights",
                "/absolute/d.safetensors".into(),
            ),
        ] {
            assert_eq!(found[key], ConfigPath::from(path), "{key}");
        }
        let config = load(&root.join("a/b/base.toml"), &[]).unwrap();
        let Objective::RepaE(joint) = &config.objective else {
            panic!()
        };
        assert_eq!(*joint.lpips, *root.join("a/b"));

        // A written configuration can be read from any folder.
        write("elsewhere/config.toml", &to_file(&config).unwrap());
        assert_eq!(
            load(&root.join("elsewhere/config.toml"), &[]).unwrap(),
            config
        );
    }

    #[test]
    fn other_strings_are_not_resolved_as_paths() {
        let below = table("[data]\nsplit = 'val'\n[model]\nname = 'SiT-B/2'");
        let config = resolve(Layers::new(below, Path::new("/elsewhere")), "here").unwrap();
        assert_eq!(
            (&*config.data.split, &*config.model.name),
            ("val", "SiT-B/2")
        );
        // A default path stays as it is.
        assert_eq!(config.data.path, Config::default().data.path);
    }

    #[test]
    fn paths_are_simplified_except_after_symbolic_links() {
        for (path, tidied) in [
            ("./a/./b", "a/b"),
            ("a/../b", "b"),
            ("a/..", "."),
            (".", "."),
            ("", ""),
            ("../../a", "../../a"),
            ("/a/../../b", "/../b"),
        ] {
            assert_eq!(tidy(Path::new(path)), Path::new(tidied), "{path}");
        }
        #[cfg(unix)]
        {
            let folder = tempfile::tempdir().unwrap();
            let root = folder.path().canonicalize().unwrap();
            fs::create_dir_all(root.join("real/inner")).unwrap();
            std::os::unix::fs::symlink(root.join("real/inner"), root.join("link")).unwrap();
            let through = tidy(&root.join("link/../x"));
            assert_eq!(through, root.join("link/../x"));
        }
    }
}
