//! What the packages of the workspace may depend on: licences, sources, and libtorch.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;
use spdx::{Expression, ParseMode};

/// Licences that allow use in a program under MIT or Apache-2.0.
const LICENCES: [&str; 11] = [
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "IJG",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Zlib",
];

const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Packages of the workspace that work without libtorch.
const WITHOUT_LIBTORCH: [&str; 7] = [
    "data", "files", "metrics", "report", "runner", "terminal", "xtask",
];

/// `cargo metadata`.
fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn packages(metadata: &Value) -> impl Iterator<Item = &Value> {
    metadata["packages"].as_array().unwrap().iter()
}

fn is_allowed(licence: &str) -> bool {
    let expression = Expression::parse_mode(licence, ParseMode::LAX).unwrap();
    expression.evaluate(|requirement| {
        let id = requirement.license.id();
        id.is_some_and(|id| LICENCES.contains(&id.name))
    })
}

#[test]
fn every_dependency_has_an_allowed_licence() {
    let metadata = metadata();
    let wrong: Vec<&Value> = packages(&metadata)
        .filter(|package| !package["license"].as_str().is_some_and(is_allowed))
        .map(|package| &package["id"])
        .collect();
    assert!(wrong.is_empty(), "licences to check: {wrong:#?}");
}

#[test]
fn licences_are_evaluated() {
    for allowed in [
        "MIT",
        "GPL-3.0 OR MIT",
        "MIT/Apache-2.0",
        "MIT AND (GPL-2.0 OR Zlib)",
    ] {
        assert!(is_allowed(allowed), "{allowed}");
    }
    for refused in [
        "GPL-3.0-only",
        "MIT AND GPL-3.0-only",
        "SSPL-1.0 OR AGPL-3.0-only",
    ] {
        assert!(!is_allowed(refused), "{refused}");
    }
}

#[test]
fn every_dependency_comes_from_the_registry() {
    let metadata = metadata();
    let sources: BTreeSet<&str> = packages(&metadata)
        .filter_map(|package| package["source"].as_str())
        .collect();
    assert_eq!(sources, BTreeSet::from([CRATES_IO]));
}

#[test]
fn packages_without_libtorch_do_not_reach_it() {
    let metadata = metadata();
    let name = |id: &Value| -> String {
        let package = packages(&metadata).find(|package| package["id"] == *id);
        package.unwrap()["name"].as_str().unwrap().to_owned()
    };
    // Dependencies that are linked, without those of tests and build scripts.
    let mut linked: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for node in metadata["resolve"]["nodes"].as_array().unwrap() {
        let dependencies = node["deps"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|dependency| {
                let kinds = dependency["dep_kinds"].as_array().unwrap();
                kinds.iter().any(|kind| kind["kind"].is_null())
            });
        let dependencies = dependencies.map(|dependency| name(&dependency["pkg"]));
        linked
            .entry(name(&node["id"]))
            .or_default()
            .extend(dependencies);
    }
    for package in WITHOUT_LIBTORCH {
        let mut reached = BTreeSet::new();
        let mut next = vec![package.to_owned()];
        while let Some(name) = next.pop() {
            next.extend(
                linked[&name]
                    .iter()
                    .filter(|name| !reached.contains(*name))
                    .cloned(),
            );
            reached.insert(name);
        }
        for libtorch in ["tch", "torch-sys"] {
            assert!(
                !reached.contains(libtorch),
                "{package} depends on {libtorch}"
            );
        }
    }
    assert!(linked["training"].contains("tch"), "the graph is not read");
}
