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

/// Set by the first Ctrl-C: runs are saved and the program ends.
static INTERRUPTED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// Exit code of a command that was interrupted: 128 plus the number of SIGINT.
pub const INTERRUPTED_CODE: u8 = 130;

/// The signals that end the program in good order.
const SIGNALS: [i32; 3] = [SIGINT, SIGTERM, SIGHUP];

/// Watches for Ctrl-C and its like. The first one sets the flag. The second one ends the process in the signal
/// handler itself, whatever its threads are doing.
fn watch_interrupts() -> Result<&'static AtomicBool, Failure> {
    // Before the flag is set by the same signal. A terminal that is closed sends SIGHUP more than once.
    for signal in [SIGINT, SIGTERM] {
        let code = i32::from(INTERRUPTED_CODE);
        flag::register_conditional_shutdown(signal, code, Arc::clone(&INTERRUPTED))?;
    }
    for signal in SIGNALS {
        flag::register(signal, Arc::clone(&INTERRUPTED))?;
    }
    let mut signals = Signals::new(SIGNALS)?;
    // Apart from the threads that save: standard error may take no more.
    thread::Builder::new()
        .name("interrupts".to_owned())
        .spawn(move || {
            if signals.forever().next().is_some() {
                errln!("interrupted: ending in good order; press Ctrl-C again to stop at once");
            }
        })?;
    Ok(&INTERRUPTED)
}

/// Where the files of encoders are, in the folder of the project.
const ENCODERS: [&str; 2] = ["experiments/encoders", "pretrained"];

/// The encoders of the project, and where IREPA_ENCODERS says.
fn registry() -> Registry {
    registry_for(None)
}

/// As [`registry`], for a command that names a file of the project.
///
/// The project is looked for in the working directory, in the folders above the file, above the working directory,
/// and above the program, which `cargo` builds inside the project.
fn registry_for(file: Option<&Path>) -> Registry {
    let absolute = |path: &Path| std::path::absolute(path).ok();
    let places = [
        file.and_then(absolute),
        absolute(Path::new(".")),
        std::env::current_exe().ok(),
    ];
    let above = places.iter().flatten().flat_map(|place| place.ancestors());
    let mut folders: Vec<PathBuf> = ENCODERS.map(PathBuf::from).to_vec();
    let mut seen: Vec<PathBuf> = folders
        .iter()
        .filter_map(|path| path.canonicalize().ok())
        .collect();
    for folder in above.flat_map(|place| ENCODERS.map(|encoders| place.join(encoders))) {
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
                    errln!("not on this machine: {}", missing.join(", "));
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
