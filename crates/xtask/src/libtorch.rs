//! Which libtorch the build will use, and whether it is one that `tch` binds.

use std::env;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// The version that `tch` 0.24 is generated from, and so the wheel that is installed.
pub const TORCH_VERSION: &str = "2.11.0";

const CPU_LIBRARY: &str = if cfg!(target_os = "macos") {
    "libtorch_cpu.dylib"
} else {
    "libtorch_cpu.so"
};

/// What the environment says about libtorch, in the variables that `torch-sys` reads.
#[derive(Debug, Default, PartialEq)]
pub struct Environment {
    /// `LIBTORCH`, unless it is this project's own `.libtorch`.
    pub libtorch: Option<PathBuf>,
    /// `LIBTORCH_INCLUDE`: headers are in its `include` folder.
    pub include: Option<PathBuf>,
    /// `LIBTORCH_LIB`: libraries are in its `lib` folder.
    pub lib: Option<PathBuf>,
    /// `LIBTORCH_USE_PYTORCH` is set: the `torch` that Python imports is used.
    pub use_pytorch: bool,
}

/// A libtorch that the user chose.
#[derive(Clone, Debug, PartialEq)]
pub enum Own {
    /// Folders that hold `include` and `lib`, and the variables that named them.
    Folders {
        include: PathBuf,
        lib: PathBuf,
        named_by: String,
    },
    /// The `torch` that Python imports.
    PyTorch,
}

/// Why a folder cannot serve as libtorch.
#[derive(Debug, PartialEq)]
pub enum Unfit {
    NoLibrary(PathBuf),
    NoVersion(PathBuf),
    WrongVersion(String),
}

impl Environment {
    /// Reads the process's environment. Cargo sets `LIBTORCH` to `ROOT/.libtorch` from `.cargo/config.toml` when
    /// the user has not set it, so that value is nobody's choice.
    pub fn of_process(root: &Path) -> Self {
        let path = |name| {
            env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        Self {
            libtorch: path("LIBTORCH").filter(|libtorch| !same_file(libtorch, &link_path(root))),
            include: path("LIBTORCH_INCLUDE"),
            lib: path("LIBTORCH_LIB"),
            use_pytorch: env::var_os("LIBTORCH_USE_PYTORCH").is_some(),
        }
    }

    /// Whether the `LIBTORCH` of the process is the user's.
    pub(crate) fn libtorch_is_own(&self) -> bool {
        self.libtorch.is_some()
    }

    /// The libtorch that the user chose, with the precedence of `torch-sys`; `None` when `.libtorch` is to serve.
    pub(crate) fn own(&self, root: &Path) -> Option<Own> {
        if self.use_pytorch {
            return Some(Own::PyTorch);
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
        Some(Own::Folders {
            include: self.include.clone().unwrap_or_else(|| fallback.clone()),
            lib: self.lib.clone().unwrap_or(fallback),
            named_by: named.join(" "),
        })
    }
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoLibrary(path) => write!(f, "there is no {}", path.display()),
            Self::NoVersion(path) => write!(
                f,
                "{} does not say its version (looked for include/torch/headeronly/version.h, version.py and \
                 build-version)",
                path.display()
            ),
            Self::WrongVersion(version) => write!(f, "it is libtorch {version}"),
        }
    }
}

/// Where `.cargo/config.toml` tells the build to look.
pub fn link_path(root: &Path) -> PathBuf {
    root.join(".libtorch")
}

/// The version of the libtorch whose headers are in `include/include` and libraries in `lib/lib`, when it is one
/// that `tch` binds.
pub fn check(include: &Path, lib: &Path) -> Result<String, Unfit> {
    let library = lib.join("lib").join(CPU_LIBRARY);
    if !library.is_file() {
        return Err(Unfit::NoLibrary(library));
    }
    let version = version_of(include).ok_or_else(|| Unfit::NoVersion(include.to_path_buf()))?;
    if is_bound(&version) {
        Ok(version)
    } else {
        Err(Unfit::WrongVersion(version))
    }
}

/// The CPU library inside a libtorch folder.
pub fn cpu_library(libtorch: &Path) -> PathBuf {
    libtorch.join("lib").join(CPU_LIBRARY)
}

