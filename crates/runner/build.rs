//! Tells the program for which target it is built: cargo puts what it builds for a target that was asked for into a
//! folder of that name.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let target = std::env::var("TARGET").unwrap_or_default();
    println!("cargo::rustc-env=RUNNER_TARGET={target}");
}
