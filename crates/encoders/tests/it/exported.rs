//! Compares the exporter's files with Python: Python builds, traces and saves architectures with random
//! weights and few blocks; the tests load them and compare their tokens on images that were not used for
//! tracing.
//!
//! By default the tests cover the five smallest encoders; `IREPA_EXPORT` selects others, `all` or a list
//! of names. `IREPA_PYTHON` selects another Python than the one in `.venv`. The tests fail without the
//! exporter's packages, so they are ignored by default.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use encoders::check::{CheckOptions, check};
use encoders::{EncoderError, LoadOptions, Precision, Registry};
use tch::{Device, Tensor};

/// Largest difference allowed in float32, relative to the largest value.
const TOLERANCE: f64 = 1e-4;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Allows one export at a time: Python and libtorch each use every core and would slow each other down.
static EXPORT_LOCK: Mutex<()> = Mutex::new(());

/// Returns the command of the exporter and the lock that must be held while it runs.
fn exporter() -> (Command, MutexGuard<'static, ()>) {
    // A failed test leaves nothing behind that others use, so poisoning is ignored.
    let lock = EXPORT_LOCK.lock().unwrap_or_else(PoisonError::into_inner);
    let python =
        env::var_os("IREPA_PYTHON").map_or_else(|| root().join(".venv/bin/python"), PathBuf::from);
    let mut command = Command::new(python);
    command
        .env("PYTHONPATH", root().join("crates/encoders/python"))
        .args(["-m", "export"]);
    (command, lock)
}

/// The encoders to test: the five with the fewest parameters, or those in `IREPA_EXPORT`.
fn names() -> Vec<&'static str> {
    let mut known: Vec<_> = encoders::catalogue().iter().collect();
    match env::var("IREPA_EXPORT") {
        Err(_) => {
            known.sort_by(|left, right| left.params_m.total_cmp(&right.params_m));
            known.truncate(5);
        }
        Ok(list) if list == "all" => {}
        Ok(list) => {
            let wanted = encoders::split_names(&list);
            known.retain(|encoder| wanted.contains(&encoder.name));
            assert_eq!(known.len(), wanted.len(), "IREPA_EXPORT={list}");
        }
    }
    known.iter().map(|encoder| encoder.name.as_str()).collect()
}

/// Runs the exporter with `arguments`; returns whether it succeeded, and its output.
fn export(mut exporter: Command, folder: &Path, arguments: &[&str]) -> (bool, String) {
    let output = exporter
        .args(arguments)
        .arg("--out")
        .arg(folder)
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}", exporter.get_program().display()));
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    (output.status.success(), text)
}

fn difference(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.size(), expected.size());
    let scale = expected.abs().max().double_value(&[]);
    assert!(scale > 0.0);
    let largest = (found - expected).abs().max().double_value(&[]);
    if largest.is_nan() {
        f64::INFINITY
    } else {
        largest / scale
    }
}

/// Number of encoders per call of Python. Their files are removed after the comparison, because a giant has
/// 1 GB even with two blocks.
const CHUNK: usize = 5;

/// Exports encoders at `resolution` and compares them; returns a table row for each.
fn compare(names: &[&str], resolution: i64) -> Vec<String> {
    let (exporter, _lock) = exporter();
    let folder = tempfile::tempdir().unwrap();
    let side = resolution.to_string();
    let options = ["--random-weights", "--depth", "2", "--fixtures"];
    let mut arguments = names.to_vec();
    arguments.extend(options);
    arguments.extend(["--resolution", &side]);
    let (success, text) = export(exporter, folder.path(), &arguments);
    assert!(success, "{names:?}: {text}");
    names
        .iter()
        .map(|name| compare_one(folder.path(), name, resolution))
        .collect()
}

fn compare_one(folder: &Path, name: &str, resolution: i64) -> String {
    let stem = match resolution {
        256 => name.to_owned(),
        _ => format!("{name}@{resolution}"),
    };
    let fixtures = Tensor::read_safetensors(folder.join(format!("{stem}.fixtures.safetensors")));
    let fixtures = fixtures.unwrap();
    let fixture = |wanted: &str| {
        let found = fixtures.iter().find(|(name, _)| name == wanted);
        found.map(|(_, tensor)| tensor)
    };
    let registry = Registry::new(&[folder.to_owned()]);
    let options = LoadOptions {
        resolution,
        ..LoadOptions::default()
    };
    let encoder = registry.load(name, &options).unwrap();
    let known = encoders::known(name).unwrap();
    let spec = encoder.spec();
    assert_eq!(
        (spec.width, spec.class_token),
        (known.width, known.class_token)
    );
    assert_eq!(spec.prefix_tokens, known.prefix_tokens);
    assert_eq!(spec.input_size, known.input_size_at(resolution));
    assert_eq!(spec.preprocessing, known.preprocessing, "{name}");

    let (mut patch, mut class): (f64, Option<f64>) = (0.0, None);
    for batch in [1, 5] {
        let images = fixture(&format!("images_{batch}")).unwrap();
        let tokens = encoder.encode(images).unwrap();
        let expected = fixture(&format!("patch_{batch}")).unwrap();
        patch = patch.max(difference(&tokens.patch, expected));
        let expected = fixture(&format!("class_{batch}"));
        assert_eq!(tokens.class.is_some(), expected.is_some(), "{name}");
        if let (Some(found), Some(expected)) = (&tokens.class, expected) {
            class = Some(class.unwrap_or(0.0).max(difference(found, expected)));
        }
    }
    let report = check(
        encoder.as_ref(),
        &CheckOptions {
            device: Device::Cpu,
            precision: Precision::Fp32,
            resolution,
            batch: 1,
            seconds: 0.0,
        },
    );
    let report = report.unwrap();
    assert!(report.flaws().is_empty(), "{name}: {:?}", report.flaws());
    let recorded = report.reference_difference.unwrap();
    assert!(
        recorded <= TOLERANCE,
        "{name}: {recorded} from the values in the sidecar"
    );
    assert!(patch <= TOLERANCE, "{name}: patch tokens differ by {patch}");
    assert!(
        class.unwrap_or(0.0) <= TOLERANCE,
        "{name}: class tokens differ by {class:?}"
    );

    let file = folder.join(format!("{stem}.pt"));
    let size = fs::metadata(file).unwrap().len();
    let class = class.map_or("-".to_owned(), |class| format!("{class:.1e}"));
    format!(
        "| `{name}` | {resolution} | {} | {patch:.1e} | {class} | {recorded:.1e} | {:.0} MB |",
        spec.depth.map_or("-".to_owned(), |depth| depth.to_string()),
        size as f64 / 1e6,
    )
}

