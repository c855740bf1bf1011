//! Measures of samples and encoders in a sweep, which equal those of the other commands.

use std::fs;

use crate::common::{Playground, repository};
use metrics::figures::Figure;
use report::results::{ResultRow, read_csv};
use serde_json::Value;
use training::{MetricsLog, checkpoint};

const INCEPTION: &str =
    "evaluate.inception=[\"fid\", \"sfid\", \"inception-score\", \"kid\", \"precision-recall\"]";

const CELL: &str = "sit-xs4.none.s0";

fn add_inception(place: &Playground) {
    let source = repository().join("crates/encoders/tests/data/inception");
    for file in ["inception.pt", "inception.toml"] {
        fs::copy(source.join(file), place.path("encoders").join(file)).unwrap();
    }
}

fn rows(place: &Playground) -> Vec<ResultRow> {
    read_csv(&place.path("runs/small/results.csv")).unwrap()
}

const OF_INCEPTION: [Figure; 6] = [
    Figure::Fid,
    Figure::Sfid,
    Figure::InceptionScore,
    Figure::Kid,
    Figure::Precision,
    Figure::Recall,
];

fn of_inception(row: &ResultRow) -> [Option<f64>; 6] {
    OF_INCEPTION.map(|figure| row.get(figure))
}

/// Uses a folder of images of one class, so that all samples have the same label.
fn one_class(place: &Playground) {
    fs::create_dir_all(place.path("images/val")).unwrap();
    for index in 0..14u32 {
        let image = image::RgbImage::from_fn(16, 16, |x, y| {
            let mixed = (index * 7919 + (y / 4) * 31 + (x / 4) * 57).wrapping_mul(2_654_435_761);
            image::Rgb([(mixed >> 24) as u8, (mixed >> 16) as u8, (x * y) as u8])
        });
        image
            .save(place.path(&format!("images/val/{index:02}.png")))
            .unwrap();
    }
    let data = place.path("images");
    let text = place.read("base.toml");
    let path = text.lines().find(|line| line.starts_with("path")).unwrap();
    let with_folder = text
        .replace(path, &format!("path = {:?}", data.to_string_lossy()))
        .replace("reference_images = 12", "reference_images = 0");
    place.write("base.toml", &with_folder);
}

#[test]
fn a_sweep_and_evaluate_measure_the_same_values_for_the_same_samples() {
    let place = Playground::new();
    add_inception(&place);
    one_class(&place);
    let settings = ["--only", "*.none.*", "--set", INCEPTION];
    let every = [
        "--set",
        "evaluate.every=3",
        "--set",
        "evaluate.probe_images=4",
    ];
    place
        .sweep(&[&settings[..], &every[..]].concat())
        .expect(0, &["1 done, 0 failed"]);
    let row = rows(&place).into_iter().find(|row| row.cell == CELL);
    let row = row.unwrap();
    // A probe needs two classes, and an encoder.
    assert_eq!(row.get(Figure::LinearProbe), None);

    // Evaluations during training measure the same values.
    let run = place.path("runs/small/cells").join(CELL);
    let log = MetricsLog::read(&run.join("metrics.jsonl")).unwrap();
    let measured: Vec<u64> = log
        .iter()
        .filter(|line| line.is_evaluated())
        .map(|line| line.step)
        .collect();
    assert_eq!(measured, [3, 6]);
    let last = log.last().unwrap();
    assert_eq!(
        of_inception(&row),
        OF_INCEPTION.map(|figure| last.get(figure))
    );
    assert_eq!(row.get(Figure::Fd), last.get(Figure::Fd));

    // Draws the same images as files.
    let run = run.to_string_lossy();
    let sampled = [
        "sample", &run, "--count", "12", "--out", "samples", "--device", "cpu",
    ];
    place.run(&sampled).expect(0, &[]);
    let evaluated = |more: &[&str]| -> Value {
        let all = [
            "evaluate",
            "samples",
            "--reference",
            "images",
            "--reference-split",
            "val",
            "--background",
            "white",
        ];
        place
            .run(&[&all[..], more, &["--device", "cpu"]].concat())
            .expect(0, &[]);
        serde_json::from_str(&place.read("samples.evaluation.json")).unwrap()
    };
    let results = evaluated(&["--metrics", "fid,sfid,inception-score,kid,precision-recall"]);
    for (figure, found) in OF_INCEPTION.into_iter().zip(of_inception(&row)) {
        let value = &results["results"][figure.name()];
        assert_eq!(value.as_f64(), found, "{figure}");
        assert!(found.is_some(), "{figure}");
    }
    let results = evaluated(&["--encoder", "good_patch_only"]);
    assert_eq!(results["results"]["fd"].as_f64(), row.get(Figure::Fd));
    assert_eq!(row.fd_encoder, "good_patch_only");
}

