use diffusion::DiffusionError;
use diffusion::autoencoder::{Autoencoder, Identity, KlAutoencoder, KlConfig, Posterior};
use diffusion::latents::LatentScaling;
use tch::{Device, Kind, Tensor};
use torch_ext::{Generator, Params};

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
fn scaling_rejects_zeros_and_mismatched_channels() {
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

/// An image that contains every byte.
fn all_bytes() -> Tensor {
    Tensor::arange(256 * 3, (Kind::Int64, Device::Cpu))
        .remainder(256)
        .to_kind(Kind::Uint8)
        .view([1, 3, 16, 16])
}

#[test]
fn the_identity_autoencoder_restores_every_byte() {
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
fn values_between_bytes_are_truncated_and_values_outside_are_clamped() {
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

/// A narrow autoencoder that halves images three times.
fn narrow() -> KlConfig {
    KlConfig {
        base_channels: 8,
        norm_groups: 4,
        ..KlConfig::f8d4()
    }
}

fn kl(config: &KlConfig) -> KlAutoencoder {
    let params = Params::new(Device::Cpu, 0).unwrap();
    KlAutoencoder::new(&params.root(), config).unwrap()
}

#[test]
fn the_sample_of_the_posterior_depends_on_the_seed() {
    let model = kl(&narrow());
    let images = all_bytes();
    let encode = |seed| {
        let mut generator = Generator::new(Device::Cpu, seed).unwrap();
        model.encode(&images, &mut generator).unwrap()
    };
    assert_eq!(encode(3), encode(3));
    assert_ne!(encode(3), encode(4));
    // The methods of the trait record no gradients.
    assert!(!encode(3).requires_grad());

    let pixels = images.to_kind(Kind::Float) / 127.5 - 1.0;
    let posterior = model.posterior(&pixels).unwrap();
    let noise = generator().randn(&[1, 4, 2, 2], Kind::Float).unwrap();
    let by_hand = posterior.sample_with_noise(&noise).unwrap();
    assert!(by_hand.requires_grad());
    assert_eq!(posterior.sample(&mut generator()).unwrap(), by_hand);
    assert_eq!(model.encode(&images, &mut generator()).unwrap(), by_hand);
}

#[test]
fn decoded_images_are_the_pixels_as_bytes() {
    let model = kl(&narrow());
    let latents = generator().randn(&[2, 4, 2, 3], Kind::Float).unwrap();
    let images = model.decode(&latents).unwrap();
    assert_eq!(images.size(), [2, 3, 16, 24]);
    let pixels = model.to_pixels(&latents).unwrap();
    assert_eq!(images, Identity.decode(&pixels).unwrap());
    // The sampler's state is float64.
    assert_eq!(
        model.decode(&latents.to_kind(Kind::Double)).unwrap(),
        images
    );
    let error = model.decode(&latents.narrow(1, 0, 3));
    assert!(matches!(error, Err(DiffusionError::Shape { .. })));
}

#[test]
fn image_sizes_that_cannot_be_halved_are_errors() {
    let model = kl(&narrow());
    assert_eq!(model.latent_shape(64, 48).unwrap(), [4, 8, 6]);
    let image = |height, width| Tensor::zeros([1, 3, height, width], (Kind::Uint8, Device::Cpu));
    for (height, width) in [(30, 32), (32, 30), (0, 8), (4, 4)] {
        let error = model.encode(&image(height, width), &mut generator());
        assert!(matches!(error, Err(DiffusionError::ImageSize { .. })));
    }
    let error = model.latent_shape(30, 32).unwrap_err();
    assert_eq!(
        error.to_string(),
        "images of 30 x 32 pixels do not fit the autoencoder: both sides must be multiples of 8; \
         resize or crop them"
    );
    let floats = image(16, 16).to_kind(Kind::Float);
    let error = model.encode(&floats, &mut generator());
    assert!(matches!(error, Err(DiffusionError::Dtype { .. })));
}

#[test]
fn moments_with_a_wrong_shape_are_errors() {
    let zeros = |size: &[i64]| Tensor::zeros(size, (Kind::Float, Device::Cpu));
    let error = Posterior::new(&zeros(&[2, 8, 4]));
    assert!(matches!(error, Err(DiffusionError::Shape { .. })));
    for channels in [0, 7] {
        let error = Posterior::new(&zeros(&[2, channels, 4, 4]));
        assert!(matches!(error, Err(DiffusionError::Setting { .. })));
    }
    let posterior = Posterior::new(&zeros(&[2, 8, 4, 4])).unwrap();
    let error = posterior.sample_with_noise(&zeros(&[2, 8, 4, 4]));
    assert!(matches!(error, Err(DiffusionError::Shape { .. })));
}

#[test]
fn the_log_variance_is_clamped() {
    let moments = Tensor::from_slice(&[1f32, 2., 1e6, -1e6]).view([1, 4, 1, 1]);
    let posterior = Posterior::new(&moments).unwrap();
    assert_eq!(entries(posterior.log_variance()), [20.0, -30.0]);
    assert_eq!(entries(posterior.mode()), [1.0, 2.0]);
    assert!(posterior.kl().unwrap().double_value(&[0]).is_finite());
    // Stored moments contain the standard deviation, not its logarithm.
    let stored = posterior.to_stored().unwrap();
    let scaling = LatentScaling::new(&[1.0], &[0.0], Device::Cpu).unwrap();
    let noise = Tensor::ones([1, 2, 1, 1], (Kind::Float, Device::Cpu));
    let z = scaling.sample_posterior(&stored, &noise).unwrap();
    assert_eq!(z, posterior.sample_with_noise(&noise).unwrap());
}

#[test]
fn invalid_layouts_are_errors() {
    let wrong = [
        (
            KlConfig {
                norm_groups: 3,
                ..narrow()
            },
            "norm_groups",
        ),
        (
            KlConfig {
                channel_multipliers: vec![],
                ..narrow()
            },
            "channel_multipliers",
        ),
        (
            KlConfig {
                channel_multipliers: vec![1, 0],
                ..narrow()
            },
            "channel_multipliers",
        ),
        (
            KlConfig {
                attention_levels: vec![4],
                ..narrow()
            },
            "attention_levels",
        ),
        (
            KlConfig {
                latent_channels: 0,
                ..narrow()
            },
            "latent_channels",
        ),
    ];
    for (config, name) in wrong {
        let params = Params::new(Device::Cpu, 0).unwrap();
        let error = KlAutoencoder::new(&params.root(), &config).unwrap_err();
        assert!(error.to_string().starts_with(name), "{error}");
    }
    let read = serde_json::from_str::<KlConfig>;
    assert_eq!(read("{}").unwrap(), KlConfig::f8d4());
    assert!(read(r#"{"ch": 128}"#).is_err());
    assert_eq!(KlConfig::f16d32().downsampling(), 16);
}
