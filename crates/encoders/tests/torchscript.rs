//! TorchScript files: the committed encoders against Python, and files that are wrong.

use std::fs;
use std::path::{Path, PathBuf};

use encoders::{Encoder, EncoderError, LoadOptions, Registry, Status, TorchScript};
use tch::{Device, Kind, Tensor};

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")
}

fn committed() -> Registry {
    Registry::new(&[Path::new(env!("CARGO_MANIFEST_DIR")).join("../../experiments/encoders")])
}

fn broken(name: &str) -> Result<TorchScript, EncoderError> {
    TorchScript::load(
        &data().join("broken").join(format!("{name}.pt")),
        Device::Cpu,
    )
}

/// A copy of a good file in a folder of its own, to be spoilt.
fn copy_of_good() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    for extension in ["pt", "toml"] {
        let name = format!("good.{extension}");
        fs::copy(data().join("broken").join(&name), folder.path().join(&name)).unwrap();
    }
    let path = folder.path().join("good.pt");
    (folder, path)
}

fn images(batch: i64, side: i64) -> Tensor {
    Tensor::randint(256, [batch, 3, side, side], (Kind::Uint8, Device::Cpu))
}

fn reference(name: &str) -> (Tensor, Tensor) {
    let tensors = Tensor::read_safetensors(data().join(format!("{name}.safetensors"))).unwrap();
    let find = |wanted: &str| {
        let found = tensors.iter().find(|(name, _)| name == wanted);
        found.unwrap().1.shallow_clone()
    };
    (find("in.images"), find("out.tokens"))
}

#[test]
fn the_committed_encoders_give_pythons_tokens() {
    for (name, case) in [
        ("efficientnet-lite0", "efficientnet_lite0"),
        ("efficientnet-lite2", "efficientnet_lite2"),
    ] {
        let encoder = committed().load(name, &LoadOptions::default()).unwrap();
        let (images, expected) = reference(case);
        let found = encoder.encode(&images).unwrap().patch;
        assert_eq!(found.size(), expected.size());
        let scale = expected.abs().max().double_value(&[]);
        let difference = (found - expected).abs().max().double_value(&[]);
        assert!(
            difference <= 1e-4 * scale,
            "{name}: {difference} of {scale}"
        );
    }
}

#[test]
fn tokens_do_not_depend_on_the_batch_or_the_run() {
    let encoder = committed()
        .load("efficientnet-lite0", &LoadOptions::default())
        .unwrap();
    let batch = images(5, 64);
    let all = encoder.encode(&batch).unwrap().patch;
    assert_eq!(encoder.encode(&batch).unwrap().patch, all);
    for index in [0, 4] {
        let one = encoder.encode(&batch.narrow(0, index, 1)).unwrap().patch;
        let difference = (one - all.narrow(0, index, 1))
            .abs()
            .max()
            .double_value(&[]);
        assert!(difference < 1e-4, "{difference}");
    }
    assert!(!all.requires_grad());
}

#[test]
fn a_pair_of_patch_and_class_tokens_is_understood() {
    let encoder = broken("good").unwrap();
    let tokens = encoder.encode(&images(3, 16)).unwrap();
    assert_eq!(tokens.patch.size(), [3, 16, 8]);
    assert_eq!(tokens.class.unwrap().size(), [3, 8]);
    let encoder = broken("good_patch_only").unwrap();
    assert!(encoder.encode(&images(1, 40)).unwrap().class.is_none());
}

#[test]
fn a_module_that_is_no_encoder_is_refused_on_load() {
    assert!(matches!(
        broken("wrong_shape"),
        Err(EncoderError::Shape { .. })
    ));
    assert!(matches!(
        broken("nan_tokens"),
        Err(EncoderError::NotFinite { .. })
    ));
    let error = broken("not_an_encoder").unwrap_err();
    assert!(matches!(error, EncoderError::Output { .. }), "{error}");
}

#[test]
fn a_damaged_file_is_refused_by_its_checksum() {
    let (_folder, path) = copy_of_good();
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let error = TorchScript::load(&path, Device::Cpu).unwrap_err();
    assert!(matches!(error, EncoderError::Checksum { .. }), "{error}");
    assert!(error.to_string().contains("good.pt"));
}

