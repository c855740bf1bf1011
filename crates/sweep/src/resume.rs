//! Decides whether a run can resume from the checkpoints in its folder, and describes what differs if it cannot.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use toml::{Table, Value};
use training::checkpoint::{self, CheckpointId};
use training::{Config, SettingEffect};

use crate::SweepError;
use crate::config_file;
use crate::planned::Planned;

/// Maximum number of differences that are named; the others are only counted.
const MAX_NAMED: usize = 4;

/// Why a run cannot resume from the checkpoints in its folder; `None` if it can, or if there are no checkpoints.
///
/// # Errors
/// The folder or a checkpoint cannot be read. A damaged checkpoint is not an error.
pub(crate) fn obstacle(planned: &Planned) -> Result<Option<String>, SweepError> {
    let config = &planned.cell.config;
    let found = checkpoint::list(&planned.folder.path().join("checkpoints"))?;
    let hash = config.training_hash(&planned.identity);
    let mut identities = Vec::new();
    let mut damage = None;
    for path in &found {
        match CheckpointId::read(path) {
            Ok(identity) => identities.push(identity),
            Err(error) if error.is_damage() => damage = Some(error),
            Err(error) => return Err(error.into()),
        }
    }
    let own: Vec<u64> = identities
        .iter()
        .filter(|identity| identity.config_hash == hash)
        .map(|identity| identity.step)
        .collect();
    let steps = config.train.steps;
    if own.iter().any(|&step| step <= steps) {
        return Ok(None);
    }
    if let Some(step) = own.last() {
        return Ok(Some(format!(
            "the run has already reached step {step}, beyond train.steps = {steps}"
        )));
    }
    if identities.is_empty() {
        return Ok(damage.map(|error| format!("none of its checkpoints can be read ({error})")));
    }
    let counts = |key: &str| config.effect_of(key) == SettingEffect::Weights;
    let named = describe_differences(planned.folder.path(), config, counts)?;
    Ok(Some(format!(
        "the run was started with other settings: {named}"
    )))
}

/// How the configuration in a run's folder differs from `config` in settings that affect results; `None` if it does
/// not.
///
/// # Errors
/// `config.toml` exists but cannot be read.
pub(crate) fn stale(folder: &Path, config: &Config) -> Result<Option<String>, SweepError> {
    let counts = |key: &str| config.effect_of(key) != SettingEffect::Nothing;
    let differences = differences(folder, config, counts)?;
    Ok(differences.map(|differences| list(&differences)))
}

/// Describes how the configuration in a run's folder differs from `config`, for keys that `counts` accepts.
///
/// # Errors
/// `config.toml` exists but cannot be read.
pub(crate) fn describe_differences(
    folder: &Path,
    config: &Config,
    counts: impl Fn(&str) -> bool,
) -> Result<String, SweepError> {
    Ok(match differences(folder, config, counts)? {
        Some(differences) => list(&differences),
        None => "the data set, an encoder or another input file has changed".to_owned(),
    })
}

fn list(differences: &[String]) -> String {
    match differences.split_at_checked(MAX_NAMED) {
        Some((named, more)) if !more.is_empty() => {
            format!("{}, and {} more", named.join(", "), more.len())
        }
        _ => differences.join(", "),
    }
}

/// The settings accepted by `counts` that differ between the folder's `config.toml` and `config`, each with both values;
/// `None` if none differ.
fn differences(
    folder: &Path,
    config: &Config,
    counts: impl Fn(&str) -> bool,
) -> Result<Option<Vec<String>>, SweepError> {
    let path = folder.join("config.toml");
    let unreadable = |source| SweepError::Unreadable {
        path: path.clone(),
        source,
    };
    let old = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Some(vec!["its config.toml is missing".to_owned()]));
        }
        Err(error) => return Err(unreadable(error)),
    };
    let new = config_file::to_file(config).map_err(|error| unreadable(io::Error::other(error)))?;
    let Some(found) = differing(&old, &new, counts, ("was", "is")) else {
        return Ok(Some(vec!["its config.toml is damaged".to_owned()]));
    };
    Ok((!found.is_empty()).then_some(found))
}

/// The settings that differ between two configuration files, with both values.
pub(crate) fn list_differences(first: &str, other: &str) -> String {
    let found = differing(first, other, |_| true, ("is", "there"));
    list(&found.unwrap_or_default())
}

/// The settings accepted by `counts` that differ between two configuration files, each with both values and a verb before
/// each. `None` if a file is no TOML.
fn differing(
    old: &str,
    new: &str,
    counts: impl Fn(&str) -> bool,
    (before, after): (&str, &str),
) -> Option<Vec<String>> {
    let (old, new) = (old.parse::<Table>().ok()?, new.parse::<Table>().ok()?);
    let (old, new) = (config_file::leaves(&old), config_file::leaves(&new));
    let keys = old
        .keys()
        .chain(new.keys().filter(|key| !old.contains_key(*key)));
    let value = |table: &BTreeMap<String, Value>, key: &String| {
        table
            .get(key)
            .map_or("not set".to_owned(), Value::to_string)
    };
    let found = keys
        .filter(|key| counts(key) && old.get(*key) != new.get(*key))
        .map(|key| {
            let (old, new) = (value(&old, key), value(&new, key));
            format!("{key} {before} {old} and {after} {new}")
        });
    Some(found.collect())
}
