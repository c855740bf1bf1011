//! Determines which libtorch the build will use, and whether `tch` supports its version.

use std::env;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// The version that `tch` 0.24 is generated from, and that the set-up installs.
pub const TORCH_VERSION: &str = "2.11.0";

const CPU_LIBRARY: &str = if cfg!(target_os = "macos") {
    "libtorch_cpu.dylib"
} else {
    "libtorch_cpu.so"
};

/// The environment variables with which `torch-sys` selects libtorch.
#[derive(Debug, Default, PartialEq)]
pub struct Environment {
    /// `LIBTORCH`, unless it is this project's own `.libtorch`.
    pub libtorch: Option<PathBuf>,
    /// `LIBTORCH_INCLUDE`: the headers are in its `include` folder.
    pub include: Option<PathBuf>,
    /// `LIBTORCH_LIB`: the libraries are in its `lib` folder.
    pub lib: Option<PathBuf>,
    /// Whether `LIBTORCH_USE_PYTORCH` is set. If so, the `torch` package of Python is used.
    pub use_pytorch: bool,
}

/// A libtorch that the user chose.
#[derive(Clone, Debug, PartialEq)]
pub enum UserLibtorch {
    /// The folders that contain `include` and `lib`, and the variables that named them.
    Folders {
        include: PathBuf,
        lib: PathBuf,
        named_by: String,
    },
    /// The `torch` package of Python.
    PyTorch,
}

/// Why a folder cannot be used as libtorch.
#[derive(Debug, PartialEq)]
pub enum Unusable {
    /// The CPU library does not exist at this path.
    NoLibrary(PathBuf),
    /// The version of the libtorch in this folder cannot be determined.
    UnknownVersion(PathBuf),
    /// `tch` does not support this version.
    WrongVersion(String),
}

impl Environment {
    /// Reads the environment of this process. A `LIBTORCH` of `ROOT/.libtorch` is ignored, because cargo sets this value
    /// from `.cargo/config.toml` if the user has not set the variable.
    pub fn of_process(root: &Path) -> Self {
        let path = |name| {
            env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        Self {
            libtorch: path("LIBTORCH").filter(|libtorch| !is_same_path(libtorch, &link_path(root))),
            include: path("LIBTORCH_INCLUDE"),
            lib: path("LIBTORCH_LIB"),
            use_pytorch: env::var_os("LIBTORCH_USE_PYTORCH").is_some(),
        }
    }

    /// Whether the user has set `LIBTORCH`.
    pub(crate) fn libtorch_is_set_by_user(&self) -> bool {
        self.libtorch.is_some()
    }

    /// The libtorch that the user chose, with the precedence of `torch-sys`; `None` if `.libtorch` is to be used.
    pub(crate) fn user_libtorch(&self, root: &Path) -> Option<UserLibtorch> {
        if self.use_pytorch {
            return Some(UserLibtorch::PyTorch);
        }
        let named: Vec<String> = [
            ("LIBTORCH", &self.libtorch),
            ("LIBTORCH_INCLUDE", &self.include),
            ("LIBTORCH_LIB", &self.lib),
        ]
        .into_iter()
        .filter_map(|(name, value)| value.as_ref().map(|v| format!("{name}={}", v.display())))
        .collect();
        if named.is_empty() {
            return None;
        }
        let fallback = self.libtorch.clone().unwrap_or_else(|| link_path(root));
        Some(UserLibtorch::Folders {
            include: self.include.clone().unwrap_or_else(|| fallback.clone()),
            lib: self.lib.clone().unwrap_or(fallback),
            named_by: named.join(" "),
        })
    }
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoLibrary(path) => write!(f, "{} does not exist", path.display()),
            Self::UnknownVersion(path) => write!(
                f,
                "the version of {} is unknown (searched include/torch/headeronly/version.h, version.py and \
                 build-version)",
                path.display()
            ),
            Self::WrongVersion(version) => write!(f, "it is libtorch {version}"),
        }
    }
}

/// The link to libtorch that `.cargo/config.toml` makes the build use.
pub fn link_path(root: &Path) -> PathBuf {
    root.join(".libtorch")
}

