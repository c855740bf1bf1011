//! The plugin that adds NCCL to a process group (`cpp/nccl_plugin.cpp`).

use std::env;
use std::ffi::{OsString, c_char, c_int};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use tch::{Cuda, Device};
use thiserror::Error;

use crate::TorchError;
use crate::cuda::linker_message;
use crate::device;
use crate::ffi::{RawGroup, RawStore};

/// The variable that names another file.
const VARIABLE: &str = "IREPA_NCCL_PLUGIN";
/// File of the plugin beside libtorch. `cargo xtask nccl` has the same name.
const FILE: &str = "libtorch_ext_nccl.so";

/// Something that NCCL needs is missing.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NcclError {
    /// The device is not a CUDA device, or there are fewer.
    #[error(
        "NCCL cannot use the device {device:?}: this machine has {count} CUDA devices, counted from 0"
    )]
    Device {
        /// The device.
        device: Device,
        /// Number of CUDA devices.
        count: usize,
    },

    /// libtorch has no CUDA library.
    #[error(
        "the libtorch in {} has no libtorch_cuda.so, which NCCL needs: run `cargo xtask setup --full`, or set LIBTORCH to a \
         libtorch with CUDA", .folder.display()
    )]
    NoCuda {
        /// Folder of libtorch's libraries.
        folder: PathBuf,
    },

    /// A library of CUDA or NCCL is not found.
    #[error(
        "a library that NCCL needs is missing: {reason}; `cargo xtask setup --full` installs it"
    )]
    Library {
        /// The dynamic linker's message, which names the library.
        reason: String,
    },

    /// There is no CUDA device or driver, or CUDA does not work.
    #[error("NCCL needs a CUDA device: {reason}")]
    Cuda {
        /// Why CUDA is not usable.
        reason: String,
    },

    /// The plugin has not been built.
    #[error(
        "the NCCL plugin {} does not exist: run `cargo xtask nccl`, or name its file in IREPA_NCCL_PLUGIN", .path.display()
    )]
    NotBuilt {
        /// Path of the plugin.
        path: PathBuf,
    },

    /// The plugin cannot be loaded, for example because it was built for another libtorch.
    #[error("the NCCL plugin {} cannot be loaded: {reason}; run `cargo xtask nccl` again", .path.display())]
    Plugin {
        /// Path of the plugin.
        path: PathBuf,
        /// The dynamic linker's message.
        reason: String,
    },
}

/// `te_nccl_attach_1`.
pub(super) type Attach = unsafe extern "C" fn(
    group: *mut RawGroup,
    store: *mut RawStore,
    name: *const c_char,
    rank: c_int,
    size: c_int,
    timeout_ms: u64,
    device: c_int,
    torch_version: *const c_char,
    set_error: unsafe extern "C" fn(*const c_char),
) -> c_int;

/// Loads CUDA, and returns the number of `device`.
pub(super) fn device_index(device: Device) -> Result<c_int, NcclError> {
    let folder = device::library_dir().unwrap_or_default();
    if !folder.join("libtorch_cuda.so").exists() {
        return Err(NcclError::NoCuda { folder });
    }
    device::load_cuda().map_err(|error| {
        without_cuda(match error {
            TorchError::Cuda(reason) => reason,
            other => other.to_string(),
        })
    })?;
    let count = usize::try_from(Cuda::device_count()).unwrap_or(0);
    match device {
        Device::Cuda(index) if index < count => c_int::try_from(index).ok(),
        _ => None,
    }
    .ok_or(NcclError::Device { device, count })
}

fn without_cuda(reason: String) -> NcclError {
    if reason.contains("cannot open shared object file") {
        NcclError::Library { reason }
    } else {
        NcclError::Cuda { reason }
    }
}

/// The plugin's function. CUDA must be loaded, because the plugin uses its symbols.
pub(super) fn plugin() -> Result<Attach, NcclError> {
    static PLUGIN: OnceLock<Result<Attach, NcclError>> = OnceLock::new();
    PLUGIN
        .get_or_init(|| {
            let folder = device::library_dir().unwrap_or_default();
            load(&path(env::var_os(VARIABLE), &folder))
        })
        .clone()
}

fn path(named: Option<OsString>, libtorch: &Path) -> PathBuf {
    match named.filter(|named| !named.is_empty()) {
        Some(path) => path.into(),
        None => libtorch.join(FILE),
    }
}

fn load(path: &Path) -> Result<Attach, NcclError> {
    if !path.exists() {
        return Err(NcclError::NotBuilt {
            path: path.to_owned(),
        });
    }
    let failed = |error: libloading::Error| NcclError::Plugin {
        path: path.to_owned(),
        reason: linker_message(&error),
    };
    // SAFETY: the file is the plugin, whose initialisers only fill constants. A missing symbol is an error here, not at
    // its first use.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }.map_err(failed)?;
    // SAFETY: the function has this type; its name changes with its parameters.
    let attach = *unsafe { library.get::<Attach>(b"te_nccl_attach_1\0") }.map_err(failed)?;
    // Groups use the plugin's code until the process ends.
    std::mem::forget(library);
    Ok(attach)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_the_command_that_adds_it() {
        let library =
            without_cuda("libnccl.so.2: cannot open shared object file: No such file".to_owned());
        assert!(library.to_string().contains("libnccl.so.2"), "{library}");
        let folder = PathBuf::from("/there/lib");
        for (error, command) in [
            (library, "`cargo xtask setup --full`"),
            (NcclError::NoCuda { folder }, "`cargo xtask setup --full`"),
            (
                load(Path::new("/nowhere/plugin.so")).unwrap_err(),
                "`cargo xtask nccl`",
            ),
            // A file, but not a library.
            (
                load(Path::new(concat!(
                    env!("CARGO_MANIFEST_DIR"),
                    "/Cargo.toml"
                )))
                .unwrap_err(),
                "`cargo xtask nccl` again",
            ),
        ] {
            assert!(error.to_string().contains(command), "{error}");
        }
    }

    #[test]
    fn the_plugin_is_beside_libtorch_or_where_the_variable_says() {
        let beside = path(None, Path::new("/torch/lib"));
        assert_eq!(beside, Path::new("/torch/lib/libtorch_ext_nccl.so"));
        assert_eq!(path(Some("".into()), Path::new("/torch/lib")), beside);
        let named = path(Some("/p.so".into()), Path::new("/torch/lib"));
        assert_eq!(named, Path::new("/p.so"));
    }
}
