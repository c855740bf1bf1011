//! Merges the settings of several files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::{Table, Value};
use training::{Config, ConfigPath};

use super::path::tidy;

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
    pub(super) fn with_resolved_paths(mut self, config: &Config) -> Table {
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
pub(super) fn replace(table: &mut Table, key: &[String], text: String) {
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

/// As [`Layers::merge`], for tables of whole configurations.
pub(super) fn merge(below: &mut Table, top: Table) {
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
