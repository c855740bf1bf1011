//! The random numbers of a step, and the gradients and statistics that each pass may change.

use diffusion::autoencoder::{KlAutoencoder, KlConfig};
use diffusion::objective::velocity::Velocity;
use diffusion::repa_e::{
    AutoencoderLoss, AutoencoderLossConfig, AutoencoderPass, Discriminator, LatentNorm, RepaE,
    RepaEConfig,
};
use diffusion::{DiffusionError, Mode, Sit, SitConfig};
use tch::{Device, Kind, Tensor};
use torch_ext::{Generator, Params};

use super::state;

struct Setup {
    of_autoencoder: Params,
    of_discriminator: Params,
    of_denoiser: Params,
    autoencoder: KlAutoencoder,
    loss: AutoencoderLoss,
    denoiser: Sit,
    latent_norm: LatentNorm,
    denoiser_weights: Vec<Tensor>,
    precision: Option<Kind>,
}

fn setup() -> Setup {
    let params = || Params::new(Device::Cpu, 0).unwrap();
    let (of_autoencoder, of_discriminator, of_denoiser) = (params(), params(), params());
    let config = KlConfig {
        base_channels: 4,
        channel_multipliers: vec![1, 1, 2, 2],
        num_res_blocks: 1,
        norm_groups: 2,
        ..KlConfig::f8d4()
    };
    let autoencoder = KlAutoencoder::new(&of_autoencoder.root(), &config).unwrap();
    let config = AutoencoderLossConfig {
        perceptual_weight: 0.0,
        ..AutoencoderLossConfig::default()
    };
    let root = of_discriminator.root();
    let discriminator = Discriminator::new(&root, 4, 3).unwrap();
    let loss = AutoencoderLoss::new(&root, config, discriminator, None).unwrap();
    let config = SitConfig {
        input_size: 4,
        in_channels: 4,
        ..crate::sit::tiny()
    };
    let root = of_denoiser.root();
    let denoiser = Sit::new(&root, &config).unwrap();
    let latent_norm = LatentNorm::new(&root, 4, LatentNorm::MOMENTUM).unwrap();
    // The blocks of an untrained model do nothing.
    let mut generator = Generator::new(Device::Cpu, 1).unwrap();
    for mut weight in of_denoiser.trainable() {
        generator.normal_(&mut weight, 0.0, 0.1).unwrap();
    }
    Setup {
        autoencoder,
        loss,
        denoiser,
        latent_norm,
        denoiser_weights: of_denoiser.trainable(),
        precision: None,
        of_autoencoder,
        of_discriminator,
        of_denoiser,
    }
}

fn images() -> Tensor {
    (super::images(3, 32) * 127.5 + 127.5).to_kind(Kind::Uint8)
}

fn labels() -> Tensor {
    Tensor::from_slice(&[0i64, 1, 2])
}

fn align(hidden: &[Tensor]) -> Result<Tensor, DiffusionError> {
    Ok(hidden[0].f_sin()?.f_mean(None)?)
}

impl Setup {
    fn repa_e(&self) -> RepaE<'_, Sit> {
        RepaE {
            autoencoder: &self.autoencoder,
            loss: &self.loss,
            denoiser: &self.denoiser,
            latent_norm: &self.latent_norm,
            denoiser_weights: &self.denoiser_weights,
            objective: Velocity::default(),
            config: RepaEConfig::default(),
            precision: self.precision,
            hidden_depths: &[2],
        }
    }

    fn first(&self, seed: u64) -> AutoencoderPass {
        let mut generator = Generator::new(Device::Cpu, seed).unwrap();
        let random_inputs = self.repa_e().draw(&images(), &mut generator).unwrap();
        self.repa_e()
            .autoencoder_pass(&images(), &labels(), &random_inputs, 0, align)
            .unwrap()
    }
}

/// Number of weights that have a gradient; clears the gradients.
fn count_and_clear_gradients(params: &Params) -> usize {
    let weights = params.trainable();
    let count = weights.iter().filter(|w| w.grad().defined()).count();
    torch_ext::optim::clear_grads(&weights).unwrap();
    count
}

#[test]
fn each_pass_has_gradients_only_for_its_own_network() {
    let setup = setup();
    let all = |params: &Params| params.trainable().len();
    let found = || {
        [
            count_and_clear_gradients(&setup.of_autoencoder),
            count_and_clear_gradients(&setup.of_discriminator),
            count_and_clear_gradients(&setup.of_denoiser),
        ]
    };
    let first = setup.first(0);
    assert!(
        setup
            .of_denoiser
            .trainable()
            .iter()
            .all(Tensor::requires_grad)
    );
    first.total.backward();
    assert_eq!(found(), [all(&setup.of_autoencoder), 0, 0]);
    let second = setup.repa_e().discriminator_pass(&first, 0).unwrap();
    second.total.backward();
    assert_eq!(found(), [0, all(&setup.of_discriminator), 0]);
    let third = setup
        .repa_e()
        .denoiser_pass(&first, &labels(), Mode::Eval, align)
        .unwrap();
    third.total.backward();
    assert_eq!(found(), [0, 0, all(&setup.of_denoiser)]);
}

