//! The build script of every package that links libtorch. It adds libtorch's folder to the run path of the
//! package's binaries, tests, examples, benchmarks and doctests, so that they start without `LD_LIBRARY_PATH`.
//!
//! A link argument applies only to the package whose build script prints it, and `torch-ext` passes the folder
//! only to packages that depend on it directly. Each such package therefore names this file in its `Cargo.toml`.

fn main() {
    // Without a line like this, Cargo would run this script again whenever a file of the package changes. A
    // changed folder is reported by the build script of `torch-ext`, which runs before this one.
    println!("cargo::rerun-if-env-changed=LIBTORCH");
    if let Ok(folder) = std::env::var("DEP_TORCH_EXT_LIBTORCH_LIB") {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{folder}");
    }
}