/// Whether `tch` binds this version: any patch release of [`TORCH_VERSION`]'s series, for any accelerator
/// (`2.11.0+cu130`).
pub fn is_bound(version: &str) -> bool {
    let series = |version: &str| {
        let number = version.split('+').next().unwrap_or_default();
        let mut parts = number.split('.');
        Some((parts.next()?.to_owned(), parts.next()?.to_owned()))
    };
    series(version) == series(TORCH_VERSION)
}

/// The sentence that refuses `named` and says which libtorch is needed and how to get it.
pub fn refusal(named: &str, unfit: &str) -> String {
    format!(
        "{named} cannot be used: {unfit}. This project needs libtorch 2.11 (tch 0.24 binds it). Either unset the \
         variable and run `cargo xtask setup`, which installs libtorch {TORCH_VERSION} into .venv; or point LIBTORCH \
         at one: the `torch` folder that `pip install torch=={TORCH_VERSION}` makes, or an unpacked \
         libtorch-shared-with-deps-{TORCH_VERSION}"
    )
}

/// Reads the version from the header that the build will include (PyTorch 2.9 moved it), then from what the wheel
/// and the archive say.
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

/// Whether two paths name the same entry, which need not exist; the last component may be a link and is not
/// followed.
fn same_file(a: &Path, b: &Path) -> bool {
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
    fn the_version_is_read_from_the_header_the_wheel_or_the_archive() {
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
    fn a_header_that_only_includes_another_does_not_hide_the_next_source() {
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
    fn only_the_2_11_series_is_bound() {
        for version in ["2.11.0", "2.11.0+cu130", "2.11.1+cpu", "2.11.0a0+git123"] {
            assert!(is_bound(version), "{version}");
        }
        for version in ["2.1.1", "2.10.0", "2.110.0", "3.11.0", "2.12.0", "2", ""] {
            assert!(!is_bound(version), "{version}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn unfit_folders_are_told_apart() {
        let check = |folder: &Path| check(folder, folder);
        let nothing = libtorch(&[]);
        let library = nothing.path().join("lib/libtorch_cpu.so");
        assert_eq!(check(nothing.path()), Err(Unfit::NoLibrary(library)));

        let silent = libtorch(&[("lib/libtorch_cpu.so", "")]);
        let path = silent.path().to_path_buf();
        assert_eq!(check(silent.path()), Err(Unfit::NoVersion(path)));

        let old = libtorch(&[
            ("lib/libtorch_cpu.so", ""),
            ("version.py", "__version__ = '2.9.1'"),
        ]);
        assert_eq!(
            check(old.path()),
            Err(Unfit::WrongVersion("2.9.1".to_owned()))
        );
    }

    #[test]
    fn a_refusal_says_which_version_is_needed_and_how_to_get_it() {
        let unfit = Unfit::WrongVersion("2.9.1".to_owned()).to_string();
        let text = refusal("LIBTORCH=/opt/libtorch", &unfit);
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
    fn without_variables_nothing_is_the_users_own() {
        assert_eq!(Environment::default().own(Path::new("/project")), None);
    }

    #[test]
    fn include_and_lib_default_to_libtorch() {
        let environment = Environment {
            libtorch: Some("/opt/libtorch".into()),
            lib: Some("/opt/other".into()),
            ..Environment::default()
        };
        assert_eq!(
            environment.own(Path::new("/project")),
            Some(Own::Folders {
                include: "/opt/libtorch".into(),
                lib: "/opt/other".into(),
                named_by: "LIBTORCH=/opt/libtorch LIBTORCH_LIB=/opt/other".to_owned(),
            })
        );
    }

    #[test]
    fn pytorch_wins_over_libtorch_as_in_torch_sys() {
        let environment = Environment {
            libtorch: Some("/opt/libtorch".into()),
            use_pytorch: true,
            ..Environment::default()
        };
        assert_eq!(environment.own(Path::new("/project")), Some(Own::PyTorch));
    }

    #[test]
    fn the_link_is_recognised_through_another_spelling_of_its_folder() {
        let root = tempfile::tempdir().unwrap();
        let detour = root
            .path()
            .join("../")
            .join(root.path().file_name().unwrap());
        assert!(same_file(&link_path(&detour), &link_path(root.path())));
        assert!(!same_file(
            &root.path().join("libtorch"),
            &link_path(root.path())
        ));
    }
}
