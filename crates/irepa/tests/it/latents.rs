//! Training on the latents of an autoencoder, with and without a cache of moments, and its errors. The autoencoder is
//! small and has random weights.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::common::{Outcome, Playground};
use diffusion::autoencoder::{KlAutoencoder, KlConfig};
use tch::Device;
use torch_ext::Params;
use training::{checkpoint, write_tensors};

/// An autoencoder that halves the resolution: images of 16 pixels have latents of 8 x 8, which SiT-XS/2 divides into
/// 4 x 4 tokens.
const AUTOENCODER: &str = r#"[model]
name = "SiT-XS/2"

[model.autoencoder]
kind = "kl"
layout = { latent_channels = 2, base_channels = 8, channel_multipliers = [1, 2], num_res_blocks = 1, norm_groups = 4 }
weights = "vae.safetensors"
scale = [0.5, 2.0]
bias = 0.25"#;

const CACHED: [&str; 2] = ["--set", "data.latent_cache=latents"];

fn layout() -> KlConfig {
    KlConfig {
        latent_channels: 2,
        base_channels: 8,
        channel_multipliers: vec![1, 2],
        num_res_blocks: 1,
        attention_levels: Vec::new(),
        norm_groups: 4,
    }
}

/// Writes an autoencoder with random weights drawn from `seed`.
fn write_autoencoder(path: &Path, config: &KlConfig, seed: u64) {
    let params = Params::new(Device::Cpu, seed).unwrap();
    KlAutoencoder::new(&params.root(), config).unwrap();
    write_tensors(path, &params.state_dict()).unwrap();
}

fn playground() -> Playground {
    let place = Playground::new();
    place.edit("base.toml", "[model]\nname = \"SiT-XS/4\"", AUTOENCODER);
    place.edit("experiment.toml", "SiT-XS/4", "SiT-XS/2");
    write_autoencoder(&place.path("vae.safetensors"), &layout(), 1);
    place
}

fn prepare(place: &Playground, arguments: &[&str]) -> Outcome {
    let mut all = vec!["prepare", "latents", "base.toml", "--device", "cpu"];
    all.extend(arguments);
    place.run(&all)
}

fn cell(place: &Playground, out: &str, id: &str) -> PathBuf {
    place.path(&format!("{out}/small/cells/{id}"))
}

/// Losses, weights and samples of a run.
fn trained(run: &Path) -> Vec<Vec<u8>> {
    let newest = checkpoint::list(&run.join("checkpoints"))
        .unwrap()
        .pop()
        .unwrap();
    let files = ["model.safetensors", "ema.safetensors", "manifest.json"];
    let mut files: Vec<_> = files.iter().map(|name| newest.join(name)).collect();
    files.push(run.join("metrics.jsonl"));
    files.push(run.join("samples/step-0000006.png"));
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

fn shards(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut shards: Vec<_> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|kind| kind == "safetensors"))
        .map(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, fs::read(path).unwrap())
        })
        .collect();
    shards.sort();
    shards
}

const CELLS: [&str; 2] = ["sit-xs2.none.s0", "sit-xs2.irepa.good.s0"];

#[test]
fn a_float32_cache_trains_to_the_same_bits_as_the_autoencoder() {
    let place = playground();
    let only = ["--only", "*{none,good}.s0"];
    place.sweep(&only).expect(0, &["2 done"]);
    prepare(&place, &[]).expect(0, &["moments x 4, fp32", "each also mirrored", "latents"]);
    let mut cached = vec!["--out", "cached", CACHED[0], CACHED[1]];
    cached.extend(only);
    place
        .sweep(&cached)
        .expect(0, &["2 done", "latents from the cache", "(fp32)"]);
    for id in CELLS {
        let (alone, cached) = (cell(&place, "runs", id), cell(&place, "cached", id));
        assert_eq!(trained(&alone), trained(&cached), "{id}");
    }
    // Therefore the cache does not cause finished cells to run again.
    place
        .sweep(&["--dry-run", CACHED[0], CACHED[1]])
        .expect(0, &["1 to run, 2 done"]);

    // Rounded moments are different latents, so all cells run again.
    prepare(&place, &["--dtype", "fp16", "--out", "half"]).expect(0, &["fp16"]);
    place
        .sweep(&["--dry-run", "--set", "data.latent_cache=half"])
        .expect(0, &["3 to run, 0 done"]);
    let mut half = vec!["--out", "half-runs", "--set", "data.latent_cache=half"];
    half.extend(only);
    place.sweep(&half).expect(0, &["2 done", "(fp16)"]);
    for id in CELLS {
        let (alone, half) = (cell(&place, "runs", id), cell(&place, "half-runs", id));
        assert_ne!(trained(&alone), trained(&half), "{id}");
    }
}

