use diffusion::DiffusionError;
use diffusion::autoencoder::{Autoencoder, Identity};
use diffusion::latents::LatentScaling;
use tch::{Device, Kind, Tensor};
use torch_ext::Generator;

use crate::golden::Golden;

fn generator() -> Generator {
    Generator::new(Device::Cpu, 0).unwrap()
}

fn entries(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(tensor.to_kind(Kind::Double).flatten(0, -1)).unwrap()
}

#[test]
fn latents_from_moments_follow_upstream() {
    let golden = Golden::open("latents");
    let (moments, noise) = (golden.tensor("in.moments"), golden.tensor("in.noise"));
    let [scale, bias] = ["in.scale", "in.bias"].map(|key| entries(&golden.tensor(key)));
    let scaling =
        |scale: &[f64], bias: &[f64]| LatentScaling::new(scale, bias, Device::Cpu).unwrap();
    let stored = scaling(&scale, &bias);
    let z = stored.sample_posterior(&moments, &noise).unwrap();
    golden.check("out.z", &z);
    golden.check("out.decoder_input", &stored.to_decoder(&z).unwrap());
    for (key, scale) in [("out.z_default", 1.0), ("out.z_scalar", 0.18215)] {
        let z = scaling(&[scale], &[0.0]).sample_posterior(&moments, &noise);
        golden.check(key, &z.unwrap());
    }
}

#[test]
fn scaling_refuses_what_cannot_be_undone_or_does_not_fit() {
    for (scale, bias) in [
        (vec![], vec![0.0]),
        (vec![0.0], vec![0.0]),
        (vec![1.0, f64::NAN], vec![0.0, 0.0]),
        (vec![1.0, 1.0], vec![0.0, 0.0, 0.0]),
    ] {
        let scaling = LatentScaling::new(&scale, &bias, Device::Cpu);
        assert!(matches!(scaling, Err(DiffusionError::Setting { .. })));
    }
    let scaling = LatentScaling::new(&[1.0; 4], &[0.0], Device::Cpu).unwrap();
    let ones = |size: &[i64]| Tensor::ones(size, (Kind::Float, Device::Cpu));
    assert!(scaling.to_decoder(&ones(&[2, 3, 8, 8])).is_err());
    assert!(scaling.to_decoder(&ones(&[2, 4])).is_err());
    let moments = ones(&[2, 4, 8, 8]);
    assert!(
        scaling
            .sample_posterior(&moments, &ones(&[2, 4, 8, 8]))
            .is_err()
    );
}

/// An image that holds every byte.
fn all_bytes() -> Tensor {
    Tensor::arange(256 * 3, (Kind::Int64, Device::Cpu))
        .remainder(256)
        .to_kind(Kind::Uint8)
        .view([1, 3, 16, 16])
}

#[test]
fn every_byte_comes_back_through_the_identity() {
    let images = all_bytes();
    let pixels = Identity.encode(&images, &mut generator()).unwrap();
    assert_eq!(pixels.kind(), Kind::Float);
    assert_eq!(pixels.max().double_value(&[]), 1.0);
    assert!((pixels.min().double_value(&[]) + 1.0).abs() < 3e-6);
    let plain = images.to_kind(Kind::Double) / 127.5 - 1.0;
    assert!((&pixels - plain).abs().max().double_value(&[]) < 3e-6);
    assert_eq!(Identity.decode(&pixels).unwrap(), images);
    // The sampler's state is float64.
    let wide = pixels.to_kind(Kind::Double);
    assert_eq!(Identity.decode(&wide).unwrap(), images);
}

#[test]
fn levels_between_bytes_are_truncated_and_those_outside_clamped() {
    let level = |value: f64| {
        let pixel = Tensor::full(
            [1, 3, 1, 1],
            value / 127.5 - 1.0,
            (Kind::Float, Device::Cpu),
        );
        Identity.decode(&pixel).unwrap().int64_value(&[0, 0, 0, 0])
    };
    assert_eq!([level(7.9), level(7.1), level(254.9)], [7, 7, 254]);
    assert_eq!([level(-40.0), level(300.0)], [0, 255]);
}

#[test]
fn only_batches_of_rgb_bytes_are_encoded() {
    let zeros = |size: &[i64], kind| Tensor::zeros(size, (kind, Device::Cpu));
    let encode = |images: &Tensor| Identity.encode(images, &mut generator());
    let error = encode(&zeros(&[2, 4, 8, 8], Kind::Uint8));
    assert!(matches!(error, Err(DiffusionError::Shape { .. })));
    let error = encode(&zeros(&[2, 3, 8, 8], Kind::Float));
    assert!(matches!(error, Err(DiffusionError::Dtype { .. })));
    assert!(Identity.decode(&zeros(&[3, 8, 8], Kind::Float)).is_err());
    assert_eq!(Identity.latent_shape(64, 48).unwrap(), [3, 64, 48]);
}
