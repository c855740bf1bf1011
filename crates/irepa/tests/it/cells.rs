//! What the cells of a sweep share, and what they must not share: tokens, names, processes, failures.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::Arc;

use crate::common::{Outcome, Playground, end_of, interrupt, trained, wait_until};
use data::{Cursor, Loader};
use metrics::figures::Figure;
use report::results::{ResultRow, Status, read_csv};
use sweep::cell_folder::CellFolder;
use sweep::config_file;
use training::checkpoint;

#[test]
fn cells_that_differ_in_the_precision_of_their_encoder_do_not_share_tokens() {
    let place = Playground::of_case("R1-precision");
    let sweep = |more: &[&str]| {
        let mut all = vec!["sweep", "exp.toml", "--device", "cpu"];
        all.extend(more);
        place.run(&all).expect(0, &[]);
    };
    sweep(&[]);
    sweep(&["--only", "*half*", "--out", "alone"]);
    let loss = |csv: &str, recipe: &str| {
        let rows = read_csv(&place.path(csv)).unwrap();
        let row = rows.into_iter().find(|row| row.recipe == recipe);
        row.unwrap().get(Figure::AlignmentLoss).unwrap()
    };
    let half = loss("runs/r1/results.csv", "half");
    assert_eq!(half, loss("alone/r1/results.csv", "half"));
    assert_ne!(half, loss("runs/r1/results.csv", "full"));
}

#[test]
fn settings_that_the_grid_decides_are_refused() {
    let place = Playground::new();
    for (setting, axis) in [
        ("alignment.encoder=hog", "grid.encoder"),
        ("alignment={ encoder = \"hog\" }", "grid.encoder"),
        ("train.seed=5", "grid.seed"),
        ("model.name=SiT-XS/2", "grid.model"),
        ("alignment.head.kind=linear", "grid.recipe"),
        ("alignment.head={ kind = \"linear\" }", "grid.recipe"),
    ] {
        for more in [&[][..], &["--only", "*.irepa.*"], &["--dry-run"]] {
            let mut all = vec!["--set", setting];
            all.extend(more);
            place.sweep(&all).expect(2, &[setting, axis, "--only"]);
        }
    }
    // The recipe of the selected cells does not set a head.
    let selected = ["--only", "*.none.*", "--dry-run"];
    let mut all = selected.to_vec();
    all.extend(["--set", "alignment.head.kind=linear"]);
    place.sweep(&all).expect(0, &["1 to run"]);
    assert!(!place.path("runs").exists());

    // They are also refused in the `set` tables of the experiment.
    place.edit(
        "experiment.toml",
        "seed = [0]",
        "seed = [0]\n[cpu.set.train]\nseed = 5",
    );
    place
        .sweep(&["--dry-run"])
        .expect(2, &["cpu.set.train.seed", "grid.seed"]);
    // Without the axis, the seed is a setting, and the ids of the cells contain it.
    place.edit("experiment.toml", "seed = [0]\n", "");
    let ids = place.sweep(&["--dry-run"]).expect(0, &[]).stdout;
    assert!(ids.contains("sit-xs4.none.s5"), "{ids}");
    let more = ["--dry-run", "--set", "train.seed=6"];
    let ids = place.sweep(&more).expect(0, &[]).stdout;
    assert!(ids.contains("sit-xs4.none.s6"), "{ids}");
}

#[test]
fn a_setting_must_be_valid_for_the_selected_cells_only() {
    let place = Playground::new();
    place.edit(
        "experiment.toml",
        "recipes = \"recipes\"",
        "recipes = \"recipes\"\nvariants = \"variants\"",
    );
    place.edit(
        "experiment.toml",
        "seed = [0]",
        "seed = [0]\nvariant = [\"sit\", \"meanflow\"]",
    );
    place.write(
        "variants/meanflow.toml",
        "[objective]\nkind = \"meanflow\"\ncfg_omega = 0.2\n[sample]\nsampler = { num_steps = 1 }\n",
    );
    let omega = |only: &str| {
        place.sweep(&[
            "--dry-run",
            "--only",
            only,
            "--set",
            "objective.cfg_omega=0.3",
        ])
    };
    omega("*.meanflow.*").expect(0, &["3 to run"]);
    omega("*").expect(2, &["sit-xs4.none.s0", "cfg_omega"]);
    // A setting cannot replace what distinguishes the variants.
    let kind = ["--set", "objective.kind=velocity", "--only", "*.meanflow.*"];
    place.sweep(&kind).expect(2, &["grid.variant", "--only"]);

    // Cells that are not selected get the settings that are valid for them.
    let mut settings = vec!["--only", "*.meanflow.none.*", "--set", "train.steps=2"];
    settings.extend(["--set", "objective.cfg_omega=0.3"]);
    place.sweep(&settings).expect(0, &["1 done"]);
    let plan: toml::Table = place.read("runs/small/plan.toml").parse().unwrap();
    for cell in plan["cell"].as_array().unwrap() {
        assert_eq!(cell["config"]["train"]["steps"].as_integer(), Some(2));
    }
}

