//! Runs that collapse: how they are reported, and that nothing of them is used as a result.

use std::fs;
use std::path::Path;

use crate::common::{Outcome, Playground, repository};
use serde_json::Value;

/// A playground with a configuration of `tests/data/cases/25-collapse` on the embedded data.
fn place(file: &str) -> Playground {
    let place = Playground::new();
    let case = repository().join("crates/irepa/tests/data/cases/25-collapse");
    let text = fs::read_to_string(case.join(file)).unwrap();
    let tree = repository().canonicalize().unwrap();
    place.write(file, &text.replace("./tree", &tree.to_string_lossy()));
    place
}

fn train(place: &Playground, file: &str, out: &str, settings: &[&str]) -> Outcome {
    let mut all = vec!["train", file, "--device", "cpu", "--out", out];
    for setting in [
        "alignment.encoder=none",
        "evaluate.fd_encoder=\"\"",
        "evaluate.inception=[]",
    ]
    .iter()
    .chain(&["sample.count=0", "sample.grid=0"])
    .chain(settings)
    {
        all.extend(["--set", setting]);
    }
    place.run(&all)
}

fn result(place: &Playground, out: &str) -> Value {
    serde_json::from_str(&place.read(&format!("{out}/result.json"))).unwrap()
}

fn images(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let names = entries.map(|entry| entry.unwrap().file_name());
    names
        .filter(|name| name.to_string_lossy().ends_with(".png"))
        .count()
}

#[test]
fn a_nan_error_names_an_existing_checkpoint_or_says_that_there_is_none() {
    let place = place("sit25.toml");
    train(
        &place,
        "sit25.toml",
        "none",
        &["train.checkpoint_every=1000"],
    )
    .expect(
        1,
        &[
            "at step",
            "there is no earlier checkpoint",
            "train.checkpoint_every",
        ],
    );
    assert!(!place.path("none/checkpoints").exists());

    train(&place, "sit25.toml", "run", &["train.checkpoint_every=1"]).expect(1, &["at step"]);
    let reason = result(&place, "run")["reason"].as_str().unwrap().to_owned();
    let named = reason.split("the last good checkpoint is ").nth(1).unwrap();
    let named = Path::new(named.split(',').next().unwrap());
    assert!(
        place
            .path("run")
            .join(named.strip_prefix("run").unwrap())
            .join("manifest.json")
            .exists(),
        "{reason}"
    );
    // A run can start from its weights.
    let init = named.join("ema.safetensors");
    let again = [
        "train",
        "sit25.toml",
        "--device",
        "cpu",
        "--out",
        "again",
        "--init",
        &init.to_string_lossy(),
    ];
    let settings = [
        "train.steps=1",
        "alignment.encoder=none",
        "evaluate.fd_encoder=\"\"",
        "evaluate.inception=[]",
        "sample.count=0",
        "sample.grid=0",
        "optimizer.lr=1e-4",
    ];
    let settings = settings.iter().flat_map(|setting| ["--set", setting]);
    place
        .run(&again.into_iter().chain(settings).collect::<Vec<_>>())
        .expect(0, &[]);
}

#[test]
fn samples_that_are_not_finite_are_an_error_and_are_not_written() {
    let place = place("sit25.toml");
    train(&place, "sit25.toml", "run", &["train.checkpoint_every=1"]).expect(1, &[]);
    // The trained weights have diverged, although their checkpoint was saved intact.
    for (out, file) in [("out", "out"), ("out.npz", "out.npz.partial")] {
        let all = [
            "sample", "run", "--device", "cpu", "--count", "2", "--no-ema", "--out", out,
        ];
        place
            .run(&all)
            .expect(1, &["NaN or infinite", "step", "run/checkpoints/step-"]);
        assert_eq!(images(&place.path(file)), 0);
        assert!(!place.path("out.npz").exists());
    }
    // The sample grid and the evaluation of a run that ends before its loss is no longer finite.
    for setting in ["sample.grid=4", "sample.count=4"] {
        let settings = [
            "train.steps=3",
            "train.ema_decay=0.0",
            setting,
            "evaluate.fd_encoder=good_patch_only",
        ];
        let out = train(&place, "sit25.toml", setting, &settings);
        out.expect(1, &["NaN or infinite", "the averaged weights of step 3"]);
        let result = result(&place, setting);
        assert_eq!(result["status"], "failed");
        assert_eq!(images(&place.path(setting).join("samples")), 0);
    }
}

