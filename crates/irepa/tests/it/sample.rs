//! Tests of `runner sample`: what an image depends on, interruptions, and refusals.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::common::{Outcome, Playground};
use ndarray::{Array1, Array4};
use ndarray_npy::NpzReader;

const CHECKPOINT: &str = "run/checkpoints/step-0000002";

/// A playground with a trained run, whose samples have structure.
fn place() -> Playground {
    let place = Playground::new();
    let settings = [
        "train.steps=2",
        "optimizer.lr=0.02",
        "evaluate.fd_encoder=\"\"",
        "sample.grid=0",
    ];
    let mut all = vec!["train", "base.toml", "--device", "cpu", "--out", "run"];
    for setting in settings {
        all.extend(["--set", setting]);
    }
    place.run(&all).expect(0, &[]);
    place
}

/// Arguments of `runner sample`; by default with the sampler that draws the most random numbers.
fn arguments<'a>(out: &'a str, count: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut all = vec!["sample", CHECKPOINT, "--out", out, "--count", count];
    for (flag, value) in [
        ("--device", "cpu"),
        ("--sampler", "euler-maruyama"),
        ("--cfg-scale", "1.5"),
    ] {
        if !more.contains(&flag) {
            all.extend([flag, value]);
        }
    }
    all.extend(more);
    all
}

fn sample(place: &Playground, out: &str, count: &str, more: &[&str]) -> Outcome {
    place.run(&arguments(out, count, more))
}

/// The bytes of a folder's images by name.
fn images(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries
        .map(|entry| entry.unwrap())
        .filter_map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            let image = name.ends_with(".png") && !name.starts_with('.');
            image.then(|| (name, fs::read(entry.path()).unwrap()))
        })
        .collect()
}

fn npz(path: &Path) -> (Array4<u8>, Array1<i64>) {
    let mut npz = NpzReader::new(fs::File::open(path).unwrap()).unwrap();
    (npz.by_name("arr_0").unwrap(), npz.by_name("arr_1").unwrap())
}

/// Starts the program and kills it when `folder` contains `enough` images.
fn kill_after(place: &Playground, arguments: &[&str], folder: &str, enough: usize) {
    let mut child = place.command(arguments).spawn().unwrap();
    let started = Instant::now();
    while images(&place.path(folder)).len() < enough {
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        assert!(started.elapsed() < Duration::from_secs(300));
        sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn each_image_depends_only_on_its_index() {
    let place = place();
    sample(&place, "whole", "11", &[]).expect(0, &["whole"]);
    let whole = images(&place.path("whole"));
    assert_eq!(whole.len(), 11);
    let distinct: std::collections::BTreeSet<_> = whole.values().collect();
    assert_eq!(distinct.len(), 11, "some images are the same");

    // A second call with a larger count completes the folder.
    sample(&place, "grown", "4", &[]).expect(0, &[]);
    assert!(
        images(&place.path("grown"))
            .iter()
            .all(|(name, bytes)| whole[name] == *bytes)
    );
    sample(&place, "grown", "11", &[]).expect(0, &["4 of 11 images already existed, 7 were drawn"]);
    assert!(images(&place.path("grown")) == whole);
    sample(&place, "grown", "3", &[]).expect(0, &["8 more images"]);

    for (out, more) in [
        ("two", ["--device", "cpu,cpu"]),
        ("three", ["--batch-size", "3"]),
        ("four", ["--batch-size", "64"]),
    ] {
        sample(&place, out, "11", &more).expect(0, &[]);
        assert!(images(&place.path(out)) == whole, "{more:?}");
    }
    sample(&place, "other", "11", &["--seed", "1"]).expect(0, &[]);
    assert!(
        images(&place.path("other"))
            .iter()
            .all(|(name, bytes)| whole[name] != *bytes)
    );
}

#[test]
fn a_killed_call_resumes_to_the_same_bytes() {
    let place = place();
    let slow = ["--steps", "60"];
    sample(&place, "whole", "20", &slow).expect(0, &[]);
    sample(&place, "whole.npz", "20", &slow).expect(0, &[]);
    assert!(!place.path("whole.npz.partial").exists());

    for enough in [1, 7] {
        kill_after(&place, &arguments("part", "20", &slow), "part", enough);
        kill_after(
            &place,
            &arguments("part.npz", "20", &slow),
            "part.npz.partial",
            enough,
        );
    }
    assert!(!place.path("part.npz").exists());
    let drawn = images(&place.path("part")).len();
    assert!((7..20).contains(&drawn), "{drawn}");
    // A crash can also leave a truncated image and a temporary file.
    fs::write(place.path("part/000002.png"), b"\x89PNG\r\n").unwrap();
    let leftover = "part/.000019.png.0123456789abcdef-1-1-abcdefgh.tmp";
    fs::write(place.path(leftover), b"half").unwrap();
    let devices = [&slow[..], &["--device", "cpu,cpu"]].concat();
    sample(&place, "part", "20", &devices).expect(0, &["20 images already existed"]);
    sample(&place, "part.npz", "20", &slow).expect(0, &["part.npz"]);

    assert!(images(&place.path("part")) == images(&place.path("whole")));
    let read = |name: &str| fs::read(place.path(name)).unwrap();
    assert!(read("part.npz") == read("whole.npz"));
    assert!(read("part/samples.json") == read("whole/samples.json"));
    let names = fs::read_dir(place.path("part")).unwrap();
    let leftovers = names.filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        name.to_string_lossy().ends_with(".tmp")
    });
    assert_eq!(leftovers.count(), 0);
}

