//! Shared libraries that are optional at run time.

use std::error::Error;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use libloading::Library;

use super::error::CudaError;

/// A library that stays loaded until the process ends.
#[derive(Debug)]
pub(super) struct Loaded {
    name: &'static str,
    library: Library,
}

impl Loaded {
    /// Opens the first of `candidates` that can be loaded.
    pub(super) fn first(
        name: &'static str,
        candidates: impl IntoIterator<Item = OsString>,
        remedy: &'static str,
    ) -> Result<Self, CudaError> {
        let mut reasons = Vec::new();
        for candidate in candidates {
            // SAFETY: this runs initialisers of NVIDIA's libraries, which may be loaded at any time from any
            // thread. The handle is never dropped, so no finaliser runs while code is in use.
            match unsafe { Library::new(&candidate) } {
                Ok(library) => return Ok(Self { name, library }),
                Err(error) => reasons.push(linker_message(&error)),
            }
        }
        Err(CudaError::Library {
            library: name,
            reason: reasons.join("; "),
            remedy,
        })
    }

    /// The function `symbol` with C type `F`.
    ///
    /// # Safety
    /// `F` is the function's type, an `unsafe extern "C" fn`. It is called only while `self` lives.
    pub(super) unsafe fn function<F: Copy>(&self, symbol: &str) -> Result<F, CudaError> {
        // SAFETY: the caller's promise.
        let found = unsafe { self.library.get::<F>(symbol) };
        found
            .map(|symbol| *symbol)
            .map_err(|error| CudaError::Library {
                library: self.name,
                reason: linker_message(&error),
                remedy: "use CUDA 12 or newer",
            })
    }
}

/// The dynamic linker's message.
pub(crate) fn linker_message(error: &libloading::Error) -> String {
    error
        .source()
        .map_or_else(|| error.to_string(), ToString::to_string)
}

/// Candidate paths of NVRTC in order of preference: only the library that `IREPA_NVRTC` names, if set;
/// otherwise libtorch's folder, the packages that its wheel depends on, and the dynamic linker's search path.
pub(super) fn nvrtc_candidates(
    named: Option<OsString>,
    libtorch: Option<PathBuf>,
) -> Vec<OsString> {
    if let Some(path) = named {
        return vec![path];
    }
    let mut found = Vec::new();
    if let Some(lib) = libtorch {
        let packages = lib.join("../../nvidia");
        for folder in [
            lib,
            packages.join("cu13/lib"),
            packages.join("cuda_nvrtc/lib"),
        ] {
            found.extend(libraries(&folder, "libnvrtc").map(PathBuf::into_os_string));
        }
    }
    found.extend(["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"].map(OsString::from));
    found
}

/// NVRTC's library of built-in functions in the same folder, which NVRTC opens by name and would not find.
pub(super) fn builtins_beside(nvrtc: &Path) -> Option<PathBuf> {
    libraries(nvrtc.parent()?, "libnvrtc-builtins").next()
}

/// The shared objects in `folder` named `stem`, with or without a version or a hash.
fn libraries(folder: &Path, stem: &'static str) -> impl Iterator<Item = PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path
                .file_name()
                .map(|name| name.to_string_lossy().into_owned());
            name.as_deref()
                .and_then(|name| name.strip_prefix(stem))
                .is_some_and(|rest| {
                    let other = rest.starts_with("-builtins") || rest.contains(".alt.");
                    rest.contains(".so") && (rest.starts_with(['.', '-'])) && !other
                })
        })
        .collect();
    paths.sort();
    paths.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nvrtc_is_distinguished_from_similar_files() {
        let folder = std::env::temp_dir().join(format!("torch-ext-nvrtc-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        for name in [
            "libnvrtc-builtins.so.13.0",
            "libnvrtc-builtins.alt.so.13.0",
            "libnvrtc.alt.so.13",
            "libnvrtc.so.13",
            "libnvrtcother.so",
            "libnvrtc.txt",
        ] {
            fs::write(folder.join(name), "").unwrap();
        }
        let found: Vec<_> = libraries(&folder, "libnvrtc").collect();
        assert_eq!(found, [folder.join("libnvrtc.so.13")]);
        let builtins = builtins_beside(&found[0]).unwrap();
        assert_eq!(builtins, folder.join("libnvrtc-builtins.so.13.0"));
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_named_library_is_the_only_candidate() {
        let named = nvrtc_candidates(Some("/there".into()), Some("/torch/lib".into()));
        assert_eq!(named, [OsString::from("/there")]);
        assert!(nvrtc_candidates(None, None).contains(&"libnvrtc.so.13".into()));
    }
}