#[test]
fn a_file_that_is_not_torchscript_is_refused_even_with_the_right_checksum() {
    // The checksum of "not a module".
    let (_folder, path) = copy_of_good();
    fs::write(&path, "not a module").unwrap();
    let found = match TorchScript::load(&path, Device::Cpu).unwrap_err() {
        EncoderError::Checksum { found, .. } => found,
        other => panic!("{other}"),
    };
    let sidecar = path.with_extension("toml");
    let text = fs::read_to_string(&sidecar).unwrap();
    let lines: Vec<String> = text
        .lines()
        .map(|line| match line.starts_with("sha256") {
            true => format!("sha256 = \"{found}\""),
            false => line.to_owned(),
        })
        .collect();
    fs::write(&sidecar, lines.join("\n")).unwrap();
    let error = TorchScript::load(&path, Device::Cpu).unwrap_err();
    assert!(
        matches!(error, EncoderError::NotTorchScript { .. }),
        "{error}"
    );
}

#[test]
fn a_sidecar_that_is_missing_or_wrong_is_named_with_its_line() {
    let (_folder, path) = copy_of_good();
    let sidecar = path.with_extension("toml");
    let good = fs::read_to_string(&sidecar).unwrap();

    fs::write(&sidecar, format!("widht = 8\n{good}")).unwrap();
    let error = TorchScript::load(&path, Device::Cpu)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("good.toml") && error.contains("line 1") && error.contains("widht"),
        "{error}"
    );

    fs::write(&sidecar, good.replace("width = 8", "width = \"8\"")).unwrap();
    let error = TorchScript::load(&path, Device::Cpu)
        .unwrap_err()
        .to_string();
    assert!(error.contains("line") && error.contains("width"), "{error}");

    fs::write(&sidecar, good.replace("width = 8", "width = 0")).unwrap();
    assert!(matches!(
        TorchScript::load(&path, Device::Cpu),
        Err(EncoderError::Sidecar { .. })
    ));

    fs::remove_file(&sidecar).unwrap();
    let error = TorchScript::load(&path, Device::Cpu).unwrap_err();
    assert!(matches!(error, EncoderError::NoSidecar { .. }), "{error}");

    fs::remove_file(&path).unwrap();
    assert!(matches!(
        TorchScript::load(&path, Device::Cpu),
        Err(EncoderError::Io { .. })
    ));
}

#[test]
fn a_file_under_another_name_than_its_sidecars_is_refused() {
    let (folder, path) = copy_of_good();
    let renamed = folder.path().join("other.pt");
    fs::rename(&path, &renamed).unwrap();
    fs::rename(path.with_extension("toml"), renamed.with_extension("toml")).unwrap();
    let registry = Registry::new(&[folder.path().to_owned()]);
    assert!(matches!(
        registry.status("other"),
        Ok(Status::Present { .. })
    ));
    let error = registry.load("other", &LoadOptions::default()).unwrap_err();
    assert!(error.to_string().contains("must agree"), "{error}");
}

#[test]
fn images_that_are_not_rgb_bytes_are_refused() {
    let encoder = broken("good").unwrap();
    for images in [
        Tensor::zeros([2, 3, 16, 16], (Kind::Float, Device::Cpu)),
        Tensor::zeros([2, 1, 16, 16], (Kind::Uint8, Device::Cpu)),
        Tensor::zeros([3, 16, 16], (Kind::Uint8, Device::Cpu)),
        Tensor::zeros([0, 3, 16, 16], (Kind::Uint8, Device::Cpu)),
    ] {
        let error = encoder.encode(&images).unwrap_err();
        assert!(matches!(error, EncoderError::Images { .. }), "{error}");
    }
}

#[test]
fn a_missing_encoder_says_how_to_get_it() {
    let error = committed()
        .load("webssl-vit-dino1b_full2b_224", &LoadOptions::default())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("pretrained/webssl-vit-dino1b_full2b_224.pt"),
        "{error}"
    );
    assert!(
        committed()
            .load("../../etc/passwd", &LoadOptions::default())
            .is_err()
    );
}

#[test]
fn the_registry_lists_native_present_and_missing_encoders() {
    let names = committed().names();
    for name in ["hog", "sift", "efficientnet-lite0", "dinov3-vit-7b16"] {
        assert!(names.iter().any(|known| known == name), "{name}");
    }
    assert_eq!(encoders::named_set("paper27").unwrap().len(), 27);
    assert_eq!(encoders::split_names("hog, sift"), ["hog", "sift"]);
    let identity = committed().identity("efficientnet-lite0").unwrap();
    assert_eq!(identity.len(), 64);
}