/// Checks that the libtorch with headers in `include/include` and libraries in `lib/lib` has a version that `tch`
/// supports. Returns the version.
pub fn check(include: &Path, lib: &Path) -> Result<String, Unusable> {
    let library = lib.join("lib").join(CPU_LIBRARY);
    if !library.is_file() {
        return Err(Unusable::NoLibrary(library));
    }
    let version =
        version_of(include).ok_or_else(|| Unusable::UnknownVersion(include.to_path_buf()))?;
    if is_supported(&version) {
        Ok(version)
    } else {
        Err(Unusable::WrongVersion(version))
    }
}

/// The path of the CPU library in a libtorch folder.
pub fn cpu_library(libtorch: &Path) -> PathBuf {
    libtorch.join("lib").join(CPU_LIBRARY)
}

/// Whether `tch` supports this version: any patch release with the major and minor version of [`TORCH_VERSION`], for any
/// accelerator (`2.11.0+cu130`).
pub fn is_supported(version: &str) -> bool {
    let series = |version: &str| {
        let number = version.split('+').next().unwrap_or_default();
        let mut parts = number.split('.');
        Some((parts.next()?.to_owned(), parts.next()?.to_owned()))
    };
    series(version) == series(TORCH_VERSION)
}

/// The error text that refuses the libtorch `named`, and states which version is needed and how to get it.
pub fn refusal(named: &str, reason: &str) -> String {
    format!(
        "{named} cannot be used: {reason}. This project needs libtorch 2.11, the version that tch 0.24 supports. Either \
         unset the variable and run `cargo xtask setup`, which installs libtorch {TORCH_VERSION} into .venv; or set \
         LIBTORCH to the `torch` folder that `pip install torch=={TORCH_VERSION}` creates, or to an unpacked \
         libtorch-shared-with-deps-{TORCH_VERSION}"
    )
}

/// Reads the version from the header that the build will include (PyTorch 2.9 moved it), otherwise from the version file
/// of the wheel or of the archive.
fn version_of(libtorch: &Path) -> Option<String> {
    let read = |file: &str| fs::read_to_string(libtorch.join(file)).ok();
    read("include/torch/headeronly/version.h")
        .and_then(|text| version_in_header(&text))
        .or_else(|| {
            read("include/torch/csrc/api/include/torch/version.h")
                .and_then(|text| version_in_header(&text))
        })
        .or_else(|| read("version.py").and_then(|text| version_in_python(&text)))
        .or_else(|| {
            read("build-version")
                .map(|text| text.trim().to_owned())
                .filter(|version| !version.is_empty())
        })
}

fn version_in_header(text: &str) -> Option<String> {
    let number = |name: &str| {
        text.lines().find_map(|line| {
            let mut words = line.split_whitespace();
            let defines = words.next() == Some("#define") && words.next() == Some(name);
            let value = words.next().filter(|_| defines)?;
            value.parse::<u32>().ok()
        })
    };
    let (major, minor) = (
        number("TORCH_VERSION_MAJOR")?,
        number("TORCH_VERSION_MINOR")?,
    );
    let patch = number("TORCH_VERSION_PATCH")?;
    Some(format!("{major}.{minor}.{patch}"))
}

fn version_in_python(text: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let value = line.strip_prefix("__version__")?.trim_start();
        let value = value.strip_prefix('=')?.trim();
        let value = value.trim_matches(['\'', '"']);
        (!value.is_empty()).then(|| value.to_owned())
    })
}

