//! Runs on the embedded data set, and what their outcomes are compared by.

use std::fs;
use std::path::Path;

use data::{Loader, LoaderConfig, OpenOptions};
use diffusion::autoencoder::KlConfig;
use diffusion::objective::meanflow::MeanFlow;
use diffusion::objective::x_prediction::XPrediction;
use diffusion::repa_e::AutoencoderLossConfig;
use diffusion::samplers::Method;
use tch::{Device, Kind, Tensor};
use torch_ext::Generator;
use training::checkpoint::{self, Checkpoint};
use training::{
    Autoencoder, Config, DeviceBatch, EncoderShape, Inputs, JointTraining, KlLayout, KlSettings,
    Objective, Run,
};

pub const TOKENS: i64 = 16;

pub const WIDTH: i64 = 24;

pub fn config(steps: u64) -> Config {
    let mut config = Config::default();
    config.model.name = "SiT-XS/4".into();
    config.data.resolution = 16;
    config.train.batch_size = 8;
    config.train.accumulation = 2;
    config.train.steps = steps;
    config.train.log_every = 1;
    config.train.log_speed = false;
    config.train.checkpoint_every = 2;
    config.train.ema_decay = 0.9;
    config.optimizer.lr = 1e-3;
    config.optimizer.warmup_steps = 3;
    config
}

pub fn dataset() -> std::sync::Arc<dyn data::Dataset> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../experiments/data/emoji64");
    let options = OpenOptions {
        split: Some("val".into()),
        ..OpenOptions::default()
    };
    data::open(folder, &options).unwrap()
}

pub fn inputs() -> Inputs {
    Inputs {
        device: Device::Cpu,
        num_classes: dataset().class_names().len() as i64,
        encoders: vec![EncoderShape {
            name: "fixed".into(),
            width: WIDTH,
            grid: (4, 4),
        }],
        identity: "test".into(),
    }
}

/// Tokens that depend on the images, as an encoder's do.
pub fn tokens(batch: &DeviceBatch) -> Tensor {
    let pixels = batch.images.to_kind(Kind::Float).view([-1, TOKENS, 48]) / 255.0;
    let weights = Generator::new(Device::Cpu, 1)
        .unwrap()
        .randn(&[48, WIDTH], Kind::Float)
        .unwrap();
    pixels.matmul(&weights)
}

/// Opens the run in `folder` and steps until `stop` optimiser steps are done. Unsaved steps are lost when the result is
/// dropped.
pub fn advance(folder: &Path, config: &Config, stop: u64, workers: usize) -> Run {
    let mut run = Run::open(folder, config, inputs()).unwrap();
    let loader = LoaderConfig {
        workers,
        ..config.loader()
    };
    let loader = Loader::new(dataset(), loader, run.trainer().cursor()).unwrap();
    for batch in loader {
        if run.trainer().steps_done() >= stop {
            break;
        }
        let batch = DeviceBatch::new(batch.unwrap(), Device::Cpu).unwrap();
        let tokens = tokens(&batch);
        run.step(&batch, &[tokens]).unwrap();
    }
    run
}

pub fn assert_same_outcome(left: &Path, right: &Path) {
    assert_eq!(
        fs::read(left.join("metrics.jsonl")).unwrap(),
        fs::read(right.join("metrics.jsonl")).unwrap()
    );
    let newest = |folder: &Path| {
        checkpoint::list(&folder.join("checkpoints"))
            .unwrap()
            .pop()
            .unwrap()
    };
    let (left, right) = (newest(left), newest(right));
    assert_eq!(left.file_name(), right.file_name());
    for file in fs::read_dir(&left).unwrap() {
        let name = file.unwrap().file_name();
        assert_eq!(
            fs::read(left.join(&name)).unwrap(),
            fs::read(right.join(&name)).unwrap(),
            "{name:?} differs"
        );
    }
}

pub fn jit(mut config: Config) -> Config {
    config.model.name = "JiT-XS/4".into();
    // With dropout, the network draws random numbers too.
    config.model.attn_dropout = 0.1;
    config.model.proj_dropout = 0.1;
    config.objective = Objective::XPrediction(XPrediction::default());
    config.sample.sampler.method = Method::Euler;
    config
}

pub fn meanflow(mut config: Config) -> Config {
    config.objective = Objective::Meanflow(MeanFlow {
        cfg_omega: 0.2,
        cfg_kappa: 0.9,
        ..MeanFlow::default()
    });
    config.sample.sampler.method = Method::Euler;
    config
}

/// A trained autoencoder that halves images of 16 x 16 pixels. With patches of 2 x 2 latent pixels, there are 4 x 4
/// tokens.
pub fn trained_autoencoder() -> KlSettings {
    KlSettings {
        layout: KlLayout::Other(KlConfig {
            latent_channels: 4,
            base_channels: 8,
            channel_multipliers: vec![1, 2],
            num_res_blocks: 1,
            norm_groups: 4,
            attention_levels: Vec::new(),
        }),
        train: true,
        ..KlSettings::default()
    }
}

pub fn repa_e(mut config: Config) -> Config {
    config.model.name = "SiT-XS/2".into();
    config.model.autoencoder = Autoencoder::Kl(trained_autoencoder());
    config.objective = Objective::RepaE(Box::new(JointTraining {
        autoencoder_lr: Some(2e-3),
        discriminator_lr: Some(5e-4),
        loss: AutoencoderLossConfig {
            perceptual_weight: 0.0,
            lecam_weight: 0.01,
            discriminator_start: 1,
            ..AutoencoderLossConfig::default()
        },
        discriminator_channels: 4,
        discriminator_layers: 2,
        ..JointTraining::default()
    }));
    config
}

/// Returns the weights of the trained autoencoder, if the checkpoint has them.
pub fn vae(saved: &Checkpoint) -> Option<&[(String, Tensor)]> {
    saved.others.get("vae").map(Vec::as_slice)
}
