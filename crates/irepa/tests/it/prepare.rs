//! Feature caches: training with and without them gives the same results; errors of caches.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{Outcome, Playground};
use metrics::figures::Figure;
use training::{MetricsLog, checkpoint};

/// Prepares the features of two encoders for the 190 validation images.
fn prepare(place: &Playground, arguments: &[&str]) -> Outcome {
    let mut all = vec![
        "prepare",
        "features",
        "base.toml",
        "--device",
        "cpu",
        "--encoder",
        "good,hog-vit-g4_d128",
    ];
    all.extend(arguments);
    place.run(&all)
}

fn cell(place: &Playground, out: &str, encoder: &str) -> PathBuf {
    place.path(&format!("{out}/small/cells/sit-xs4.irepa.{encoder}.s0"))
}

/// Losses and weights of a cell.
fn trained(cell: &Path) -> Vec<Vec<u8>> {
    let newest = checkpoint::list(&cell.join("checkpoints"))
        .unwrap()
        .pop()
        .unwrap();
    let files = ["model.safetensors", "ema.safetensors", "manifest.json"];
    let mut files: Vec<_> = files.iter().map(|name| newest.join(name)).collect();
    files.push(cell.join("metrics.jsonl"));
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

fn losses(cell: &Path) -> Vec<f64> {
    let log = MetricsLog::read(&cell.join("metrics.jsonl")).unwrap();
    let losses = log.iter().map(|line| line.get(Figure::Loss));
    losses.map(Option::unwrap).collect()
}

const ENCODERS: [&str; 2] = ["good", "hog-vit-g4_d128"];
const CACHED: [&str; 2] = ["--set", "data.token_cache=features"];

#[test]
fn a_float32_cache_trains_to_the_same_bits_and_half_precision_close_to_them() {
    let place = Playground::new();
    place.sweep(&["--only", "*irepa*"]).expect(0, &["2 done"]);
    prepare(&place, &["--dtype", "fp32"]).expect(0, &["features/good", "each also mirrored"]);
    place
        .sweep(&["--only", "*irepa*", "--out", "cached", CACHED[0], CACHED[1]])
        .expect(0, &["2 done", "from the feature cache: good (fp32)"]);
    for encoder in ENCODERS {
        let (alone, cached) = (
            cell(&place, "runs", encoder),
            cell(&place, "cached", encoder),
        );
        assert_eq!(trained(&alone), trained(&cached), "{encoder}");
    }
    // Therefore the cache does not cause finished cells to run again, and an interrupted run may resume with or
    // without it.
    place
        .sweep(&["--dry-run", CACHED[0], CACHED[1]])
        .expect(0, &["1 to run, 2 done"]);

    for (dtype, bound) in [("fp16", 5e-4), ("bf16", 4e-3)] {
        let folder = format!("features-{dtype}");
        prepare(&place, &["--dtype", dtype, "--out", &folder]).expect(0, &[]);
        let setting = format!("data.token_cache={folder}");
        // Rounded tokens are different tokens, so all cells run again.
        place
            .sweep(&["--dry-run", "--set", &setting])
            .expect(0, &["3 to run, 0 done"]);
        place
            .sweep(&["--only", "*irepa*", "--out", dtype, "--set", &setting])
            .expect(0, &["2 done"]);
        for encoder in ENCODERS {
            let exact = losses(&cell(&place, "runs", encoder));
            let rounded = losses(&cell(&place, dtype, encoder));
            assert_eq!(exact.len(), 6);
            assert_ne!(exact, rounded);
            for (exact, rounded) in exact.iter().zip(&rounded) {
                let off = (exact - rounded).abs() / exact.abs();
                assert!(
                    off <= bound,
                    "{dtype} {encoder}: {rounded} for {exact}, {off:.1e}"
                );
            }
        }
    }
}

#[test]
fn a_cache_of_another_encoder_or_data_set_is_refused_and_other_cells_finish() {
    let place = Playground::new();
    prepare(&place, &[]).expect(0, &[]);
    // Another encoder under the same name.
    for extension in ["pt", "toml"] {
        let source = place.path(&format!("encoders/good_patch_only.{extension}"));
        fs::copy(source, place.path(&format!("encoders/good.{extension}"))).unwrap();
    }
    place.edit("encoders/good.toml", "good_patch_only", "good");
    place.sweep(&CACHED).expect(
        1,
        &[
            "2 done, 1 failed",
            "features/good",
            "SHA-256",
            "prepare features",
        ],
    );
    prepare(&place, &[]).expect(1, &["failed: good", "SHA-256", "features/hog-vit-g4_d128"]);

    let place = Playground::new();
    prepare(&place, &[]).expect(0, &[]);
    place.edit("base.toml", "split = \"val\"", "split = \"train\"");
    place
        .sweep(&CACHED)
        .expect(1, &["1 done, 2 failed", "data set (fingerprint)"]);
    let place = Playground::new();
    prepare(&place, &["--set", "data.flip=false"]).expect(0, &[]);
    place.sweep(&CACHED).expect(1, &["data.flip is on"]);
}

#[test]
fn a_truncated_shard_is_named_and_recomputed() {
    let place = Playground::new();
    prepare(&place, &[]).expect(0, &[]);
    let shard = place.path("features/good/tokens-00000.safetensors");
    let whole = fs::read(&shard).unwrap();
    fs::write(&shard, &whole[..whole.len() - 1]).unwrap();
    place
        .sweep(&CACHED)
        .expect(1, &["1 failed", "tokens-00000.safetensors is damaged"]);
    prepare(&place, &[]).expect(0, &["good: 190/190 images"]);
    assert!(fs::read(&shard).unwrap() == whole);
    place.sweep(&CACHED).expect(0, &["3 done"]);
}

/// Names and bytes of the shards of a cache.
fn shards(place: &Playground, encoder: &str) -> Vec<(OsString, Vec<u8>)> {
    let folder = place.path("features").join(encoder);
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    let is_shard = |path: &PathBuf| path.extension().is_some_and(|end| end == "safetensors");
    let mut shards: Vec<_> = paths
        .filter(is_shard)
        .map(|path| {
            (
                path.file_name().unwrap().to_owned(),
                fs::read(&path).unwrap(),
            )
        })
        .collect();
    shards.sort();
    shards
}

#[test]
fn four_processes_write_the_bytes_of_one() {
    let (one, four) = (Playground::new(), Playground::new());
    for place in [&one, &four] {
        place.edit("base.toml", "split = \"val\"", "split = \"train\"");
    }
    prepare(&one, &["--shard-mib", "1"]).expect(0, &[]);
    let start = |_| {
        let arguments =
            "prepare features base.toml --device cpu --encoder good,hog-vit-g4_d128 --shard-mib 1";
        let mut command = four.command(&arguments.split(' ').collect::<Vec<_>>());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.env("OMP_NUM_THREADS", "1").spawn().unwrap()
    };
    let processes: Vec<_> = (0..4).map(start).collect();
    for process in processes {
        Outcome::of(process.wait_with_output().unwrap()).expect(0, &["features"]);
    }
    for encoder in ENCODERS {
        assert!(shards(&four, encoder) == shards(&one, encoder), "{encoder}");
    }
    assert!(shards(&one, "hog-vit-g4_d128").len() > 5);
}

#[test]
fn a_killed_preparation_resumes_to_the_same_bytes() {
    let whole = Playground::new();
    let place = Playground::new();
    for place in [&whole, &place] {
        // Fourteen shards instead of two.
        place.edit("base.toml", "split = \"val\"", "split = \"train\"");
    }
    prepare(&whole, &["--shard-mib", "1"]).expect(0, &[]);
    let arguments = [
        "prepare",
        "features",
        "base.toml",
        "--device",
        "cpu",
        "--encoder",
        "hog-vit-g4_d128",
        "--shard-mib",
        "1",
    ];
    let mut child = place
        .command(&arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(120);
    while shards(&place, "hog-vit-g4_d128").len() < 2 {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let first = shards(&place, "hog-vit-g4_d128");
    assert!(
        first.len() < shards(&whole, "hog-vit-g4_d128").len(),
        "killed too late"
    );
    place
        .sweep(&["--only", "*hog*", CACHED[0], CACHED[1]])
        .expect(1, &["not complete", "prepare features"]);
    prepare(&place, &["--shard-mib", "1"]).expect(0, &["images are already stored"]);
    for encoder in ENCODERS {
        assert!(
            shards(&place, encoder) == shards(&whole, encoder),
            "{encoder}"
        );
    }
    // A complete cache is not changed.
    prepare(&place, &[]).expect(0, &["; complete"]);
}

#[test]
fn a_full_disk_keeps_the_shards_that_are_complete() {
    let place = Playground::new();
    // A limit on the file size simulates a full disk: the shard of the second encoder exceeds it.
    let program = env!("CARGO_BIN_EXE_irepa");
    let script = format!(
        "trap '' XFSZ; ulimit -f 1024; exec '{program}' prepare features base.toml --device cpu \
         --encoder good,hog-vit-g4_d128 --dtype fp32"
    );
    let output = Command::new("bash")
        .args(["-c", &script])
        .current_dir(place.path("."))
        .env("IREPA_ENCODERS", place.path("encoders"))
        .output()
        .unwrap();
    Outcome::of(output).expect(
        1,
        &[
            "features/good",
            "disk is full",
            "make room",
            "hog-vit-g4_d128",
        ],
    );
    let left = fs::read_dir(place.path("features/hog-vit-g4_d128")).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    let is_temporary = |name: &std::ffi::OsString| name.to_string_lossy().ends_with(".tmp");
    assert!(!left.iter().any(is_temporary), "{left:?}");
    prepare(&place, &["--dtype", "fp32"]).expect(0, &["good: 190 images", "; complete"]);
    place.sweep(&CACHED).expect(0, &["3 done"]);
}

#[test]
fn tokens_that_are_not_finite_are_named_and_other_encoders_finish() {
    let place = Playground::new();
    place.add_encoder("nan_tokens");
    place
        .run(&[
            "prepare",
            "features",
            "base.toml",
            "--device",
            "cpu",
            "--encoder",
            "nan_tokens,good",
        ])
        .expect(1, &["failed: nan_tokens", "NaN", "features/good"]);
}

#[test]
fn errors_of_usage_name_the_remedy() {
    let place = Playground::new();
    let run = |arguments: &[&str]| {
        let mut all = vec!["prepare", "features", "base.toml", "--device", "cpu"];
        all.extend(arguments);
        place.run(&all)
    };
    run(&[]).expect(2, &["base.toml", "alignment.encoder", "--encoder"]);
    run(&["--encoder", "goood"]).expect(2, &["goood", "did you mean good"]);
    run(&["--encoder", "good", "--dtype", "fp8"]).expect(2, &["fp8", "fp16"]);
    run(&["--encoder", "good", "--shard-mib", "0"]).expect(2, &["--shard-mib"]);
    run(&["--encoder", "good", "--set", "data.path=\"nowhere\""])
        .expect(2, &["base.toml", "data.path", "nowhere"]);
    run(&["--encoder", "dino-vit-b"]).expect(1, &["dino-vit-b", "cargo xtask export"]);
    assert!(!place.path("features").exists());
}
