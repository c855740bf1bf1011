//! The build script of every package that links libtorch: puts libtorch's folder into the run path of the
//! package's binaries, tests, examples, benchmarks and doctests, so that they start without `LD_LIBRARY_PATH`.
//!
//! A link argument reaches only the package whose build script gives it, and the folder is known from `torch-ext`
//! only to packages that depend on it directly. Hence one file, named in each such package's `Cargo.toml`.

fn main() {
    // Any such line keeps Cargo from running this again whenever a file of the package changes. A new folder
    // arrives through `torch-ext`, whose build script runs before this one.
    println!("cargo::rerun-if-env-changed=LIBTORCH");
    if let Ok(folder) = std::env::var("DEP_TORCH_EXT_LIBTORCH_LIB") {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{folder}");
    }
}
