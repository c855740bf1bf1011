//! Tests of `runner evaluate` with a tiny stand-in for Inception: results, files and bad input.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::common::{Playground, repository};
use metrics::npz::{Compression, SampleWriter, Statistics, write_statistics};
use metrics::quality::{Moments, Splits, frechet_distance, inception_score, precision_recall};
use ndarray::{Array2, Array4, Axis, s};
use serde_json::Value;

const SIDE: usize = 12;

/// Images u8 `[N, H, W, 3]`, computed by a formula. `shift` selects the distribution.
fn images(count: usize, shift: usize) -> Array4<u8> {
    Array4::from_shape_fn((count, SIDE, SIDE, 3), |(n, y, x, c)| {
        let mixed =
            (n * 7919 + shift * 104_729 + (y / 6) * 31 + (x / 6) * 57 + c * 11) * 2_654_435_761;
        let texture = (x * y + n) % 5;
        ((mixed >> 16) % (160 + 40 * (shift % 3)) + texture) as u8
    })
}

struct Bench {
    playground: Playground,
}

impl Bench {
    fn new() -> Self {
        let playground = Playground::new();
        let source = repository().join("crates/encoders/tests/data/inception");
        for file in ["inception.pt", "inception.toml"] {
            fs::copy(source.join(file), playground.path("encoders").join(file)).unwrap();
        }
        Self { playground }
    }

    fn folder(&self, name: &str, images: &Array4<u8>) {
        fs::create_dir_all(self.playground.path(name)).unwrap();
        for (index, image) in images.outer_iter().enumerate() {
            let bytes: Vec<u8> = image.iter().copied().collect();
            let (height, width, _) = image.dim();
            let path = self.playground.path(&format!("{name}/{index:06}.png"));
            image::RgbImage::from_raw(width as u32, height as u32, bytes)
                .unwrap()
                .save(path)
                .unwrap();
        }
    }

    fn npz(&self, name: &str, images: &Array4<u8>) {
        let (count, height, width, _) = images.dim();
        let path = self.playground.path(name);
        let shape = [count, height, width];
        let mut writer = SampleWriter::create(&path, shape, Compression::Deflated).unwrap();
        writer.push(images.view()).unwrap();
        writer.finish(None).unwrap();
    }

    fn statistics(&self, name: &str, pooled: &Moments, spatial: Option<&Moments>) {
        let spatial = spatial.map(|moments| Statistics::from_moments(moments).unwrap());
        let path = self.playground.path(name);
        write_statistics(
            &path,
            &Statistics::from_moments(pooled).unwrap(),
            spatial.as_ref(),
            &[],
        )
        .unwrap();
    }

    fn evaluate(&self, arguments: &[&str]) -> crate::common::Outcome {
        let mut all = vec!["evaluate"];
        all.extend(arguments);
        all.extend(["--device", "cpu"]);
        self.playground.run(&all)
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_str(&self.playground.read(name)).unwrap()
    }
}

/// The outputs of the stand-in: means of the quarters of each channel `[N, 12]`, means of the ninths of the red channel
/// `[N, 9]`, and logits `[N, 5]`.
fn features(images: &Array4<u8>) -> (Array2<f32>, Array2<f32>, Array2<f32>) {
    let mean = |n: usize, c: usize, y: usize, x: usize, size: usize| {
        let part = images.slice(s![n, y * size..(y + 1) * size, x * size..(x + 1) * size, c]);
        part.iter()
            .map(|&byte| f32::from(byte) / 255.0)
            .sum::<f32>()
            / (size * size) as f32
    };
    let count = images.dim().0;
    let pool = Array2::from_shape_fn((count, 12), |(n, i)| {
        mean(n, i / 4, i % 4 / 2, i % 2, SIDE / 2)
    });
    let spatial = Array2::from_shape_fn((count, 9), |(n, i)| mean(n, 0, i / 3, i % 3, SIDE / 3));
    let classes = Array2::from_shape_fn((12, 5), |(i, c)| {
        (-3.0 + 6.0 * (i * 5 + c) as f32 / 59.0).sin()
    });
    let logits = pool.dot(&classes) * 8.0;
    (pool, spatial, logits)
}

fn moments(features: &Array2<f32>) -> Moments {
    let mut moments = Moments::new(features.ncols());
    moments.push(features.view()).unwrap();
    moments
}

