//! `train` with several processes that share each batch.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use metrics::figures::Figure;
use training::MetricsLog;

use crate::common::{
    Outcome, Playground, children_of, end_of, free_port, interrupt, kill, trained, wait_until,
};

/// A configuration that aligns with an encoder and is evaluated on the way.
fn playground() -> Playground {
    let place = Playground::new();
    place.write(
        "run.toml",
        "base = \"base.toml\"\n[alignment]\nencoder = \"good\"\nhead = { kind = \"conv\", kernel = 3 }\n\
         [evaluate]\nevery = 4\n",
    );
    place
}

/// A run long enough that its processes can be ended while they train.
fn long() -> Playground {
    let place = playground();
    place.edit("base.toml", "steps = 6", "steps = 40");
    place.edit("base.toml", "checkpoint_every = 2", "checkpoint_every = 7");
    place.edit("run.toml", "every = 4", "every = 0");
    place
}

fn train<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let arguments = ["train", "run.toml", "--device", "cpu", "--out", out];
    [&arguments, more].concat()
}

fn start(place: &Playground, arguments: &[&str]) -> Child {
    let mut command = place.command(arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

fn lines(log: &Path) -> usize {
    fs::read_to_string(log).map_or(0, |text| text.lines().count())
}

#[test]
fn two_processes_train_what_one_does() {
    let place = playground();
    place.run(&train("one", &[])).expect(0, &["done"]);
    let two = place.run(&train("two", &["--processes", "2"]));
    // Rank 0 alone writes.
    assert_eq!(two.stdout.lines().collect::<Vec<_>>(), ["two"]);
    let two = two.expect(0, &["two: done"]);
    assert_eq!(two.stderr.matches("two: done").count(), 1, "{}", two.stderr);

    let read = |run: &str| MetricsLog::read(&place.path(run).join("metrics.jsonl")).unwrap();
    let (one, two) = (read("one"), read("two"));
    assert_eq!((one.len(), two.len()), (6, 6));
    for (expected, found) in one.iter().zip(&two) {
        for figure in [Figure::Loss, Figure::AlignmentLoss, Figure::GradNorm] {
            let (expected, value) = (expected.get(figure).unwrap(), found.get(figure).unwrap());
            let error = (value - expected).abs() / expected.abs();
            assert!(error < 1e-5, "step {}: {value}, {expected}", found.step);
        }
        assert_eq!(found.is_evaluated(), found.step == 4);
    }
}

#[test]
fn a_corrupt_image_is_skipped_by_all_processes() {
    let place = playground();
    let images = place.path("images/all");
    fs::create_dir_all(&images).unwrap();
    for index in 0..30 {
        let colour = image::Rgb([index * 8, 255 - index * 8, index]);
        let path = images.join(format!("{index:02}.png"));
        image::RgbImage::from_pixel(16, 16, colour)
            .save(path)
            .unwrap();
    }
    for index in [3, 17] {
        let path = images.join(format!("{index:02}.png"));
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    }
    let images = place.path("images");
    let data = format!(
        "[data]\npath = \"{}\"\nsplit = \"\"\nmax_corrupt_share = 0.2\nimages = 30\n[evaluate]\nevery = 0\nfd_encoder = \
         \"\"\nspatial_images = 0\n",
        images.display()
    );
    place.write(
        "run.toml",
        &format!("base = \"base.toml\"\n[alignment]\nencoder = \"none\"\n{data}"),
    );
    place
        .run(&train("one", &[]))
        .expect(0, &["corrupt samples skipped"]);
    let two = place.run(&train("two", &["--processes", "2"]));
    two.expect(0, &["corrupt samples skipped"]);
    let read = |run: &str| MetricsLog::read(&place.path(run).join("metrics.jsonl")).unwrap();
    for (one, two) in read("one").iter().zip(read("two")) {
        let loss = [one.get(Figure::Loss), two.get(Figure::Loss)].map(Option::unwrap);
        assert!((loss[0] - loss[1]).abs() < 1e-5 * loss[0].abs(), "{loss:?}");
        let skipped = Figure::CorruptSkipped;
        assert_eq!(one.get(skipped), two.get(skipped));
    }
}

#[test]
fn an_interrupted_run_has_the_bits_of_an_uninterrupted_one() {
    let place = long();
    let whole = place.run(&train("whole", &["--processes", "2"]));
    whole.expect(0, &["done"]);
    let mut run = start(&place, &train("cut", &["--processes", "2"]));
    let log = place.path("cut/metrics.jsonl");
    wait_until("some steps", || lines(&log) > 10);
    interrupt(&run);
    assert_eq!(end_of(&mut run), Some(130));
    let steps = lines(&log);
    assert!(steps < 40);
    let again = place.run(&train("cut", &["--processes", "2"]));
    again.expect(2, &["--resume"]);
    let resumed = place.run(&train("cut", &["--processes", "2", "--resume"]));
    resumed.expect(0, &[&format!("resumes after step {steps}")]);
    assert_eq!(trained(&place.path("cut")), trained(&place.path("whole")));
}

#[test]
fn a_killed_rank_ends_the_others_and_the_run_is_resumed() {
    let place = long();
    let whole = place.run(&train("whole", &["--processes", "2"]));
    whole.expect(0, &["done"]);
    for (rank, out) in [(1, "one"), (0, "zero")] {
        let run = start(&place, &train(out, &["--processes", "2"]));
        let checkpoints = place.path(out).join("checkpoints");
        wait_until("a checkpoint", || {
            fs::read_dir(&checkpoints).is_ok_and(|entries| entries.count() > 1)
        });
        let rank_of =
            |id: &u32| fs::read_to_string(format!("/proc/{id}/environ")).unwrap_or_default();
        let is_rank = |id: &u32| {
            let variable = format!("RANK={rank}");
            rank_of(id).split('\0').any(|entry| entry == variable)
        };
        let ranks = children_of(&run);
        assert_eq!(ranks.len(), 2);
        kill(ranks.iter().copied().find(is_rank).unwrap());
        let outcome = Outcome::of(run.wait_with_output().unwrap());
        let outcome = outcome.expect(1, &[&format!("rank {rank} on "), "ended by signal 9"]);
        assert_eq!(
            outcome.stderr.matches("error: ").count(),
            1,
            "{}",
            outcome.stderr
        );
        assert!(!place.path(out).join("result.json").exists());
        let resumed = place.run(&train(out, &["--processes", "2", "--resume"]));
        resumed.expect(0, &["resumes after step"]);
        assert_eq!(trained(&place.path(out)), trained(&place.path("whole")));
    }
}

#[test]
fn ranks_end_when_the_process_that_started_them_is_killed() {
    let place = long();
    let mut run = start(&place, &train("orphans", &["--processes", "2"]));
    let log = place.path("orphans/metrics.jsonl");
    wait_until("some steps", || lines(&log) > 5);
    let ranks = children_of(&run);
    run.kill().unwrap();
    run.wait().unwrap();
    wait_until("the end of the ranks", || {
        ranks
            .iter()
            .all(|id| !fs::exists(format!("/proc/{id}/fd/0")).unwrap_or(false))
    });
    let saved = format!("resumes after step {}", lines(&log));
    let resumed = place.run(&train("orphans", &["--resume"]));
    resumed.expect(0, &[&saved]);
}

#[test]
fn batches_that_cannot_be_shared_are_refused() {
    let place = playground();
    let three = place.run(&train("runs", &["--processes", "3"]));
    let three = three.expect(2, &["run.toml", "train.batch_size is 8", "3 processes"]);
    assert_eq!(
        three.stderr.matches("error: ").count(),
        1,
        "{}",
        three.stderr
    );
    let devices = place.run(&["train", "run.toml", "--devices", "0-1"]);
    devices.expect(2, &["--devices 0-1", "CUDA"]);
    assert!(!place.path("runs").exists());
}

/// A rank as a launcher such as torchrun starts it.
fn rank(place: &Playground, rank: usize, port: u16, more: &[&str]) -> Command {
    let mut command = place.command(&train("runs", more));
    command
        .env("RANK", rank.to_string())
        .env("LOCAL_RANK", rank.to_string())
        .env("WORLD_SIZE", "2")
        .env("MASTER_ADDR", "127.0.0.1")
        .env("MASTER_PORT", port.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Runs two ranks, the second one with other settings.
fn two_ranks(place: &Playground, second: &[&str]) -> Vec<Outcome> {
    let port = free_port();
    let ranks = [rank(place, 0, port, &[]), rank(place, 1, port, second)];
    let ranks = ranks.map(|mut rank| rank.spawn().unwrap());
    let ended = ranks.map(|rank| Outcome::of(rank.wait_with_output().unwrap()));
    ended.into()
}

#[test]
fn ranks_with_other_settings_are_refused_once() {
    let place = playground();
    let ended = two_ranks(&place, &["--set", "optimizer.lr=0.5"]);
    let text: String = ended.iter().map(|rank| rank.stderr.as_str()).collect();
    assert_eq!(text.matches("error: ").count(), 1, "{text}");
    for words in [
        "rank 1 on",
        "optimizer.lr is 0.001 and there 0.5",
        "same settings",
    ] {
        assert!(text.contains(words), "{text}");
    }
    assert!(ended.iter().all(|rank| rank.code == Some(2)), "{text}");
    assert!(!place.path("runs").exists());
    // A rank that fails before it meets the others, too.
    let ended = two_ranks(&place, &["--set", "optimizer.lrr=0.5"]);
    let text: String = ended.iter().map(|rank| rank.stderr.as_str()).collect();
    assert_eq!(text.matches("error: ").count(), 1, "{text}");
    assert!(
        text.contains("rank 1 on") && text.contains("optimizer.lrr"),
        "{text}"
    );
    assert!(ended.iter().all(|rank| rank.code == Some(2)), "{text}");
    // As torchrun and srun start them, the same settings train.
    for rank in two_ranks(&place, &[]) {
        rank.expect(0, &[]);
    }
    assert_eq!(lines(&place.path("runs/metrics.jsonl")), 6);
}

#[test]
fn a_launcher_that_cannot_be_used_is_named() {
    let place = playground();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let used = rank(&place, 0, port, &[]).output().unwrap();
    Outcome::of(used).expect(2, &[&port.to_string(), "rank 0 of 2"]);
    let both = rank(&place, 0, port, &["--processes", "2"])
        .output()
        .unwrap();
    Outcome::of(both).expect(2, &["--processes", "torchrun has started"]);
    let mut command = place.command(&train("runs", &[]));
    let half = command.env("RANK", "0").output().unwrap();
    Outcome::of(half).expect(2, &["RANK is set, but WORLD_SIZE is not"]);
}
