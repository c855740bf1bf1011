//! Configuration files: layers of TOML over the defaults.
//!
//! A file may name a `base`, which is read first; recipes, an experiment's `[set]` tables and
//! `--set key=value` lie on top. Every file is checked on its own, so that an error names the
//! file and the line; the merged table is checked once more.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use thiserror::Error;
use toml::{Table, Value};
use training::Config;

/// Longest chain of `base` files.
const MAX_DEPTH: usize = 16;

/// Why a configuration was refused. Exit code 2.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}{}", path.display(), named_by(.from))]
    Read {
        /// The file.
        path: PathBuf,
        /// The file and key that names it.
        from: Option<String>,
        /// The system's reason.
        source: std::io::Error,
    },

    /// The file is not the TOML that is wanted; the text has line, key and allowed names.
    #[error("{}: {}{}", path.display(), .source.to_string().trim_end(), suggestion(.source.message()))]
    Toml {
        /// The file.
        path: PathBuf,
        /// What is wrong, where.
        source: Box<toml::de::Error>,
    },

    /// A `base` leads back to itself, or the chain is too long.
    #[error("{}: its chain of `base` files does not end (more than {MAX_DEPTH})", .0.display())]
    BaseChain(PathBuf),

    /// A `--set` that is not `key=value`.
    #[error("--set {0}: expected key=value, such as --set train.steps=100")]
    Set(String),

    /// A `--set`, or a combination of layers, that the configuration does not have.
    #[error("{origin}: {message}{}", suggestion(.message))]
    Merged {
        /// What was being resolved.
        origin: String,
        /// What is wrong.
        message: String,
    },

    /// A value out of its range.
    #[error("{origin}: {source}")]
    Invalid {
        /// What was being resolved.
        origin: String,
        /// Key, value and what is allowed.
        source: training::InvalidConfig,
    },

    /// A name in an experiment that nothing has.
    #[error("{origin}: {message}")]
    Name {
        /// File and key.
        origin: String,
        /// What was found, what is allowed.
        message: String,
    },
}

fn named_by(from: &Option<String>) -> String {
    from.as_ref()
        .map(|from| format!(" (named by {from})"))
        .unwrap_or_default()
}

/// For serde's "unknown field `x`, expected one of `a`, `b`": the nearest of them.
fn suggestion(message: &str) -> String {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let Some(found) = quoted.next().filter(|_| message.contains("unknown")) else {
        return String::new();
    };
    nearest(found, quoted)
        .map(|name| format!("\nDid you mean `{name}`?"))
        .unwrap_or_default()
}

/// The candidate most like `found`, if any is like it at all.
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

/// Reads a configuration file and all files it is based on, without the defaults below them.
///
/// # Errors
/// A file is missing or is not a valid configuration.
pub fn read_layers(path: &Path) -> Result<Table, ConfigError> {
    read_layers_named_by(path, None)
}

/// As [`read_layers`]; `from` says which file and key name `path`, if any do.
pub(crate) fn read_layers_named_by(
    path: &Path,
    mut from: Option<String>,
) -> Result<Table, ConfigError> {
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
        anchor_paths(&mut table, folder_of(&path));
        layers.push(table);
        next = config.base.map(|base| tidy(&folder_of(&path).join(base)));
        from = Some(format!("`base` in {}", path.display()));
    }
    let mut merged = Table::new();
    for layer in layers.into_iter().rev() {
        merge(&mut merged, layer);
    }
    Ok(merged)
}

/// Reads a text file.
pub(crate) fn read(path: &Path, from: Option<String>) -> Result<String, ConfigError> {
    fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        from,
        source,
    })
}

/// Parses a TOML file into `T`; errors carry file, line and key.
pub(crate) fn parse<T: serde::de::DeserializeOwned>(
    path: &Path,
    text: &str,
) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|source| ConfigError::Toml {
        path: path.to_owned(),
        source: Box::new(source),
    })
}

/// The folder a file is in.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

/// The settings that name files or folders beside the configuration.
const PATHS: [&[&str]; 5] = [
    &["data", "path"],
    &["data", "latent_cache"],
    &["model", "autoencoder", "weights"],
    &["objective", "lpips"],
    &["objective", "discriminator_weights"],
];

/// Makes relative paths among the settings relative to the file that states them.
pub(crate) fn anchor_paths(table: &mut Table, folder: &Path) {
    map_paths(table, |path| tidy(&folder.join(path)));
}

/// The configuration as a file in any folder: its paths are absolute.
///
/// # Errors
/// A value that TOML cannot hold.
pub fn to_file(config: &Config) -> Result<String, toml::ser::Error> {
    let mut table = Table::try_from(config)?;
    map_paths(&mut table, |path| {
        // It fails where there is no current folder, and then for any relative path.
        std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
    });
    toml::to_string(&table)
}

