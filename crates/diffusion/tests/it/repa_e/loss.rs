use diffusion::autoencoder::Posterior;
use diffusion::repa_e::{AutoencoderLoss, AutoencoderLossConfig, Reconstruction};
use serde_json::Value;
use tch::{Device, Kind, Tensor};
use torch_ext::{Params, optim};

use super::{below, discriminator, images, lpips, state};
use crate::golden::Golden;

/// The settings of a run, converted from upstream's names.
fn config(defaults: &Value, run: &Value, log_variance: f64) -> AutoencoderLossConfig {
    let entry = |key: &str| match &run[key] {
        Value::Null => defaults[key].clone(),
        found => found.clone(),
    };
    let number = |key: &str| entry(key).as_f64().unwrap();
    AutoencoderLossConfig {
        reconstruction: match entry("reconstruction_loss").as_str() {
            Some("l1") => Reconstruction::L1,
            Some("l2") => Reconstruction::L2,
            other => panic!("{other:?}"),
        },
        reconstruction_weight: number("reconstruction_weight"),
        log_variance,
        perceptual_weight: number("perceptual_weight"),
        kl_weight: number("kl_weight"),
        discriminator_weight: number("discriminator_weight"),
        discriminator_factor: number("discriminator_factor"),
        discriminator_start: entry("discriminator_start").as_u64().unwrap(),
        lecam_weight: number("lecam_regularization_weight"),
        lecam_decay: entry("lecam_ema_decay").as_f64().unwrap_or(0.999),
    }
}

fn scalar(value: f64) -> Tensor {
    Tensor::full([0; 0], value, (Kind::Float, Device::Cpu))
}

/// One run of the case: its calls in order, starting from the stored weights.
fn run(golden: &Golden, index: usize) {
    let weights = golden.weights();
    let log_variance = below(&weights, "logvar")[0].1.double_value(&[]);
    let page = &golden.config("runs")[index];
    let config = config(golden.config("defaults"), &page["losses"], log_variance);
    let params = Params::new(Device::Cpu, 0).unwrap();
    let discriminator = discriminator(&params);
    params.load(&below(&weights, "discriminator.")).unwrap();
    let lpips = lpips(&weights, "perceptual_loss.lpips.");
    let loss = AutoencoderLoss::new(&params.root(), config, discriminator, Some(lpips)).unwrap();

    for (call, entry) in page["calls"].as_array().unwrap().iter().enumerate() {
        let key = |name: &str| format!("run{index}.call{call}.{name}");
        let out = |name: &str, tensor: &Tensor| golden.check(&format!("out.{}", key(name)), tensor);
        let image = golden.tensor("in.image");
        let [recon, moments] =
            ["in.recon", "in.moments"].map(|key| golden.tensor(key).copy().set_requires_grad(true));
        let step = entry[1].as_u64().unwrap();
        if entry[0] == "generator" {
            let posterior = Posterior::new(&moments).unwrap();
            let found = loss.generator(&image, &recon, &posterior, step).unwrap();
            found.total.backward();
            out("loss", &found.total);
            out("total_loss", &found.total);
            out("reconstruction_loss", &found.reconstruction);
            out("perceptual_loss", &found.perceptual);
            out("kl_loss", &found.kl);
            out("gan_loss", &found.gan);
            out("weighted_gan_loss", &found.weighted_gan);
            out("discriminator_factor", &scalar(found.discriminator_factor));
            out("d_weight", &scalar(loss.config().discriminator_weight));
            golden.check(&format!("grad.{}", key("in.recon")), &recon.grad());
            golden.check(&format!("grad.{}", key("in.moments")), &moments.grad());
            assert!(
                params
                    .trainable()
                    .iter()
                    .all(|weight| !weight.grad().defined())
            );
            // Upstream leaves the discriminator frozen after the call; here it records gradients again.
            let frozen = found.discriminator_factor > 0.0;
            let stated = f64::from(u8::from(!frozen));
            golden.differs_deliberately(&format!("out.{}", key("requires_grad_after")), stated);
            assert!(params.trainable().iter().all(Tensor::requires_grad));
        } else {
            let found = loss.discriminate(&image, &recon, step).unwrap();
            found.total.backward();
            out("loss", &found.total);
            out("discriminator_loss", &found.total);
            out("logits_real", &found.logits_real);
            out("logits_fake", &found.logits_fake);
            out("lecam_loss", &found.lecam);
            assert!(!recon.grad().defined());
            // The page omits the norm if it contains the gradients themselves.
            if page["store_grads"] != true {
                let grads: Vec<Tensor> = params.trainable().iter().map(Tensor::grad).collect();
                out("grad_norm", &optim::grad_norm(&grads).unwrap());
            }
            let trained = params.trainable().iter().all(Tensor::requires_grad);
            let trained = Tensor::from(i64::from(trained));
            out("requires_grad_after", &trained);
            if page["store_grads"] == true {
                for param in params.entries().iter().filter(|param| param.trainable) {
                    let name = key(&format!("discriminator.{}", param.name));
                    golden.check(&format!("grad.{name}"), &param.tensor.grad());
                }
            }
            optim::clear_grads(&params.trainable()).unwrap();
        }
        for layer in [3, 6, 9] {
            for name in ["running_mean", "running_var", "num_batches_tracked"] {
                let name = format!("main.{layer}.{name}");
                out(&format!("bn.{name}"), &state(&params, &name));
            }
        }
        for name in ["ema_real_logits_mean", "ema_fake_logits_mean"] {
            if let Some(average) = params.get(name) {
                out(name, &average);
            }
        }
    }
}

