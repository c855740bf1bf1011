//! Compiles the C++ shim against the libtorch that `torch-sys` found.

use std::path::{Path, PathBuf};
use std::process::exit;

fn main() {
    println!("cargo::rerun-if-changed=cpp");
    println!("cargo::rerun-if-env-changed=LIBTORCH_INCLUDE");
    let Some(lib) = std::env::var_os("DEP_TCH_LIBTORCH_LIB").map(PathBuf::from) else {
        eprintln!("torch-sys did not report the folder of libtorch; run `cargo xtask setup`");
        exit(1);
    };
    let include = std::env::var_os("LIBTORCH_INCLUDE")
        .map(PathBuf::from)
        .or_else(|| lib.parent().map(Path::to_path_buf))
        .unwrap_or_default()
        .join("include");
    check_version(&include);
    // For the build scripts of the crates that link libtorch: see `run_path.rs`.
    println!("cargo::metadata=libtorch_lib={}", lib.display());
    println!("cargo::rustc-link-arg=-Wl,-rpath,{}", lib.display());
    // `at::parallel_for` is a template that is compiled here. It must use libtorch's OpenMP runtime:
    // another runtime would have its own threads.
    if lib.join("libgomp.so.1").exists() {
        println!("cargo::rustc-link-lib=dylib:+verbatim=libgomp.so.1");
    } else {
        println!("cargo::rustc-link-lib=dylib=gomp");
    }
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .warnings(false)
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .include("cpp/gloo_names")
        .flag("-fopenmp")
        // The shim only passes calls on. Debug information about libtorch's headers would double the time.
        .debug(false)
        .opt_level(2)
        .file("cpp/all.cpp")
        .compile("torch_ext_shim");
}

/// Checks the version of the libtorch headers. torch-sys checks it for an archive, but not for a Python
/// wheel.
fn check_version(include: &Path) {
    let path = include.join("torch/headeronly/version.h");
    let header = std::fs::read_to_string(path).unwrap_or_default();
    let defines = |line: &str| header.lines().any(|found| found.trim() == line);
    if !(defines("#define TORCH_VERSION_MAJOR 2") && defines("#define TORCH_VERSION_MINOR 11")) {
        eprintln!(
            "the libtorch headers in {} are not version 2.11, which this project needs (tch 0.24 \
             binds it): unset LIBTORCH and run `cargo xtask setup`, or point LIBTORCH \
             at a libtorch 2.11.0",
            include.display()
        );
        exit(1);
    }
}
