//! TorchScript files: the committed encoders compared with Python, and invalid files.

use std::fs;
use std::path::{Path, PathBuf};

use encoders::{Encoder, EncoderError, LoadOptions, Precision, Registry, Status, TorchScript};
use tch::{Device, Kind, Tensor};
use torch_ext::Generator;

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")
}

fn committed() -> Registry {
    Registry::new(&[Path::new(env!("CARGO_MANIFEST_DIR")).join("../../experiments/encoders")])
}

fn load(path: &Path) -> Result<TorchScript, EncoderError> {
    TorchScript::load(path, Device::Cpu, Precision::Fp32)
}

fn broken(name: &str) -> Result<TorchScript, EncoderError> {
    load(&data().join("broken").join(format!("{name}.pt")))
}

/// Copies a valid encoder to a new folder, so that a test can modify it.
fn copy_of_good() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    for extension in ["pt", "toml"] {
        let name = format!("good.{extension}");
        fs::copy(data().join("broken").join(&name), folder.path().join(&name)).unwrap();
    }
    let path = folder.path().join("good.pt");
    (folder, path)
}

/// Noise images, the same in every run.
fn images(batch: i64, side: i64) -> Tensor {
    let mut generator = Generator::new(Device::Cpu, 0).unwrap();
    let noise = generator
        .randn(&[batch, 3, side, side], Kind::Float)
        .unwrap();
    (noise * 64.0 + 128.0)
        .clamp(0.0, 255.0)
        .to_kind(Kind::Uint8)
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
fn every_run_returns_the_same_bits_in_any_thread() {
    for name in ["efficientnet-lite0", "efficientnet-lite2"] {
        let encoder = committed().load(name, &LoadOptions::default()).unwrap();
        let images = images(4, 64);
        let first = encoder.encode(&images).unwrap().patch;
        // libtorch would rewrite the module in its second or third run. It currently fuses nothing on the CPU.
        let others = std::thread::spawn(move || {
            let run = |_| encoder.encode(&images).unwrap().patch;
            (0..4).map(run).collect::<Vec<_>>()
        });
        for tokens in others.join().unwrap() {
            assert_eq!(tokens, first, "{name}");
        }
    }
}

#[test]
fn committed_encoders_return_the_tokens_of_python() {
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
fn modules_with_and_without_class_token_are_supported() {
    let encoder = broken("good").unwrap();
    let tokens = encoder.encode(&images(3, 16)).unwrap();
    assert_eq!(tokens.patch.size(), [3, 16, 8]);
    assert_eq!(tokens.class.unwrap().size(), [3, 8]);
    let encoder = broken("good_patch_only").unwrap();
    assert!(encoder.encode(&images(1, 40)).unwrap().class.is_none());
}

#[test]
fn a_module_that_is_not_an_encoder_is_refused_on_load() {
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
fn a_module_whose_tokens_change_is_refused_on_load_with_the_reason() {
    let error = broken("dropout_on").unwrap_err();
    assert!(
        matches!(error, EncoderError::NotRepeatable { .. }),
        "{error}"
    );
    let text = error.to_string();
    assert!(
        text.contains("dropout_on") && text.contains("evaluation mode"),
        "{text}"
    );

    let error = broken("batch_statistics").unwrap_err();
    assert!(
        matches!(error, EncoderError::DependsOnBatch { difference, .. } if difference > 0.1),
        "{error}"
    );
    // A refused file is also refused the second time.
    assert!(broken("dropout_on").is_err() && broken("batch_statistics").is_err());
}

#[test]
fn a_module_that_is_tied_to_a_device_is_refused_on_every_device() {
    for (name, device) in [("tied_to_cpu", "cpu"), ("tied_to_cuda", "cuda:0")] {
        let error = broken(name).unwrap_err();
        assert!(
            matches!(&error, EncoderError::TiedToDevice { found, .. }
                if *found == format!("torch.device(\"{device}\")")),
            "{error}"
        );
        assert!(error.to_string().contains("buffers"), "{error}");
    }
}

#[test]
fn error_of_a_failed_network_contains_its_reason() {
    let encoder = broken("out_of_memory").unwrap();
    let errors = (0..6).filter_map(|_| encoder.encode(&images(1, 16)).err());
    let error = errors.map(|error| error.to_string()).next().unwrap();
    assert_eq!(
        error,
        "out_of_memory failed on a batch of images: CUDA out of memory. Tried to allocate 2.00 GiB."
    );
}

#[test]
fn a_damaged_file_is_refused_by_its_checksum() {
    let (_folder, path) = copy_of_good();
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let error = load(&path).unwrap_err();
    assert!(matches!(error, EncoderError::Checksum { .. }), "{error}");
    assert!(error.to_string().contains("good.pt"));
}

#[test]
fn errors_identify_files_of_another_kind() {
    let (_folder, path) = copy_of_good();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n";
    fs::write(&path, pointer).unwrap();
    let error = load(&path).unwrap_err().to_string();
    assert!(error.contains("Git LFS pointer"), "{error}");

    let sidecar = path.with_extension("toml");
    let text = fs::read_to_string(&sidecar).unwrap();
    let utf16: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    fs::write(&sidecar, utf16).unwrap();
    let error = load(&path).unwrap_err().to_string();
    assert!(error.contains("UTF-16"), "{error}");
    assert!(error.contains(&sidecar.display().to_string()), "{error}");
}

#[test]
fn a_file_that_is_not_torchscript_is_refused_even_with_the_right_checksum() {
    // The checksum of "not a module".
    let (_folder, path) = copy_of_good();
    fs::write(&path, "not a module").unwrap();
    let found = match load(&path).unwrap_err() {
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
    let error = load(&path).unwrap_err();
    assert!(
        matches!(error, EncoderError::NotTorchScript { .. }),
        "{error}"
    );
}

#[test]
fn errors_of_missing_or_invalid_sidecars_name_file_and_line() {
    let (_folder, path) = copy_of_good();
    let sidecar = path.with_extension("toml");
    let good = fs::read_to_string(&sidecar).unwrap();

    fs::write(&sidecar, format!("widht = 8\n{good}")).unwrap();
    let error = load(&path).unwrap_err().to_string();
    assert!(
        error.contains("good.toml") && error.contains("line 1") && error.contains("widht"),
        "{error}"
    );

    fs::write(&sidecar, good.replace("width = 8", "width = \"8\"")).unwrap();
    let error = load(&path).unwrap_err().to_string();
    assert!(error.contains("line") && error.contains("width"), "{error}");

    fs::write(&sidecar, good.replace("width = 8", "width = 0")).unwrap();
    assert!(matches!(load(&path), Err(EncoderError::Sidecar { .. })));

    fs::remove_file(&sidecar).unwrap();
    let error = load(&path).unwrap_err();
    assert!(matches!(error, EncoderError::NoSidecar { .. }), "{error}");

    fs::remove_file(&path).unwrap();
    assert!(matches!(load(&path), Err(EncoderError::Io { .. })));
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
        assert!(
            matches!(error, EncoderError::InvalidImages { .. }),
            "{error}"
        );
    }
}

#[test]
fn error_of_a_missing_encoder_says_how_to_get_it() {
    let error = committed()
        .load("webssl-vit-dino1b_full2b_224", &LoadOptions::default())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("cargo xtask export webssl-vit-dino1b_full2b_224"),
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
    assert_eq!(encoders::named_set("catalogue").unwrap().len(), 38);
    assert_eq!(encoders::split_names("hog, sift"), ["hog", "sift"]);
    let identity = committed()
        .identity("efficientnet-lite0", 256)
        .unwrap()
        .unwrap();
    assert_eq!(identity.len(), 64);
}

/// The largest difference of patch tokens, relative to the largest value.
fn difference(found: &Tensor, expected: &Tensor) -> f64 {
    let scale = expected.abs().max().double_value(&[]);
    (found - expected).abs().max().double_value(&[]) / scale
}

#[test]
fn half_precision_is_close_to_float32_and_returns_float32_tokens() {
    let images = images(3, 64);
    let tokens = |precision| {
        let options = LoadOptions {
            precision,
            ..LoadOptions::default()
        };
        let encoder = committed().load("efficientnet-lite0", &options).unwrap();
        encoder.encode(&images).unwrap().patch
    };
    let exact = tokens(Precision::Fp32);
    for (precision, allowed) in [(Precision::Bf16, 5e-2), (Precision::Fp16, 1e-2)] {
        let found = tokens(precision);
        assert_eq!(found.kind(), Kind::Float);
        let off = difference(&found, &exact);
        assert!(0.0 < off && off < allowed, "{precision:?}: {off}");
    }
}

/// Adds `extra` keys to a sidecar, before its tables.
fn with_keys(path: &Path, extra: &str) {
    let sidecar = path.with_extension("toml");
    let text = fs::read_to_string(&sidecar).unwrap();
    fs::write(&sidecar, format!("{extra}\n{text}")).unwrap();
}

#[test]
fn images_of_512_pixels_need_their_own_file() {
    let (folder, path) = copy_of_good();
    let registry = Registry::new(&[folder.path().to_owned()]);
    let large = LoadOptions {
        resolution: 512,
        ..LoadOptions::default()
    };
    // A file that declares no resolution accepts any.
    registry.load("good", &large).unwrap();

    with_keys(&path, "resolution = 256");
    registry.load("good", &LoadOptions::default()).unwrap();
    let error = registry.load("good", &large).unwrap_err();
    assert!(error.to_string().contains("good@512"), "{error}");

    for extension in ["pt", "toml"] {
        let from = path.with_extension(extension);
        fs::copy(from, folder.path().join(format!("good@512.{extension}"))).unwrap();
    }
    assert!(
        matches!(registry.status_for("good", 512), Ok(Status::Present { path, .. })
        if path.ends_with("good@512.pt"))
    );
    registry.load("good", &large).unwrap();
    let names = registry.names();
    assert!(!names.iter().any(|name| name.contains('@')), "{names:?}");
}

#[test]
fn an_encoder_for_256_pixels_only_is_refused_for_more() {
    let large = LoadOptions {
        resolution: 512,
        ..LoadOptions::default()
    };
    let error = committed().load("siglip-vit-b", &large).unwrap_err();
    assert!(matches!(error, EncoderError::Resolution { .. }), "{error}");
    let error = committed().load("dinov2-vit-b", &large).unwrap_err();
    assert!(
        error.to_string().contains("dinov2-vit-b --resolution 512"),
        "{error}"
    );
}

#[test]
fn a_sidecar_that_contradicts_itself_is_refused() {
    for (extra, part) in [
        (
            "resolution = 256\ninput_sizes = { \"256\" = 224 }",
            "input_sizes",
        ),
        (
            "reference = { patch_index = [0, 1], patch = [0.5], class_index = [], class = [] }",
            "positions",
        ),
        (
            "reference = { patch_index = [-1], patch = [0.5], class_index = [], class = [] }",
            "negative",
        ),
        ("dtype = \"float64\"", "bfloat16"),
    ] {
        let (_folder, path) = copy_of_good();
        with_keys(&path, extra);
        let error = load(&path).unwrap_err();
        assert!(matches!(error, EncoderError::Sidecar { .. }), "{error}");
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[test]
fn a_truncated_file_is_refused() {
    let (_folder, path) = copy_of_good();
    let bytes = fs::read(&path).unwrap();
    for kept in [0, 1, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&path, &bytes[..kept]).unwrap();
        let error = load(&path).unwrap_err();
        assert!(matches!(error, EncoderError::Checksum { .. }), "{error}");
    }
}

#[test]
fn error_of_a_wrong_grid_contains_both_shapes() {
    let (_folder, path) = copy_of_good();
    let sidecar = path.with_extension("toml");
    let text = fs::read_to_string(&sidecar).unwrap();
    fs::write(&sidecar, text.replace("grid = [4, 4]", "grid = [8, 8]")).unwrap();
    let error = load(&path).unwrap_err().to_string();
    assert!(
        error.contains("16, 8]") && error.contains("64, 8]"),
        "{error}"
    );
}