#[test]
fn images_are_not_decoded_if_caches_have_all_that_is_computed_from_them() {
    let place = playground();
    let folder = place.path("images");
    let mut files = Vec::new();
    for index in 0..40u8 {
        let path = folder.join(format!("{}/{index:02}.png", index % 2));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let colour = image::Rgb([index * 6, 255 - index * 6, index]);
        image::RgbImage::from_pixel(16, 16, colour)
            .save(&path)
            .unwrap();
        files.push(path);
    }
    let fill = |path: &PathBuf| {
        let length = fs::metadata(path).unwrap().len() as usize;
        fs::write(path, vec![0; length]).unwrap();
    };
    // Two are corrupt from the start, and skipped with and without a cache.
    files[..2].iter().for_each(fill);
    let data = format!(
        "[data]\npath = \"{}\"\nsplit = \"\"\nmax_corrupt_share = 0.2",
        folder.display()
    );
    place.write(
        "run.toml",
        &format!(
            "base = \"base.toml\"\n[alignment]\nencoder = \"none\"\n[evaluate]\nfd_encoder = \"\"\nspatial_images = 0\n{data}\n"
        ),
    );
    let train = |out: &str, more: &[&str]| {
        let arguments = ["train", "run.toml", "--device", "cpu", "--out", out];
        let outcome = place.run(&[&arguments, more].concat());
        outcome.expect(0, &["corrupt samples skipped"]);
        trained(&place.path(out))
    };
    let decoded = train("decoded", &[]);
    place
        .run(&["prepare", "latents", "run.toml", "--device", "cpu"])
        .expect(0, &["latents"]);
    // None of them can be decoded any more.
    files.iter().for_each(fill);
    assert_eq!(train("cached", &CACHED), decoded);
}

#[test]
fn a_run_resumes_with_or_without_the_cache() {
    let place = playground();
    prepare(&place, &[]).expect(0, &[]);
    let train = |out: &str, arguments: &[&str]| {
        let mut all = vec!["train", "base.toml", "--device", "cpu", "--out", out];
        all.extend(["--set", "train.accumulation=2"]);
        all.extend(arguments);
        place.run(&all).expect(0, &[out]);
    };
    train("whole", &[]);
    train("parts", &["--set", "train.steps=4"]);
    train("parts", &["--resume", CACHED[0], CACHED[1]]);
    assert_eq!(trained(&place.path("whole")), trained(&place.path("parts")));
}

#[test]
fn meanflow_trains_on_latents_and_its_samples_are_images() {
    let place = playground();
    let objective = "objective={ kind = \"meanflow\", cfg_omega = 0.2, cfg_kappa = 0.92 }";
    let sampler = "sample.sampler={ method = \"euler\", num_steps = 1 }";
    prepare(&place, &[]).expect(0, &[]);
    for (out, cache) in [("plain", ""), ("cached", "data.latent_cache=latents")] {
        let mut all = vec!["train", "base.toml", "--device", "cpu", "--out", out];
        all.extend(["--set", objective, "--set", sampler]);
        if !cache.is_empty() {
            all.extend(["--set", cache]);
        }
        place.run(&all).expect(0, &[out]);
    }
    assert_eq!(
        trained(&place.path("plain")),
        trained(&place.path("cached"))
    );
}