fn map_paths(table: &mut Table, change: impl Fn(&Path) -> PathBuf) {
    for keys in PATHS {
        let [section, rest @ ..] = keys else { continue };
        let value = rest
            .iter()
            .try_fold(table.get_mut(*section), |value, key| {
                Some(value?.get_mut(key))
            })
            .flatten();
        if let Some(Value::String(path)) = value
            && !path.is_empty()
        {
            *path = change(Path::new(path)).to_string_lossy().into_owned();
        }
    }
}

/// The path without `.` and `folder/..` parts, as far as the text tells.
pub(crate) fn tidy(path: &Path) -> PathBuf {
    use std::path::Component;
    let mut parts: Vec<Component> = Vec::new();
    for part in path.components() {
        match (part, parts.last()) {
            (Component::CurDir, _) => {}
            (Component::ParentDir, Some(Component::Normal(_))) => {
                parts.pop();
            }
            _ => parts.push(part),
        }
    }
    parts.iter().collect()
}

/// Lays `top` over `below`. Tables are merged key by key, except where the key that tells their
/// variant (`kind`, `method`) differs: then the other variant's settings do not apply.
pub(crate) fn merge(below: &mut Table, top: Table) {
    for (key, value) in top {
        match (below.get_mut(&key), value) {
            (Some(Value::Table(old)), Value::Table(new)) if same_variant(old, &new) => {
                merge(old, new);
            }
            (_, value) => {
                below.insert(key, value);
            }
        }
    }
}

fn same_variant(old: &Table, new: &Table) -> bool {
    ["kind", "method"]
        .iter()
        .all(|tag| match (old.get(*tag), new.get(*tag)) {
            (Some(old), Some(new)) => old == new,
            _ => true,
        })
}

/// Applies `key.sub=value` settings of the command line. A value is TOML, or else a string.
///
/// # Errors
/// A setting without `=`, or a key inside something that is not a table.
pub fn apply_settings(table: &mut Table, settings: &[String]) -> Result<(), ConfigError> {
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
        let mut place = &mut *table;
        for part in parts {
            place = place
                .entry(part)
                .or_insert_with(|| Value::Table(Table::new()))
                .as_table_mut()
                .ok_or_else(bad)?;
        }
        // Through `merge`, so that a new variant of a table drops the old one's settings.
        let mut top = Table::new();
        top.insert(last.to_owned(), value);
        if matches!(last, "kind" | "method") && place.get(last) != top.get(last) {
            place.clear();
        }
        merge(place, top);
    }
    Ok(())
}

/// The values of a table that are no tables themselves, by their dotted keys.
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

/// Turns merged layers into a configuration and checks it.
///
/// # Errors
/// Unknown keys, wrong types, values out of range; `origin` says what was being resolved.
pub fn resolve(table: Table, origin: &str) -> Result<Config, ConfigError> {
    let config: Config = Value::Table(table)
        .try_into()
        .map_err(|error: toml::de::Error| ConfigError::Merged {
            origin: origin.to_owned(),
            message: error.to_string().trim_end().to_owned(),
        })?;
    config.validate().map_err(|source| ConfigError::Invalid {
        origin: origin.to_owned(),
        source,
    })?;
    Ok(config)
}

/// Says that settings of an alignment without encoder have no effect. Where the encoder is `none` by
/// name, they are somebody's baseline.
fn warn_of_idle_alignment(table: &Table, path: &Path) {
    let Some(Value::Table(alignment)) = table.get("alignment") else {
        return;
    };
    if alignment.contains_key("encoder") {
        return;
    }
    let idle: Vec<String> = ["head", "losses", "spatial_norm"]
        .into_iter()
        .filter(|key| alignment.contains_key(*key))
        .map(|key| format!("alignment.{key}"))
        .collect();
    if !idle.is_empty() {
        tracing::warn!(
            "{}: {} without alignment.encoder: there is no alignment; name an encoder, or \"none\"",
            path.display(),
            idle.join(", ")
        );
    }
}

/// Reads `path`, applies `--set` settings, and checks the result.
///
/// # Errors
/// As [`read_layers`], [`apply_settings`] and [`resolve`].
pub fn load(path: &Path, settings: &[String]) -> Result<Config, ConfigError> {
    let mut table = read_layers(path)?;
    apply_settings(&mut table, settings)?;
    warn_of_idle_alignment(&table, path);
    let origin = if settings.is_empty() {
        path.display().to_string()
    } else {
        format!("{} with --set {}", path.display(), settings.join(" --set "))
    };
    resolve(table, &origin)
}
