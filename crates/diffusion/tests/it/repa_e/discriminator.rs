use diffusion::DiffusionError;
use diffusion::repa_e::{Discriminator, Statistics, hinge_loss, lecam_loss};
use tch::{Device, Kind, Tensor};
use torch_ext::Params;

use super::{discriminator, images, state};
use crate::golden::Golden;

#[test]
fn logits_losses_gradients_and_statistics_follow_upstream() {
    let golden = Golden::open("repae/repae_disc");
    let params = Params::new(Device::Cpu, 0).unwrap();
    let model = discriminator(&params);
    params.load(&golden.weights()).unwrap();
    let train = |x: &Tensor| model.forward(x, Statistics::Batch).unwrap();
    let check_state = |stage: &str| {
        for layer in [3, 6, 9] {
            for name in ["running_mean", "running_var", "num_batches_tracked"] {
                let name = format!("main.{layer}.{name}");
                golden.check(&format!("out.{stage}.{name}"), &state(&params, &name));
            }
        }
    };

    let [real, fake] = ["in.real", "in.fake"].map(|key| golden.tensor(key));
    let logits_real = train(&real);
    golden.check("out.logits_real", &logits_real);
    check_state("after_real");
    let logits_fake = train(&fake);
    golden.check("out.logits_fake", &logits_fake);
    check_state("after_fake");
    let loss = hinge_loss(&logits_real, &logits_fake).unwrap();
    golden.check("out.hinge_d_loss", &loss);
    loss.backward();
    let logits = model.forward(&real, Statistics::Running).unwrap();
    golden.check("out.eval_logits_real", &logits);

    params.load(&golden.weights()).unwrap();
    let fake = fake.set_requires_grad(true);
    let loss = train(&fake).mean(None).neg();
    golden.check("out.generator_loss", &loss);
    loss.backward();
    golden.check("grad.generator.in.fake", &fake.grad());
    // Upstream's script did not clear the gradients in between, so they are sums over both losses. The case
    // `repae_vae_loss` has the gradients of the hinge loss alone.
    for param in params.entries().iter().filter(|param| param.trainable) {
        golden.check(&format!("grad.{}", param.name), &param.tensor.grad());
    }

    let means = golden.tensor("in.lecam").unbind(0);
    let loss = lecam_loss(&means[0], &means[1], &means[2], &means[3]).unwrap();
    golden.check("out.lecam", &loss);
}

#[test]
fn weights_are_initialised_as_upstream() {
    let params = Params::new(Device::Cpu, 0).unwrap();
    Discriminator::new(
        &params.root(),
        Discriminator::CHANNELS,
        Discriminator::LAYERS,
    )
    .unwrap();
    assert_eq!(state(&params, "main.11.weight").size(), [1, 512, 4, 4]);
    let spread = |name: &str, mean: f64| {
        let weight = state(&params, name);
        assert!(
            (weight.mean(None).double_value(&[]) - mean).abs() < 5e-3,
            "{name}"
        );
        assert!(
            (weight.std(true).double_value(&[]) - 0.02).abs() < 2e-3,
            "{name}"
        );
    };
    spread("main.2.weight", 0.0);
    spread("main.9.weight", 1.0);
    assert!(params.get("main.2.bias").is_none());
}

#[test]
fn other_depths_keep_upstreams_names() {
    let params = Params::new(Device::Cpu, 0).unwrap();
    let model = Discriminator::new(&params.root(), 4, 1).unwrap();
    let weights: Vec<String> = params.state_dict().into_iter().map(|(n, _)| n).collect();
    assert!(weights.contains(&"main.5.bias".to_owned()), "{weights:?}");
    let logits = model.forward(&images(2, 6), Statistics::Batch).unwrap();
    assert_eq!(logits.size(), [2, 1, 1, 1]);
}

#[test]
fn images_too_small_for_a_patch_are_errors() {
    let params = Params::new(Device::Cpu, 0).unwrap();
    let model = discriminator(&params);
    assert!(model.forward(&images(2, 24), Statistics::Batch).is_ok());
    let error = model
        .forward(&images(2, 23), Statistics::Batch)
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "the images' side is 23, must be at least 24, for the discriminator"
    );
    let grey = Tensor::zeros([2, 1, 32, 32], (Kind::Float, Device::Cpu));
    let error = model.forward(&grey, Statistics::Batch);
    assert!(matches!(error, Err(DiffusionError::Shape { .. })));
    assert!(Discriminator::new(&params.root().sub("x"), 8, 0).is_err());
}
