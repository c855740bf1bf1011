//! Passes the target triple to the program, because cargo puts the output of a build with `--target` into a folder of
//! that name.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let target = std::env::var("TARGET").unwrap_or_default();
    println!("cargo::rustc-env=RUNNER_TARGET={target}");
}
