//! Whether a run resumes from what is in its folder, and what differs where it does not.

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

/// Differences that are named; the others are counted.
const NAMED: usize = 4;

/// Why a run cannot go on from the checkpoints in its folder; `None` if it can, or if there are none.
///
/// # Errors
/// The folder or a checkpoint cannot be read, which says nothing of what they hold.
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
            "the run is at step {step} already, beyond train.steps = {steps}"
        )));
    }
    if identities.is_empty() {
        return Ok(damage.map(|error| format!("none of its checkpoints can be read ({error})")));
    }
    let differs = |key: &str| config.effect_of(key) == SettingEffect::Weights;
    let named = described(planned.folder.path(), config, differs)?;
    Ok(Some(format!(
        "the run was begun with other settings: {named}"
    )))
}

/// How the configuration in a run's folder differs from what a result of it should be of; `None` if it does not.
///
/// # Errors
/// The configuration is there and cannot be read.
pub(crate) fn stale(folder: &Path, config: &Config) -> Result<Option<String>, SweepError> {
    let counts = |key: &str| config.effect_of(key) != SettingEffect::Nothing;
    let differences = differences(folder, config, counts)?;
    Ok(differences.map(|differences| list(&differences)))
}

/// In which settings that count the configuration in a run's folder differs, in words.
///
/// # Errors
/// The configuration is there and cannot be read.
pub(crate) fn described(
    folder: &Path,
    config: &Config,
    counts: impl Fn(&str) -> bool,
) -> Result<String, SweepError> {
    Ok(match differences(folder, config, counts)? {
        Some(differences) => list(&differences),
        None => "the data set, an encoder or another file that it read is not the same".to_owned(),
    })
}

fn list(differences: &[String]) -> String {
    match differences.split_at_checked(NAMED) {
        Some((named, more)) if !more.is_empty() => {
            format!("{}, and {} more", named.join(", "), more.len())
        }
        _ => differences.join(", "),
    }
}

/// The settings that count, as they are in the folder's `config.toml` and as they are now; `None` where they are the same.
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
    let there = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Some(vec!["its config.toml is missing".to_owned()]));
        }
        Err(error) => return Err(unreadable(error)),
    };
    let here = config_file::to_file(config).map_err(|error| unreadable(io::Error::other(error)))?;
    let (Ok(there), Ok(here)) = (there.parse::<Table>(), here.parse::<Table>()) else {
        return Ok(Some(vec!["its config.toml is damaged".to_owned()]));
    };
    let (there, here) = (config_file::leaves(&there), config_file::leaves(&here));
    let keys = there
        .keys()
        .chain(here.keys().filter(|key| !there.contains_key(*key)));
    let value = |table: &BTreeMap<String, Value>, key: &String| {
        table
            .get(key)
            .map_or("not set".to_owned(), Value::to_string)
    };
    let found: Vec<String> = keys
        .filter(|key| counts(key) && there.get(*key) != here.get(*key))
        .map(|key| {
            let (there, here) = (value(&there, key), value(&here, key));
            format!("{key} was {there} and is {here}")
        })
        .collect();
    Ok((!found.is_empty()).then_some(found))
}
