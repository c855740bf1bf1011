//! Makes the encoder files that a sweep over the set `embedded` can use, before it starts.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use xtask::say;

/// Whether the command line starts a sweep over the set `embedded`.
pub fn are_needed(arguments: &[OsString]) -> bool {
    let Some(command) = arguments.first() else {
        return false;
    };
    let only_prints = |argument: &OsString| {
        ["--dry-run", "--help", "-h"]
            .iter()
            .any(|name| argument == name)
    };
    if command != "sweep" || arguments.iter().any(only_prints) {
        return false;
    }
    arguments[1..]
        .iter()
        .map(Path::new)
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "toml")
        })
        .any(|path| fs::read_to_string(path).is_ok_and(|text| names_the_set(&text)))
}

/// Whether the text of an experiment names the set. Its other errors are reported by the sweep.
fn names_the_set(experiment: &str) -> bool {
    let code = experiment
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'));
    code.into_iter().any(|line| {
        ["\"embedded\"", "'embedded'"]
            .iter()
            .any(|name| line.contains(name))
    })
}

/// Makes the files that are missing, as far as possible. The sweep skips an encoder without a file.
pub fn make_missing(root: &Path) {
    let outcome = xtask::assemble_command(root, &["--quiet".into()])
        .and_then(|mut command| xtask::run_to_completion(&mut command));
    if let Err(error) = outcome {
        say(format_args!(
            "encoders whose weights are inside packages are left out: {error:#}"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(names: &[&str]) -> Vec<OsString> {
        names.iter().map(OsString::from).collect()
    }

    #[test]
    fn only_a_sweep_over_the_set_needs_files() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let with = file("with.toml", "[grid]\nencoder = [\"hog\", \"embedded\"]\n");
        let without = file(
            "without.toml",
            "# not \"embedded\"\nbase = \"../configs/embedded.toml\"\nencoder = [\"hog\"]\n",
        );
        assert!(are_needed(&arguments(&["sweep", &with, "--steps", "3"])));
        assert!(!are_needed(&arguments(&["sweep", &without])));
        assert!(!are_needed(&arguments(&["sweep", &with, "--dry-run"])));
        assert!(!are_needed(&arguments(&["report", &with])));
        assert!(!are_needed(&arguments(&["sweep", "absent.toml"])));
        assert!(!are_needed(&[]));
    }
}
