//! Output to pipes that are closed or full, and Ctrl-C.

use std::fs;
use std::io::{Write, pipe};
use std::process::{Child, Stdio};

use crate::common::{Outcome, Playground, end_of, interrupt, trained, wait_until};
use training::checkpoint;

#[test]
fn the_reader_of_a_list_may_close_the_pipe() {
    let place = Playground::new();
    for command in [
        &["encoders", "list"][..],
        &["sweep", "experiment.toml", "--dry-run"],
    ] {
        let mut child = place
            .command(command)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let outcome = Outcome::of(child.wait_with_output().unwrap()).expect(0, &[]);
        assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
    }
}

#[test]
fn output_that_a_full_disk_does_not_accept_is_an_error() {
    let place = Playground::new();
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let output = place
        .command(&["encoders", "list"])
        .stdout(full)
        .output()
        .unwrap();
    Outcome::of(output).expect(1, &["standard output"]);
}

/// An experiment with two cells of one cohort.
fn cohort() -> Playground {
    let place = Playground::new();
    place.write("recipes/repa.toml", "");
    place.edit(
        "experiment.toml",
        "[\"none\", \"irepa\"]",
        "[\"repa\", \"irepa\"]",
    );
    place.edit("experiment.toml", "\"hog-vit-g4_d128\", ", "");
    place
}

/// Starts a sweep and closes its output pipes at once.
fn sweep_with_closed_pipes(place: &Playground, arguments: &[&str]) -> Child {
    let mut all = vec!["sweep", "experiment.toml", "--device", "cpu"];
    all.extend(arguments);
    let mut child = place
        .command(&all)
        .env("IREPA_LOG", "trace")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop((child.stdout.take(), child.stderr.take()));
    child
}

#[test]
fn a_sweep_continues_when_its_pipes_are_closed() {
    let place = cohort();
    let mut child = sweep_with_closed_pipes(&place, &[]);
    assert_eq!(end_of(&mut child), Some(0));
    place.sweep(&[]).expect(0, &["0 to run, 2 done"]);
}

#[test]
fn an_interrupted_sweep_is_saved_when_its_pipes_are_closed() {
    let place = cohort();
    let settings = [
        "--set",
        "train.steps=400",
        "--set",
        "train.checkpoint_every=1000",
    ];
    let mut child = sweep_with_closed_pipes(&place, &settings);
    let cells = ["repa", "irepa"]
        .map(|recipe| place.path(&format!("runs/small/cells/sit-xs4.{recipe}.good.s0")));
    let log = cells[1].join("metrics.jsonl");
    wait_until("steps", || {
        fs::read_to_string(&log).is_ok_and(|text| text.lines().count() > 3)
    });
    interrupt(&child);
    assert_eq!(end_of(&mut child), Some(130));
    assert!(place.path("runs/small/results.csv").is_file());
    for cell in &cells {
        let saved = checkpoint::list(&cell.join("checkpoints")).unwrap();
        let lines = String::from_utf8(trained(cell)["metrics.jsonl"].clone()).unwrap();
        let [saved] = &saved[..] else {
            panic!("{saved:?}");
        };
        let step = saved.file_name().unwrap().to_string_lossy().into_owned();
        assert_eq!(step, format!("step-{:07}", lines.lines().count()));
    }
}

#[test]
fn a_second_interruption_ends_a_blocked_process() {
    let place = Playground::new();
    // A full pipe, which blocks the program when it writes.
    let (reader, writer) = pipe().unwrap();
    let mut filler = writer.try_clone().unwrap();
    let filling = std::thread::spawn(move || {
        // Ends when the reader is dropped.
        while filler.write_all(&[0; 4096]).is_ok() {}
    });
    let sweep = ["sweep", "experiment.toml", "--device", "cpu"];
    let mut child = place.command(&sweep).stderr(writer).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let has_interrupt = |field: &str| {
        let status = fs::read_to_string(&status).unwrap();
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        let mask = line.split_whitespace().nth(1).unwrap();
        u64::from_str_radix(mask, 16).unwrap() & 2 != 0
    };
    wait_until("the handler of Ctrl-C", || has_interrupt("SigCgt:"));
    interrupt(&child);
    // Two pending signals would count as one.
    wait_until("the handler to run", || {
        !has_interrupt("ShdPnd:") && !has_interrupt("SigPnd:")
    });
    // The process is blocked: it can print neither its plan nor that it was interrupted.
    interrupt(&child);
    assert_eq!(end_of(&mut child), Some(130));
    drop(reader);
    filling.join().unwrap();
}
