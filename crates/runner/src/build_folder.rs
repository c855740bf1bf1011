//! Derives cargo's output folder and profile from the path of a program that cargo has built.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The package of the program that this one starts.
const PACKAGE: &str = "irepa";

/// The output folder of cargo for one profile.
#[derive(Debug, PartialEq)]
pub struct BuildFolder {
    /// `target`, or the folder that `--target-dir` or `CARGO_TARGET_DIR` specifies.
    target_folder: PathBuf,
    /// The target triple of `--target`; `None` if the build did not use that option.
    target: Option<String>,
    profile: String,
    folder: PathBuf,
}

impl BuildFolder {
    /// Parses `TARGET_FOLDER/[TARGET/]PROFILE/runner`; `target` is the target triple of the program.
    ///
    /// # Errors
    /// The program is not in an output folder of cargo, for example after `cargo install`.
    pub fn of(program: &Path, target: &str) -> Result<Self> {
        let folder = program
            .parent()
            .context("the path of this program has no folder")?;
        let (Some(profile), Some(parent)) = (
            folder.file_name().and_then(|name| name.to_str()),
            folder.parent(),
        ) else {
            bail!("{} is not in an output folder of cargo", program.display());
        };
        if profile == "bin" {
            bail!(
                "{} was installed, but it only works inside a clone, as `cargo run -p runner`. To install the program \
                 that it starts, run `cargo install --path crates/{PACKAGE}`",
                program.display()
            );
        }
        let is_target_folder = parent.file_name().is_some_and(|name| name == target);
        let target_folder = match is_target_folder {
            true => parent.parent(),
            false => Some(parent),
        };
        Ok(Self {
            target_folder: target_folder.unwrap_or(parent).to_path_buf(),
            target: is_target_folder.then(|| target.to_owned()),
            // `debug` is the folder of the profiles `dev` and `test`, `release` that of `release` and `bench`. By
            // default the two profiles of a folder build alike.
            profile: match profile {
                "debug" => "dev".to_owned(),
                other => other.to_owned(),
            },
            folder: folder.to_path_buf(),
        })
    }

    /// The arguments of `cargo build` that build the program into this folder.
    pub fn arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = ["--package", PACKAGE, "--profile", &self.profile]
            .map(OsString::from)
            .into();
        arguments.push("--target-dir".into());
        arguments.push(self.target_folder.clone().into());
        if let Some(target) = &self.target {
            arguments.extend(["--target", target].map(OsString::from));
        }
        arguments
    }

    /// The path of the built program.
    pub fn program(&self) -> PathBuf {
        self.folder
            .join(format!("{PACKAGE}{}", std::env::consts::EXE_SUFFIX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "x86_64-unknown-linux-gnu";

    fn arguments(program: &str) -> String {
        let build_folder = BuildFolder::of(Path::new(program), HOST).unwrap();
        let arguments = build_folder.arguments().join(std::ffi::OsStr::new(" "));
        arguments.into_string().unwrap()
    }

    #[test]
    fn profile_and_folder_are_those_of_this_program() {
        assert_eq!(
            arguments("/clone/target/debug/runner"),
            "--package irepa --profile dev --target-dir /clone/target"
        );
        assert_eq!(
            arguments("/elsewhere/release/runner"),
            "--package irepa --profile release --target-dir /elsewhere"
        );
        let build_folder = BuildFolder::of(Path::new("/clone/target/debug/runner"), HOST).unwrap();
        let folder = build_folder.program().parent().map(Path::to_path_buf);
        assert_eq!(folder.unwrap(), Path::new("/clone/target/debug"));
    }

    #[test]
    fn an_explicit_target_is_passed_on() {
        assert_eq!(
            arguments(&format!("/clone/target/{HOST}/debug/runner")),
            format!("--package irepa --profile dev --target-dir /clone/target --target {HOST}")
        );
    }

    #[test]
    fn the_error_of_an_installed_copy_names_the_program_to_install() {
        let error = BuildFolder::of(Path::new("/home/me/.cargo/bin/runner"), HOST).unwrap_err();
        assert!(error.to_string().contains("--path crates/irepa"), "{error}");
    }
}
