//! Results of a sweep are never lost, and never mistaken for results of other settings.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::common::{Playground, end_of, interrupt};
use report::results::{ResultRow, Status, read_csv};
use sweep::cell_folder::CellFolder;

const BASELINE: &str = "sit-xs4.none.s0";
const HOG: &str = "sit-xs4.irepa.hog-vit-g4_d128.s0";
const GOOD: &str = "sit-xs4.irepa.good.s0";

fn cell(place: &Playground, id: &str) -> PathBuf {
    place.path("runs/small/cells").join(id)
}

fn row(place: &Playground, id: &str) -> Option<ResultRow> {
    let rows = read_csv(&place.path("runs/small/results.csv")).unwrap();
    rows.into_iter().find(|row| row.cell == id)
}

/// Paths and contents of all files below a folder, except the lock.
fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        if kind.is_dir() {
            found.extend(files(&path));
        } else if kind.is_symlink() {
            found.push((path, b"a link".to_vec()));
        } else if path.file_name().unwrap() != ".lock" {
            let content = fs::read(&path).unwrap();
            found.push((path, content));
        }
    }
    found.sort();
    found
}

#[test]
fn settings_that_do_not_affect_results_leave_finished_cells_unchanged() {
    let place = Playground::new();
    let only = ["--only", BASELINE];
    place.sweep(&only).expect(0, &["1 done"]);
    let before = files(&cell(&place, BASELINE));
    let settings = [
        "data.workers=2",
        "data.max_corrupt_share=0.5",
        "train.checkpoint_every=3",
        "train.keep_checkpoints=1",
        "train.log_speed=true",
    ];
    let mut all = only.to_vec();
    for setting in settings {
        all.extend(["--set", setting]);
    }
    place.sweep(&all).expect(0, &["1 done", "0 to run"]);
    assert_eq!(files(&cell(&place, BASELINE)), before);
    // Its checkpoints are not needed for this.
    fs::remove_dir_all(cell(&place, BASELINE).join("checkpoints")).unwrap();
    let before = files(&cell(&place, BASELINE));
    place.sweep(&all).expect(0, &["1 done", "0 to run"]);
    assert_eq!(files(&cell(&place, BASELINE)), before);
    // Files that a new run would overwrite are kept even without checkpoints.
    place
        .sweep(&["--only", BASELINE, "--set", "optimizer.lr=0.002"])
        .expect(0, &["1 done"]);
    let kept = cell(&place, BASELINE).join("before/1");
    for (path, content) in before {
        let name = path.strip_prefix(cell(&place, BASELINE)).unwrap();
        assert!(fs::read(kept.join(name)).unwrap() == content, "{name:?}");
    }
}

#[test]
fn a_fresh_run_keeps_the_old_one_and_does_not_touch_a_locked_cell() {
    let place = Playground::new();
    let only = ["--only", BASELINE];
    place.sweep(&only).expect(0, &["1 done"]);
    let folder = CellFolder::new(&place.path("runs/small"), BASELINE);
    let before = files(folder.path());
    let lock = folder.lock().unwrap();
    let fresh = [
        "sweep",
        "experiment.toml",
        "--device",
        "cpu",
        "--only",
        BASELINE,
        "--fresh",
    ];
    let mut child = place
        .command(&fresh)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let waits = lines.any(|line| {
        line.unwrap()
            .contains("waiting for cells that other processes run")
    });
    assert!(waits);
    interrupt(&child);
    assert_eq!(end_of(&mut child), Some(130));
    assert_eq!(files(folder.path()), before);
    // The lock is still held.
    assert!(folder.lock().is_err());
    drop(lock);
    place
        .sweep(&["--only", BASELINE, "--fresh"])
        .expect(0, &["1 done", "before/1"]);
    for (path, content) in &before {
        let name = path.strip_prefix(folder.path()).unwrap();
        let kept = fs::read(folder.path().join("before/1").join(name)).unwrap();
        assert!(kept == *content, "{name:?}");
    }
    assert!(folder.path().join("result.json").exists());
    assert!(!folder.path().join("before/2").exists());
}

#[test]
fn results_with_other_settings_are_stale_and_not_compared() {
    let place = Playground::new();
    let shorter = ["--only", BASELINE, "--set", "train.steps=3"];
    place.sweep(&shorter).expect(0, &["1 done"]);
    place
        .sweep(&["--only", GOOD])
        .expect(0, &["1 done, 0 failed, 0 skipped, 1 stale"]);
    let baseline = row(&place, BASELINE).unwrap();
    assert_eq!(baseline.status, Status::Stale);
    assert_eq!(baseline.reason, "train.steps was 3 and is 6");
    assert_eq!(baseline.steps, Some(3));
    assert_eq!(row(&place, GOOD).unwrap().status, Status::Done);
    let report = place.read("runs/small/report.html");
    assert!(report.contains("train.steps was 3 and is 6"));
    assert!(!report.contains("better") || report.contains("lower is better"));
    // The plan names the hash that the result has.
    let result = CellFolder::new(&place.path("runs/small"), GOOD).result();
    let hash = result.unwrap().unwrap().hash;
    let plan = place.read("runs/small/plan.toml");
    assert!(plan.contains(&format!("hash = \"{hash}\"")), "{plan}");
    // After it is trained to the new length, the baseline is current again; its previous result is kept.
    let old = fs::read(cell(&place, BASELINE).join("result.json")).unwrap();
    place
        .sweep(&["--only", BASELINE])
        .expect(0, &["2 done, 0 failed, 0 skipped"]);
    assert_eq!(row(&place, BASELINE).unwrap().status, Status::Done);
    let kept = cell(&place, BASELINE).join("before/1/result.json");
    assert_eq!(fs::read(kept).unwrap(), old);
}

