//! The exporter's files against Python: architectures with random weights and few blocks are built,
//! traced and saved by Python, loaded here, and compared on images that the tracing did not see.
//!
//! The five smallest encoders by default; `IREPA_EXPORT=all` takes all of the catalogue, or a list
//! of names. `IREPA_PYTHON` names the Python to use instead of the one in `.venv`. Without the
//! exporter's packages they fail, so they are ignored unless they are asked for.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use encoders::check::{CheckOptions, check};
use encoders::{EncoderError, LoadOptions, Precision, Registry};
use tch::{Device, Tensor};

/// Largest difference that float32 may show, relative to the largest value.
const TOLERANCE: f64 = 1e-4;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// One export at a time: Python and libtorch each use every core, and together they would wait for
/// each other.
static TURN: Mutex<()> = Mutex::new(());

/// The exporter, and the turn to use it.
fn exporter() -> (Command, MutexGuard<'static, ()>) {
    // A test that failed has left nothing behind that others use.
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let python =
        env::var_os("IREPA_PYTHON").map_or_else(|| root().join(".venv/bin/python"), PathBuf::from);
    let mut command = Command::new(python);
    command
        .env("PYTHONPATH", root().join("crates/encoders/python"))
        .args(["-m", "export"]);
    (command, turn)
}

/// The encoders to test: the five with the fewest parameters, or those that were asked for.
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

/// Runs the exporter with `arguments`; what it said, and whether it ended well.
fn export(mut exporter: Command, folder: &Path, arguments: &[&str]) -> (bool, String) {
    let output = exporter
        .args(arguments)
        .arg("--out")
        .arg(folder)
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}", exporter.get_program().display()));
    let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
    said.push_str(&String::from_utf8_lossy(&output.stderr));
    (output.status.success(), said)
}

fn difference(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.size(), expected.size());
    let scale = expected.abs().max().double_value(&[]);
    assert!(scale > 0.0);
    let most = (found - expected).abs().max().double_value(&[]);
    if most.is_nan() {
        f64::INFINITY
    } else {
        most / scale
    }
}

/// Encoders that are exported by one call of Python, before their files are compared and removed:
/// a giant has 1 GB with two blocks.
const TOGETHER: usize = 5;

/// Encoders exported at `resolution` and compared; a row of the table for each.
fn compare(names: &[&str], resolution: i64) -> Vec<String> {
    let (exporter, _turn) = exporter();
    let folder = tempfile::tempdir().unwrap();
    let side = resolution.to_string();
    let options = ["--random-weights", "--depth", "2", "--fixtures"];
    let mut arguments = names.to_vec();
    arguments.extend(options);
    arguments.extend(["--resolution", &side]);
    let (ended_well, said) = export(exporter, folder.path(), &arguments);
    assert!(ended_well, "{names:?}: {said}");
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
    fn exported_encoders_give_pythons_tokens() {
        for together in names().chunks(TOGETHER) {
            eprintln!("{}", compare(together, 256).join("\n"));
        }
    }

    #[test]
    #[ignore = "needs Python packages: `cargo xtask test --python`"]
    fn an_encoder_exported_for_512_pixels_has_four_times_the_tokens() {
        // One whose position table is resampled for it.
        eprintln!("{}", compare(&["dinov2-vit-b"], 512).join("\n"));
    }

    #[test]
    #[ignore = "needs Python packages: `cargo xtask test --python`"]
    fn an_exported_encoder_can_be_cast_to_half_precision() {
        let (exporter, _turn) = exporter();
        let folder = tempfile::tempdir().unwrap();
        let arguments = ["dinov3-vit-b16", "--random-weights", "--depth", "2"];
        let (ended_well, said) = export(exporter, folder.path(), &arguments);
        assert!(ended_well, "{said}");
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
            // It did run in that precision.
            assert!(report.reference_difference.unwrap() > 1e-5);
        }
    }

    #[test]
    #[ignore = "needs Python packages: `cargo xtask test --python`"]
    fn a_file_whose_values_are_not_pythons_is_found_by_its_check() {
        let (exporter, _turn) = exporter();
        let folder = tempfile::tempdir().unwrap();
        let arguments = ["vgg", "--random-weights"];
        let (ended_well, said) = export(exporter, folder.path(), &arguments);
        assert!(ended_well, "{said}");
        let sidecar = folder.path().join("vgg.toml");
        let text = fs::read_to_string(&sidecar).unwrap();
        // Another preprocessing than the network was traced with: everything still runs.
        fs::write(&sidecar, text.replace("0.485", "0.585")).unwrap();
        let registry = Registry::new(&[folder.path().to_owned()]);
        let encoder = registry.load("vgg", &LoadOptions::default()).unwrap();
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
    fn a_failure_of_one_does_not_stop_the_export_of_others() {
        let (exporter, _turn) = exporter();
        let folder = tempfile::tempdir().unwrap();
        // MAE is made for 256 pixels only.
        let arguments = [
            "mae-vit-l",
            "vgg",
            "--random-weights",
            "--resolution",
            "512",
        ];
        let (ended_well, said) = export(exporter, folder.path(), &arguments);
        assert!(
            !ended_well && said.contains("mae-vit-l") && said.contains("256"),
            "{said}"
        );
        let registry = Registry::new(&[folder.path().to_owned()]);
        let options = LoadOptions {
            resolution: 512,
            ..LoadOptions::default()
        };
        let encoder = registry.load("vgg", &options).unwrap();
        assert_eq!(encoder.spec().grid.tokens(), 1024);
        let error = registry.load("mae-vit-l", &options).unwrap_err();
        assert!(matches!(error, EncoderError::Resolution { .. }), "{error}");
    }
}