#[test]
fn published_statistics_take_the_place_of_reference_images() {
    let place = Playground::new();
    add_inception(&place);
    one_class(&place);
    let settings = ["--only", "*.none.*", "--set", INCEPTION];
    place.sweep(&settings).expect(0, &["1 done, 0 failed"]);
    let of_images = of_inception(&rows(&place).remove(0));
    // The cached statistics have the layout of published ones; they hold no images.
    let cached = fs::read_dir(place.path("runs/small/reference")).unwrap();
    let cached = cached.map(|entry| entry.unwrap().path());
    let name = |path: &std::path::PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
    let cached = cached
        .into_iter()
        .find(|path| name(path).starts_with("inception-"));
    fs::copy(cached.unwrap(), place.path("published.npz")).unwrap();

    let published = "evaluate.reference=published.npz";
    let with_reference = [&settings[..], &["--set", published]].concat();
    place
        .sweep(&with_reference)
        .expect(0, &["1 done", "kid is left empty", "only statistics"]);
    let found = of_inception(&rows(&place).remove(0));
    let [fid, sfid, score, ..] = of_images;
    assert_eq!(found, [fid, sfid, score, None, None, None]);
    // Other contents are another result, and a missing file is named.
    place.sweep(&with_reference).expect(0, &["nothing to run"]);
    fs::remove_file(place.path("published.npz")).unwrap();
    let missing = ["train", "base.toml", "--device", "cpu", "--set", published];
    place
        .run(&missing)
        .expect(2, &["base.toml: `evaluate.reference` is", "published.npz"]);
}

#[test]
fn a_network_that_is_installed_later_is_used_without_training_again() {
    let place = Playground::new();
    let all = ["--only", "*.none.*", "--set", INCEPTION];
    place.sweep(&all).expect(
        0,
        &["left empty: fid", "cargo xtask export inception", "1 done"],
    );
    let before = rows(&place).remove(0);
    assert_eq!(of_inception(&before), [None; 6]);
    assert!(before.get(Figure::Fd).is_some());
    let run = place.path("runs/small/cells").join(CELL);
    let newest = || {
        checkpoint::list(&run.join("checkpoints"))
            .unwrap()
            .pop()
            .unwrap()
    };
    let trained = newest().join("model.safetensors");
    let modified = trained.metadata().unwrap().modified().unwrap();

    // A damaged file fails the cell with an error that names it, and loses nothing.
    add_inception(&place);
    let file = place.path("encoders/inception.pt");
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    place.sweep(&all).expect(1, &["inception.pt", "1 failed"]);
    fs::write(&file, &whole).unwrap();
    let outcome = place.sweep(&all).expect(0, &["1 to run", "1 done"]);
    assert!(!outcome.stderr.contains("left empty"));
    let after = rows(&place).remove(0);
    assert!(
        of_inception(&after).iter().all(Option::is_some),
        "{after:?}"
    );
    for figure in [Figure::Fd, Figure::DenoisingLoss] {
        assert_eq!(after.get(figure), before.get(figure));
    }
    assert_eq!(trained.metadata().unwrap().modified().unwrap(), modified);
}

#[test]
fn a_sweep_and_the_metrics_command_probe_with_the_same_result() {
    let place = Playground::new();
    let all = ["--only", "*.good.*", "--set", "evaluate.probe_images=40"];
    place.sweep(&all).expect(0, &["1 done"]);
    let found = rows(&place)
        .into_iter()
        .find_map(|row| row.get(Figure::LinearProbe))
        .unwrap();
    assert!((0.0..=1.0).contains(&found));

    let data = repository().join("experiments/data/emoji64");
    let data = data.canonicalize().unwrap();
    let outcome = place
        .run(&[
            "metrics",
            "good",
            "--probe=40",
            "--probe-split=val",
            "--data",
            &data.to_string_lossy(),
            "--images=4",
            "--resolution=16",
            "--background=white",
            "--device=cpu",
        ])
        .expect(0, &[]);
    let mut lines = outcome.stdout.lines();
    let names = "encoder,lds,cds,srss,rmsc,linear_probe,linear_probe_class";
    assert_eq!(lines.next(), Some(names));
    let figures: Vec<&str> = lines.next().unwrap().split(',').collect();
    assert_eq!(figures[5].parse::<f64>().unwrap(), found);
    let class: f64 = figures[6].parse().unwrap();
    assert!((0.0..=1.0).contains(&class));

    // Cached features give the same result; damaged ones are recomputed.
    let kept = || {
        let folder = fs::read_dir(place.path("runs/small/reference")).unwrap();
        let paths = folder.map(|entry| entry.unwrap().path());
        let mut paths: Vec<_> = paths
            .filter(|path| path.to_string_lossy().contains("probe-good"))
            .collect();
        paths.sort();
        paths
    };
    assert_eq!(kept().len(), 2);
    fs::write(&kept()[0], b"rubbish").unwrap();
    place
        .sweep(&[&all[..], &["--set", "sample.grid=5"]].concat())
        .expect(0, &["1 done"]);
    let again = rows(&place)
        .into_iter()
        .find_map(|row| row.get(Figure::LinearProbe));
    assert_eq!(again, Some(found));
}