#[test]
fn weights_require_gradients_again_after_alignment_fails() {
    let setup = setup();
    let mut generator = Generator::new(Device::Cpu, 0).unwrap();
    let random_inputs = setup.repa_e().draw(&images(), &mut generator).unwrap();
    let failing =
        |_: &[Tensor]| -> Result<Tensor, DiffusionError> { Err(DiffusionError::NoNullClass(2.0)) };
    let error = setup
        .repa_e()
        .autoencoder_pass(&images(), &labels(), &random_inputs, 0, failing);
    assert!(matches!(error, Err(DiffusionError::NoNullClass(_))));
    assert!(
        setup
            .of_denoiser
            .trainable()
            .iter()
            .all(Tensor::requires_grad)
    );
}

#[test]
fn the_denoisers_pass_uses_the_latents_from_before_the_update() {
    let setup = setup();
    let first = setup.first(0);
    let third = || {
        setup
            .repa_e()
            .denoiser_pass(&first, &labels(), Mode::Eval, align)
            .unwrap()
            .denoising
    };
    let before = third();
    for mut weight in setup.of_autoencoder.trainable() {
        let _zeros = tch::no_grad(|| weight.fill_(0.0));
    }
    assert_eq!(third(), before);
}

#[test]
fn only_the_denoisers_pass_updates_the_latent_statistics() {
    let setup = setup();
    let count = || state(&setup.of_denoiser, "bn.num_batches_tracked").int64_value(&[]);
    let first = setup.first(0);
    setup.repa_e().discriminator_pass(&first, 0).unwrap();
    assert_eq!(count(), 0);
    setup
        .repa_e()
        .denoiser_pass(&first, &labels(), Mode::Eval, align)
        .unwrap();
    assert_eq!(count(), 1);
    // The discriminator's statistics are updated by every call: one in the first pass, two in the second.
    let name = "main.3.num_batches_tracked";
    assert_eq!(state(&setup.of_discriminator, name).int64_value(&[]), 3);
}

#[test]
fn random_numbers_are_drawn_in_upstreams_order_and_depend_on_the_seed() {
    let networks = setup();
    let repa_e = networks.repa_e();
    let generator = |seed| Generator::new(Device::Cpu, seed).unwrap();
    let random_inputs = repa_e.draw(&images(), &mut generator(5)).unwrap();
    let mut source = generator(5);
    let shape = [3, 4, 4, 4];
    assert_eq!(
        random_inputs.posterior_noise,
        source.randn(&shape, Kind::Float).unwrap()
    );
    assert_eq!(random_inputs.t, source.rand(&[3], Kind::Float).unwrap());
    assert_eq!(
        random_inputs.noise,
        source.randn(&shape, Kind::Float).unwrap()
    );
    let odd = Tensor::zeros([3, 3, 36, 32], (Kind::Uint8, Device::Cpu));
    let error = repa_e.draw(&odd, &mut generator(5));
    assert!(matches!(error, Err(DiffusionError::ImageSize { .. })));

    let total = |seed| setup().first(seed).total.detach();
    assert_eq!(total(5), total(5));
    assert_ne!(total(5), total(6));
}

#[test]
fn losses_are_float32_when_the_networks_run_in_bfloat16() {
    let plain = setup();
    let mut mixed = setup();
    mixed.precision = Some(Kind::BFloat16);
    let mut generator = Generator::new(Device::Cpu, 0).unwrap();
    let random_inputs = mixed.repa_e().draw(&images(), &mut generator).unwrap();
    let first = mixed
        .repa_e()
        .autoencoder_pass(&images(), &labels(), &random_inputs, 0, align)
        .unwrap();
    first.total.backward();
    assert_eq!(
        count_and_clear_gradients(&mixed.of_autoencoder),
        mixed.of_autoencoder.trainable().len()
    );
    for tensor in [&first.total, &first.latents, &first.reconstructions] {
        assert_eq!(tensor.kind(), Kind::Float);
    }
    let difference = (&first.total - plain.first(0).total).abs();
    assert!(
        (1e-9..0.02).contains(&difference.double_value(&[])),
        "{difference}"
    );
    let third = mixed
        .repa_e()
        .denoiser_pass(&first, &labels(), Mode::Eval, align)
        .unwrap();
    third.total.backward();
    assert_eq!(third.denoising.kind(), Kind::Float);
    assert_eq!(
        count_and_clear_gradients(&mixed.of_denoiser),
        mixed.of_denoiser.trainable().len()
    );
}

#[test]
fn without_a_coefficient_alignment_is_not_computed() {
    let setup = setup();
    let repa_e = RepaE {
        config: RepaEConfig {
            autoencoder_alignment: 0.0,
            ..RepaEConfig::default()
        },
        ..setup.repa_e()
    };
    let mut generator = Generator::new(Device::Cpu, 5).unwrap();
    let random_inputs = repa_e.draw(&images(), &mut generator).unwrap();
    let align = |_: &[Tensor]| -> Result<Tensor, DiffusionError> { panic!("`align` was called") };
    let first = repa_e
        .autoencoder_pass(&images(), &labels(), &random_inputs, 0, align)
        .unwrap();
    assert_eq!(first.total, first.generator.total);
    assert_eq!(first.alignment.double_value(&[]), 0.0);
}
