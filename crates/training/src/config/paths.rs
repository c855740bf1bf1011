//! Finds all paths of a configuration.

use serde_json::Value;

use super::path::{ConfigPath, PathMarking};
use super::root::Config;

impl Config {
    /// Returns every path of the configuration with its key, without empty paths that are omitted from files.
    pub fn paths(&self) -> Vec<(Vec<String>, ConfigPath)> {
        let marking = PathMarking::begin();
        // A struct of plain fields always serialises.
        let value = serde_json::to_value(self).unwrap_or_default();
        drop(marking);
        let mut found = Vec::new();
        collect(&mut Vec::new(), &value, &mut found);
        found
    }
}

fn collect(key: &mut Vec<String>, value: &Value, found: &mut Vec<(Vec<String>, ConfigPath)>) {
    match value {
        Value::String(text) => {
            if let Some(path) = ConfigPath::from_marked(text) {
                found.push((key.clone(), path));
            }
        }
        Value::Object(table) => {
            for (name, value) in table {
                key.push(name.clone());
                collect(key, value, found);
                key.pop();
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_found_by_their_type_in_every_section() {
        let text = "
            [data]
            path = 'a'
            token_cache = 'b'
            [model.autoencoder]
            kind = 'kl'
            weights = 'c'
            train = true
            [objective]
            kind = 'repa-e'
            lpips = 'd'
            discriminator_weights = 'e'
            [evaluate]
            reference = 'f'
        ";
        let config: Config = toml::from_str(text).unwrap();
        let found: Vec<(String, String)> = config
            .paths()
            .into_iter()
            .map(|(key, path)| (key.join("."), path.to_text()))
            .collect();
        let expected = [
            ("data.path", "a"),
            ("data.token_cache", "b"),
            ("evaluate.reference", "f"),
            ("model.autoencoder.weights", "c"),
            ("objective.discriminator_weights", "e"),
            ("objective.lpips", "d"),
        ];
        let expected = expected.map(|(key, path)| (key.to_owned(), path.to_owned()));
        assert_eq!(found, expected);
        // Outside `Config::paths` a path is a plain string.
        assert!(toml::to_string(&config).unwrap().contains("path = \"a\""));
    }
}