#[test]
fn a_done_row_is_not_replaced_by_skipped_or_failed() {
    // A name in the catalogue, which is known even if its file is not installed.
    const NAME: &str = "dinov2-vit-b";
    let id = format!("sit-xs4.irepa.{NAME}.s0");
    let place = Playground::new();
    place.edit("experiment.toml", "\"good\"]", &format!("\"{NAME}\"]"));
    let [encoder, sidecar] = ["pt", "toml"].map(|extension| {
        let path = place.path(&format!("encoders/{NAME}.{extension}"));
        fs::copy(place.path(&format!("encoders/good.{extension}")), &path).unwrap();
        path
    });
    let text = fs::read_to_string(&sidecar).unwrap();
    fs::write(&sidecar, text.replace("\"good\"", &format!("\"{NAME}\""))).unwrap();
    let only = ["--only", &id];
    place.sweep(&only).expect(0, &["1 done"]);
    let done = row(&place, &id).unwrap();
    // The encoder is removed: results that were measured with it stay.
    let hidden = place.path("hidden.pt");
    fs::rename(&encoder, &hidden).unwrap();
    place.sweep(&["--only", BASELINE]).expect(0, &["2 done"]);
    assert_eq!(row(&place, &id).unwrap(), done);
    // A result with other settings becomes stale.
    place
        .sweep(&["--only", BASELINE, "--set", "train.steps=3"])
        .expect(0, &["1 done", "1 stale"]);
    assert_eq!(row(&place, &id).unwrap().status, Status::Stale);
    // If a run with other settings fails, the row shows the failure, and the previous result is kept.
    fs::write(&encoder, "no TorchScript").unwrap();
    place
        .sweep(&["--only", &id, "--set", "train.steps=7"])
        .expect(1, &["1 failed"]);
    assert_eq!(row(&place, &id).unwrap().status, Status::Failed);
    let kept = fs::read_to_string(cell(&place, &id).join("before/1/result.json")).unwrap();
    assert!(kept.contains("\"done\""), "{kept}");
}

#[cfg(unix)]
#[test]
fn unreadable_files_stop_a_cell_and_nothing_is_changed() {
    use std::os::unix::fs::symlink;
    let place = Playground::new();
    let both = "{sit-xs4.none.s0,sit-xs4.irepa.hog*}";
    place.sweep(&["--only", both]).expect(0, &["2 done"]);
    let result = cell(&place, BASELINE).join("result.json");
    let hidden = place.path("hidden.json");
    fs::rename(&result, &hidden).unwrap();
    symlink(&result, &result).unwrap();
    let listed = || -> Vec<PathBuf> {
        let mut names: Vec<_> = fs::read_dir(cell(&place, BASELINE))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        names.sort();
        names
    };
    let before = listed();
    let other = ["--only", both, "--set", "train.steps=7"];
    place
        .sweep(&other)
        .expect(1, &["1 done, 1 failed", "result.json", "symbolic links"]);
    assert_eq!(listed(), before);
    assert_eq!(row(&place, HOG).unwrap().steps, Some(7));
    assert_eq!(row(&place, BASELINE).unwrap().status, Status::Failed);
    fs::remove_file(&result).unwrap();
    fs::rename(&hidden, &result).unwrap();
    // An unreadable sidecar of an encoder must not change the identity, which would run a finished cell again.
    let only = ["--only", GOOD];
    place.sweep(&only).expect(0, &["2 done", "1 stale"]);
    let sidecar = place.path("encoders/good.toml");
    fs::remove_file(&sidecar).unwrap();
    symlink(&sidecar, &sidecar).unwrap();
    let before = files(&cell(&place, GOOD));
    place
        .sweep(&only)
        .expect(1, &["good.toml", "symbolic links"]);
    assert_eq!(files(&cell(&place, GOOD)), before);
}

#[cfg(unix)]
#[test]
fn a_run_with_unreadable_checkpoints_is_neither_resumed_nor_restarted() {
    let place = Playground::new();
    let train = [
        "train",
        "base.toml",
        "--out",
        "run",
        "--device",
        "cpu",
        "--set",
        "train.steps=2",
    ];
    place.run(&train).expect(0, &[]);
    let checkpoints = place.path("run/checkpoints");
    fs::rename(&checkpoints, place.path("kept")).unwrap();
    std::os::unix::fs::symlink("/nowhere/checkpoints", &checkpoints).unwrap();
    let before = files(&place.path("run"));
    for resume in [&[][..], &["--resume"]] {
        let all = [&train[..], resume].concat();
        place
            .run(&all)
            .expect(1, &["run/checkpoints", "No such file"]);
    }
    place
        .run(&["sample", "run", "--count", "1", "--out", "samples"])
        .expect(1, &["run/checkpoints", "No such file"]);
    assert_eq!(files(&place.path("run")), before);
}