fn close(found: &Value, expected: f64) {
    let found = found.as_f64().unwrap();
    let bound = 1e-4 * expected.abs().max(1e-3);
    assert!(
        (found - expected).abs() < bound,
        "{found} instead of {expected}"
    );
}

#[test]
fn a_folder_against_a_folder_gives_every_measure() {
    let bench = Bench::new();
    let (real, fake) = (images(60, 0), images(70, 1));
    bench.folder("real", &real);
    bench.folder("fake", &fake);
    // The grid of `runner sample` is not a sample.
    fs::write(bench.playground.path("fake/grid.png"), "no image at all").unwrap();
    let metrics = "fid,sfid,inception-score,kid,precision-recall";
    let arguments = [
        "fake",
        "--reference",
        "real",
        "--metrics",
        metrics,
        "--split-size",
        "40",
        "--kid-subset-size",
        "50",
    ];
    let outcome = bench.evaluate(&arguments);
    let outcome = outcome.expect(
        0,
        &["FID", "Inception score", "recall", "fake.evaluation.json"],
    );
    assert!(!outcome.stderr.contains("warning"), "{}", outcome.stderr);

    let report = bench.json("fake.evaluation.json");
    let results = &report["results"];
    let (real, fake) = (features(&real), features(&fake));
    let distance = |real, fake| frechet_distance(&moments(real), &moments(fake)).unwrap();
    close(&results["fid"], distance(&real.0, &fake.0));
    close(&results["sfid"], distance(&real.1, &fake.1));
    let score = inception_score(fake.2.view(), Splits::Size(40)).unwrap();
    close(&results["inception_score"], score.mean);
    close(&results["inception_score_deviation"], score.deviation);
    let expected = precision_recall(real.0.view(), fake.0.view(), 3).unwrap();
    close(&results["precision"], expected.precision);
    close(&results["recall"], expected.recall);
    assert!(results["kid"].is_number() && results["kid_deviation"].is_number());
    assert!(results.get("fd").is_none());
    assert_eq!(report["samples"]["count"], 70);
    assert_eq!(report["reference"]["count"], 60);
    assert_eq!(report["features"]["name"], "inception");
}

#[test]
fn an_npz_and_a_folder_of_the_same_images_give_the_same_bits() {
    let bench = Bench::new();
    let fake = images(50, 1);
    bench.folder("real", &images(60, 0));
    bench.folder("fake", &fake);
    bench.npz("packed.npz", &fake);
    bench.npz("real.npz", &images(60, 0));
    let results = |samples: &str, reference: &str| {
        let metrics = "fid,sfid,inception-score,precision-recall";
        let arguments = [
            samples,
            "--reference",
            reference,
            "--metrics",
            metrics,
            "--out",
            "out.json",
        ];
        bench.evaluate(&arguments).expect(0, &["FID"]);
        bench.json("out.json")["results"].clone()
    };
    let expected = results("fake", "real");
    assert_eq!(results("packed.npz", "real"), expected);
    assert_eq!(results("packed.npz", "real.npz"), expected);
}

#[test]
fn statistics_in_a_file_can_be_the_reference() {
    let bench = Bench::new();
    let (real, fake) = (images(60, 0), images(50, 1));
    bench.npz("fake.npz", &fake);
    let (pool, spatial, _) = features(&real);
    bench.statistics("adm.npz", &moments(&pool), Some(&moments(&spatial)));
    bench.statistics("jit.npz", &moments(&pool), None);

    bench
        .evaluate(&["fake.npz", "--reference", "adm.npz"])
        .expect(0, &["sFID"]);
    let report = bench.json("fake.evaluation.json");
    let fake = features(&fake);
    let distance = frechet_distance(&moments(&pool), &moments(&fake.0)).unwrap();
    close(&report["results"]["fid"], distance);
    let distance = frechet_distance(&moments(&spatial), &moments(&fake.1)).unwrap();
    close(&report["results"]["sfid"], distance);

    let outcome = bench.evaluate(&["fake.npz", "--reference", "jit.npz"]);
    outcome.expect(
        0,
        &["warning: sfid is not computed: jit.npz has no statistics of spatial"],
    );
    let report = bench.json("fake.evaluation.json");
    assert!(report["results"].get("sfid").is_none());
    assert_eq!(report["warnings"].as_array().unwrap().len(), 1);
}

