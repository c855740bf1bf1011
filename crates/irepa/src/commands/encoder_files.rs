//! Finds the encoders that a command names.

use std::path::{Path, PathBuf};

use anyhow::anyhow;
use encoders::{Registry, Status};
use terminal::errln;

use crate::failure::Failure;

/// Folders of encoder files, relative to the folder of the project.
const ENCODERS: [&str; 2] = ["experiments/encoders", "pretrained"];

/// The encoders of the project and of the folders in IREPA_ENCODERS.
pub fn registry() -> Registry {
    registry_for(None)
}

/// As [`registry`]; also searches the project of `file`.
///
/// The folders of encoders are searched in the working directory, in the ancestors of `file`, of the working directory and
/// of the program, which `cargo` builds inside the project.
pub fn registry_for(file: Option<&Path>) -> Registry {
    let absolute = |path: &Path| std::path::absolute(path).ok();
    let starts = [
        file.and_then(absolute),
        absolute(Path::new(".")),
        std::env::current_exe().ok(),
    ];
    let ancestors = starts.iter().flatten().flat_map(|path| path.ancestors());
    let mut folders: Vec<PathBuf> = ENCODERS.map(PathBuf::from).to_vec();
    let mut seen: Vec<PathBuf> = folders
        .iter()
        .filter_map(|path| path.canonicalize().ok())
        .collect();
    for folder in ancestors.flat_map(|path| ENCODERS.map(|encoders| path.join(encoders))) {
        let Ok(real) = folder.canonicalize() else {
            continue;
        };
        if !seen.contains(&real) {
            seen.push(real);
            folders.push(folder);
        }
    }
    Registry::new(&folders)
}

/// The requested encoders, each once. Of a named set such as paper27, only the installed encoders; the others are
/// printed. If no requested encoder is installed, this is an error.
pub fn installed_encoders(
    requested: &[String],
    resolution: u32,
    registry: &Registry,
) -> Result<Vec<String>, Failure> {
    let mut names: Vec<String> = Vec::new();
    for name in requested {
        match encoders::named_set(name) {
            Some(set) => {
                let mut missing = Vec::new();
                for name in set {
                    match registry.status_for(name, i64::from(resolution)) {
                        Ok(Status::Missing { .. }) | Err(_) => missing.push(name),
                        Ok(_) => names.push(name.to_owned()),
                    }
                }
                if !missing.is_empty() {
                    errln!("not installed: {}", missing.join(", "));
                }
            }
            None => {
                registry.check_name(name).map_err(Failure::usage)?;
                names.push(name.clone());
            }
        }
    }
    if names.is_empty() && !requested.is_empty() {
        return Err(Failure::usage(anyhow!(
            "none of these encoders is installed; `runner encoders list` shows how to install them"
        )));
    }
    let mut seen = std::collections::BTreeSet::new();
    names.retain(|name| seen.insert(name.clone()));
    Ok(names)
}