#[test]
fn a_failed_stream_saves_all_cells_and_fails_those_that_need_the_batch() {
    let place = Playground::new();
    place.write("recipes/short.toml", "[train]\nsteps = 1\n");
    place.write(
        "recipes/repa.toml",
        "[alignment]\nhead = { kind = \"mlp\", width = 8 }\n",
    );
    place.edit(
        "experiment.toml",
        "[\"none\", \"irepa\"]",
        "[\"irepa\", \"short\", \"repa\"]",
    );
    place.edit("experiment.toml", "\"hog-vit-g4_d128\", ", "");
    place.edit(
        "base.toml",
        "split = \"val\"",
        "split = \"\"\nmax_corrupt_share = 0.0",
    );
    place.edit(
        "base.toml",
        "checkpoint_every = 2",
        "checkpoint_every = 100",
    );
    place.edit("base.toml", "reference_images = 12", "reference_images = 4");
    for index in 0..24_u8 {
        let class = ["cats", "dogs"][usize::from(index / 12)];
        let path = place.path("images").join(class);
        fs::create_dir_all(&path).unwrap();
        let image = image::RgbImage::from_fn(16, 16, |x, y| {
            image::Rgb([index * 10, x as u8 * 15, y as u8 * 15])
        });
        image.save(path.join(format!("{index:02}.png"))).unwrap();
    }
    let data = place.read("base.toml");
    let data = data.lines().find(|line| line.starts_with("path")).unwrap();
    place.edit("base.toml", data, "path = \"images\"");
    place.sweep(&["--out", "whole"]).expect(0, &["3 done"]);

    // Damages an image of the third batch for one sweep.
    let config = config_file::load(&place.path("base.toml"), &[]).unwrap();
    let dataset = data::open(&config.data.path, &config.data.training_split()).unwrap();
    let mut batches =
        Loader::new(Arc::clone(&dataset), config.loader(), Cursor::default()).unwrap();
    let third = batches.nth(2).unwrap().unwrap();
    // The image must not be one that the encoder is measured on.
    let evenly: Vec<u64> = (0..4).map(|index| index * 24 / 4).collect();
    let id = third
        .ids
        .into_iter()
        .find(|id| !evenly.contains(id))
        .unwrap();
    let class = ["cats", "dogs"][id as usize / 12];
    let image = place
        .path("images")
        .join(class)
        .join(format!("{id:02}.png"));
    let whole = fs::read(&image).unwrap();
    fs::write(&image, vec![b'x'; whole.len()]).unwrap();
    place.sweep(&[]).expect(1, &["1 done, 2 failed", "corrupt"]);
    let rows = read_csv(&place.path("runs/small/results.csv")).unwrap();
    let ended: Vec<(&str, Status, Option<u64>)> = rows
        .iter()
        .map(|row| (row.recipe.as_str(), row.status, row.steps))
        .collect();
    let expected = [
        ("irepa", Status::Failed, Some(2)),
        ("short", Status::Done, Some(1)),
        ("repa", Status::Failed, Some(2)),
    ];
    assert_eq!(ended, expected);
    let result = place.read("runs/small/cells/sit-xs4.irepa.good.s0/result.json");
    assert!(result.contains("\"corrupt_skipped\": 0"), "{result}");

    fs::write(&image, whole).unwrap();
    let outcome = place.sweep(&[]).expect(0, &["3 done"]);
    let resumed = outcome.stderr.matches("resumes after step 2 of 6").count();
    assert_eq!(resumed, 2, "{}", outcome.stderr);
    for recipe in ["irepa", "repa"] {
        let cell = |out: &str| place.path(&format!("{out}/small/cells/sit-xs4.{recipe}.good.s0"));
        assert!(trained(&cell("runs")) == trained(&cell("whole")));
    }
}

/// Rows without the columns that differ between runs.
fn comparable(place: &Playground, csv: &str) -> Vec<ResultRow> {
    let rows = read_csv(&place.path(csv)).unwrap();
    rows.into_iter()
        .map(|mut row| {
            row.figures.remove(Figure::StepsPerSecond);
            row.figures.remove(Figure::PeakMemory);
            row
        })
        .collect()
}

