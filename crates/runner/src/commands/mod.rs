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

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use ::encoders::Registry;
use tch::Device;

use crate::failure::Failure;

/// Set by the first Ctrl-C: runs are saved and the program ends. The second ends it at once.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

fn watch_interrupts() -> Result<&'static AtomicBool, Failure> {
    ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        eprintln!("interrupted: saving; press Ctrl-C again to stop at once");
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
