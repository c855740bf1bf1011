//! Tests of `runner sweep --workers N`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use metrics::figures::Figure;
use report::results::{ResultRow, Status};

use crate::common::{
    Outcome, Playground, children_of, end_of, free_port, kill, trained, wait_until,
};

fn arguments<'a>(out: &'a str, workers: &'a str) -> Vec<&'a str> {
    let mut arguments = vec!["sweep", "experiment.toml", "--device", "cpu"];
    arguments.extend(["--out", out, "--workers", workers]);
    arguments
}

fn rows(place: &Playground, out: &str) -> Vec<ResultRow> {
    let path = place.path(out).join("small/results.csv");
    report::results::read_csv(&path).unwrap_or_default()
}

/// All that a sweep computes: its rows without speed and memory, and the files that training wrote.
fn computed(
    place: &Playground,
    out: &str,
) -> BTreeMap<String, (String, BTreeMap<String, Vec<u8>>)> {
    let rows = rows(place, out).into_iter().map(|mut row| {
        row.figures.set(Figure::StepsPerSecond, None);
        row.figures.set(Figure::PeakMemory, None);
        let files = trained(&place.path(out).join("small/cells").join(&row.cell));
        (row.cell.clone(), (format!("{row:?}"), files))
    });
    rows.collect()
}