#[test]
fn samples_of_a_checkpoint_are_decoded_from_any_working_directory() {
    let place = playground();
    place
        .run(&["train", "base.toml", "--device", "cpu", "--out", "run"])
        .expect(0, &[]);
    fs::create_dir(place.path("elsewhere")).unwrap();
    let sample = |out: &str| {
        let output = place
            .command(&[
                "sample",
                "../run/checkpoints/step-0000006",
                "--device",
                "cpu",
                "--count",
                "5",
                "--out",
                out,
            ])
            .current_dir(place.path("elsewhere"))
            .output()
            .unwrap();
        Outcome::of(output)
    };
    sample("images").expect(0, &["samples: 5/5 images"]);
    let image = fs::read(place.path("elsewhere/images/000004.png")).unwrap();
    // Width and height in the header.
    assert_eq!(&image[16..24], [0, 0, 0, 16, 0, 0, 0, 16]);
    fs::remove_file(place.path("vae.safetensors")).unwrap();
    sample("others").expect(
        1,
        &[
            "model.autoencoder.weights",
            "vae.safetensors",
            "convert_autoencoder.py",
        ],
    );
}

#[test]
fn a_cache_of_other_inputs_is_refused_with_the_reason() {
    let place = playground();
    prepare(&place, &[]).expect(0, &[]);
    let only = ["--only", "*none*", CACHED[0], CACHED[1]];
    let refused = |word: &str| {
        place.sweep(&only).expect(1, &["1 failed", "latents", word]);
        prepare(&place, &[]).expect(1, &[word, "prepare latents"]);
    };
    // Another autoencoder under the same name.
    write_autoencoder(&place.path("vae.safetensors"), &layout(), 2);
    refused("SHA-256");
    write_autoencoder(&place.path("vae.safetensors"), &layout(), 1);
    // The same weights in another layout.
    place.edit("base.toml", "norm_groups = 4", "norm_groups = 8");
    refused("the autoencoder is");
    place.edit("base.toml", "norm_groups = 8", "norm_groups = 4");
    place.edit("base.toml", "split = \"val\"", "split = \"train\"");
    refused("data set (fingerprint)");
    place.edit("base.toml", "split = \"train\"", "split = \"val\"");
    place.edit("base.toml", "resolution = 16", "resolution = 32");
    refused("resolution");
    place.edit("base.toml", "resolution = 32", "resolution = 16");
    place.sweep(&only).expect(0, &["1 done"]);

    let place = playground();
    prepare(&place, &["--set", "data.flip=false"]).expect(0, &[]);
    place.sweep(&only).expect(1, &["data.flip is on"]);
    // A cache of tokens cannot be used as a cache of moments.
    place
        .run(&[
            "prepare",
            "features",
            "base.toml",
            "--device",
            "cpu",
            "--encoder",
            "good",
        ])
        .expect(0, &[]);
    place
        .sweep(&[
            "--only",
            "*none*",
            "--set",
            "data.latent_cache=features/good",
        ])
        .expect(1, &["the kind of features is tokens, expected moments"]);
    place
        .sweep(&["--only", "*none*", "--set", "data.latent_cache=nowhere"])
        .expect(
            1,
            &["nowhere contains no moments", "runner prepare latents"],
        );
}

#[test]
fn a_damaged_shard_is_named_and_recomputed() {
    let place = playground();
    prepare(&place, &[]).expect(0, &[]);
    let shard = place.path("latents/moments-00000.safetensors");
    let whole = fs::read(&shard).unwrap();
    fs::write(&shard, &whole[..whole.len() - 1]).unwrap();
    place
        .sweep(&["--only", "*none*", CACHED[0], CACHED[1]])
        .expect(1, &["1 failed", "moments-00000.safetensors is damaged"]);
    prepare(&place, &[]).expect(0, &["190/190 images"]);
    assert!(fs::read(&shard).unwrap() == whole);
    // A flipped bit in every image is found when the first is read.
    let mut bytes = whole;
    let row = 8 * 8 * 4 * 4;
    let start = moments_offset(&bytes, &shard);
    for image in 0..190 * 2 {
        bytes[start + image * row] ^= 1;
    }
    fs::write(&shard, bytes).unwrap();
    place
        .sweep(&["--only", "*none*", CACHED[0], CACHED[1]])
        .expect(1, &["1 failed", "the checksum of sample"]);
}