#[test]
fn an_npz_holds_the_images_of_the_folder_and_their_classes() {
    let place = place();
    let labels = ["--labels", "2,0,5"];
    sample(&place, "pngs", "7", &labels).expect(0, &[]);
    let grid = [&labels[..], &["--grid", "grid.png"]].concat();
    sample(&place, "seven.npz", "7", &grid).expect(0, &[]);
    let (pixels, classes) = npz(&place.path("seven.npz"));
    assert_eq!(pixels.dim(), (7, 16, 16, 3));
    assert_eq!(classes.to_vec(), [2, 0, 5, 2, 0, 5, 2]);
    for (index, image) in pixels.outer_iter().enumerate() {
        let path = place.path(&format!("pngs/{index:06}.png"));
        let picture = image::open(path).unwrap().into_rgb8();
        assert!(image.iter().copied().eq(picture.into_raw()));
    }
    assert!(image::open(place.path("grid.png")).is_ok());
    sample(&place, "seven.npz", "7", &labels).expect(2, &["seven.npz", "--fresh"]);
    sample(&place, "seven.npz", "8", &["--fresh"]).expect(0, &[]);
    assert_eq!(npz(&place.path("seven.npz")).0.dim().0, 8);
}

#[test]
fn random_classes_follow_the_seed() {
    let place = place();
    let classes = |out: &str, more: &[&str]| {
        sample(&place, out, "30", &[&["--random-labels"], more].concat()).expect(0, &[]);
        npz(&place.path(out)).1.to_vec()
    };
    let first = classes("a.npz", &[]);
    assert_eq!(classes("b.npz", &["--batch-size", "7"]), first);
    assert_ne!(classes("c.npz", &["--seed", "9"]), first);
    let among = classes("d.npz", &["--labels", "1,3"]);
    assert!(among.contains(&1) && among.contains(&3));
    assert!(among.iter().all(|class| [1, 3].contains(class)));
}

