//! Logs of a training run: metrics, evaluations during training, and TensorBoard events.

use std::fs;

use crate::common::Playground;
use metrics::figures::{Figure, Kind};
use training::event_log::Value;
use training::{EventLog, MetricsLog, checkpoint};

const EVERY_TWO: [&str; 2] = ["--set", "evaluate.every=2"];

fn train(place: &Playground, out: &str, steps: u64, more: &[&str]) {
    let steps = format!("train.steps={steps}");
    let mut all = vec!["train", "base.toml", "--device", "cpu", "--out", out];
    all.extend(["--resume", "--set", &steps]);
    all.extend(more);
    place.run(&all).expect(0, &[]);
}

/// Step and Frechet distance of the log lines that have a distance.
fn distances(place: &Playground, out: &str) -> Vec<(u64, f64)> {
    let log = MetricsLog::read(&place.path(out).join("metrics.jsonl")).unwrap();
    let lines = log.into_iter();
    lines
        .filter_map(|line| Some((line.step, line.get(Figure::Fd)?)))
        .collect()
}

#[test]
fn evaluations_during_training_survive_an_interruption_and_change_nothing_else() {
    let place = Playground::new();
    train(&place, "whole", 6, &EVERY_TWO);
    let found = distances(&place, "whole");
    let steps: Vec<u64> = found.iter().map(|(step, _)| *step).collect();
    assert_eq!(steps, [2, 4, 6]);
    assert!(found.iter().all(|(_, fd)| fd.is_finite() && *fd > 0.0));
    let result: serde_json::Value = serde_json::from_str(&place.read("whole/result.json")).unwrap();
    assert_eq!(result["fd"].as_f64(), Some(found[2].1));

    // In two parts, the first of which ends between two evaluations.
    train(&place, "parts", 3, &EVERY_TWO);
    train(&place, "parts", 6, &EVERY_TWO);
    assert_eq!(
        place.read("parts/metrics.jsonl"),
        place.read("whole/metrics.jsonl")
    );

    train(&place, "plain", 6, &[]);
    assert!(distances(&place, "plain").is_empty());
    let weights = |out: &str| {
        let newest = checkpoint::list(&place.path(out).join("checkpoints"))
            .unwrap()
            .pop()
            .unwrap();
        fs::read(newest.join("model.safetensors")).unwrap()
    };
    assert!(
        weights("plain") == weights("whole"),
        "sampling changed the training"
    );
    assert!(weights("parts") == weights("whole"));
}

#[test]
fn the_event_file_has_each_value_of_the_log_once_and_the_sample_grids() {
    let place = Playground::new();
    train(&place, "run", 3, &EVERY_TWO);
    train(&place, "run", 6, &EVERY_TWO);
    let events = EventLog::read(&EventLog::path_in(&place.path("run"))).unwrap();
    let (mut scalars, mut pictures) = (Vec::new(), Vec::new());
    for event in &events {
        for (tag, value) in &event.values {
            match value {
                Value::Scalar(figure) => scalars.push((event.step, tag.clone(), *figure)),
                Value::Image(png) => pictures.push((event.step, tag.clone(), png.clone())),
            }
        }
    }
    let log = MetricsLog::read(&place.path("run/metrics.jsonl")).unwrap();
    let expected: Vec<(u64, String, f32)> = log
        .iter()
        .flat_map(|line| {
            // The evaluation of a step follows its other figures.
            let is_quality = |(figure, _): &(Figure, f64)| figure.kind() == Kind::Quality;
            let (quality, others): (Vec<_>, Vec<_>) = line.figures.iter().partition(is_quality);
            let figures = others.into_iter().chain(quality);
            figures.map(|(figure, value)| (line.step, figure.name().to_owned(), value as f32))
        })
        .collect();
    assert_eq!(log.len(), 6);
    assert_eq!(scalars, expected);
    // One grid at the end of each part.
    let steps: Vec<u64> = pictures.iter().map(|(step, ..)| *step).collect();
    assert_eq!(steps, [3, 6]);
    assert!(pictures[1].2 == fs::read(place.path("run/samples/step-0000006.png")).unwrap());

    // Repeating a finished run adds nothing.
    let before = fs::read(EventLog::path_in(&place.path("run"))).unwrap();
    train(&place, "run", 6, &EVERY_TWO);
    let again = EventLog::read(&EventLog::path_in(&place.path("run"))).unwrap();
    assert_eq!(again, events, "{} bytes before", before.len());
}

#[test]
fn evaluations_without_a_judge_or_samples_are_refused() {
    let place = Playground::new();
    for setting in ["evaluate.fd_encoder=\"\"", "sample.count=0"] {
        let all = [
            "train",
            "base.toml",
            "--set",
            setting,
            "--set",
            "evaluate.every=2",
        ];
        place.run(&all).expect(
            2,
            &["evaluate.every", "evaluate.fd_encoder", "sample.count"],
        );
    }
}
