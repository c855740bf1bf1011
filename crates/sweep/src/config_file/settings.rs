//! The `key=value` settings of the command line.

use std::collections::BTreeMap;
use std::path::Path;

use toml::{Table, Value};

use super::error::ConfigError;
use super::layers::Layers;

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