#[test]
fn an_encoder_gives_the_frechet_distance_of_its_mean_tokens() {
    let bench = Bench::new();
    bench.folder("real", &images(40, 0));
    bench.folder("fake", &images(30, 1));
    let run = |samples: &str| {
        let arguments = [
            samples,
            "--reference",
            "real",
            "--encoder",
            "good_patch_only",
            "--out",
            "o.json",
        ];
        bench.evaluate(&arguments).expect(0, &["Frechet distance"]);
        bench.json("o.json")["results"]["fd"].as_f64().unwrap()
    };
    assert!(run("fake") > 1e-3);
    assert!(run("real").abs() < 1e-3);
    let arguments = [
        "fake",
        "--reference",
        "real",
        "--encoder",
        "good",
        "--metrics",
        "sfid",
    ];
    bench
        .evaluate(&arguments)
        .expect(2, &["sfid cannot be computed", "not on those of good"]);
}

/// The files of a folder, without the hidden ones: locks, and unfinished files of a killed process.
fn visible_files(folder: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(folder).unwrap();
    let files = files.map(|file| file.unwrap().path());
    let is_visible = |path: &PathBuf| !path.file_name().unwrap().to_string_lossy().starts_with('.');
    files.filter(is_visible).collect()
}

#[test]
fn statistics_are_cached_and_damaged_ones_are_recomputed() {
    let bench = Bench::new();
    bench.folder("real", &images(40, 0));
    bench.npz("fake.npz", &images(30, 1));
    let arguments = [
        "fake.npz",
        "--reference",
        "real",
        "--metrics",
        "fid,kid",
        "--cache",
        "kept",
    ];
    let run = || {
        bench.evaluate(&arguments).expect(0, &["FID"]);
        bench.playground.read("fake.evaluation.json")
    };
    let first = run();
    let [kept] = &visible_files(&bench.playground.path("kept"))[..] else {
        panic!("one file is kept");
    };
    let bytes = fs::read(kept).unwrap();
    assert_eq!(run(), first);
    assert_eq!(fs::read(kept).unwrap(), bytes);

    fs::write(kept, &bytes[..bytes.len() / 2]).unwrap();
    let outcome = bench.evaluate(&arguments).expect(0, &["computed again"]);
    assert!(outcome.stderr.contains("reference"), "{}", outcome.stderr);
    assert_eq!(bench.playground.read("fake.evaluation.json"), first);
    assert_eq!(fs::read(kept).unwrap(), bytes);

    // Other images get another cache file.
    fs::remove_file(bench.playground.path("real/000003.png")).unwrap();
    assert_ne!(run(), first);
    assert_eq!(visible_files(&bench.playground.path("kept")).len(), 2);
}

