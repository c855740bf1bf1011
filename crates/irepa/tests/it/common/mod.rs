//! A small experiment in a temporary folder, and helpers that run the program on it.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use training::checkpoint;

/// An experiment that runs in a few seconds: images of 16 pixels, a token grid of 4 x 4, 6 steps.
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

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_folder(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), to).unwrap()),
        }
    }
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

    /// Copies a test encoder to the folder in which the program looks for encoders.
    pub fn add_encoder(&self, name: &str) {
        let source = repository().join("crates/encoders/tests/data/broken");
        fs::create_dir_all(self.path("encoders")).unwrap();
        for extension in ["pt", "toml"] {
            let file = format!("{name}.{extension}");
            fs::copy(source.join(&file), self.path("encoders").join(&file)).unwrap();
        }
    }

    /// A folder with the files of a case in `tests/data/cases` and the encoders of the project.
    pub fn of_case(name: &str) -> Self {
        let this = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        let case = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/data/cases")
            .join(name);
        copy_folder(&case, this.folder.path());
        let encoders = repository().join("experiments/encoders");
        copy_folder(&encoders, &this.path("encoders"));
        this
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

    /// Replaces text in a file, which must contain the old text.
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

/// The files that a cell's training wrote, by name: the newest checkpoint and the log. All results of the cell are
/// derived from them.
pub fn trained(run: &Path) -> BTreeMap<String, Vec<u8>> {
    let newest = checkpoint::list(&run.join("checkpoints"))
        .unwrap()
        .pop()
        .unwrap();
    let mut files: BTreeMap<String, Vec<u8>> = fs::read_dir(&newest)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, fs::read(&path).unwrap())
        })
        .collect();
    files.insert(
        "metrics.jsonl".into(),
        fs::read(run.join("metrics.jsonl")).unwrap(),
    );
    assert_eq!(files.len(), 7);
    files
}

/// Waits until `ready` returns true, for at most two minutes.
pub fn wait_until(what: &str, mut ready: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !ready() {
        assert!(
            Instant::now() < deadline,
            "timeout while waiting for {what}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Sends Ctrl-C to a process.
pub fn interrupt(child: &Child) {
    let arguments = ["-INT", &child.id().to_string()];
    let sent = Command::new("kill").args(arguments).status().unwrap();
    assert!(sent.success());
}

/// Waits for a process to end, for at most two minutes. Returns its exit code; `None` if a signal ended it.
pub fn end_of(child: &mut Child) -> Option<i32> {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("the process did not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Process ids of the processes that another one has started.
pub fn children_of(process: &Child) -> Vec<u32> {
    let parent = process.id().to_string();
    let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let id: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let status = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        // `id (name) state parent ...`; the name may contain spaces.
        let (_, rest) = status.rsplit_once(')')?;
        (rest.split_whitespace().nth(1) == Some(parent.as_str())).then_some(id)
    });
    processes.collect()
}

pub fn kill(process: u32) {
    // The process may have ended by itself.
    let _ended = Command::new("kill")
        .args(["-KILL", &process.to_string()])
        .stderr(Stdio::null())
        .status()
        .unwrap();
}

/// A port of this machine that nothing listens on.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// Exit code and output of the program.
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

    /// Asserts the exit code, and that the output contains all of `words`.
    pub fn expect(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "{}{}", self.stdout, self.stderr);
        for word in words {
            let found = self.stderr.contains(word) || self.stdout.contains(word);
            assert!(found, "no `{word}` in:\n{}{}", self.stdout, self.stderr);
        }
        self
    }
}