/// The settings from the README of the case, with fewer steps.
const EXPLODES: [&str; 4] = [
    "objective.autoencoder_lr=1.0",
    "objective.discriminator_lr=1.0",
    "optimizer.lr=2e-3",
    "train.steps=20",
];

#[test]
fn a_collapse_without_a_nan_causes_a_warning_and_can_stop_the_run() {
    let place = place("repae.toml");
    let done = train(&place, "repae.toml", "run", &EXPLODES);
    let done = done.expect(0, &["WARN", "is usual", "there is no earlier checkpoint"]);
    let last = done
        .stderr
        .lines()
        .rfind(|line| line.contains("done"))
        .unwrap();
    assert!(last.contains("may have collapsed"), "{last}");
    let collapse = result(&place, "run")["collapse"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        last.contains(&collapse) && collapse.contains("since step"),
        "{collapse}"
    );

    let stop = [&EXPLODES[..], &["train.stop_on_collapse=true"]].concat();
    train(&place, "repae.toml", "stopped", &stop)
        .expect(1, &["collapsed", "train.stop_on_collapse"]);
    let stopped = result(&place, "stopped");
    assert_eq!(stopped["status"], "failed");
    assert!(stopped["steps"].as_u64().unwrap() < 20, "{stopped}");
    assert!(
        stopped["reason"]
            .as_str()
            .unwrap()
            .contains(&collapse[..10]),
        "{stopped}"
    );

    // With a suitable learning rate there is no warning.
    let sound = train(
        &place,
        "repae.toml",
        "sound",
        &["optimizer.lr=2e-3", "train.steps=20"],
    );
    let sound = sound.expect(0, &["done"]);
    assert!(
        !sound.stderr.contains("collapsed") && !sound.stderr.contains("is usual"),
        "{}",
        sound.stderr
    );
    assert_eq!(result(&place, "sound").get("collapse"), None);
}

#[test]
fn skipped_corrupt_samples_are_counted_in_the_log_the_result_and_the_final_line() {
    let place = Playground::new();
    for class in ["a", "b"] {
        fs::create_dir_all(place.path(&format!("images/{class}"))).unwrap();
        for number in 0..6u8 {
            let path = place.path(&format!("images/{class}/{number}.png"));
            image::RgbImage::from_pixel(16, 16, image::Rgb([number * 30; 3]))
                .save(&path)
                .unwrap();
            if class == "a" && number == 3 {
                fs::write(&path, b"\x89PNG\r\n\x1a\nnothing").unwrap();
            }
        }
    }
    place.edit(
        "base.toml",
        "split = \"val\"",
        "split = \"\"\nmax_corrupt_share = 0.5",
    );
    let settings = [
        "data.path=images",
        "train.steps=5",
        "sample.count=0",
        "sample.grid=0",
        "evaluate.spatial_images=0",
    ];
    let mut all = vec!["train", "base.toml", "--device", "cpu", "--out", "run"];
    for setting in settings.iter().chain(&["evaluate.fd_encoder=\"\""]) {
        all.extend(["--set", setting]);
    }
    let outcome = place.run(&all).expect(0, &[]);
    let last = outcome
        .stderr
        .lines()
        .rfind(|line| line.contains("done,"))
        .unwrap();
    let log = place.read("run/metrics.jsonl");
    let figures: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let count = figures[4]["corrupt_skipped"].as_u64().unwrap();
    // The corrupt sample was skipped once in each epoch that began.
    assert!((1..=5).contains(&count), "{log}");
    assert!(
        figures
            .windows(2)
            .all(|pair| pair[0]["corrupt_skipped"].as_u64() <= pair[1]["corrupt_skipped"].as_u64())
    );
    assert_eq!(result(&place, "run")["corrupt_skipped"], count);
    assert!(
        last.contains(&format!("{count} corrupt samples skipped")),
        "{last}"
    );
}
