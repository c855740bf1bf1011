//! The network of FID: a tiny stand-in from the repository and, if a Python with the exporter's packages is
//! installed, the real network with random weights.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use encoders::{EncoderError, Inception, Reference, Registry};
use tch::{Device, Kind, Tensor};
use tempfile::TempDir;
use torch_ext::Generator;

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/inception")
}

fn load(folder: &Path) -> Result<Inception, EncoderError> {
    Inception::load(&folder.join("inception.pt"), Device::Cpu)
}

/// Copies the stand-in; `change` edits the sidecar.
fn copy(change: impl FnOnce(String) -> String) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(
        data().join("inception.pt"),
        folder.path().join("inception.pt"),
    )
    .unwrap();
    let text = fs::read_to_string(data().join("inception.toml")).unwrap();
    fs::write(folder.path().join("inception.toml"), change(text)).unwrap();
    folder
}

fn noise(count: i64, side: i64) -> Tensor {
    // Tests run in parallel, so each uses its own generator.
    let mut generator = Generator::new(Device::Cpu, 3).unwrap();
    let noise = generator.randn(&[count, 3, side, side], Kind::Float);
    (noise.unwrap() * 64.0 + 128.0)
        .clamp(0.0, 255.0)
        .to_kind(Kind::Uint8)
}

#[test]
fn features_have_the_declared_widths() {
    let inception = load(&data()).unwrap();
    let features = inception.features(&noise(5, 32)).unwrap();
    assert_eq!(features.pool.size(), [5, 12]);
    assert_eq!(features.spatial.size(), [5, 9]);
    assert_eq!(features.logits.size(), [5, 5]);
    // The first feature is the mean of the first quarter of the first channel.
    let quarter = noise(5, 32)
        .narrow(1, 0, 1)
        .narrow(2, 0, 16)
        .narrow(3, 0, 16);
    let mean = quarter
        .to_kind(Kind::Float)
        .mean_dim([1_i64, 2, 3].as_slice(), false, Kind::Float)
        / 255.0;
    let difference = (features.pool.select(1, 0) - mean)
        .abs()
        .max()
        .double_value(&[]);
    assert!(difference < 1e-6, "{difference}");
}

#[test]
fn features_of_an_image_do_not_depend_on_the_batch() {
    let inception = load(&data()).unwrap();
    let images = noise(7, 24);
    let together = inception.features(&images).unwrap();
    for i in 0..7 {
        let alone = inception.features(&images.narrow(0, i, 1)).unwrap();
        assert!(alone.pool.equal(&together.pool.narrow(0, i, 1)));
        assert!(alone.logits.equal(&together.logits.narrow(0, i, 1)));
    }
}

#[test]
fn a_file_that_does_not_match_its_sidecar_is_refused() {
    let message =
        |change: &dyn Fn(String) -> String| load(copy(change).path()).unwrap_err().to_string();
    let found = message(&|text| text.replace("pool = 12", "pool = 13"));
    assert!(
        found.contains("pooled features is [4, 12], but the sidecar declares [4, 13]"),
        "{found}"
    );
    let found = message(&|text| text.replace("sha256 = \"", "sha256 = \"0"));
    assert!(found.contains("damaged or not the file"), "{found}");
    let found = message(&|text| text.replace("side = 80", "side = 81"));
    assert!(
        found.contains("from the values that Python computed"),
        "{found}"
    );
    let found = message(&|text| text.replace("pool_index = [0,", "pool_index = [99,"));
    assert!(
        found.contains("positions outside of the pooled features"),
        "{found}"
    );
    let found = message(&|text| format!("colour = 1\n{text}"));
    assert!(found.contains("unknown field `colour`"), "{found}");
    let folder = copy(|text| text);
    fs::remove_file(folder.path().join("inception.toml")).unwrap();
    assert!(matches!(
        load(folder.path()),
        Err(EncoderError::NoSidecar { .. })
    ));
    // An encoder is not an Inception file.
    let encoder = data().join("../broken/good.pt");
    let error = Inception::load(&encoder, Device::Cpu).unwrap_err();
    assert!(matches!(error, EncoderError::Sidecar { .. }), "{error}");
}

#[test]
fn a_network_whose_features_depend_on_the_batch_is_refused() {
    let error = Inception::load(&data().join("batch.pt"), Device::Cpu).unwrap_err();
    assert!(
        matches!(error, EncoderError::DependsOnBatch { difference, .. } if difference > 0.01),
        "{error}"
    );
}

#[test]
fn images_of_another_dtype_are_refused() {
    let inception = load(&data()).unwrap();
    let floats = Tensor::zeros([1, 3, 8, 8], (Kind::Float, Device::Cpu));
    assert!(matches!(
        inception.features(&floats),
        Err(EncoderError::InvalidImages { .. })
    ));
}

#[test]
fn the_registry_finds_inception_and_does_not_list_it_as_an_encoder() {
    let registry = Registry::new(&[data()]);
    assert_eq!(
        Inception::find(&registry, "inception").unwrap(),
        data().join("inception.pt")
    );
    assert!(!registry.names().contains(&"inception".to_owned()));
    let error = Inception::find(&registry, "inception-pytorch-fid")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("cargo xtask export inception-pytorch-fid --weights FILE"),
        "{error}"
    );
}

mod needs_python {
    use super::*;

    /// Loading compares the features with the values in the sidecar, with a wide tolerance that allows for other
    /// hardware. This test allows only rounding errors.
    #[test]
    #[ignore = "needs Python packages: `cargo xtask test --python`"]
    fn the_exported_network_returns_the_features_of_python() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let python = std::env::var_os("IREPA_PYTHON")
            .map_or_else(|| root.join(".venv/bin/python"), PathBuf::from);
        let folder = tempfile::tempdir().unwrap();
        let output = Command::new(&python)
            .env("PYTHONPATH", root.join("crates/encoders/python"))
            .args([
                "-m",
                "export",
                "inception",
                "inception-pytorch-fid",
                "--random-weights",
                "--out",
            ])
            .arg(folder.path())
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
        let registry = Registry::new(&[folder.path().to_owned()]);
        let mut means = Vec::new();
        for name in Inception::NAMES {
            let path = Inception::find(&registry, name).unwrap();
            let inception = Inception::load(&path, Device::Cpu).unwrap();
            let reference = &inception.spec().reference;
            let found = inception
                .features(&Reference::images(reference.side).unwrap())
                .unwrap();
            assert_eq!(found.spatial.size(), [2, 7 * 17 * 17]);
            assert_eq!(found.logits.size(), [2, 1008]);
            for (tensor, index, values) in [
                (&found.pool, &reference.pool_index, &reference.pool),
                (&found.spatial, &reference.spatial_index, &reference.spatial),
                (&found.logits, &reference.logits_index, &reference.logits),
            ] {
                let tensor = tensor
                    .flatten(0, -1)
                    .index_select(0, &Tensor::from_slice(index));
                let difference = (tensor - Tensor::from_slice(values)).abs().max();
                let scale = values
                    .iter()
                    .fold(0.0_f64, |largest, value| largest.max(value.abs()));
                assert!(
                    difference.double_value(&[]) < 1e-5 * scale,
                    "{name}: {difference:?}"
                );
            }
            means.push(found.pool.mean(Kind::Double).double_value(&[]));
        }
        // The two files resize and scale differently.
        assert!((means[0] - means[1]).abs() > 1e-6, "{means:?}");
    }
}