/// The offset of the moments in the file of a shard.
fn moments_offset(file: &[u8], path: &Path) -> usize {
    let tensors = training::read_tensors(path).unwrap();
    let (_, moments) = tensors.iter().find(|(name, _)| name == "patch").unwrap();
    let mut bytes = vec![0; 64];
    moments
        .flatten(0, -1)
        .narrow(0, 0, 16)
        .copy_data_u8(&mut bytes, 16);
    file.windows(64).position(|window| window == bytes).unwrap()
}

#[test]
fn a_killed_preparation_resumes_to_the_same_bytes() {
    let (whole, place) = (playground(), playground());
    for place in [&whole, &place] {
        // 32 kB per image, so that there are six shards.
        place.edit("base.toml", "resolution = 16", "resolution = 64");
    }
    let arguments = ["--shard-mib", "1"];
    prepare(&whole, &arguments).expect(0, &[]);
    let mut all = vec!["prepare", "latents", "base.toml", "--device", "cpu"];
    all.extend(arguments);
    let mut child = place
        .command(&all)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(120);
    let folder = place.path("latents");
    while shards(&folder).len() < 2 {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let expected = shards(&whole.path("latents"));
    assert!(shards(&folder).len() < expected.len(), "killed too late");
    place
        .sweep(&["--only", "*none*", CACHED[0], CACHED[1]])
        .expect(1, &["not complete", "prepare latents"]);
    prepare(&place, &arguments).expect(0, &["images are already stored"]);
    assert!(shards(&folder) == expected);
    // A complete cache is not changed.
    prepare(&place, &[]).expect(0, &["; complete"]);
}

#[test]
fn without_the_weights_nothing_starts_and_the_error_says_how_to_get_them() {
    let place = playground();
    let words = [
        "model.autoencoder.weights",
        "vae.safetensors",
        "python crates/training/python/convert_autoencoder.py",
    ];
    fs::remove_file(place.path("vae.safetensors")).unwrap();
    place
        .run(&["train", "base.toml", "--device", "cpu", "--out", "run"])
        .expect(2, &words);
    prepare(&place, &[]).expect(2, &words);
    assert!(!place.path("run").exists() && !place.path("latents").exists());
    place
        .sweep(&[])
        .expect(1, &[&words[..], &["0 done", "3 skipped"]].concat());
    let results = place.read("runs/small/results.csv");
    assert_eq!(results.matches("skipped").count(), 3, "{results}");
    assert!(results.contains("convert_autoencoder.py"), "{results}");

    // Weights of another shape, weights with a missing name, and a file that is not safetensors.
    let other = KlConfig {
        latent_channels: 3,
        ..layout()
    };
    write_autoencoder(&place.path("vae.safetensors"), &other, 1);
    place
        .sweep(&["--only", "*none*"])
        .expect(1, &["1 failed", words[0], words[1], "shape"]);
    let tensors = training::read_tensors(&place.path("vae.safetensors")).unwrap();
    write_tensors(&place.path("vae.safetensors"), &tensors[1..]).unwrap();
    place
        .sweep(&["--only", "*none*"])
        .expect(1, &["1 failed", words[0], &tensors[0].0]);
    place.write("vae.safetensors", "rubbish");
    place
        .sweep(&["--only", "*none*"])
        .expect(1, &["1 failed", "vae.safetensors"]);
}

#[test]
fn invalid_combinations_of_settings_are_refused() {
    let place = Playground::new();
    prepare(&place, &[]).expect(2, &["base.toml", "model.autoencoder", "no latents"]);
    let place = playground();
    let refuse = |settings: &[&str], words: &[&str]| {
        let mut all = vec!["train", "base.toml", "--device", "cpu"];
        for setting in settings {
            all.extend(["--set", setting]);
        }
        place.run(&all).expect(2, words);
    };
    refuse(
        &[
            "model.name=JiT-XS/4",
            "objective={ kind = \"x-prediction\" }",
        ],
        &["model.autoencoder", "JiT predicts pixels"],
    );
    refuse(
        &["model.autoencoder.weights=\"\""],
        &["model.autoencoder.weights", "names no file"],
    );
    refuse(
        &["data.resolution=17"],
        &["data.resolution", "17", "multiple"],
    );
    refuse(
        &["model.autoencoder.scale=[1.0, 2.0, 3.0]"],
        &["model.autoencoder.scale", "2 of them"],
    );
}
