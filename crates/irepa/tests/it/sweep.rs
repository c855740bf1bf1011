//! Tests of `runner sweep`: complete, repeated, in shards, killed, and with a broken encoder.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use crate::common::{Outcome, Playground, trained};
use metrics::figures::Figure;
use training::checkpoint;

const CELLS: [&str; 3] = [
    "sit-xs4.none.s0",
    "sit-xs4.irepa.hog-vit-g4_d128.s0",
    "sit-xs4.irepa.good.s0",
];

/// `(cell, status, reason)` of each row of results.csv.
fn results(place: &Playground) -> Vec<(String, String, String)> {
    let rows = report::results::read_csv(&place.path("runs/small/results.csv")).unwrap();
    rows.into_iter()
        .map(|row| (row.cell, row.status.name().to_owned(), row.reason))
        .collect()
}

fn statuses(place: &Playground) -> Vec<String> {
    results(place)
        .into_iter()
        .map(|(_, status, _)| status)
        .collect()
}

fn modified(path: &Path) -> SystemTime {
    path.metadata().unwrap().modified().unwrap()
}

#[test]
fn a_sweep_finishes_every_cell_and_writes_results_and_report() {
    let place = Playground::new();
    place.sweep(&[]).expect(0, &["3 done, 0 failed, 0 skipped"]);
    let results = results(&place);
    let cells: Vec<&str> = results.iter().map(|(cell, ..)| cell.as_str()).collect();
    assert_eq!(cells, CELLS);
    let rows = report::results::read_csv(&place.path("runs/small/results.csv")).unwrap();
    for row in &rows {
        assert_eq!(row.steps, Some(6));
        for figure in [Figure::DenoisingLoss, Figure::Fd] {
            assert!(row.get(figure) > Some(0.0), "{row:?}");
        }
        for figure in [Figure::AlignmentLoss, Figure::Lds] {
            assert_eq!(row.get(figure).is_some(), !row.is_baseline());
        }
        let cell = place.path("runs/small/cells").join(&row.cell);
        assert!(cell.join("samples/step-0000006.png").is_file());
        assert!(cell.join("config.toml").is_file());
        assert_eq!(
            trained(&cell)["metrics.jsonl"]
                .iter()
                .filter(|b| **b == b'\n')
                .count(),
            6
        );
    }
    let report = place.read("runs/small/report.html");
    assert!(report.contains("sit-xs4.irepa.good.s0") && report.contains("<svg"));
    assert!(place.read("runs/small/plan.toml").contains("hash"));
}

#[test]
fn a_finished_sweep_only_rebuilds_the_report() {
    let place = Playground::new();
    place.sweep(&[]).expect(0, &[]);
    let result = place
        .path("runs/small/cells")
        .join(CELLS[1])
        .join("result.json");
    let before = modified(&result);
    fs::remove_file(place.path("runs/small/report.html")).unwrap();
    place
        .sweep(&[])
        .expect(0, &["0 to run, 3 done", "nothing to run"]);
    assert_eq!(modified(&result), before);
    assert!(place.path("runs/small/report.html").is_file());

    // If the folder of one cell is removed, only that cell is run again, to the same weights.
    let cells = place.path("runs/small/cells");
    let weights = trained(&cells.join(CELLS[2]));
    fs::remove_dir_all(cells.join(CELLS[2])).unwrap();
    place.sweep(&[]).expect(0, &["1 to run, 2 done"]);
    assert_eq!(modified(&result), before);
    assert_eq!(trained(&cells.join(CELLS[2])), weights);

    // A changed setting causes the affected cells to run again.
    place
        .sweep(&["--set", "sample.count=13", "--dry-run"])
        .expect(0, &["3 to run, 0 done"]);
    place
        .sweep(&["--only", "*.none.*", "--fresh", "--dry-run"])
        .expect(0, &["1 to run", "1 selected"]);
}

