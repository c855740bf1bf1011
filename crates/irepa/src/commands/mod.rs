//! One module a command.

pub mod doctor;
pub mod encoders;
pub mod evaluate;
pub mod metrics;
pub mod prepare;
pub mod report;
pub mod sample;
pub mod sweep;
pub mod train;
pub mod visualize;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use ::encoders::{Registry, Status};
use tch::Device;

use crate::failure::Failure;

/// Set by the first Ctrl-C: runs are saved and the program ends. The second ends it at once.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

fn watch_interrupts() -> Result<&'static AtomicBool, Failure> {
    ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        eprintln!("interrupted: ending in good order; press Ctrl-C again to stop at once");
    })?;
    Ok(&INTERRUPTED)
}

/// The encoders beside the experiments, under `pretrained`, and where IREPA_ENCODERS says.
fn registry() -> Registry {
    Registry::new(&[
        PathBuf::from("experiments/encoders"),
        PathBuf::from("pretrained"),
    ])
}

fn device(name: &str) -> Result<Device, Failure> {
    torch_ext::device::resolve(name)
        .map_err(|error| Failure::usage(anyhow::anyhow!("--device {name}: {error}")))
}

/// Refuses a file that cannot be written, before anything is computed for it.
fn check_out(flag: &str, out: &Path) -> Result<(), Failure> {
    let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty());
    let problem = match folder {
        Some(folder) if !folder.is_dir() => format!("there is no folder {}", folder.display()),
        _ if out.is_dir() => "this is a folder".to_owned(),
        _ => return Ok(()),
    };
    Err(Failure::usage(anyhow::anyhow!(
        "{flag} {}: {problem}",
        out.display()
    )))
}

/// The encoders that were asked for, each once. Of a named set such as paper27, those that are
/// here, and a line about the others.
fn encoders_here(
    asked: &[String],
    resolution: u32,
    registry: &Registry,
) -> Result<Vec<String>, Failure> {
    let mut names: Vec<String> = Vec::new();
    for name in asked {
        match ::encoders::named_set(name) {
            Some(set) => {
                let mut missing = Vec::new();
                for name in set {
                    match registry.status_for(name, i64::from(resolution)) {
                        Ok(Status::Missing { .. }) | Err(_) => missing.push(name),
                        Ok(_) => names.push(name.to_owned()),
                    }
                }
                if !missing.is_empty() {
                    eprintln!("not on this machine: {}", missing.join(", "));
                }
            }
            None => {
                registry.check_name(name).map_err(Failure::usage)?;
                names.push(name.clone());
            }
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    names.retain(|name| seen.insert(name.clone()));
    Ok(names)
}
