//! Encoding and decoding with a frozen autoencoder, whose random weights are read from a file.

use std::path::Path;

use diffusion::autoencoder::{Autoencoder as _, KlAutoencoder, KlConfig};
use tch::{Device, Kind, Tensor};
use torch_ext::{Generator, Params};
use training::{Autoencoder, AutoencoderModel, Config, KlLayout, KlSettings, write_tensors};

fn layout() -> KlConfig {
    KlConfig {
        latent_channels: 2,
        base_channels: 8,
        channel_multipliers: vec![1, 2],
        num_res_blocks: 1,
        attention_levels: vec![1],
        norm_groups: 4,
    }
}

/// Writes random weights to a file. Returns the network with these weights, and a configuration that names the file.
fn autoencoder(folder: &Path) -> (KlAutoencoder, Config) {
    let params = Params::new(Device::Cpu, 3).unwrap();
    let network = KlAutoencoder::new(&params.root(), &layout()).unwrap();
    let weights = folder.join("vae.safetensors");
    write_tensors(&weights, &params.state_dict()).unwrap();
    let mut config = Config::default();
    config.data.resolution = 16;
    config.model.autoencoder = Autoencoder::Kl(KlSettings {
        layout: KlLayout::Other(layout()),
        weights: weights.into(),
        scale: vec![0.5, 2.0].into(),
        bias: vec![0.25, -1.0].into(),
        train: false,
    });
    config.validate().unwrap();
    (network, config)
}

fn images(count: i64) -> Tensor {
    let mut generator = Generator::new(Device::Cpu, 5).unwrap();
    let noise = generator.randn(&[count, 3, 16, 16], Kind::Float).unwrap();
    ((noise.tanh() + 1.0) * 127.0).to_kind(Kind::Uint8)
}

fn generator() -> Generator {
    Generator::new(Device::Cpu, 7).unwrap()
}

#[test]
fn latents_are_scaled_samples_of_the_posterior() {
    let folder = tempfile::tempdir().unwrap();
    let (network, config) = autoencoder(folder.path());
    let model = AutoencoderModel::load(&config, Device::Cpu).unwrap();
    let images = images(3);
    let latents = network.encode(&images, &mut generator()).unwrap();
    let scale = Tensor::from_slice(&[0.5f32, 2.0]).view([1, 2, 1, 1]);
    let bias = Tensor::from_slice(&[0.25f32, -1.0]).view([1, 2, 1, 1]);
    let expected = (latents - bias) * scale;
    let found = model.encode(&images, None, &mut generator()).unwrap();
    assert!(found.allclose(&expected, 1e-5, 1e-5, false));
    assert!(!found.requires_grad());
}

#[test]
fn known_moments_return_bit_identical_latents() {
    let folder = tempfile::tempdir().unwrap();
    let (_, config) = autoencoder(folder.path());
    let model = AutoencoderModel::load(&config, Device::Cpu).unwrap();
    let images = images(3);
    let moments = model.moments(&images).unwrap().unwrap();
    assert_eq!(moments.size(), [3, 4, 8, 8]);
    // With moments, the images are ignored.
    let noise = Tensor::zeros([3, 3, 16, 16], (Kind::Uint8, Device::Cpu));
    let from_moments = model
        .encode(&noise, Some(&moments), &mut generator())
        .unwrap();
    let from_images = model.encode(&images, None, &mut generator()).unwrap();
    assert_eq!(from_moments, from_images);
    let other = model
        .encode(&images, None, &mut Generator::new(Device::Cpu, 8).unwrap())
        .unwrap();
    assert!(from_moments != other);
}

#[test]
fn moments_and_images_do_not_depend_on_the_batch() {
    let folder = tempfile::tempdir().unwrap();
    let (_, config) = autoencoder(folder.path());
    let model = AutoencoderModel::load(&config, Device::Cpu).unwrap();
    let images = images(9);
    let together = model.moments(&images).unwrap().unwrap();
    for (start, length) in [(0, 1), (1, 2), (3, 5), (8, 1)] {
        let some = model.moments(&images.narrow(0, start, length)).unwrap();
        assert_eq!(some.unwrap(), together.narrow(0, start, length));
    }
    let latents = together.narrow(1, 0, 2).contiguous();
    let decoded = model.decode(&latents).unwrap();
    let last = model.decode(&latents.narrow(0, 8, 1)).unwrap();
    assert_eq!(last, decoded.narrow(0, 8, 1));
}

#[test]
fn decoding_inverts_scale_and_bias() {
    let folder = tempfile::tempdir().unwrap();
    let (network, config) = autoencoder(folder.path());
    let model = AutoencoderModel::on_demand(&config, Device::Cpu).unwrap();
    let latents = generator().randn(&[3, 2, 8, 8], Kind::Float).unwrap();
    let scale = Tensor::from_slice(&[0.5f32, 2.0]).view([1, 2, 1, 1]);
    let bias = Tensor::from_slice(&[0.25f32, -1.0]).view([1, 2, 1, 1]);
    let expected = network.decode(&(&latents / scale + bias)).unwrap();
    // A sampler's state is float64.
    let found = model.decode(&latents.to_kind(Kind::Double)).unwrap();
    assert_eq!(
        (found.size(), found.kind()),
        (vec![3, 3, 16, 16], Kind::Uint8)
    );
    let off = (found.to_kind(Kind::Int) - expected.to_kind(Kind::Int)).abs();
    assert!(off.max().int64_value(&[]) <= 1);
    // After `unload`, the weights are read again.
    model.unload();
    assert_eq!(model.decode(&latents).unwrap(), found);
}

#[test]
fn pixels_have_no_moments() {
    let model = AutoencoderModel::load(&Config::default(), Device::Cpu).unwrap();
    let images = images(2);
    assert!(model.moments(&images).unwrap().is_none());
    let pixels = model.encode(&images, None, &mut generator()).unwrap();
    assert_eq!(model.decode(&pixels).unwrap(), images);
}
