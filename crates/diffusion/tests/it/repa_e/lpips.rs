use std::path::Path;

use diffusion::DiffusionError;
use diffusion::repa_e::Lpips;
use tch::{Device, Kind, Tensor};
use torch_ext::Params;

use super::{images, state};

fn folder() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

/// Weights of a full VGG16: ones in the heads, zeros elsewhere.
fn full() -> Params {
    let params = Params::new(Device::Cpu, 0).unwrap();
    Lpips::new(&params.root(), Lpips::VGG16).unwrap();
    for param in params.entries().iter() {
        if param.name.starts_with("lin") {
            let _ones = param.tensor.shallow_clone().fill_(1.0);
        }
    }
    params
}

#[test]
fn zero_features_keep_the_gradient_of_the_image_finite() {
    let params = Params::new(Device::Cpu, 0).unwrap();
    let lpips = Lpips::new(&params.root(), [4, 8, 8, 8, 8]).unwrap();
    // The first slice has nonzero features; zero weights make all later features zero.
    let _nonzero = state(&params, "net.slice1.0.weight").fill_(0.1);
    let _nonzero = state(&params, "net.slice1.2.weight").fill_(0.1);
    for layer in 0..5 {
        let _ones = state(&params, &format!("lin{layer}.model.1.weight")).fill_(1.0);
    }
    let recon = images(2, 32).set_requires_grad(true);
    let distance = lpips.forward(&-images(2, 32), &recon).unwrap();
    distance.mean(None).backward();
    assert!(bool::try_from(distance.isfinite().all()).unwrap());
    assert!(bool::try_from(recon.grad().isfinite().all()).unwrap());
}

#[test]
fn the_distance_of_equal_images_is_zero() {
    let params = Params::new(Device::Cpu, 0).unwrap();
    let lpips = Lpips::new(&params.root(), [4, 8, 8, 8, 8]).unwrap();
    let distance = lpips.forward(&images(2, 16), &images(2, 16)).unwrap();
    assert_eq!(
        distance,
        Tensor::zeros([2, 1, 1, 1], (Kind::Float, Device::Cpu))
    );
    let error = lpips.forward(&images(2, 15), &images(2, 15)).unwrap_err();
    assert!(error.to_string().contains("at least 16"), "{error}");
    let error = lpips.forward(&images(2, 16), &images(1, 16));
    assert!(matches!(error, Err(DiffusionError::Shape { .. })));
}

#[test]
fn weights_are_loaded_from_a_file() {
    let path = folder().join("lpips.safetensors");
    Tensor::write_safetensors(&full().state_dict(), &path).unwrap();
    let lpips = Lpips::load(&path, Device::Cpu).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(lpips.forward(&images(1, 16), &images(1, 16)).is_ok());
}

#[test]
fn the_error_for_a_missing_file_names_it_and_a_remedy() {
    let path = folder().join("nowhere/lpips.safetensors");
    let error = Lpips::load(&path, Device::Cpu).unwrap_err();
    assert!(matches!(error, DiffusionError::NoLpips { .. }));
    let message = error.to_string();
    for part in [
        path.to_str().unwrap(),
        "convert_lpips.py",
        "perceptual_weight = 0",
    ] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn the_error_for_incomplete_weights_names_the_file_and_the_missing_weight() {
    let path = folder().join("lpips_incomplete.safetensors");
    let mut weights = full().state_dict();
    weights.retain(|(name, _)| name != "lin3.model.1.weight");
    Tensor::write_safetensors(&weights, &path).unwrap();
    let message = Lpips::load(&path, Device::Cpu).unwrap_err().to_string();
    assert!(
        message.contains("lpips_incomplete.safetensors"),
        "{message}"
    );
    assert!(
        message.contains("1 missing: lin3.model.1.weight"),
        "{message}"
    );
    std::fs::write(&path, b"not tensors").unwrap();
    let error = Lpips::load(&path, Device::Cpu);
    assert!(matches!(error, Err(DiffusionError::LpipsFile { .. })));
    std::fs::remove_file(&path).unwrap();
}