#[test]
fn a_killed_evaluation_gives_the_same_bytes_when_it_is_run_again() {
    let bench = Bench::new();
    bench.npz("real.npz", &images(900, 0));
    bench.npz("fake.npz", &images(900, 1));
    let arguments = [
        "evaluate",
        "fake.npz",
        "--reference",
        "real.npz",
        "--device",
        "cpu",
        "--cache",
    ];
    let run = |cache: &str, out: &str| {
        let mut all = arguments.to_vec();
        all.extend([cache, "--out", out]);
        all.extend(["--metrics", "fid,sfid,inception-score,precision-recall"]);
        bench.playground.command(&all)
    };
    assert!(
        run("whole", "whole.json")
            .output()
            .unwrap()
            .status
            .success()
    );
    for delay in [150, 300, 450, 700] {
        let mut child = run("cut", "cut.json").spawn().unwrap();
        std::thread::sleep(Duration::from_millis(delay));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(run("cut", "cut.json").output().unwrap().status.success());
    assert_eq!(
        bench.playground.read("cut.json"),
        bench.playground.read("whole.json")
    );
    let bytes = |cache: &str| -> Vec<Vec<u8>> {
        let files = visible_files(&bench.playground.path(cache));
        files.iter().map(|path| fs::read(path).unwrap()).collect()
    };
    assert_eq!(bytes("cut"), bytes("whole"));
}

#[test]
fn damaged_images_and_images_of_other_sizes_among_samples_are_refused() {
    let bench = Bench::new();
    bench.folder("real", &images(20, 0));
    let bad = |name: &str, change: &dyn Fn(&Path), words: &[&str]| {
        bench.folder(name, &images(20, 1));
        change(&bench.playground.path(&format!("{name}/000007.png")));
        bench
            .evaluate(&[name, "--reference", "real"])
            .expect(words[0].parse().unwrap(), &words[1..]);
        assert!(
            !bench
                .playground
                .path(&format!("{name}.evaluation.json"))
                .exists()
        );
    };
    let cut = |path: &Path| {
        let bytes = fs::read(path).unwrap();
        fs::write(path, &bytes[..bytes.len() * 2 / 3]).unwrap();
    };
    bad("cut", &cut, &["1", "000007.png"]);
    let rubbish = |path: &Path| fs::write(path, "not an image").unwrap();
    bad(
        "rubbish",
        &rubbish,
        &["2", "000007.png", "sample it again or remove it"],
    );
    let larger = |path: &Path| image::RgbImage::new(20, 20).save(path).unwrap();
    bad(
        "larger",
        &larger,
        &[
            "2",
            "000007.png has 20 x 20",
            "must have 12 x 12",
            "--resolution",
        ],
    );

    // The format is detected from the bytes, not from the name.
    bench.folder("jpeg", &images(20, 1));
    let path = bench.playground.path("jpeg/000007.png");
    let jpeg = path.with_extension("jpg");
    image::open(&path).unwrap().to_rgb8().save(&jpeg).unwrap();
    fs::rename(jpeg, path).unwrap();
    bench
        .evaluate(&["jpeg", "--reference", "real"])
        .expect(0, &["FID"]);

    // After cropping, all images have the same size.
    let arguments = ["larger", "--reference", "real", "--resolution", "8"];
    bench.evaluate(&arguments).expect(0, &["FID"]);
    fs::create_dir(bench.playground.path("empty")).unwrap();
    bench
        .evaluate(&["empty", "--reference", "real"])
        .expect(2, &["has no image"]);
    bench
        .evaluate(&["none", "--reference", "real"])
        .expect(2, &["none"]);
    bench
        .evaluate(&["real", "--reference", "none"])
        .expect(2, &["--reference none"]);
}

#[test]
fn npz_files_of_the_wrong_shape_are_refused() {
    let bench = Bench::new();
    bench.folder("real", &images(20, 0));
    let write = |name: &str, array: &Array4<f32>| {
        let path = bench.playground.path(name);
        let mut npz = ndarray_npy::NpzWriter::new(fs::File::create(path).unwrap());
        npz.add_array("arr_0", array).unwrap();
        npz.finish().unwrap();
    };
    write("floats.npz", &Array4::zeros((3, 4, 4, 3)));
    let outcome = bench.evaluate(&["floats.npz", "--reference", "real"]);
    outcome.expect(
        2,
        &[
            "`arr_0` of floats.npz is <f4 [3, 4, 4, 3]",
            "u1 [N, H, W, 3]",
        ],
    );
    fs::write(bench.playground.path("rubbish.npz"), "rubbish").unwrap();
    let outcome = bench.evaluate(&["rubbish.npz", "--reference", "real"]);
    outcome.expect(2, &["rubbish.npz is not an .npz file or is damaged"]);
    bench.npz("cut.npz", &images(40, 1));
    let path = bench.playground.path("cut.npz");
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 64;
    fs::write(&path, bytes).unwrap();
    bench
        .evaluate(&["cut.npz", "--reference", "real"])
        .expect(1, &["cut.npz", "damaged"]);
}

#[test]
fn references_that_do_not_fit_are_refused() {
    let bench = Bench::new();
    bench.npz("fake.npz", &images(20, 1));
    let narrow = features(&images(30, 0)).1;
    bench.statistics("narrow.npz", &moments(&narrow), None);
    let outcome = bench.evaluate(&["fake.npz", "--reference", "narrow.npz"]);
    outcome.expect(
        2,
        &["`mu` in narrow.npz describes 9 features, but the network computes 12"],
    );
    let pool = features(&images(30, 0)).0;
    bench.statistics("spatial.npz", &moments(&pool), Some(&moments(&pool)));
    let outcome = bench.evaluate(&["fake.npz", "--reference", "spatial.npz"]);
    outcome.expect(
        2,
        &["`mu_s` in spatial.npz describes 12 features, but the network computes 9"],
    );

    bench.statistics("only.npz", &moments(&pool), None);
    for (metric, words) in [
        ("sfid", "no statistics of spatial features"),
        ("kid", "only.npz contains only statistics; use a folder"),
        ("precision-recall", "compares individual images"),
    ] {
        let arguments = ["fake.npz", "--reference", "only.npz", "--metrics", metric];
        bench
            .evaluate(&arguments)
            .expect(2, &["cannot be computed", words]);
    }
    let path = bench.playground.path("odd.npz");
    let mut npz = ndarray_npy::NpzWriter::new(fs::File::create(path).unwrap());
    npz.add_array("weights", &Array2::<f32>::zeros((2, 2)))
        .unwrap();
    npz.finish().unwrap();
    let outcome = bench.evaluate(&["fake.npz", "--reference", "odd.npz"]);
    outcome.expect(
        2,
        &["neither statistics (mu, sigma) nor images (arr_0), only weights"],
    );
    let outcome = bench.evaluate(&["fake.npz", "--reference", "only.npz", "--metrics", "fidd"]);
    outcome.expect(2, &["unknown metric; expected one of fid, fd, sfid"]);
    let outcome = bench.evaluate(&["fake.npz", "--reference", "only.npz", "--encoder", "goood"]);
    outcome.expect(2, &["did you mean good"]);
    let outcome = bench.evaluate(&[
        "fake.npz",
        "--reference",
        "only.npz",
        "--encoder",
        "inception-pytorch-fid",
    ]);
    outcome.expect(
        1,
        &["cargo xtask export inception-pytorch-fid --weights FILE"],
    );
}

#[test]
fn fewer_samples_than_features_cause_a_warning() {
    let bench = Bench::new();
    let all = images(60, 0);
    bench.npz("real.npz", &all);
    bench.npz("fake.npz", &all.slice(s![..12, .., .., ..]).to_owned());
    let outcome = bench.evaluate(&["fake.npz", "--reference", "real.npz"]);
    outcome.expect(
        0,
        &[
            "warning: 12 samples for 12 features",
            "covariance is singular",
        ],
    );
    let report = bench.json("fake.evaluation.json");
    assert_eq!(report["warnings"].as_array().unwrap().len(), 1);
    bench.npz("one.npz", &all.select(Axis(0), &[0]));
    let outcome = bench.evaluate(&["one.npz", "--reference", "real.npz"]);
    outcome.expect(1, &["at least 2 samples, but has 1"]);
    let outcome = bench.evaluate(&["fake.npz", "--reference", "one.npz"]);
    outcome.expect(1, &["at least 2 samples, but has 1"]);
}

fn case(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/cases");
    folder.join(name).to_string_lossy().into_owned()
}

#[test]
fn kid_of_as_many_images_as_a_subset_holds_has_no_deviation() {
    let bench = Bench::new();
    let [samples, real] = ["21-kid/a200.npz", "21-kid/b200.npz"].map(case);
    let run = |more: &[&str]| {
        let mut all = vec![samples.as_str(), "--reference", &real, "--out", "o.json"];
        all.extend(["--encoder", "good_patch_only", "--metrics", "kid"]);
        all.extend(more);
        let outcome = bench.evaluate(&all).expect(0, &["KID"]);
        (outcome, bench.json("o.json"))
    };
    let (outcome, report) = run(&[]);
    assert!(!outcome.stdout.contains("+-"), "{}", outcome.stdout);
    assert!(
        outcome
            .stderr
            .contains("warning: KID compares all 200 samples with all 200 reference images"),
        "{}",
        outcome.stderr
    );
    assert!(report["results"]["kid"].is_number());
    assert!(report["results"].get("kid_deviation").is_none());

    let (outcome, report) = run(&["--kid-subset-size", "100"]);
    assert!(!outcome.stderr.contains("KID"), "{}", outcome.stderr);
    assert!(report["results"]["kid_deviation"].as_f64().unwrap() > 0.0);
}

#[test]
fn a_subset_that_exhausts_one_set_causes_a_warning() {
    let bench = Bench::new();
    bench.npz("fake.npz", &images(30, 1));
    bench.npz("real.npz", &images(60, 0));
    for (samples, reference, whole) in [
        ("fake.npz", "real.npz", "all 30 samples"),
        ("real.npz", "fake.npz", "all 30 reference images"),
    ] {
        let arguments = [samples, "--reference", reference, "--metrics", "kid"];
        bench
            .evaluate(&arguments)
            .expect(0, &["each subset of KID contains", whole, "+-"]);
    }
}

#[test]
fn samples_sorted_by_class_cause_a_warning() {
    let bench = Bench::new();
    // Green and magenta images, which the stand-in assigns to different classes.
    let kind = |n: usize, channel: usize| if (n < 60) == (channel == 1) { 255 } else { 0 };
    let sorted = Array4::from_shape_fn((120, SIDE, SIDE, 3), |(n, .., c)| kind(n, c));
    let mixed = Array4::from_shape_fn((120, SIDE, SIDE, 3), |(n, .., c)| kind(n * 77 % 120, c));
    bench.npz("sorted.npz", &sorted);
    bench.npz("mixed.npz", &mixed);
    bench.npz("real.npz", &images(20, 0));
    let run = |samples: &str, size: &str| {
        let metrics = ["--metrics", "inception-score", "--split-size", size];
        let mut all = vec![samples, "--reference", "real.npz"];
        all.extend(metrics);
        bench.evaluate(&all).expect(0, &["Inception score"]).stderr
    };
    let warning = "warning: the samples are not in a random order";
    let found = run("sorted.npz", "60");
    assert!(found.contains(warning), "{found}");
    for (samples, size) in [("mixed.npz", "60"), ("sorted.npz", "120")] {
        let found = run(samples, size);
        assert!(!found.contains(warning), "{samples}: {found}");
    }
}

#[test]
fn the_distance_of_a_set_to_itself_is_not_negative_zero() {
    let bench = Bench::new();
    for seed in 0..6 {
        let own = images(40, seed);
        bench.npz("own.npz", &own);
        bench.folder("own", &own);
        let metrics = ["--metrics", "fid,sfid"];
        let arguments = [&["own.npz", "--reference", "own"][..], &metrics[..]].concat();
        let outcome = bench.evaluate(&arguments).expect(0, &["FID"]);
        assert!(!outcome.stdout.contains('-'), "{}", outcome.stdout);
        let report = bench.json("own.evaluation.json");
        for key in ["fid", "sfid"] {
            let found = report["results"][key].as_f64().unwrap();
            assert!(found.is_sign_positive(), "{key} {found}");
        }
    }
}

#[test]
fn the_format_of_an_image_is_read_from_its_bytes() {
    let bench = Bench::new();
    let folder = case("12-extensions/wrongext/x");
    bench.npz("real.npz", &images(20, 0));
    let run = |more: &[&str]| {
        let mut all = vec![
            folder.as_str(),
            "--reference",
            "real.npz",
            "--out",
            "o.json",
        ];
        all.extend(more);
        bench.evaluate(&all).expect(0, &["FID"]);
        bench.json("o.json")["samples"]["count"].clone()
    };
    // Eight PNG files, a PNG called .jpg and a JPEG called .png, all of 32 pixels.
    assert_eq!(run(&[]), run(&["--resolution", "32"]));
}

#[test]
fn a_damaged_npz_has_the_same_exit_code_as_samples_and_as_reference() {
    let bench = Bench::new();
    bench.npz("good.npz", &images(40, 1));
    fs::write(bench.playground.path("rubbish.npz"), "rubbish").unwrap();
    let whole = fs::read(bench.playground.path("good.npz")).unwrap();
    let cut = bench.playground.path("cut.npz");
    fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 64;
    fs::write(bench.playground.path("flipped.npz"), flipped).unwrap();
    for (name, code) in [("rubbish.npz", 2), ("cut.npz", 2), ("flipped.npz", 1)] {
        for [samples, reference] in [[name, "good.npz"], ["good.npz", name]] {
            // A separate cache, because cached statistics of the intact file would be used for the damaged one.
            let cache = format!("statistics of {reference}");
            bench
                .evaluate(&[samples, "--reference", reference, "--cache", &cache])
                .expect(code, &[name, "damaged"]);
        }
    }
}

#[test]
fn statistics_in_fortran_order_or_of_another_byte_order_give_the_same_figure() {
    let bench = Bench::new();
    let folder = repository().join("experiments/encoders");
    for extension in ["pt", "toml"] {
        let file = format!("efficientnet-lite2.{extension}");
        fs::copy(
            folder.join(&file),
            bench.playground.path("encoders").join(&file),
        )
        .unwrap();
    }
    let samples = case("20-fortran/s.npz");
    let figure = |reference: &str| {
        let reference = case(&format!("20-fortran/{reference}.npz"));
        let arguments = [
            samples.as_str(),
            "--reference",
            &reference,
            "--encoder",
            "efficientnet-lite2",
            "--out",
            "o.json",
        ];
        bench.evaluate(&arguments).expect(0, &["Frechet distance"]);
        bench.json("o.json")["results"]["fd"].clone()
    };
    let expected = figure("c");
    assert!(expected.is_number());
    assert_eq!(figure("f"), expected);
    assert_eq!(figure("be"), expected);
}
