//! Checks of arguments that several commands have.

use std::path::Path;

use tch::Device;

use crate::failure::Failure;

/// Resolves the value of `--device`.
pub fn device(name: &str) -> Result<Device, Failure> {
    torch_ext::device::resolve(name)
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