/// Whether two paths name the same entry, which need not exist. If the last component is a link, it is not followed.
fn is_same_path(a: &Path, b: &Path) -> bool {
    let parent = |path: &Path| {
        let parent = path.parent()?;
        Some(fs::canonicalize(parent).unwrap_or_else(|_| parent.to_path_buf()))
    };
    a == b || (a.file_name() == b.file_name() && parent(a) == parent(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "#pragma once\n\n/// Indicates the major version of LibTorch.\n\
        #define TORCH_VERSION_MAJOR 2\n#define TORCH_VERSION_MINOR 11\n#define TORCH_VERSION_PATCH 0\n\
        #define TORCH_VERSION_ABI_TAG 0\n#define TORCH_VERSION \\\n  \"2.11.0\"\n";

    fn libtorch(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        folder
    }

    #[test]
    fn the_version_is_read_from_the_header_or_from_the_wheel_or_archive() {
        let library = ("lib/libtorch_cpu.so", "");
        for file in [
            ("include/torch/headeronly/version.h", HEADER),
            ("include/torch/csrc/api/include/torch/version.h", HEADER),
            (
                "version.py",
                "from typing import Optional\n__version__ = '2.11.0'\n",
            ),
            ("build-version", "2.11.0\n"),
        ] {
            let folder = libtorch(&[library, file]);
            assert_eq!(version_of(folder.path()).unwrap(), "2.11.0", "{}", file.0);
        }
    }

    #[test]
    fn a_header_without_a_version_does_not_hide_the_version_file() {
        let folder = libtorch(&[
            (
                "include/torch/csrc/api/include/torch/version.h",
                "#include <x.h>",
            ),
            ("version.py", "__version__ = \"2.11.0+cpu\""),
        ]);
        assert_eq!(version_of(folder.path()).unwrap(), "2.11.0+cpu");
    }

    #[test]
    fn only_version_2_11_is_supported() {
        for version in ["2.11.0", "2.11.0+cu130", "2.11.1+cpu", "2.11.0a0+git123"] {
            assert!(is_supported(version), "{version}");
        }
        for version in ["2.1.1", "2.10.0", "2.110.0", "3.11.0", "2.12.0", "2", ""] {
            assert!(!is_supported(version), "{version}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_error_states_why_a_folder_is_unusable() {
        let check = |folder: &Path| check(folder, folder);
        let empty = libtorch(&[]);
        let library = empty.path().join("lib/libtorch_cpu.so");
        assert_eq!(check(empty.path()), Err(Unusable::NoLibrary(library)));

        let without_version = libtorch(&[("lib/libtorch_cpu.so", "")]);
        let path = without_version.path().to_path_buf();
        assert_eq!(
            check(without_version.path()),
            Err(Unusable::UnknownVersion(path))
        );

        let old = libtorch(&[
            ("lib/libtorch_cpu.so", ""),
            ("version.py", "__version__ = '2.9.1'"),
        ]);
        assert_eq!(
            check(old.path()),
            Err(Unusable::WrongVersion("2.9.1".to_owned()))
        );
    }

    #[test]
    fn a_refusal_states_which_version_is_needed_and_how_to_get_it() {
        let reason = Unusable::WrongVersion("2.9.1".to_owned()).to_string();
        let text = refusal("LIBTORCH=/opt/libtorch", &reason);
        for part in [
            "/opt/libtorch",
            "2.9.1",
            "2.11",
            "cargo xtask setup",
            "pip install torch==2.11.0",
        ] {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
    }

    #[test]
    fn without_variables_there_is_no_user_libtorch() {
        assert_eq!(
            Environment::default().user_libtorch(Path::new("/project")),
            None
        );
    }

    #[test]
    fn include_and_lib_default_to_libtorch() {
        let environment = Environment {
            libtorch: Some("/opt/libtorch".into()),
            lib: Some("/opt/other".into()),
            ..Environment::default()
        };
        assert_eq!(
            environment.user_libtorch(Path::new("/project")),
            Some(UserLibtorch::Folders {
                include: "/opt/libtorch".into(),
                lib: "/opt/other".into(),
                named_by: "LIBTORCH=/opt/libtorch LIBTORCH_LIB=/opt/other".to_owned(),
            })
        );
    }

    #[test]
    fn pytorch_takes_precedence_over_libtorch_as_in_torch_sys() {
        let environment = Environment {
            libtorch: Some("/opt/libtorch".into()),
            use_pytorch: true,
            ..Environment::default()
        };
        assert_eq!(
            environment.user_libtorch(Path::new("/project")),
            Some(UserLibtorch::PyTorch)
        );
    }

    #[test]
    fn the_link_is_recognised_by_another_path_of_its_folder() {
        let root = tempfile::tempdir().unwrap();
        let detour = root
            .path()
            .join("../")
            .join(root.path().file_name().unwrap());
        assert!(is_same_path(&link_path(&detour), &link_path(root.path())));
        assert!(!is_same_path(
            &root.path().join("libtorch"),
            &link_path(root.path())
        ));
    }
}
