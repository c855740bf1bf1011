//! Whether a run goes on from what is in its folder.

use std::collections::BTreeMap;
use std::fs;

use toml::{Table, Value};
use training::checkpoint::{self, Identity};

use super::Planned;
use crate::config_file;

/// Differences that are named; the others are counted.
const NAMED: usize = 4;

/// Why a run cannot go on from the checkpoints in its folder; `None` if it can, or if there are none.
pub(super) fn obstacle(planned: &Planned) -> Option<String> {
    let config = &planned.cell.config;
    let found = checkpoint::list(&planned.folder.path().join("checkpoints"));
    let newest = found.last()?;
    let hash = config.training_hash(&planned.identity);
    let identities: Vec<Identity> = found
        .iter()
        .filter_map(|path| Identity::read(path).ok())
        .collect();
    let own: Vec<u64> = identities
        .iter()
        .filter(|identity| identity.config_hash == hash)
        .map(|identity| identity.step)
        .collect();
    let steps = config.train.steps;
    if own.iter().any(|&step| step <= steps) {
        return None;
    }
    if let Some(step) = own.last() {
        return Some(format!(
            "the run is at step {step} already, beyond train.steps = {steps}"
        ));
    }
    if identities.is_empty() {
        let reason = Identity::read(newest).err()?;
        return Some(format!("none of its checkpoints can be read ({reason})"));
    }
    let differences = differences(planned);
    let named = match differences.len() {
        0 => "data or encoders are others".to_owned(),
        count if count <= NAMED => differences.join(", "),
        count => format!(
            "{}, and {} more",
            differences[..NAMED].join(", "),
            count - NAMED
        ),
    };
    Some(format!("the run was begun with other settings: {named}"))
}

/// The settings that shape the weights, as they are in the folder's `config.toml` and as they are now.
fn differences(planned: &Planned) -> Vec<String> {
    let there = fs::read_to_string(planned.folder.path().join("config.toml"));
    let here = config_file::to_file(&planned.cell.config);
    let (Ok(there), Ok(here)) = (there, here) else {
        return Vec::new();
    };
    let (Ok(there), Ok(here)) = (there.parse::<Table>(), here.parse::<Table>()) else {
        return Vec::new();
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
    keys.filter(|key| there.get(*key) != here.get(*key))
        // These may change.
        .filter(|key| {
            !["sample.", "evaluate."]
                .iter()
                .any(|part| key.starts_with(part))
        })
        .map(|key| {
            let (there, here) = (value(&there, key), value(&here, key));
            format!("{key} was {there} and is {here}")
        })
        .collect()
}
