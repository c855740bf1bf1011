//! Checkpoints: damaged and foreign files in a run's folder are handled.

use std::fs;
use std::path::{Path, PathBuf};

use training::checkpoint::{self, Checkpoint};
use training::{Run, read_tensors};

use crate::runs::{advance, config, inputs};

#[test]
fn a_damaged_checkpoint_is_skipped_for_an_earlier_one() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(6);
    advance(folder.path(), &config, 6, 0);
    let checkpoints = folder.path().join("checkpoints");
    let newest = checkpoint::list(&checkpoints).unwrap().pop().unwrap();
    let file = newest.join("optimizer.safetensors");
    let mut bytes = fs::read(&file).unwrap();

    // One flipped bit, the length unchanged.
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&file, &bytes).unwrap();
    let error = Checkpoint::load(&newest).unwrap_err().to_string();
    assert!(
        error.contains("optimizer.safetensors") && error.contains("SHA-256"),
        "{error}"
    );

    // A truncated file.
    fs::write(&file, &bytes[..middle]).unwrap();
    let error = Checkpoint::load(&newest).unwrap_err().to_string();
    assert!(error.contains("bytes long"), "{error}");

    let run = Run::open(folder.path(), &config, inputs()).unwrap();
    assert_eq!(run.resumed_from(), 4);
    drop(run);
    // The damaged checkpoint is moved away, since the run keeps its newest checkpoints by their steps.
    let name = newest.file_name().unwrap();
    let newest = folder.path().join("before/1/checkpoints").join(name);
    assert!(newest.join("optimizer.safetensors").is_file());
    assert!(folder.path().join("before/1/metrics.jsonl").is_file());

    // A manifest that is not JSON or is missing is damage too.
    fs::write(newest.join("manifest.json"), "{").unwrap();
    assert!(matches!(
        Checkpoint::load(&newest),
        Err(checkpoint::CheckpointError::Manifest { .. })
    ));
    fs::remove_file(newest.join("manifest.json")).unwrap();
    let error = Checkpoint::load(&newest).unwrap_err().to_string();
    assert!(error.contains("manifest.json"), "{error}");
}

#[test]
fn a_checkpoint_is_not_written_twice() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = advance(folder.path(), &config(4), 2, 0);
    let newest = checkpoint::list(&folder.path().join("checkpoints"))
        .unwrap()
        .pop();
    let marked = newest.unwrap().join("of the first save");
    fs::write(&marked, "").unwrap();
    run.save().unwrap();
    drop(run);
    let mut run = Run::open(folder.path(), &config(4), inputs()).unwrap();
    run.save().unwrap();
    assert!(marked.exists());
    // A damaged checkpoint is replaced when the run reaches its step again.
    fs::remove_file(marked.with_file_name("manifest.json")).unwrap();
    let run = advance(folder.path(), &config(4), 2, 0);
    assert_eq!(run.resumed_from(), 0);
    assert!(!marked.exists());
    Checkpoint::load(marked.parent().unwrap()).unwrap();
    let left = fs::read_dir(folder.path().join("checkpoints")).unwrap();
    assert_eq!(left.count(), 1);
}

#[test]
fn an_unfinished_save_is_ignored_and_removed() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(4);
    advance(folder.path(), &config, 2, 0);
    // As if left behind by process 1 of another container.
    let partial = folder
        .path()
        .join("checkpoints/.step-0000004.0123456789abcdef-1-1-abcdefgh.tmp");
    fs::create_dir_all(&partial).unwrap();
    fs::write(partial.join("model.safetensors"), "half").unwrap();
    let run = advance(folder.path(), &config, 4, 0);
    assert_eq!(run.resumed_from(), 2);
    assert!(!partial.exists());
}

/// The expected error, and a function that causes it.
type Fault<'a> = (&'static str, Box<dyn Fn() + 'a>);