#[test]
fn calls_that_do_not_match_the_folder_or_the_model_are_refused() {
    let place = place();
    sample(&place, "out", "3", &[]).expect(0, &[]);
    let before = images(&place.path("out"));
    for (more, words) in [
        (
            ["--steps", "3"],
            ["settings.sampler.num_steps", "is 2 there and 3 here"],
        ),
        (["--seed", "3"], ["settings.seed", "--fresh"]),
        (["--labels", "1"], ["classes.among", "--out"]),
    ] {
        sample(&place, "out", "3", &more).expect(2, &words);
    }
    sample(&place, "out", "3", &["--no-ema"]).expect(2, &["weights is"]);
    sample(&place, "out", "3", &["--random-labels"]).expect(2, &["classes.order", "balanced"]);
    assert!(images(&place.path("out")) == before);
    sample(&place, "out", "2", &["--seed", "3", "--fresh"]).expect(0, &[]);
    assert_eq!(images(&place.path("out")).len(), 2);

    place.write("mine/holiday.png", "not a sample");
    sample(&place, "mine", "3", &[]).expect(2, &["holiday.png", "not a folder of samples"]);
    place.write("out/samples.json", "{");
    sample(&place, "out", "2", &[]).expect(2, &["samples.json", "--fresh"]);

    for (more, words) in [
        (["--cfg-scale", "0.5"], ["cfg_scale", "0.5"]),
        (["--guidance-interval", "0.7,0.2"], ["guidance_high", "0.2"]),
        (["--guidance-interval", "0.7"], ["LOW,HIGH", "0.7"]),
        (["--sampler", "magic"], ["magic", "heun"]),
        (["--labels", "0,99"], ["99", "classes 0 to 8"]),
        (["--steps", "0"], ["num_steps", "at least 1"]),
        (["--batch-size", "0"], ["--batch-size", "0"]),
        (["--device", "cpu,tpu"], ["--device", "tpu"]),
    ] {
        sample(&place, "new", "3", &more).expect(2, &words);
        assert!(!place.path("new").exists(), "{more:?}");
    }
    sample(&place, "new", "0", &[]).expect(2, &["--count"]);
    place.write("file", "");
    sample(&place, "file", "1", &[]).expect(2, &["--out file", "folder"]);
}

#[test]
fn the_newest_intact_checkpoint_of_a_run_is_used() {
    let place = Playground::new();
    let mut all = vec!["train", "base.toml", "--device", "cpu", "--out", "run"];
    for setting in ["train.steps=4", "evaluate.fd_encoder=\"\"", "sample.grid=0"] {
        all.extend(["--set", setting]);
    }
    place.run(&all).expect(0, &[]);
    let draw = |what: &str, out: &str| {
        let all = [
            "sample", what, "--device", "cpu", "--count", "2", "--out", out,
        ];
        place.run(&all)
    };
    let cut = |step: u64| {
        let file = place.path(&format!("run/checkpoints/step-{step:07}/ema.safetensors"));
        let bytes = fs::read(&file).unwrap();
        fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    };
    draw("run", "whole").expect(0, &["step-0000004"]);
    draw("run/checkpoints/step-0000002", "older").expect(0, &[]);
    cut(4);
    draw("run", "fallen").expect(
        0,
        &[
            "WARN",
            "step-0000004/ema.safetensors is damaged",
            "step-0000002",
        ],
    );
    assert!(images(&place.path("fallen")) == images(&place.path("older")));
    assert!(images(&place.path("fallen")) != images(&place.path("whole")));
    // A damaged checkpoint that is named explicitly is not replaced by another one.
    draw("run/checkpoints/step-0000004", "named").expect(2, &["step-0000004", "damaged"]);
    cut(2);
    let words = ["none of its 2", "step-0000004", "step-0000002", "damaged"];
    draw("run", "none").expect(1, &words);
    assert!(!place.path("named").exists() && !place.path("none").exists());
}

#[test]
fn an_unusable_source_of_weights_is_refused_with_a_usable_alternative() {
    let place = place();
    place.write("rubbish.safetensors", "rubbish");
    fs::create_dir_all(place.path("sweep/cells/one")).unwrap();
    fs::create_dir_all(place.path("empty")).unwrap();
    for (what, words) in [
        ("nowhere", ["nowhere", "no such file or folder"]),
        ("sweep", ["folder of a sweep", "sweep/cells/ID"]),
        ("run/checkpoints", ["run/checkpoints", "folder of the run"]),
        ("empty", ["empty", "neither the folder of a run"]),
        (
            "rubbish.safetensors",
            ["rubbish.safetensors is damaged", "not a safetensors file"],
        ),
    ] {
        let all = [
            "sample",
            what,
            "--config",
            "base.toml",
            "--device",
            "cpu",
            "--out",
            "out",
        ];
        place.run(&all).expect(2, &words);
        assert!(!place.path("out").exists(), "{what}");
    }
}

