//! Finds the encoders that a command names.

use anyhow::anyhow;
use encoders::{Registry, Status};
use terminal::errln;

use crate::failure::Failure;

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