/// Ways in which an existing checkpoint cannot be read: a link to itself, a folder in place of a file, a file in place
/// of a folder, and a link to a disk that is not mounted.
#[cfg(unix)]
fn unreadable(checkpoints: &Path) -> Vec<Fault<'_>> {
    use std::os::unix::fs::symlink;
    let newest = checkpoint::list(checkpoints).unwrap().pop().unwrap();
    let in_place_of = |path: PathBuf, make: fn(&Path)| {
        move || {
            let kept = path.with_extension("kept");
            fs::rename(&path, kept).unwrap();
            make(&path);
        }
    };
    vec![
        (
            "symbolic links",
            Box::new(in_place_of(newest.clone(), |path| {
                symlink(path, path).unwrap()
            })),
        ),
        (
            "directory",
            Box::new(in_place_of(newest.join("model.safetensors"), |path| {
                fs::create_dir(path).unwrap();
            })),
        ),
        (
            "directory",
            Box::new(in_place_of(newest.join("manifest.json"), |path| {
                fs::create_dir(path).unwrap();
            })),
        ),
        (
            "irectory",
            Box::new(in_place_of(newest.clone(), |path| {
                fs::write(path, "").unwrap()
            })),
        ),
        (
            "No such file",
            Box::new(in_place_of(newest, |path| {
                symlink("/nowhere/step", path).unwrap();
            })),
        ),
        (
            "symbolic links",
            Box::new(in_place_of(checkpoints.to_owned(), |path| {
                symlink(path, path).unwrap();
            })),
        ),
        (
            "No such file",
            Box::new(in_place_of(checkpoints.to_owned(), |path| {
                symlink("/nowhere/checkpoints", path).unwrap();
            })),
        ),
    ]
}

/// Returns the names, kinds and contents of everything below a folder.
#[cfg(unix)]
fn everything(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        if kind.is_dir() {
            found.extend(everything(&path));
        } else if kind.is_file() {
            found.push((path.clone(), fs::read(&path).unwrap()));
        }
        found.push((path, format!("{kind:?}").into_bytes()));
    }
    found.sort();
    found
}

#[cfg(unix)]
#[test]
fn a_checkpoint_that_cannot_be_read_is_an_error_and_nothing_is_changed() {
    /// Index of the fault that concerns only the weights.
    const WEIGHTS: usize = 1;
    for index in 0.. {
        let folder = tempfile::tempdir().unwrap();
        let config = config(4);
        advance(folder.path(), &config, 4, 0);
        let checkpoints = folder.path().join("checkpoints");
        let faults = unreadable(&checkpoints);
        let Some((reason, cause_fault)) = faults.get(index) else {
            assert_eq!(index, 7);
            break;
        };
        cause_fault();
        let before = everything(folder.path());
        // A run with other settings, which would start anew, fails too, unless only the weights cannot be read.
        let rates = [config.optimizer.lr, 5e-4];
        for lr in &rates[..if index == WEIGHTS { 1 } else { 2 }] {
            let mut config = config.clone();
            config.optimizer.lr = *lr;
            let error = Run::open(folder.path(), &config, inputs()).unwrap_err();
            let error = error.to_string();
            assert!(error.contains(reason), "{index}: {error}");
            assert!(error.contains("checkpoints"), "{index}: {error}");
        }
        assert_eq!(everything(folder.path()), before, "{index}");
    }
}

#[test]
fn errors_name_the_kind_of_a_foreign_file() {
    let folder = tempfile::tempdir().unwrap();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n";
    let weights = folder.path().join("weights.safetensors");
    fs::write(&weights, pointer).unwrap();
    let error = read_tensors(&weights).unwrap_err().to_string();
    assert!(error.contains("Git LFS pointer"), "{error}");

    let checkpoint = folder.path().join("step-0000001");
    fs::create_dir(&checkpoint).unwrap();
    let utf16: Vec<u8> = "{\"format\": 1}"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    fs::write(checkpoint.join("manifest.json"), utf16).unwrap();
    let error = Checkpoint::load(&checkpoint).unwrap_err();
    assert!(
        error.is_damage() && error.to_string().contains("UTF-16"),
        "{error}"
    );
}
