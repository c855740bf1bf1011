//! Weights from files, for starting a run and for drawing samples.

use std::path::PathBuf;

use crate::common::{Outcome, Playground};
use tch::Tensor;
use training::checkpoint;

fn train(place: &Playground, out: &str, arguments: &[&str]) -> Outcome {
    let mut all = vec!["train", "base.toml", "--device", "cpu", "--out", out];
    all.extend([
        "--set",
        "evaluate.fd_encoder=\"\"",
        "--set",
        "sample.grid=0",
    ]);
    all.extend(arguments);
    place.run(&all)
}

fn newest(place: &Playground, out: &str) -> PathBuf {
    checkpoint::list(&place.path(out).join("checkpoints"))
        .unwrap()
        .pop()
        .unwrap()
}

fn weights(place: &Playground, out: &str) -> Vec<(String, Tensor)> {
    training::read_tensors(&newest(place, out).join("model.safetensors")).unwrap()
}

#[test]
fn a_run_starts_from_the_weights_of_a_file() {
    let place = Playground::new();
    train(&place, "a", &[]).expect(0, &[]);
    let file = newest(&place, "a").join("model.safetensors");
    let file = file.to_str().unwrap();
    let still = ["--set", "optimizer.lr=0.0", "--init", file];
    train(&place, "b", &still).expect(0, &[]);
    assert_eq!(weights(&place, "a"), weights(&place, "b"));
    train(&place, "c", &still[..2]).expect(0, &[]);
    assert_ne!(weights(&place, "a"), weights(&place, "c"));
}

#[test]
fn weights_of_another_model_are_refused_without_partial() {
    let place = Playground::new();
    train(&place, "a", &[]).expect(0, &[]);
    let file = newest(&place, "a").join("ema.safetensors");
    let init = [
        "--set",
        "model.qk_norm=true",
        "--init",
        file.to_str().unwrap(),
    ];
    train(&place, "b", &init).expect(1, &["ema.safetensors", "missing", "q_norm", "--partial"]);
    let partial = [&init[..], &["--partial"]].concat();
    train(&place, "c", &partial).expect(0, &["initialised randomly", "q_norm"]);
    train(&place, "d", &["--init", "nowhere.safetensors"]).expect(2, &["nowhere.safetensors"]);
    place.write("rubbish.safetensors", "rubbish");
    train(&place, "d", &["--init", "rubbish.safetensors"]).expect(
        2,
        &["rubbish.safetensors is damaged", "not a safetensors file"],
    );
    train(&place, "d", &["--partial"]).expect(2, &["--init"]);
}

#[test]
fn samples_are_drawn_from_a_file_of_weights() {
    let place = Playground::new();
    train(&place, "a", &[]).expect(0, &[]);
    let folder = newest(&place, "a");
    let draw = |what: &str, out: &str, more: &[&str]| {
        let mut all = vec![
            "sample", what, "--device", "cpu", "--count", "3", "--out", out,
        ];
        all.extend(more);
        place.run(&all)
    };
    draw(folder.to_str().unwrap(), "one", &[]).expect(0, &[]);
    let file = folder.join("ema.safetensors");
    let file = file.to_str().unwrap();
    draw(file, "two", &["--config", "base.toml"]).expect(0, &[]);
    for name in ["000000.png", "000002.png"] {
        let read = |out: &str| std::fs::read(place.path(out).join(name)).unwrap();
        assert!(read("one") == read("two"));
    }
    draw(file, "three", &[]).expect(2, &["ema.safetensors", "--config"]);
    draw(file, "three", &["--config", "base.toml", "--no-ema"]).expect(2, &["--no-ema"]);
    draw(
        file,
        "three",
        &["--config", "base.toml", "--set", "model.name=\"SiT-XS/2\""],
    )
    .expect(1, &["ema.safetensors", "final_layer.linear"]);
}
