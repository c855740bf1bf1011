//! Where cargo puts what it builds, as the path of a program that it has built tells.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The program that this one starts.
const PACKAGE: &str = "irepa";

/// A folder of cargo's for one profile.
#[derive(Debug, PartialEq)]
pub struct Place {
    /// `target`, or what `--target-dir` or `CARGO_TARGET_DIR` says.
    target_folder: PathBuf,
    /// The target that was asked for; `None` for the host without asking.
    target: Option<String>,
    profile: String,
    folder: PathBuf,
}

impl Place {
    /// Reads `TARGET_FOLDER/[TARGET/]PROFILE/runner`; `target` is what the program was built for.
    ///
    /// # Errors
    /// The program was moved out of cargo's folder, as `cargo install` does.
    pub fn of(program: &Path, target: &str) -> Result<Self> {
        let folder = program.parent().context("this program has no folder")?;
        let (Some(profile), Some(above)) = (
            folder.file_name().and_then(|name| name.to_str()),
            folder.parent(),
        ) else {
            bail!("{} is not in a folder of cargo's", program.display());
        };
        if profile == "bin" {
            bail!(
                "{} was installed, but it only works inside a clone, as `cargo run -p runner`. `cargo install --path \
                 crates/{PACKAGE}` installs the program that it starts",
                program.display()
            );
        }
        let asked = above.file_name().is_some_and(|name| name == target);
        let target_folder = if asked { above.parent() } else { Some(above) };
        Ok(Self {
            target_folder: target_folder.unwrap_or(above).to_path_buf(),
            target: asked.then(|| target.to_owned()),
            // The folders `debug` and `release` are those of two profiles each, which build alike.
            profile: match profile {
                "debug" => "dev".to_owned(),
                other => other.to_owned(),
            },
            folder: folder.to_path_buf(),
        })
    }

    /// Arguments of `cargo build` that build the program beside this one.
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

    /// The program, once it is built.
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
        let place = Place::of(Path::new(program), HOST).unwrap();
        let arguments = place.arguments().join(std::ffi::OsStr::new(" "));
        arguments.into_string().unwrap()
    }

    #[test]
    fn the_profile_and_the_folder_are_the_programs_own() {
        assert_eq!(
            arguments("/clone/target/debug/runner"),
            "--package irepa --profile dev --target-dir /clone/target"
        );
        assert_eq!(
            arguments("/elsewhere/release/runner"),
            "--package irepa --profile release --target-dir /elsewhere"
        );
        let place = Place::of(Path::new("/clone/target/debug/runner"), HOST).unwrap();
        let folder = place.program().parent().map(Path::to_path_buf);
        assert_eq!(folder.unwrap(), Path::new("/clone/target/debug"));
    }

    #[test]
    fn a_target_that_was_asked_for_is_asked_for_again() {
        assert_eq!(
            arguments(&format!("/clone/target/{HOST}/debug/runner")),
            format!("--package irepa --profile dev --target-dir /clone/target --target {HOST}")
        );
    }

    #[test]
    fn an_installed_copy_names_the_program_to_install() {
        let error = Place::of(Path::new("/home/me/.cargo/bin/runner"), HOST).unwrap_err();
        assert!(error.to_string().contains("--path crates/irepa"), "{error}");
    }
}