/// A playground with a file and the images of a case in `tests/data/cases`.
fn case(name: &str, file: &str) -> Playground {
    let place = Playground::new();
    let source = crate::common::repository()
        .join("crates/irepa/tests/data/cases")
        .join(name);
    place.write(file, &fs::read_to_string(source.join(file)).unwrap());
    for entry in fs::read_dir(source.join("flat")).unwrap() {
        let from = entry.unwrap().path();
        fs::create_dir_all(place.path("flat")).unwrap();
        fs::copy(&from, place.path("flat").join(from.file_name().unwrap())).unwrap();
    }
    place
}

#[test]
fn guidance_without_a_trained_null_class_is_refused_when_the_configuration_is_read() {
    for file in ["sit.toml", "jit.toml"] {
        let place = case("26-null-class", file);
        let train = |more: &[&str]| {
            let all = ["train", file, "--device", "cpu", "--out", "run"];
            place.run(&[&all[..], more].concat())
        };
        let words = [
            file,
            "`model.label_dropout` is 0",
            "sample.sampler.cfg_scale is 2",
        ];
        train(&[]).expect(2, &words);
        assert!(!place.path("run").exists(), "{file}: training started");
        // Training without guidance works, but its checkpoint cannot be sampled with guidance.
        train(&[
            "--set",
            "sample.sampler.cfg_scale=1",
            "--set",
            "sample.grid=0",
        ])
        .expect(0, &[]);
        let sample = |scale: &str| {
            place.run(&[
                "sample",
                "run",
                "--device",
                "cpu",
                "--count",
                "2",
                "--cfg-scale",
                scale,
                "--out",
                "out",
            ])
        };
        sample("2").expect(2, &["`model.label_dropout` is 0", "config.toml"]);
        assert!(!place.path("out").exists(), "{file}");
        sample("1").expect(0, &[]);
        // The flag overrides the configuration.
        place.edit("run/config.toml", "cfg_scale = 1.0", "cfg_scale = 2.0");
        sample("1").expect(0, &["2 of 2 images already existed"]);
    }
}

#[test]
fn a_sampler_chosen_by_flag_or_by_setting_is_the_same() {
    let place = Playground::new();
    let sampler = "sampler = { method = \"euler\", num_steps = 2 }";
    let guided =
        "sampler = { method = \"heun\", num_steps = 3, cfg_scale = 3.0, guidance_low = 0.4 }";
    place.edit("base.toml", sampler, guided);
    let mut all = vec!["train", "base.toml", "--device", "cpu", "--out", "run"];
    for setting in [
        "train.steps=2",
        "optimizer.lr=0.02",
        "evaluate.fd_encoder=\"\"",
        "sample.grid=0",
    ] {
        all.extend(["--set", setting]);
    }
    place.run(&all).expect(0, &[]);
    let draw = |out: &str, more: &[&str]| {
        let all = [
            "sample", "run", "--device", "cpu", "--count", "3", "--out", out,
        ];
        place.run(&[&all[..], more].concat()).expect(0, &[]);
        (
            images(&place.path(out)),
            place.read(&format!("{out}/samples.json")),
        )
    };
    let (flag, recipe) = draw("flag", &["--sampler", "euler"]);
    assert!(
        recipe.contains("\"num_steps\": 3") && recipe.contains("\"cfg_scale\": 3.0"),
        "{recipe}"
    );
    let (setting, other) = draw("setting", &["--set", "sample.sampler.method=euler"]);
    assert!(flag == setting);
    assert_eq!(recipe, other);
    let settings = [
        "--set",
        "sample.sampler.num_steps=4",
        "--set",
        "sample.sampler.method=euler",
    ];
    let (_, recipe) = draw("both", &settings);
    for words in ["\"euler\"", "\"num_steps\": 4", "\"guidance_low\": 0.4"] {
        assert!(recipe.contains(words), "no {words} in {recipe}");
    }
}