/// Writes images of one colour per class, with a little texture, in one folder per class.
fn coloured(place: &Playground, folder: &str, classes: &[(&str, [u8; 3])]) {
    for (class, colour) in classes {
        let folder = place.path(&format!("{folder}/{class}"));
        fs::create_dir_all(&folder).unwrap();
        for index in 0..6u8 {
            let image = image::RgbImage::from_fn(16, 16, |x, y| {
                let texture = ((x * y) as u8 + index) % 7;
                image::Rgb(colour.map(|value| value.saturating_add(texture)))
            });
            image.save(folder.join(format!("{index}.png"))).unwrap();
        }
    }
}

const RED: [u8; 3] = [200, 10, 10];
const GREEN: [u8; 3] = [10, 200, 10];
const BLUE: [u8; 3] = [10, 10, 200];

/// Writes training images of three classes and uses them in the base configuration.
fn three_classes(place: &Playground) {
    let classes = [("ant", RED), ("bee", GREEN), ("cat", BLUE)];
    coloured(place, "images/train", &classes);
    let data = place.path("images");
    let text = place.read("base.toml");
    let path = text.lines().find(|line| line.starts_with("path")).unwrap();
    let text = text
        .replace(path, &format!("path = {:?}", data.to_string_lossy()))
        .replace(
            "split = \"val\"",
            "split = \"train\"\nreference_split = \"val\"",
        );
    place.write("base.toml", &text);
}

fn probe<'a>(data: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut all = vec!["metrics", "good", "--data", data, "--images=4"];
    all.extend([
        "--split=val",
        "--probe=18",
        "--resolution=16",
        "--device=cpu",
    ]);
    all.extend(more);
    all
}

#[test]
fn classes_of_a_reference_split_are_matched_by_name() {
    let place = Playground::new();
    three_classes(&place);
    // By position, `bee` would be `ant` and `cat` would be `bee`.
    coloured(&place, "images/val", &[("bee", GREEN), ("cat", BLUE)]);
    let outcome = place.run(&probe("images", &[])).expect(0, &[]);
    let accuracy = outcome.stdout.lines().nth(1).unwrap().split(',').nth(5);
    assert_eq!(accuracy, Some("1"), "{}", outcome.stdout);

    let all = [
        "--only",
        "*.irepa.good.*",
        "--set",
        "evaluate.probe_images=18",
    ];
    place.sweep(&all).expect(0, &["1 done"]);
    assert_eq!(rows(&place)[0].get(Figure::LinearProbe), Some(1.0));
    // The cached features contain labels of the reference split.
    place
        .sweep(&[&all[..], &["--set", "evaluate.spatial_images=2"]].concat())
        .expect(0, &["1 done"]);
    assert_eq!(rows(&place)[0].get(Figure::LinearProbe), Some(1.0));
}

#[test]
fn a_reference_split_with_other_classes_than_the_training_split_is_refused_before_training() {
    let place = Playground::new();
    three_classes(&place);
    // A folder without class folders.
    coloured(&place, "images", &[("val", BLUE)]);
    let differences = ["reference_split", "`all`", "`ant`"];
    place.sweep(&[]).expect(2, &differences);
    assert!(!place.path("runs/small/cells").exists());
    let train = ["train", "base.toml", "--out", "run", "--device", "cpu"];
    place.run(&train).expect(2, &differences);
    assert!(!place.path("run/checkpoints").exists());
    place
        .run(&probe("images", &[]))
        .expect(2, &["--split val", "`all`", "`ant`"]);

    // A class that training has never seen.
    fs::remove_dir_all(place.path("images/val")).unwrap();
    coloured(&place, "images/val", &[("bee", GREEN), ("dog", RED)]);
    place.sweep(&[]).expect(2, &["reference_split", "`dog`"]);
    place.run(&probe("images", &[])).expect(2, &["`dog`"]);

    // Without samples, the classes of the reference split are not used and not checked.
    let settings = ["--only", "*.none.*", "--set", "sample.count=0"];
    place.sweep(&settings).expect(0, &["1 done"]);
}
