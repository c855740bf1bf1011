//! Native encoders behind the [`Encoder`] trait: HOG and SIFT return the tokens of upstream's encoders.

use std::path::Path;

use encoders::check::{CheckOptions, check};
use encoders::{Encoder, EncoderError, LoadOptions, Precision, Registry};
use tch::{Device, Kind, Tensor};

fn load(name: &str) -> Box<dyn Encoder> {
    Registry::new(&[])
        .load(name, &LoadOptions::default())
        .unwrap()
}

fn golden(case: &str) -> (Tensor, Tensor) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(format!("tests/data/classic/{case}.safetensors"));
    let tensors = Tensor::read_safetensors(path).unwrap();
    let find = |wanted: &str| {
        let found = tensors.iter().find(|(name, _)| name == wanted);
        found.unwrap().1.shallow_clone()
    };
    (find("in.images"), find("out.tokens"))
}

#[test]
fn native_encoders_return_the_tokens_of_upstream() {
    // (name, case, absolute tolerance, fraction of values that may exceed it)
    for (name, case, tolerance, fraction) in [
        ("hog", "hog", 2e-5, 0.0),
        ("siftopencv", "sift_opencv", 1.0, 0.0),
        ("sift", "sift_kornia", 1e-3, 0.02),
    ] {
        let encoder = load(name);
        let (images, expected) = golden(case);
        let found = encoder.encode(&images).unwrap().patch;
        assert_eq!(found.size(), expected.size(), "{name}");
        let exceeds = (&found - &expected).abs().gt(tolerance);
        let exceeding = exceeds.to_kind(Kind::Float).mean(None).double_value(&[]);
        assert!(exceeding <= fraction, "{name}: {exceeding}");
        let spec = encoder.spec();
        assert_eq!(spec.grid.tokens() as i64, found.size()[1], "{name}");
        assert_eq!(spec.width as i64, found.size()[2], "{name}");
    }
}

#[test]
fn upstreams_three_part_names_and_configurations_are_parsed() {
    let encoder = load("hog-vit-g8_d128");
    assert_eq!(encoder.spec().grid.tokens(), 64);
    let error = Registry::new(&[])
        .load("hog-vit-g0", &LoadOptions::default())
        .unwrap_err();
    assert!(matches!(error, EncoderError::Classic(_)), "{error}");
}

#[test]
fn native_names_with_a_typo_are_unknown() {
    for name in ["sift-xyz", "sif", "hog-a-b-c"] {
        let error = Registry::new(&[])
            .load(name, &LoadOptions::default())
            .unwrap_err();
        assert!(
            matches!(error, EncoderError::Unknown { .. }),
            "{name}: {error}"
        );
    }
}

#[test]
fn small_images_are_enlarged_to_the_studys_resolution() {
    let images = Tensor::randint(256, [2, 3, 64, 64], (Kind::Uint8, Device::Cpu));
    for name in ["hog", "sift", "siftopencv"] {
        let tokens = load(name).encode(&images).unwrap().patch;
        assert_eq!(tokens.size(), [2, 256, 128], "{name}");
    }
}

#[test]
fn at_512_pixels_the_grid_of_sift_is_twice_as_fine() {
    let options = LoadOptions {
        resolution: 512,
        ..LoadOptions::default()
    };
    let encoder = Registry::new(&[]).load("sift", &options).unwrap();
    assert_eq!(encoder.spec().grid.tokens(), 1024);
}

#[test]
fn images_of_another_dtype_are_refused() {
    let images = Tensor::zeros([2, 3, 64, 64], (Kind::Float, Device::Cpu));
    let error = load("hog").encode(&images).unwrap_err();
    assert!(
        matches!(error, EncoderError::InvalidImages { .. }),
        "{error}"
    );
}

#[test]
fn controls_pass_the_check_of_an_encoder() {
    let options = CheckOptions {
        device: Device::Cpu,
        precision: Precision::Fp32,
        resolution: 256,
        batch: 2,
        seconds: 0.0,
    };
    for (name, width) in [
        ("pixels", 48),
        ("dct", 96),
        ("random-cnn", 128),
        ("random-vit", 192),
    ] {
        let report = check(&*load(name), &options).unwrap();
        assert_eq!(report.flaws(), Vec::<String>::new(), "{name}");
        assert_eq!(report.tokens, (256, width), "{name}");
    }
}

#[test]
fn random_weights_are_part_of_the_definition_of_an_encoder() {
    let ramp = Tensor::arange(3 * 64 * 64, (Kind::Int64, Device::Cpu)).remainder(251);
    let images = ramp.view([1, 3, 64, 64]).to_kind(Kind::Uint8);
    for (name, expected) in [
        ("random-cnn", [-1.20341, -0.77038, 0.57452]),
        ("random-vit", [0.31917, -0.10842, 0.43362]),
    ] {
        let first = load(name).encode(&images).unwrap().patch;
        assert_eq!(first, load(name).encode(&images).unwrap().patch, "{name}");
        for (index, expected) in [0, 100, 255].into_iter().zip(expected) {
            let found = first.double_value(&[0, index, 7]);
            assert!((found - expected).abs() < 1e-4, "{name} {index}: {found}");
        }
    }
}

#[test]
fn at_512_pixels_the_grid_of_random_networks_is_twice_as_fine() {
    let options = LoadOptions {
        resolution: 512,
        ..LoadOptions::default()
    };
    let images = Tensor::zeros([1, 3, 512, 512], (Kind::Uint8, Device::Cpu));
    for name in ["random-cnn", "random-vit"] {
        let encoder = Registry::new(&[]).load(name, &options).unwrap();
        let tokens = encoder.encode(&images).unwrap().patch;
        assert_eq!(tokens.size()[1], 1024, "{name}");
        assert_eq!(encoder.spec().grid.tokens(), 1024, "{name}");
    }
}
