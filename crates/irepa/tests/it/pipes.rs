//! Output into pipes whose readers go away, and Ctrl-C.

use std::fs;
use std::io::{Write, pipe};
use std::process::{Child, Stdio};

use crate::common::{Outcome, Playground, end_of, interrupt, trained, wait_until};
use training::checkpoint;

#[test]
fn a_list_may_be_cut_off_by_its_reader() {
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
fn results_that_a_full_disk_did_not_take_are_missed() {
    let place = Playground::new();
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let output = place
        .command(&["encoders", "list"])
        .stdout(full)
        .output()
        .unwrap();
    Outcome::of(output).expect(1, &["standard output"]);
}

/// Two cells of one cohort, with a warning on the way.
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

/// A sweep whose readers are gone before it says anything.
fn unheard(place: &Playground, arguments: &[&str]) -> Child {
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
fn a_sweep_goes_on_when_nobody_listens() {
    let place = cohort();
    let mut child = unheard(&place, &[]);
    assert_eq!(end_of(&mut child), Some(0));
    place.sweep(&[]).expect(0, &["0 to run, 2 done"]);
}

#[test]
fn an_interrupted_sweep_is_saved_when_nobody_listens() {
    let place = cohort();
    let settings = [
        "--set",
        "train.steps=400",
        "--set",
        "train.checkpoint_every=1000",
    ];
    let mut child = unheard(&place, &settings);
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
fn a_second_interruption_ends_a_process_that_is_stuck() {
    let place = Playground::new();
    // A pipe that takes no more.
    let (reader, writer) = pipe().unwrap();
    let mut filler = writer.try_clone().unwrap();
    let filling = std::thread::spawn(move || {
        // Ends when the reader is gone.
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
    // Two at once would count as one.
    wait_until("the handler to run", || {
        !has_interrupt("ShdPnd:") && !has_interrupt("SigPnd:")
    });
    // It cannot say its plan, nor that it was interrupted.
    interrupt(&child);
    assert_eq!(end_of(&mut child), Some(130));
    drop(reader);
    filling.join().unwrap();
}