#[test]
fn every_call_of_every_run_follows_upstream() {
    let golden = Golden::open("repae/repae_vae_loss");
    let runs = golden.config("runs").as_array().unwrap().len();
    (0..runs).for_each(|index| run(&golden, index));
}

fn without_lpips() -> AutoencoderLossConfig {
    AutoencoderLossConfig {
        perceptual_weight: 0.0,
        ..AutoencoderLossConfig::default()
    }
}

#[test]
fn lpips_needs_weights_unless_its_weight_is_zero() {
    let params = Params::new(Device::Cpu, 0).unwrap();
    let build = |config, name: &str| {
        let scope = params.root().sub(name);
        let discriminator = diffusion::repa_e::Discriminator::new(&scope, 8, 3).unwrap();
        AutoencoderLoss::new(&scope, config, discriminator, None)
    };
    let error = build(AutoencoderLossConfig::default(), "with").unwrap_err();
    assert_eq!(
        error.to_string(),
        "perceptual_weight is 1, must be 0 without LPIPS weights"
    );
    let loss = build(without_lpips(), "without").unwrap();
    let moments = Tensor::zeros([2, 8, 4, 4], (Kind::Float, Device::Cpu));
    let posterior = Posterior::new(&moments).unwrap();
    let found = loss
        .generator(&images(2, 32), &images(2, 32), &posterior, 0)
        .unwrap();
    assert_eq!(found.perceptual.double_value(&[]), 0.0);
    assert_eq!(found.reconstruction.double_value(&[]), 0.0);
    assert_eq!(found.kl.double_value(&[]), 0.0);
    let smaller = loss.generator(&images(2, 32), &images(1, 32), &posterior, 0);
    assert!(smaller.is_err());
}

#[test]
fn losses_are_float32_for_images_of_any_dtype() {
    let params = Params::new(Device::Cpu, 0).unwrap();
    let discriminator = discriminator(&params);
    let loss = AutoencoderLoss::new(&params.root(), without_lpips(), discriminator, None).unwrap();
    let half = images(2, 32).to_kind(Kind::BFloat16);
    let found = loss.discriminate(&half, &half, 0).unwrap();
    assert_eq!(found.total.kind(), Kind::Float);
}

#[test]
fn configuration_is_checked_and_reads_by_name() {
    let read = serde_json::from_str::<AutoencoderLossConfig>;
    let config = read(r#"{"reconstruction": "l2", "kl_weight": 0.5}"#).unwrap();
    assert_eq!(config.reconstruction, Reconstruction::L2);
    assert_eq!(config.discriminator_weight, 0.1);
    assert!(read(r#"{"kl": 1}"#).is_err());
    let wrong = AutoencoderLossConfig {
        kl_weight: f64::NAN,
        ..without_lpips()
    };
    assert!(
        wrong
            .validate()
            .unwrap_err()
            .to_string()
            .contains("kl_weight")
    );
}
