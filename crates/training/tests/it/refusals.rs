//! Settings and inputs that are refused.

use data::{Cursor, Loader};
use diffusion::samplers::Method;
use tch::{Device, Kind, Tensor};
use training::{Autoencoder, Config, DeviceBatch, Objective, Run, TrainError, Trainer};

use crate::runs::{
    TOKENS, WIDTH, advance, config, dataset, inputs, jit, meanflow, repa_e, tokens,
    trained_autoencoder,
};

#[test]
fn invalid_combinations_of_settings_are_refused_with_the_reason() {
    let sit = config(1);
    let refused = |config: &Config, words: &[&str]| {
        let error = config.validate().unwrap_err().to_string();
        for word in words {
            assert!(error.contains(word), "{error}");
        }
    };
    let mut wrong = jit(sit.clone());
    wrong.model.name = "SiT-XS/4".into();
    refused(&wrong, &["objective.kind", "x-prediction", "SiT-XS/4"]);
    let mut wrong = sit.clone();
    wrong.model.name = "JiT-XS/4".into();
    refused(&wrong, &["objective.kind", "velocity", "x-prediction"]);
    let mut wrong = meanflow(sit.clone());
    wrong.model.name = "JiT-XS/4".into();
    refused(&wrong, &["objective.kind", "meanflow"]);
    let mut wrong = meanflow(sit.clone());
    wrong.sample.sampler.method = Method::EulerMaruyama;
    refused(
        &wrong,
        &["sample.sampler.method", "average velocities", "SDE"],
    );
    let mut wrong = jit(sit.clone());
    wrong.sample.sampler.method = Method::EulerMaruyama;
    refused(&wrong, &["sample.sampler.method", "euler and heun"]);
    let mut wrong = jit(sit.clone());
    wrong.model.autoencoder = Autoencoder::Kl(trained_autoencoder());
    refused(&wrong, &["model.autoencoder", "JiT predicts pixels"]);
    let mut wrong = repa_e(sit.clone());
    wrong.model.autoencoder = Autoencoder::Identity;
    refused(&wrong, &["model.autoencoder", "train = true", "REPA-E"]);
    let mut frozen = trained_autoencoder();
    frozen.train = false;
    wrong.model.autoencoder = Autoencoder::Kl(frozen.clone());
    refused(&wrong, &["model.autoencoder.weights", "not trained"]);
    frozen.weights = "vae.safetensors".into();
    wrong.model.autoencoder = Autoencoder::Kl(frozen);
    refused(&wrong, &["model.autoencoder", "train = true", "REPA-E"]);
    let mut wrong = sit.clone();
    wrong.model.autoencoder = Autoencoder::Kl(trained_autoencoder());
    refused(&wrong, &["model.autoencoder.train", "velocity", "repa-e"]);
    let mut wrong = repa_e(sit.clone());
    wrong.data.resolution = 10;
    refused(&wrong, &["data.resolution", "discriminator_layers"]);
    wrong.data.resolution = 15;
    refused(&wrong, &["data.resolution", "a multiple of 4"]);
    let mut wrong = repa_e(sit.clone());
    if let Objective::RepaE(joint) = &mut wrong.objective {
        joint.loss.perceptual_weight = 1.0;
    }
    refused(&wrong, &["objective", "lpips", "perceptual_weight"]);
    let mut settings = trained_autoencoder();
    settings.scale = vec![1.0, 2.0].into();
    wrong.model.autoencoder = Autoencoder::Kl(settings);
    refused(&wrong, &["model.autoencoder.scale", "4 of them"]);
    let mut wrong = jit(sit);
    wrong.model.name = "JiT-XS/5".into();
    refused(&wrong, &["model.name", "JiT-XS/4"]);
}

#[test]
fn a_nan_in_the_tokens_stops_the_run_with_step_and_samples() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(4);
    let mut run = advance(folder.path(), &config, 2, 0);
    let mut loader = Loader::new(dataset(), config.loader(), run.trainer().cursor()).unwrap();
    let batch = DeviceBatch::new(loader.next().unwrap().unwrap(), Device::Cpu).unwrap();
    let ids = batch.ids.clone();
    let nan = tokens(&batch) * f64::NAN;
    let error = run
        .step(&batch, &[nan])
        .and_then(|()| run.save())
        .unwrap_err();
    match &error {
        TrainError::NotFinite {
            step: 3, samples, ..
        } => assert_eq!(*samples, ids),
        other => panic!("{other}"),
    }
    assert!(error.to_string().contains(&ids[0].to_string()), "{error}");
    // The step with the NaN was not saved.
    let resumed = Run::open(folder.path(), &config, inputs()).unwrap();
    assert_eq!(resumed.resumed_from(), 2);
    for (name, tensor) in resumed.trainer().params().state_dict() {
        assert!(bool::try_from(tensor.isfinite().all()).unwrap(), "{name}");
    }
}

#[test]
fn encoder_tokens_of_another_shape_or_number_are_refused() {
    let mut trainer = Trainer::new(&config(2), inputs()).unwrap();
    let mut loader = Loader::new(dataset(), config(2).loader(), Cursor::default()).unwrap();
    let batch = DeviceBatch::new(loader.next().unwrap().unwrap(), Device::Cpu).unwrap();
    assert!(matches!(
        trainer.step(&batch, &[]),
        Err(TrainError::EncoderCount {
            found: 0,
            expected: 1
        })
    ));
    let narrow = Tensor::ones([8, TOKENS, WIDTH - 1], (Kind::Float, Device::Cpu));
    assert!(matches!(
        trainer.step(&batch, &[narrow]),
        Err(TrainError::Alignment(_))
    ));
    let mut wrong = inputs();
    wrong.encoders[0].grid = (7, 7);
    let error = Trainer::new(&config(2), wrong).unwrap_err().to_string();
    assert!(error.contains("fixed returns 7 x 7"), "{error}");
}
