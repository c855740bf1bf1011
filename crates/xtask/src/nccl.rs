//! Builds the plugin with which several processes use NCCL (`torch_ext::distributed`).

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::install::Venv;
use crate::libtorch::{Environment, UserLibtorch, link_path};
use crate::machine::{Platform, check_compiler, compiler, last_lines};
use crate::say;
use crate::setup::{self, Request};
use crate::stamp::Mode;

/// The plugin's source, relative to the workspace.
const SOURCE: &str = "crates/torch-ext/cpp/nccl_plugin.cpp";

/// File of the plugin beside libtorch. `torch_ext::distributed` has the same name.
const FILE: &str = "libtorch_ext_nccl.so";

/// Headers that the plugin includes, each with the Python package that has it.
const HEADERS: [(&str, &str); 7] = [
    ("cuda_runtime_api.h", "nvidia-cuda-runtime"),
    ("cublasLt.h", "nvidia-cublas"),
    ("cusparse.h", "nvidia-cusparse"),
    ("cusolverDn.h", "nvidia-cusolver"),
    ("crt/host_defines.h", CRT),
    ("nv/target", CCCL),
    ("nccl.h", "nvidia-nccl-cu13"),
];

/// The packages of these headers that the wheel of libtorch does not depend on.
const CRT: &str = "nvidia-cuda-crt==13.0.*";
const CCCL: &str = "nvidia-cuda-cccl==13.0.*";

/// Number of lines of the compiler that an error repeats.
const LINES_OF_COMPILER: usize = 20;

/// Builds the plugin, at `out` or beside libtorch, and returns its path. Installs libtorch with CUDA first if needed, and
/// headers (3 MB).
///
/// # Errors
/// The set-up fails, a header is missing, or the plugin does not compile.
pub fn nccl(root: &Path, environment: &Environment, out: Option<&Path>) -> Result<PathBuf> {
    if !cfg!(target_os = "linux") {
        bail!("NCCL exists for Linux only");
    }
    let (include, lib, venv) = match environment.user_libtorch(root) {
        Some(UserLibtorch::PyTorch) => bail!(
            "the NCCL plugin is built for a folder of libtorch: set LIBTORCH to the `torch` folder of Python's package \
             instead of LIBTORCH_USE_PYTORCH"
        ),
        Some(UserLibtorch::Folders { include, lib, .. }) => {
            setup::setup(root, environment, Request::default())?;
            (include, lib, None)
        }
        None => {
            let request = Request {
                mode: Some(Mode::Full),
                python: false,
            };
            let outcome = setup::setup(root, environment, request)?;
            if outcome.is_worth_reporting() {
                say(&outcome);
            }
            let venv = Venv::new(root.join(".venv"));
            (link_path(root), link_path(root), Some(venv))
        }
    };
    check_compiler(Platform::of_machine())?;
    let folders = include_folders(&lib, venv.is_none());
    let mut missing = missing_headers(&folders);
    if let Some(venv) = venv {
        let added: Vec<&str> = [CRT, CCCL]
            .into_iter()
            .filter(|package| missing.iter().any(|(_, other)| other == package))
            .collect();
        if !added.is_empty() {
            venv.add(&added)?;
            missing = missing_headers(&folders);
        }
    }
    if !missing.is_empty() {
        let list = missing
            .iter()
            .map(|(header, package)| format!("{header} (Python package {package})"));
        bail!(
            "headers are missing: {}. Install these packages beside libtorch, or set CUDA_HOME to a CUDA 13 toolkit with \
             NCCL 2.28.9",
            list.collect::<Vec<_>>().join(", ")
        );
    }
    let path = out.map_or_else(|| lib.join("lib").join(FILE), Path::to_path_buf);
    compile(root, &include.join("include"), &folders, &path)?;
    Ok(path)
}

/// Folders that may contain headers of CUDA and NCCL: those of the packages that the wheel in the folder of `libtorch`
/// depends on, and those of a toolkit if libtorch may come from elsewhere.
fn include_folders(libtorch: &Path, toolkit: bool) -> Vec<PathBuf> {
    let packages = libtorch.join("../nvidia");
    let mut folders = vec![
        packages.join("cu13/include"),
        packages.join("cu13/include/cccl"),
        packages.join("nccl/include"),
    ];
    if toolkit {
        let home = env::var_os("CUDA_HOME").map_or("/usr/local/cuda".into(), PathBuf::from);
        folders.extend(["include", "include/cccl"].map(|name| home.join(name)));
        folders.push("/usr/include".into());
    }
    folders
}

fn missing_headers(folders: &[PathBuf]) -> Vec<(&'static str, &'static str)> {
    let is_missing = |header: &str| !folders.iter().any(|folder| folder.join(header).is_file());
    let headers = HEADERS.into_iter();
    headers.filter(|(header, _)| is_missing(header)).collect()
}

/// Compiles the plugin to `path`. It is linked with no library: libtorch is loaded before the plugin.
fn compile(root: &Path, include: &Path, folders: &[PathBuf], path: &Path) -> Result<()> {
    let source = root.join(SOURCE);
    let partial = path.with_extension(format!("{}.tmp", std::process::id()));
    let unwritable = || {
        format!(
            "cannot write {}: name another file with --out, and set IREPA_NCCL_PLUGIN to it",
            path.display()
        )
    };
    fs::write(&partial, "").with_context(unwritable)?;
    let mut command = compiler();
    command
        .args(["-std=c++17", "-O2", "-w", "-shared", "-fPIC"])
        .arg("-D_GLIBCXX_USE_CXX11_ABI=1")
        .arg("-I")
        .arg(include)
        .arg("-I")
        .arg(include.join("torch/csrc/api/include"));
    for folder in folders {
        // After the compiler's own folders, whose order `/usr/include` would change.
        command.arg("-idirafter").arg(folder);
    }
    let output = command
        .arg(&source)
        .arg("-o")
        .arg(&partial)
        .output()
        .context("cannot run the C++ compiler")?;
    if !output.status.success() {
        let _ignored = fs::remove_file(&partial);
        bail!(
            "{} does not compile:\n{}",
            source.display(),
            last_lines(&String::from_utf8_lossy(&output.stderr), LINES_OF_COMPILER)
        );
    }
    fs::rename(&partial, path).with_context(unwritable)
}
