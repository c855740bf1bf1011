//! A small experiment in a folder of its own, and the program that runs it.

// Each test file is a program of its own, and not each needs all of this.
#![allow(dead_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// An experiment of a few seconds: 16-pixel images, a 4 x 4 token grid, 6 steps.
pub struct Playground {
    folder: tempfile::TempDir,
}

pub const BASE: &str = r#"
[data]
path = "DATA"
split = "val"
resolution = 16
background = "white"
workers = 1

[model]
name = "SiT-XS/4"

[optimizer]
lr = 1e-3

[train]
steps = 6
batch_size = 8
ema_decay = 0.9
log_every = 1
log_speed = false
checkpoint_every = 2

[sample]
sampler = { method = "euler", num_steps = 2 }
grid = 4
count = 12
batch_size = 6

[evaluate]
fd_encoder = "good_patch_only"
reference_images = 12
spatial_images = 4
"#;

const EXPERIMENT: &str = r#"
name = "small"
description = "A test."
base = "base.toml"
recipes = "recipes"

[grid]
encoder = ["hog-vit-g4_d128", "good"]
recipe = ["none", "irepa"]
model = ["SiT-XS/4"]
seed = [0]
"#;

pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

impl Playground {
    pub fn new() -> Self {
        let this = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        let data = repository().join("experiments/data/emoji64");
        let data = data.canonicalize().unwrap();
        this.write("base.toml", &BASE.replace("DATA", &data.to_string_lossy()));
        this.write("experiment.toml", EXPERIMENT);
        this.write("recipes/none.toml", "[alignment]\nencoder = \"none\"\n");
        this.write(
            "recipes/irepa.toml",
            "[alignment]\nhead = { kind = \"conv\", kernel = 3 }\n",
        );
        for name in ["good", "good_patch_only"] {
            this.add_encoder(name);
        }
        this
    }

    /// Copies a test encoder to the folder that the program looks in.
    pub fn add_encoder(&self, name: &str) {
        let source = repository().join("crates/encoders/tests/data/broken");
        fs::create_dir_all(self.path("encoders")).unwrap();
        for extension in ["pt", "toml"] {
            let file = format!("{name}.{extension}");
            fs::copy(source.join(&file), self.path("encoders").join(&file)).unwrap();
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// Changes a file's text; the old part must be there.
    pub fn edit(&self, name: &str, old: &str, new: &str) {
        let text = self.read(name);
        assert!(text.contains(old), "{name} has no `{old}`");
        self.write(name, &text.replace(old, new));
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_irepa"));
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env("IREPA_ENCODERS", self.path("encoders"));
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Outcome {
        Outcome::of(self.command(arguments).output().unwrap())
    }

    pub fn sweep(&self, arguments: &[&str]) -> Outcome {
        let mut all = vec!["sweep", "experiment.toml", "--device", "cpu"];
        all.extend(arguments);
        self.run(&all)
    }
}

/// How the program ended and what it said.
pub struct Outcome {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    pub fn of(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Asserts the exit code and that the error says all of `words`.
    pub fn expect(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "{}{}", self.stdout, self.stderr);
        for word in words {
            let said = self.stderr.contains(word) || self.stdout.contains(word);
            assert!(said, "no `{word}` in:\n{}{}", self.stdout, self.stderr);
        }
        self
    }
}