mod needs_python {
    use super::*;

    #[test]
    #[ignore = "needs Python packages: `cargo xtask test --python`"]
    fn exported_encoders_return_the_tokens_of_python() {
        for chunk in names().chunks(CHUNK) {
            eprintln!("{}", compare(chunk, 256).join("\n"));
        }
    }

    #[test]
    #[ignore = "needs Python packages: `cargo xtask test --python`"]
    fn an_encoder_exported_for_512_pixels_has_four_times_the_tokens() {
        // Its position table is resampled.
        eprintln!("{}", compare(&["dinov2-vit-b"], 512).join("\n"));
    }

    #[test]
    #[ignore = "needs Python packages: `cargo xtask test --python`"]
    fn an_exported_encoder_can_be_cast_to_half_precision() {
        let (exporter, _lock) = exporter();
        let folder = tempfile::tempdir().unwrap();
        let arguments = ["dinov3-vit-b16", "--random-weights", "--depth", "2"];
        let (success, text) = export(exporter, folder.path(), &arguments);
        assert!(success, "{text}");
        let registry = Registry::new(&[folder.path().to_owned()]);
        for precision in [Precision::Bf16, Precision::Fp16] {
            let options = LoadOptions {
                precision,
                ..LoadOptions::default()
            };
            let encoder = registry.load("dinov3-vit-b16", &options).unwrap();
            let report = check(
                encoder.as_ref(),
                &CheckOptions {
                    device: Device::Cpu,
                    precision,
                    resolution: 256,
                    batch: 1,
                    seconds: 0.0,
                },
            );
            let report = report.unwrap();
            assert!(
                report.flaws().is_empty(),
                "{precision:?}: {:?}",
                report.flaws()
            );
            // A difference shows that it ran in that precision.
            assert!(report.reference_difference.unwrap() > 1e-5);
        }
    }

    #[test]
    #[ignore = "needs Python packages: `cargo xtask test --python`"]
    fn check_finds_a_file_whose_values_differ_from_python() {
        let (exporter, _lock) = exporter();
        let folder = tempfile::tempdir().unwrap();
        let arguments = ["dinov2-vit-b", "--random-weights", "--depth", "2"];
        let (success, text) = export(exporter, folder.path(), &arguments);
        assert!(success, "{text}");
        let sidecar = folder.path().join("dinov2-vit-b.toml");
        let text = fs::read_to_string(&sidecar).unwrap();
        // With another preprocessing than in Python, everything still runs.
        fs::write(&sidecar, text.replace("0.485", "0.585")).unwrap();
        let registry = Registry::new(&[folder.path().to_owned()]);
        let encoder = registry
            .load("dinov2-vit-b", &LoadOptions::default())
            .unwrap();
        let options = CheckOptions {
            device: Device::Cpu,
            precision: Precision::Fp32,
            resolution: 256,
            batch: 1,
            seconds: 0.0,
        };
        let flaws = check(encoder.as_ref(), &options).unwrap().flaws();
        assert!(
            flaws.iter().any(|flaw| flaw.contains("Python")),
            "{flaws:?}"
        );
    }

    #[test]
    #[ignore = "needs Python packages: `cargo xtask test --python`"]
    fn a_failed_export_does_not_stop_the_others() {
        let (exporter, _lock) = exporter();
        let folder = tempfile::tempdir().unwrap();
        // MAE supports 256 pixels only.
        let arguments = [
            "mae-vit-l",
            "dinov2-vit-b",
            "--random-weights",
            "--depth",
            "2",
            "--resolution",
            "512",
        ];
        let (success, text) = export(exporter, folder.path(), &arguments);
        assert!(
            !success && text.contains("mae-vit-l") && text.contains("256"),
            "{text}"
        );
        let registry = Registry::new(&[folder.path().to_owned()]);
        let options = LoadOptions {
            resolution: 512,
            ..LoadOptions::default()
        };
        let encoder = registry.load("dinov2-vit-b", &options).unwrap();
        assert_eq!(encoder.spec().grid.tokens(), 1024);
        let error = registry.load("mae-vit-l", &options).unwrap_err();
        assert!(matches!(error, EncoderError::Resolution { .. }), "{error}");
    }
}
