//! Compiles the C++ shim against the libtorch that `torch-sys` found.

use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-changed=cpp");
    let lib = match std::env::var("DEP_TCH_LIBTORCH_LIB") {
        Ok(lib) => PathBuf::from(lib),
        Err(_) => {
            eprintln!("torch-sys did not say where libtorch is; run `cargo xtask setup`");
            std::process::exit(1);
        }
    };
    println!("cargo:libtorch_lib={}", lib.display());
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    let include = lib
        .parent()
        .map(|root| root.join("include"))
        .unwrap_or_default();
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .warnings(false)
        .flag_if_supported("-Wall")
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .files([
            "cpp/autocast.cpp",
            "cpp/device.cpp",
            "cpp/generator.cpp",
            "cpp/optim.cpp",
            "cpp/shim.cpp",
        ])
        .compile("torch_ext_shim");
}
