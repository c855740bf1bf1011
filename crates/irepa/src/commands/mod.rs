//! The commands of the program, one module per command, and what they share.

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
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, LazyLock};
use std::thread;

use ::encoders::{Registry, Status};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator::Signals;
use tch::Device;

use crate::failure::Failure;
use console::errln;

/// Set by the first Ctrl-C. Commands then save their state and end.
static INTERRUPTED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// Exit code of an interrupted command: 128 plus the number of SIGINT.
pub const INTERRUPTED_CODE: u8 = 130;

/// The signals that interrupt a command.
const SIGNALS: [i32; 3] = [SIGINT, SIGTERM, SIGHUP];

/// Handles Ctrl-C and the other [`SIGNALS`]. The first signal sets the returned flag. A second SIGINT or SIGTERM ends the
/// process in the signal handler, whatever its threads are doing.
fn watch_interrupts() -> Result<&'static AtomicBool, Failure> {
    // Registered before the flag is, so that the first signal does not end the process. Not for SIGHUP, which a closed
    // terminal sends more than once.
    for signal in [SIGINT, SIGTERM] {
        let code = i32::from(INTERRUPTED_CODE);
        flag::register_conditional_shutdown(signal, code, Arc::clone(&INTERRUPTED))?;
    }
    for signal in SIGNALS {
        flag::register(signal, Arc::clone(&INTERRUPTED))?;
    }
    let mut signals = Signals::new(SIGNALS)?;
    // In a separate thread, because writing to standard error may block, and saving must not wait for it.
    thread::Builder::new()
        .name("interrupts".to_owned())
        .spawn(move || {
            if signals.forever().next().is_some() {
                errln!("interrupted: saving and ending; press Ctrl-C again to end at once");
            }
        })?;
    Ok(&INTERRUPTED)
}

/// Folders of encoder files, relative to the folder of the project.
const ENCODERS: [&str; 2] = ["experiments/encoders", "pretrained"];

/// The encoders of the project and of the folders in IREPA_ENCODERS.
fn registry() -> Registry {
    registry_for(None)
}

/// As [`registry`]; also searches the project of `file`.
///
/// The folders of encoders are searched in the working directory, in the ancestors of `file`, of the working directory and
/// of the program, which `cargo` builds inside the project.
fn registry_for(file: Option<&Path>) -> Registry {
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

/// Resolves the value of `--device`.
fn device(name: &str) -> Result<Device, Failure> {
    torch_ext::device::resolve(name)
        .map_err(|error| Failure::usage(anyhow::anyhow!("--device {name}: {error}")))
}

/// Refuses an output file whose folder does not exist or that is a folder, before anything is computed.
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

/// The requested encoders, each once. Of a named set such as paper27, only the installed encoders; the others are
/// printed.
fn installed_encoders(
    requested: &[String],
    resolution: u32,
    registry: &Registry,
) -> Result<Vec<String>, Failure> {
    let mut names: Vec<String> = Vec::new();
    for name in requested {
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
                    errln!("not installed: {}", missing.join(", "));
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
