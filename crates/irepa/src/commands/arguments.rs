//! What several commands do with their arguments and environment.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use encoders::Registry;
use sweep::ranks::{self, Ranks};
use tch::Device;
use terminal::errln;
use torch_ext::distributed::World;

use crate::failure::Failure;

/// Resolves the value of `--device`. Of several ranks, each has the device of its number unless the name has one.
pub fn device(name: &str) -> Result<Device, Failure> {
    let world = World::from_env().map_err(Failure::usage)?;
    ranks::device_of(name, None, world.map_or(0, |world| world.local_rank))
        .map_err(|error| Failure::usage(anyhow::anyhow!("--device {name}: {error}")))
}

/// Refuses an output file whose folder does not exist or that is a folder, before anything is computed.
pub fn check_out(flag: &str, out: &Path) -> Result<(), Failure> {
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

/// Runs a command as one of the ranks of `world`, if there are several. Of the errors of all ranks, the first is printed.
pub fn as_rank(
    world: Option<World>,
    run: impl FnOnce(Option<&Arc<Ranks>>) -> Result<ExitCode, Failure>,
) -> Result<ExitCode, Failure> {
    let Some(world) = world.filter(|world| world.size > 1) else {
        return run(None);
    };
    let ranks = Arc::new(Ranks::connect(world).map_err(Failure::usage)?);
    match run(Some(&ranks)) {
        Ok(code) => {
            ranks.end();
            Ok(code)
        }
        Err(failure) => match ranks.report(failure.to_string(), failure.code()) {
            Ok(own) => Err(failure.because(own)),
            Err(first) => Ok(ExitCode::from(first.code)),
        },
    }
}

/// The requested encoders that are installed. Those of named sets that are not are printed. If none is installed, this is
/// an error.
pub fn installed_encoders(
    requested: &[String],
    resolution: u32,
    registry: &Registry,
) -> Result<Vec<String>, Failure> {
    let selected = registry.select(requested, resolution);
    let (names, missing) = selected.map_err(Failure::usage)?;
    if !missing.is_empty() {
        errln!("not installed: {}", missing.join(", "));
    }
    if names.is_empty() && !requested.is_empty() {
        return Err(Failure::usage(anyhow::anyhow!(
            "none of these encoders is installed; `runner encoders list` shows how to install them"
        )));
    }
    Ok(names)
}