#[test]
fn eight_processes_in_one_folder_run_every_cell_once() {
    let place = Playground::new();
    place.write("recipes/repa.toml", "");
    place.edit("experiment.toml", "\"irepa\"]", "\"irepa\", \"repa\"]");
    place.edit("experiment.toml", "seed = [0]", "seed = [0, 1]");
    let sweep = [
        "sweep",
        "experiment.toml",
        "--device",
        "cpu",
        "--set",
        "train.steps=3",
    ];
    let processes: Vec<_> = (0..8)
        .map(|_| {
            let mut command = place.command(&sweep);
            let command = command.env("OMP_NUM_THREADS", "1");
            command
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let outcomes: Vec<Outcome> = processes
        .into_iter()
        .map(|process| Outcome::of(process.wait_with_output().unwrap()).expect(0, &["0 failed"]))
        .collect();
    let mut alone = sweep.to_vec();
    alone.extend(["--out", "alone"]);
    let alone = place
        .command(&alone)
        .env("OMP_NUM_THREADS", "1")
        .output()
        .unwrap();
    Outcome::of(alone).expect(0, &["10 done"]);

    let rows = comparable(&place, "runs/small/results.csv");
    assert_eq!(rows, comparable(&place, "alone/small/results.csv"));
    assert_eq!(rows.len(), 10);
    for row in &rows {
        let done = format!("{}: done, ", row.cell);
        let times: usize = outcomes
            .iter()
            .map(|outcome| outcome.stderr.matches(&done).count())
            .sum();
        assert_eq!(times, 1, "{}", row.cell);
        let cell = |out: &str| place.path(&format!("{out}/small/cells/{}", row.cell));
        assert!(trained(&cell("runs")) == trained(&cell("alone")));
        assert!(!cell("runs").join("before").exists());
    }
}

/// On a file system without `flock`, the lock is a file that names the process and its host.
#[test]
fn a_sweep_names_and_waits_for_the_lock_file_of_another_host() {
    let place = Playground::new();
    let folder = CellFolder::new(&place.path("runs/small"), "sit-xs4.none.s0");
    fs::create_dir_all(folder.path()).unwrap();
    let held = folder.path().join(".lock.held");
    fs::write(&held, "00000000000000ff-7-9 another-host\n").unwrap();
    let sweep = ["sweep", "experiment.toml", "--device", "cpu"];
    let settings = ["--only", "sit-xs4.none.s0", "--set", "train.steps=2"];
    let mut child = place
        .command(&[&sweep[..], &settings[..]].concat())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let named = lines.find(|line| line.as_ref().unwrap().contains(".lock.held"));
    let named = named.unwrap().unwrap();
    assert!(
        ["sit-xs4.none.s0", "another-host", "remove"]
            .iter()
            .all(|part| named.contains(part)),
        "{named}"
    );
    assert!(child.try_wait().unwrap().is_none());
    fs::remove_file(&held).unwrap();
    // Reads to the end, so that the pipe does not fill up.
    assert!(lines.all(|line| line.is_ok()));
    assert_eq!(end_of(&mut child), Some(0));
    assert_eq!(folder.result().unwrap().unwrap().row.status, Status::Done);
}

#[test]
fn a_sweep_waits_for_a_cell_of_another_process() {
    let place = Playground::new();
    let folder = CellFolder::new(&place.path("runs/small"), "sit-xs4.none.s0");
    let lock = folder.lock().unwrap();
    let sweep = [
        "sweep",
        "experiment.toml",
        "--device",
        "cpu",
        "--set",
        "train.steps=2",
    ];
    let mut child = place
        .command(&sweep)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The other cells are done in the meantime, and the locked cell is not touched.
    let others = ["irepa.good", "irepa.hog-vit-g4_d128"]
        .map(|name| CellFolder::new(&place.path("runs/small"), &format!("sit-xs4.{name}.s0")));
    wait_until("the other cells", || {
        others.iter().all(|other| other.result().unwrap().is_some())
    });
    assert!(child.try_wait().unwrap().is_none());
    assert!(folder.result().unwrap().is_none() && !folder.path().join("config.toml").exists());
    // The lock is released without a result, and the sweep runs the cell.
    drop(lock);
    assert_eq!(end_of(&mut child), Some(0));
    let row = folder.result().unwrap().unwrap().row;
    assert_eq!((row.status, row.steps), (Status::Done, Some(2)));

    // A single run does not wait.
    let lock = folder.lock().unwrap();
    let path = folder.path().to_string_lossy().into_owned();
    let train = [
        "train",
        "base.toml",
        "--resume",
        "--out",
        &path,
        "--set",
        "train.steps=2",
    ];
    place
        .run(&train)
        .expect(1, &["another process is running this cell"]);
    drop(lock);

    // An interruption ends the wait.
    let lock = folder.lock().unwrap();
    let more = [
        "sweep",
        "experiment.toml",
        "--device",
        "cpu",
        "--set",
        "train.steps=3",
    ];
    let more = [&more[..], &["--only", "*.none.*"]].concat();
    let mut child = place
        .command(&more)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("the plan", || {
        place.read("runs/small/plan.toml").contains("steps = 3")
    });
    interrupt(&child);
    assert_eq!(end_of(&mut child), Some(130));
    assert_eq!(folder.result().unwrap().unwrap().row, row);
    drop(lock);
}

#[test]
fn a_sweep_that_cannot_run_any_cell_fails_with_the_reason() {
    let place = Playground::new();
    place.edit(
        "experiment.toml",
        "encoder = [\"hog-vit-g4_d128\", \"good\"]",
        "encoder = [\"dinov2-vit-b\", \"good\"]",
    );
    let only = ["--set", "train.steps=2", "--only", "*dinov2*"];
    place.sweep(&only).expect(
        1,
        &[
            "none of the 1 selected cells",
            "cargo xtask export dinov2-vit-b",
        ],
    );
    place
        .sweep(&["--set", "train.steps=2"])
        .expect(0, &["2 done"]);
}

#[test]
fn encoders_are_found_from_any_working_directory() {
    let place = Playground::new();
    fs::create_dir_all(place.path("experiments")).unwrap();
    fs::rename(place.path("encoders"), place.path("experiments/encoders")).unwrap();
    fs::create_dir_all(place.path("a/b")).unwrap();
    let from = |folder: &str, arguments: &[&str]| {
        let mut command = place.command(arguments);
        let command = command
            .current_dir(place.path(folder))
            .env_remove("IREPA_ENCODERS");
        Outcome::of(command.output().unwrap())
    };
    for (folder, file) in [("", "experiment.toml"), ("a/b", "../../experiment.toml")] {
        from(folder, &["sweep", file, "--dry-run"]).expect(0, &["3 to run", "0 skipped"]);
    }
    let elsewhere = tempfile::tempdir().unwrap();
    let file = place.path("experiment.toml").to_string_lossy().into_owned();
    let mut command = place.command(&["sweep", &file, "--dry-run"]);
    let command = command
        .current_dir(elsewhere.path())
        .env_remove("IREPA_ENCODERS");
    Outcome::of(command.output().unwrap()).expect(0, &["3 to run", "0 skipped"]);
    // Without a file, the folders above the working directory are searched.
    let list = from("a/b", &["encoders", "list"]).expect(0, &[]).stdout;
    assert!(list.contains("good_patch_only"), "{list}");
}

#[test]
fn an_evaluation_during_training_can_be_interrupted() {
    let place = Playground::new();
    let sweep = [
        "sweep",
        "experiment.toml",
        "--device",
        "cpu",
        "--only",
        "*.none.*",
        "--set",
        "evaluate.every=1",
        "--set",
        "train.checkpoint_every=100",
        "--set",
        "sample.sampler.num_steps=1000000",
    ];
    let mut child = place
        .command(&sweep)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let cell = place.path("runs/small/cells/sit-xs4.none.s0");
    let saved = || checkpoint::list(&cell.join("checkpoints")).unwrap();
    wait_until("the checkpoint before the evaluation", || {
        !saved().is_empty()
    });
    interrupt(&child);
    assert_eq!(end_of(&mut child), Some(130));
    assert_eq!(saved().len(), 1);
    // The next sweep completes the missing evaluations, with a faster sampler.
    place
        .sweep(&["--only", "*.none.*", "--set", "evaluate.every=1"])
        .expect(0, &["1 done"]);
    let log = fs::read_to_string(cell.join("metrics.jsonl")).unwrap();
    assert_eq!(log.lines().count(), 6);
    assert!(log.lines().all(|line| line.contains("\"fd\":")), "{log}");
}

#[test]
fn drawing_samples_can_be_interrupted_between_steps() {
    let place = Playground::new();
    let train = [
        "train",
        "base.toml",
        "--out",
        "run",
        "--set",
        "train.steps=1",
    ];
    place.run(&train).expect(0, &[]);
    let sample = [
        "sample", "run", "--count", "8", "--steps", "1000000", "--out", "images",
    ];
    let mut child = place
        .command(&sample)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("the folder of samples", || place.path("images").is_dir());
    interrupt(&child);
    assert_eq!(end_of(&mut child), Some(130));
}

#[test]
fn settings_of_sampling_apply_to_every_variant() {
    let place = Playground::new();
    let experiment = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../experiments/variants.toml"
    );
    let dry = ["sweep", experiment, "--device", "cpu", "--dry-run", "--set"];
    let with = |setting| place.run(&[&dry[..], &[setting]].concat());
    // JiT and MeanFlow differ in the number of steps.
    with("sample.sampler.num_steps=2").expect(0, &["to run"]);
    // The objective of MeanFlow cannot be set for all variants.
    with("objective.kind=\"meanflow\"").expect(2, &["grid.variant", "--only"]);
}