/// Starts the program and kills it once `file` has `lines` lines. Returns whether it was killed
/// before its end.
fn kill_after(place: &Playground, arguments: &[&str], file: &Path, lines: usize) -> bool {
    let mut child = place
        .command(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let written = fs::read_to_string(file).map_or(0, |text| text.lines().count());
        if written >= lines {
            break;
        }
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        assert!(
            Instant::now() < deadline,
            "{} has {written} lines",
            file.display()
        );
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    // There is no exit code if a signal ended the process.
    child.wait().unwrap().code().is_none()
}

#[test]
fn a_killed_run_resumes_to_the_same_bits() {
    let place = Playground::new();
    let long = [
        "--set",
        "train.steps=20",
        "--set",
        "alignment.encoder=good",
        "--device",
        "cpu",
    ];
    let train = |out: &str, extra: &[&str]| -> Vec<String> {
        let mut all = vec!["train", "base.toml", "--out", out];
        all.extend(long);
        all.extend(extra);
        all.into_iter().map(str::to_owned).collect()
    };
    let whole = train("whole", &[]);
    let whole: Vec<&str> = whole.iter().map(String::as_str).collect();
    place.run(&whole).expect(0, &[]);

    let resume = train("killed", &["--resume"]);
    let resume: Vec<&str> = resume.iter().map(String::as_str).collect();
    let log = place.path("killed/metrics.jsonl");
    // The steps differ in every run of the test; the result must not depend on them.
    let clock = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    let mut seed = u64::from(clock.subsec_nanos());
    let mut kills = 0;
    let mut steps = Vec::new();
    for third in 0..3 {
        seed = data::seed::derive(seed, "kill", &[third]);
        let step = third as usize * 6 + 1 + (seed % 6) as usize;
        steps.push(step);
        kills += usize::from(kill_after(&place, &resume, &log, step));
    }
    eprintln!("killed at about steps {steps:?}");
    assert!(
        kills >= 2,
        "the runs ended before they could be killed: {steps:?}"
    );
    place.run(&resume).expect(0, &[]);
    assert_eq!(
        trained(&place.path("killed")),
        trained(&place.path("whole")),
        "{steps:?}"
    );
}

/// Arguments of a run that encodes every batch, one batch ahead or not.
fn encoding(out: &str, ahead: bool, extra: &[&str]) -> Vec<String> {
    let ahead = format!("data.encode_ahead={ahead}");
    let settings = [
        "train.steps=12",
        "alignment.encoder=good",
        "data.token_memory_mib=0",
        &ahead,
    ];
    ["train", "base.toml", "--device", "cpu", "--out", out]
        .into_iter()
        .chain(settings.into_iter().flat_map(|setting| ["--set", setting]))
        .chain(extra.iter().copied())
        .map(str::to_owned)
        .collect()
}

fn words(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

#[test]
fn encoding_ahead_changes_no_bit() {
    let place = Playground::new();
    place
        .run(&words(&encoding("plain", false, &[])))
        .expect(0, &[]);
    place
        .run(&words(&encoding("ahead", true, &[])))
        .expect(0, &[]);
    let plain = trained(&place.path("plain"));
    assert_eq!(trained(&place.path("ahead")), plain);

    // Killed while the next batch is made, then resumed without encoding ahead, and then with it.
    let killed = encoding("killed", true, &["--resume"]);
    let log = place.path("killed/metrics.jsonl");
    assert!(kill_after(&place, &words(&killed), &log, 3));
    let continued = encoding("killed", false, &["--resume"]);
    assert!(kill_after(&place, &words(&continued), &log, 7));
    place.run(&words(&killed)).expect(0, &[]);
    assert_eq!(trained(&place.path("killed")), plain);
}

#[test]
fn an_interrupted_run_is_saved_while_its_next_batch_is_made() {
    let place = Playground::new();
    place
        .run(&words(&encoding("whole", true, &[])))
        .expect(0, &[]);
    let rest = encoding("run", true, &["--resume"]);
    let child = place
        .command(&words(&rest))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let log = place.path("run/metrics.jsonl");
    while fs::read_to_string(&log).map_or(0, |text| text.lines().count()) < 2 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let interrupt = ["-INT", &child.id().to_string()];
    assert!(
        Command::new("kill")
            .args(interrupt)
            .status()
            .unwrap()
            .success()
    );
    let outcome = Outcome::of(child.wait_with_output().unwrap());
    outcome.expect(130, &["interrupted and saved at step"]);
    // The saved position does not include the batch that was being made.
    let saved = checkpoint::list(&place.path("run/checkpoints"))
        .unwrap()
        .pop()
        .unwrap();
    let manifest = fs::read_to_string(saved.join("manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    let (step, seen) = (&manifest["step"], &manifest["cursor"]["seen"]);
    assert_eq!(seen.as_u64().unwrap(), 8 * step.as_u64().unwrap());
    place.run(&words(&rest)).expect(0, &[]);
    assert_eq!(trained(&place.path("run")), trained(&place.path("whole")));
}

#[test]
fn a_killed_sweep_is_completed_by_the_next() {
    let place = Playground::new();
    place.sweep(&["--out", "whole"]).expect(0, &[]);
    let log = place
        .path("runs/small/cells")
        .join(CELLS[1])
        .join("metrics.jsonl");
    let arguments = ["sweep", "experiment.toml", "--device", "cpu"];
    assert!(kill_after(&place, &arguments, &log, 3));
    place.sweep(&[]).expect(0, &["3 done"]);
    for cell in CELLS {
        assert_eq!(
            trained(&place.path("runs/small/cells").join(cell)),
            trained(&place.path("whole/small/cells").join(cell)),
            "{cell}"
        );
    }
}

#[test]
fn a_broken_encoder_fails_its_cells_and_no_others() {
    let place = Playground::new();
    for (broken, reason) in [
        ("nan_tokens", "NaN"),
        ("wrong_shape", "shape"),
        ("not_an_encoder", "does not return patch tokens"),
    ] {
        place.add_encoder(broken);
        place.edit(
            "experiment.toml",
            "\"good\"]",
            &format!("\"{broken}\", \"good\"]"),
        );
        place
            .sweep(&["--set", "train.steps=2"])
            .expect(1, &["failed", broken, reason]);
        let failed: Vec<_> = results(&place)
            .into_iter()
            .filter(|(_, status, _)| status == "failed")
            .collect();
        let [(cell, _, found)] = &failed[..] else {
            panic!("{failed:?}");
        };
        assert!(
            cell.contains(broken) && found.contains(reason),
            "{cell}: {found}"
        );
        assert_eq!(
            statuses(&place)
                .iter()
                .filter(|status| *status == "done")
                .count(),
            3
        );
        place.edit("experiment.toml", &format!("\"{broken}\", "), "");
    }
}

#[test]
fn missing_encoders_are_skipped_and_the_output_says_how_to_get_them() {
    let place = Playground::new();
    place.edit("experiment.toml", "\"good\"]", "\"good\", \"paper27\"]");
    let outcome = place
        .sweep(&["--set", "train.steps=2"])
        .expect(0, &["3 done, 0 failed, 27 skipped", "cargo xtask export"]);
    let skipped = outcome
        .stderr
        .lines()
        .filter(|line| line.contains("skipped:"))
        .count();
    assert_eq!(skipped, 1, "one compact line");
    let reasons = results(&place)
        .into_iter()
        .filter(|(_, status, _)| status == "skipped");
    assert!(
        reasons
            .into_iter()
            .all(|(.., reason)| reason.contains("cargo xtask export"))
    );
}

#[test]
fn shards_divide_the_cells_and_together_complete_the_sweep() {
    let place = Playground::new();
    // One encoder has more than half of the cells.
    for recipe in ["repa", "reg"] {
        place.write(&format!("recipes/{recipe}.toml"), "");
    }
    place.edit("experiment.toml", "\"hog-vit-g4_d128\", ", "");
    place.edit(
        "experiment.toml",
        "\"irepa\"]",
        "\"irepa\", \"repa\", \"reg\"]",
    );
    let listed = |shard: &str| -> Vec<String> {
        let outcome = place.sweep(&["--dry-run", "--shard", shard]);
        let lines = outcome.expect(0, &[]).stdout;
        lines
            .lines()
            .map(|line| line.split('\t').next().unwrap().to_owned())
            .collect()
    };
    let shards = [listed("1/2"), listed("2/2")];
    assert_eq!(shards.each_ref().map(Vec::len), [2, 2], "{shards:?}");
    let mut all = shards.concat();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 4, "{shards:?}");

    // On a machine without the encoder, the shard has the same cells, which are skipped.
    fs::rename(place.path("encoders"), place.path("elsewhere")).unwrap();
    place.edit("experiment.toml", "\"good\"]", "\"dinov2-vit-b\"]");
    place.edit("base.toml", "good_patch_only", "");
    let mut other = listed("2/2");
    let mut renamed: Vec<String> = shards[1]
        .iter()
        .map(|id| id.replace("good", "dinov2-vit-b"))
        .collect();
    // Cells that are skipped are listed last.
    other.sort();
    renamed.sort();
    assert_eq!(other, renamed);
    place.edit("experiment.toml", "\"dinov2-vit-b\"]", "\"good\"]");
    place.edit(
        "base.toml",
        "fd_encoder = \"\"",
        "fd_encoder = \"good_patch_only\"",
    );
    fs::rename(place.path("elsewhere"), place.path("encoders")).unwrap();

    let settings = ["--set", "train.steps=2"];
    for (index, shard) in ["1/2", "2/2"].into_iter().enumerate() {
        let mut all = vec!["--shard", shard];
        all.extend(settings);
        place.sweep(&all).expect(0, &["2 to run"]);
        assert_eq!(statuses(&place), vec!["done"; 2 * (index + 1)]);
    }
    place.sweep(&settings).expect(0, &["0 to run"]);
}

#[test]
fn cells_of_a_cohort_train_as_they_would_alone() {
    // With one encoder, both recipes share its batches and tokens.
    let place = Playground::new();
    place.write(
        "recipes/repa.toml",
        "[alignment]\nhead = { kind = \"mlp\", width = 32 }\n",
    );
    place.edit(
        "experiment.toml",
        "[\"none\", \"irepa\"]",
        "[\"repa\", \"irepa\"]",
    );
    place.edit("experiment.toml", "\"hog-vit-g4_d128\", ", "");
    place.sweep(&[]).expect(0, &["2 done"]);
    let memory = |out: &str| -> Vec<Option<f64>> {
        let rows = report::results::read_csv(&place.path(out).join("small/results.csv")).unwrap();
        rows.iter().map(|row| row.get(Figure::PeakMemory)).collect()
    };
    // The peak memory of the process cannot be attributed to either cell.
    assert_eq!(memory("runs"), [None, None]);
    place
        .sweep(&["--out", "alone", "--only", "*.repa.*"])
        .expect(0, &[]);
    place
        .sweep(&["--out", "alone", "--only", "*.irepa.*"])
        .expect(0, &[]);
    let counted = torch_ext::device::reset_peak_memory(tch::Device::Cpu).unwrap();
    assert!(memory("alone").iter().all(|peak| peak.is_some() == counted));
    for cell in ["sit-xs4.repa.good.s0", "sit-xs4.irepa.good.s0"] {
        assert_eq!(
            trained(&place.path("runs/small/cells").join(cell)),
            trained(&place.path("alone/small/cells").join(cell)),
            "{cell}"
        );
    }
}

#[test]
fn a_checkpoint_gives_samples_as_pngs_and_as_npz() {
    let place = Playground::new();
    let train = ["train", "base.toml", "--out", "run", "--device", "cpu"];
    place.run(&train).expect(0, &[]);
    place.run(&train).expect(2, &["--resume", "--out"]);
    let checkpoint = "run/checkpoints/step-0000006";
    place
        .run(&[
            "sample", checkpoint, "--count", "5", "--labels", "0,2", "--out", "pngs",
        ])
        .expect(0, &[]);
    let files = fs::read_dir(place.path("pngs")).unwrap();
    let pictures = files.filter(|file| {
        let name = file.as_ref().unwrap().file_name();
        name.to_string_lossy().ends_with(".png")
    });
    assert_eq!(pictures.count(), 5);
    place
        .run(&["sample", checkpoint, "--count", "3", "--out", "three.npz"])
        .expect(0, &[]);
    let file = fs::File::open(place.path("three.npz")).unwrap();
    let mut npz = ndarray_npy::NpzReader::new(file).unwrap();
    let images: ndarray::Array4<u8> = npz.by_name("arr_0").unwrap();
    assert_eq!(images.dim(), (3, 16, 16, 3));
    place
        .run(&["sample", checkpoint, "--labels", "99"])
        .expect(2, &["99", "classes 0 to 8"]);
}

#[test]
fn a_run_is_not_resumed_with_other_settings() {
    let place = Playground::new();
    let train = ["train", "base.toml", "--out", "run", "--device", "cpu"];
    place.run(&train).expect(0, &[]);
    let before = trained(&place.path("run"));
    let resume = |setting| {
        let mut all = train.to_vec();
        all.extend(["--resume", "--set", setting]);
        place.run(&all)
    };
    let named = ["optimizer.lr was ", " and is 0.5", "--init", "--out"];
    resume("optimizer.lr=0.5").expect(2, &named);
    resume("train.steps=3").expect(2, &["already reached step 6", "train.steps = 3"]);
    assert_eq!(trained(&place.path("run")), before);
    resume("train.steps=8").expect(0, &[]);
}

#[test]
fn a_cell_with_other_settings_restarts_and_keeps_its_previous_run() {
    let place = Playground::new();
    let sweep = ["--only", "*.none.*"];
    place.sweep(&sweep).expect(0, &["1 done"]);
    let cell = place.path("runs/small/cells/sit-xs4.none.s0");
    let before = trained(&cell);
    let mut other = sweep.to_vec();
    other.extend(["--set", "optimizer.lr=0.002"]);
    place.sweep(&other).expect(0, &["1 done", "before"]);
    assert_ne!(trained(&cell), before);
    assert_eq!(trained(&cell.join("before/1")), before);
    assert!(cell.join("before/1/result.json").is_file());
    // With the original settings, the cell is run again, to the same bits.
    place.sweep(&sweep).expect(0, &["1 done"]);
    assert_eq!(trained(&cell), before);
}

#[test]
fn encoders_joined_by_a_comma_are_one_target() {
    let place = Playground::new();
    place.edit("experiment.toml", "\"good\"]", "\"good,good_patch_only\"]");
    place.add_encoder("good_patch_only");
    place
        .sweep(&["--set", "train.steps=2"])
        .expect(0, &["3 done, 0 failed, 0 skipped"]);
    let cells: Vec<String> = results(&place).into_iter().map(|(cell, ..)| cell).collect();
    assert!(
        cells
            .iter()
            .any(|cell| cell.contains("good+good_patch_only")),
        "{cells:?}"
    );
}

#[test]
fn cells_that_do_not_fit_into_memory_are_trained_separately_to_the_same_bits() {
    check_separate_training("data.encode_ahead=false");
}

#[test]
fn cells_that_do_not_fit_into_memory_while_encoding_ahead_are_trained_separately() {
    check_separate_training("data.encode_ahead=true");
}

fn check_separate_training(ahead: &str) {
    let place = Playground::new();
    place.add_encoder("out_of_memory");
    place.write(
        "recipes/repa.toml",
        "[alignment]\nlosses = [{ kind = \"cosine\", coefficient = 0.3 }]\n",
    );
    place.edit(
        "experiment.toml",
        "[\"none\", \"irepa\"]",
        "[\"repa\", \"irepa\"]",
    );
    place.edit(
        "experiment.toml",
        "\"hog-vit-g4_d128\", \"good\"",
        "\"good_patch_only\", \"out_of_memory\"",
    );
    place.edit("base.toml", "spatial_images = 4", "spatial_images = 0");
    // The encoder processes a batch of this size in one call.
    place.edit("base.toml", "batch_size = 8", "batch_size = 4");
    place.sweep(&["--set", ahead]).expect(
        0,
        &[
            "out of memory with 2 cells at the same time: training 1 first, then 1",
            "4 done, 0 failed",
        ],
    );
    for recipe in ["repa", "irepa"] {
        let cell =
            |encoder: &str| place.path(&format!("runs/small/cells/sit-xs4.{recipe}.{encoder}.s0"));
        // The same tokens, from an encoder that does not run out of memory.
        let expected = trained(&cell("good_patch_only"));
        for (name, bytes) in trained(&cell("out_of_memory")) {
            // The JSON files of a checkpoint name the encoder.
            let same = bytes == expected[&name] || name.ends_with(".json");
            assert!(same, "{name} of {recipe}");
        }
    }
    // A single cell that does not fit fails with a hint.
    place
        .sweep(&[
            "--set",
            ahead,
            "--only",
            "*.irepa.out_of_memory.*",
            "--fresh",
        ])
        .expect(1, &["out of memory", "train.accumulation", "1 failed"]);
}

#[test]
fn cells_that_exceed_the_memory_limit_wait() {
    let place = Playground::new();
    place.edit(
        "experiment.toml",
        "\"hog-vit-g4_d128\", \"good\"",
        "\"good\"",
    );
    place.edit(
        "experiment.toml",
        "seed = [0]",
        "seed = [0]\n[set.alignment]\npool_tokens = true",
    );
    place.write("recipes/repa.toml", "");
    place.edit(
        "experiment.toml",
        "\"none\", \"irepa\"",
        "\"none\", \"repa\", \"irepa\"",
    );
    place.sweep(&["--out", "together"]).expect(0, &["3 done"]);
    let outcome = place
        .sweep(&["--out", "apart", "--memory-limit", "1"])
        .expect(
            0,
            &["1 cells fit into memory at the same time; 1 wait", "3 done"],
        );
    assert_eq!(outcome.stderr.matches("fit into memory").count(), 1);
    for cell in ["none", "repa.good", "irepa.good"] {
        let cell = |out: &str| place.path(&format!("{out}/small/cells/sit-xs4.{cell}.s0"));
        assert!(trained(&cell("apart")) == trained(&cell("together")));
    }
}