fn start(place: &Playground, arguments: &[&str]) -> Child {
    let mut command = place.command(arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// An experiment long enough that its workers can be killed while they train.
fn long() -> Playground {
    let place = Playground::new();
    place.edit("base.toml", "steps = 6", "steps = 60");
    place.edit("base.toml", "checkpoint_every = 2", "checkpoint_every = 7");
    place
}

#[test]
fn two_workers_compute_the_bits_of_one_process_with_as_many_threads_as_a_worker() {
    let place = Playground::new();
    let one = place
        .command(&arguments("one", "1"))
        .env("OMP_NUM_THREADS", "1")
        .output()
        .unwrap();
    assert!(one.status.success());
    let two = place
        .command(&arguments("two", "2"))
        .env("OMP_NUM_THREADS", "2")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&two.stderr);
    assert!(two.status.success(), "{text}");
    let expected = computed(&place, "one");
    assert_eq!(expected.len(), 3);
    assert_eq!(computed(&place, "two"), expected);
    // The lines of the workers are those of a sweep without workers.
    for cell in expected.keys() {
        assert!(text.contains(&format!("{cell}: done, ")), "{text}");
    }
}

#[test]
fn the_cells_of_a_killed_worker_are_resumed_by_another_one() {
    let place = long();
    let threads = |out: &str| {
        let mut command = place.command(&arguments(out, "2"));
        command.env("OMP_NUM_THREADS", "2");
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    assert!(threads("whole").output().unwrap().status.success());

    let sweep = threads("killed").spawn().unwrap();
    let cell = place.path("killed/small/cells/sit-xs4.none.s0");
    wait_until("a checkpoint", || {
        fs::read_dir(cell.join("checkpoints")).is_ok_and(|entries| entries.count() > 1)
    });
    // It works on the cell: nothing else has the cell's folder in its open files.
    let owner = children_of(&sweep).into_iter().find(|id| {
        let files = fs::read_dir(format!("/proc/{id}/fd")).into_iter().flatten();
        files
            .filter_map(|file| fs::read_link(file.ok()?.path()).ok())
            .any(|file| file.starts_with(&cell))
    });
    kill(owner.unwrap());
    let output = sweep.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("another one resumes them"), "{text}");
    assert!(text.contains("resumes after step"), "{text}");
    assert_eq!(computed(&place, "killed"), computed(&place, "whole"));
}

#[test]
fn twelve_cells_by_one_two_and_four_workers_are_equal_to_the_bit() {
    let place = Playground::new();
    place.edit("experiment.toml", "seed = [0]", "seed = [0, 1, 2, 3]");
    let start = |count: &str| {
        let mut command = place.command(&arguments(count, count));
        // One thread for each worker.
        command.env("OMP_NUM_THREADS", count);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let four = start("4");
    let cells = place.path("4/small/cells");
    let done = || {
        let folders = fs::read_dir(&cells).into_iter().flatten().flatten();
        folders
            .filter(|cell| cell.path().join("result.json").exists())
            .count()
    };
    wait_until("some results", || done() >= 4);
    kill(children_of(&four)[0]);
    let output = four.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    let expected = computed(&place, "4");
    assert_eq!(expected.len(), 12);
    for cell in expected.keys() {
        assert_eq!(
            text.matches(&format!("{cell}: done, ")).count(),
            1,
            "{text}"
        );
    }
    for count in ["1", "2"] {
        assert!(start(count).wait_with_output().unwrap().status.success());
        assert_eq!(computed(&place, count), expected, "{count} workers");
    }
}

#[test]
fn ranks_share_the_cells_of_a_sweep() {
    let place = Playground::new();
    let port = free_port().to_string();
    let ranks = ["0", "1"].map(|rank| {
        let mut command = place.command(&["sweep", "experiment.toml", "--device", "cpu"]);
        command.env("RANK", rank).env("LOCAL_RANK", rank);
        command.env("WORLD_SIZE", "2").env("OMP_NUM_THREADS", "1");
        command
            .env("MASTER_ADDR", "127.0.0.1")
            .env("MASTER_PORT", &port);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    });
    let [first, second] = ranks.map(|rank| Outcome::of(rank.wait_with_output().unwrap()));
    let first = first.expect(0, &["3 done, 0 failed", "results.csv"]);
    // The cells of the other rank are counted, and it prints nothing itself.
    assert!(
        first.stderr.contains("by another process"),
        "{}",
        first.stderr
    );
    assert_eq!(second.expect(0, &[]).stdout, "");
    let mut alone = place.command(&arguments("one", "1"));
    let alone = alone.env("OMP_NUM_THREADS", "1").output().unwrap();
    assert!(alone.status.success());
    assert_eq!(computed(&place, "runs"), computed(&place, "one"));
}

#[test]
fn cells_whose_workers_are_lost_again_and_again_fail_and_the_next_sweep_runs_them() {
    let place = Playground::new();
    let mut sweep = start(&place, &arguments("runs", "2"));
    wait_until("the end of the sweep", || {
        children_of(&sweep).into_iter().for_each(kill);
        sweep.try_wait().unwrap().is_some()
    });
    assert_eq!(end_of(&mut sweep), Some(1));
    let failed = rows(&place, "runs");
    assert_eq!(failed.len(), 3);
    for row in failed {
        assert_eq!(row.status, Status::Failed);
        assert!(row.reason.contains("signal: 9"), "{}", row.reason);
        assert!(row.reason.contains("--workers 1"), "{}", row.reason);
    }
    place
        .run(&arguments("runs", "2"))
        .expect(0, &["3 done, 0 failed"]);
}

#[test]
fn workers_save_their_cells_when_the_sweep_is_interrupted_or_killed() {
    let place = long();
    let whole = place.run(&arguments("whole", "2"));
    whole.expect(0, &["3 done"]);
    for (signal, code) in [("-TERM", Some(130)), ("-KILL", None)] {
        let mut sweep = start(&place, &arguments("ended", "2"));
        let log = place.path("ended/small/cells/sit-xs4.none.s0/metrics.jsonl");
        let lines = || fs::read_to_string(&log).map_or(0, |text| text.lines().count());
        let before = lines();
        wait_until("more steps", || lines() > before + 5);
        let workers = children_of(&sweep);
        assert!(!workers.is_empty());
        let id = sweep.id().to_string();
        // To the sweep alone: the workers notice that their input ends.
        let sent = Command::new("kill").args([signal, &id]).status().unwrap();
        assert!(sent.success());
        assert_eq!(end_of(&mut sweep), code);
        wait_until("the end of the workers", || {
            workers
                .iter()
                .all(|id| !fs::exists(format!("/proc/{id}/fd/0")).unwrap_or(false))
        });
        let saved = place.path("ended/small/cells/sit-xs4.none.s0/checkpoints");
        let newest = training::checkpoint::list(&saved).unwrap().pop().unwrap();
        let step = training::checkpoint::CheckpointId::read(&newest)
            .unwrap()
            .step;
        // Saved where it was interrupted, not only every seventh step.
        assert_eq!(step, lines() as u64, "{signal}");
    }
    place
        .run(&arguments("ended", "2"))
        .expect(0, &["3 done, 0 failed"]);
    assert_eq!(computed(&place, "ended"), computed(&place, "whole"));
}

#[test]
fn fresh_cells_are_run_once() {
    let place = Playground::new();
    place.run(&arguments("runs", "2")).expect(0, &["3 done"]);
    let mut fresh = arguments("runs", "2");
    fresh.push("--fresh");
    place.run(&fresh).expect(0, &["3 done"]);
    for row in rows(&place, "runs") {
        let before = place
            .path("runs/small/cells")
            .join(&row.cell)
            .join("before");
        assert_eq!(fs::read_dir(before).unwrap().count(), 1);
    }
}

#[test]
fn a_worker_refuses_cells_of_another_configuration() {
    let place = Playground::new();
    let mut all = arguments("runs", "2");
    all.extend(["--worker", "cpu"]);
    let mut worker = place.command(&all);
    worker.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut worker = worker.spawn().unwrap();
    let task = r#"{"cells":[["sit-xs4.none.s0","another hash"]],"fresh":[],"memory_limit":null,"judges_first":false}"#;
    let mut input = worker.stdin.take().unwrap();
    writeln!(input, "{task}").unwrap();
    let mut answer = String::new();
    let output = BufReader::new(worker.stdout.take().unwrap());
    for line in output.lines() {
        answer = line.unwrap();
        if answer.starts_with(r#"{"Ended""#) {
            break;
        }
    }
    drop(input);
    assert_eq!(end_of(&mut worker), Some(0));
    assert!(answer.contains("were changed during the sweep"), "{answer}");
    assert!(!place.path("runs/small/cells/sit-xs4.none.s0").exists());
}

#[test]
fn a_sweep_needs_at_least_one_worker() {
    let place = Playground::new();
    place
        .run(&arguments("runs", "0"))
        .expect(2, &["--workers", "0"]);
}
