//! Resuming: an interrupted run ends with the same bits as an uninterrupted one, and damaged or foreign files in its
//! folder are handled.

use std::fs;
use std::path::{Path, PathBuf};

use alignment::{HeadConfig, SpatialNorm};
use data::{Cursor, Loader, LoaderConfig, OpenOptions};
use diffusion::autoencoder::{KlAutoencoder, KlConfig};
use diffusion::objective::meanflow::MeanFlow;
use diffusion::objective::x_prediction::XPrediction;
use diffusion::repa_e::AutoencoderLossConfig;
use diffusion::samplers::Method;
use metrics::figures::{Figure, Figures};
use tch::{Device, Kind, Tensor};
use torch_ext::{Generator, Params};
use training::checkpoint::{self, Checkpoint, CheckpointId};
use training::{
    Autoencoder, Config, DeviceBatch, EncoderShape, Inputs, JointTraining, KlLayout, KlSettings,
    MetricsLog, Objective, Run, Sampling, Schedule, TrainError, Trainer, read_tensors,
    write_tensors,
};

const TOKENS: i64 = 16;
const WIDTH: i64 = 24;

fn config(steps: u64) -> Config {
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

fn dataset() -> std::sync::Arc<dyn data::Dataset> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../experiments/data/emoji64");
    let options = OpenOptions {
        split: Some("val".into()),
        ..OpenOptions::default()
    };
    data::open(folder, &options).unwrap()
}

fn inputs() -> Inputs {
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
fn tokens(batch: &DeviceBatch) -> Tensor {
    let pixels = batch.images.to_kind(Kind::Float).view([-1, TOKENS, 48]) / 255.0;
    let weights = Generator::new(Device::Cpu, 1)
        .unwrap()
        .randn(&[48, WIDTH], Kind::Float)
        .unwrap();
    pixels.matmul(&weights)
}

/// Opens the run in `folder` and steps until `stop` optimiser steps are done. Unsaved steps are lost when the result is
/// dropped.
fn advance(folder: &Path, config: &Config, stop: u64, workers: usize) -> Run {
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

fn assert_same_outcome(left: &Path, right: &Path) {
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

#[test]
fn an_interrupted_run_ends_with_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(9);
    advance(&folder.path().join("whole"), &config, 9, 0);
    for (stops, workers) in [(vec![1], 1), (vec![2, 5], 2), (vec![4, 7, 8], 0)] {
        let part = folder.path().join(format!("part{stops:?}"));
        for stop in stops {
            advance(&part, &config, stop, workers);
        }
        advance(&part, &config, 9, workers);
        assert_same_outcome(&folder.path().join("whole"), &part);
    }
}

fn jit(mut config: Config) -> Config {
    config.model.name = "JiT-XS/4".into();
    // With dropout, the network draws random numbers too.
    config.model.attn_dropout = 0.1;
    config.model.proj_dropout = 0.1;
    config.objective = Objective::XPrediction(XPrediction::default());
    config.sample.sampler.method = Method::Euler;
    config
}

fn meanflow(mut config: Config) -> Config {
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
fn trained_autoencoder() -> KlSettings {
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

fn repa_e(mut config: Config) -> Config {
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

#[test]
fn every_variant_resumes_to_the_same_bits() {
    for variant in [jit, meanflow, repa_e] {
        let folder = tempfile::tempdir().unwrap();
        let config = variant(config(5));
        advance(&folder.path().join("whole"), &config, 5, 0);
        let part = folder.path().join("part");
        advance(&part, &config, 3, 1);
        advance(&part, &config, 5, 1);
        assert_same_outcome(&folder.path().join("whole"), &part);
        let log = MetricsLog::read(&part.join("metrics.jsonl")).unwrap();
        let last = log.last().unwrap();
        assert!(last.get(Figure::AlignmentLoss).is_some());
        assert!(last.get(Figure::DenoisingLoss) > Some(0.0));
        // The checkpoint can be sampled, with the number of classes of its own weights.
        let newest = checkpoint::list(&part.join("checkpoints"))
            .unwrap()
            .pop()
            .unwrap();
        let saved = Checkpoint::load(&newest).unwrap();
        let sampling = Sampling::new(&config, &saved.ema, vae(&saved), Device::Cpu).unwrap();
        assert_eq!(sampling.num_classes(), inputs().num_classes);
        let images = sampling.sample(0, &[0, 1, 2], |_| {}).unwrap();
        assert_eq!(images.size(), [3, 3, 16, 16]);
    }
}

/// Returns the weights of the trained autoencoder, if the checkpoint has them.
fn vae(saved: &Checkpoint) -> Option<&[(String, Tensor)]> {
    saved.others.get("vae").map(Vec::as_slice)
}

#[test]
fn repa_e_trains_three_networks_and_saves_them_all() {
    let folder = tempfile::tempdir().unwrap();
    let config = repa_e(config(4));
    let run = advance(folder.path(), &config, 4, 0);
    let saved = |step: usize| {
        let found = checkpoint::list(&folder.path().join("checkpoints")).unwrap();
        Checkpoint::load(&found[step]).unwrap()
    };
    let (before, after) = (saved(0), saved(1));
    assert_eq!((before.step, after.step), (2, 4));
    let names: Vec<&str> = after.others.keys().map(String::as_str).collect();
    let expected = [
        "discriminator",
        "discriminator_optimizer",
        "history",
        "vae",
        "vae_optimizer",
    ];
    assert_eq!(names, expected);
    for name in expected {
        let moved = before.others[name]
            .iter()
            .zip(&after.others[name])
            .filter(|(before, after)| before.1 != after.1)
            .count();
        assert!(moved > 5, "{name}: {moved} tensors moved");
    }
    let tensor_of = |tensors: &[(String, Tensor)], name: &str| {
        let found = tensors.iter().find(|(found, _)| found == name);
        found.map(|(_, tensor)| tensor.copy()).unwrap()
    };
    let lecam = tensor_of(&after.others["discriminator"], "ema_real_logits_mean");
    assert_ne!(lecam.double_value(&[0]), 0.0);

    // The running statistics of latents change, and so does their average. Each of the 4 steps has two parts.
    let mean = |tensors: &[(String, Tensor)]| tensor_of(tensors, "bn.running_mean");
    assert_ne!(mean(&after.model), mean(&before.model));
    assert_ne!(mean(&after.ema), mean(&before.ema));
    assert_ne!(mean(&after.ema), mean(&after.model));
    for tensors in [&after.model, &after.ema] {
        assert_eq!(
            tensor_of(tensors, "bn.num_batches_tracked").int64_value(&[]),
            8
        );
    }
    let position = |tensors: &[(String, Tensor)]| tensor_of(tensors, "pos_embed");
    assert_ne!(position(&after.model), position(&before.model));

    let log = MetricsLog::read(&folder.path().join("metrics.jsonl")).unwrap();
    let figure = |line: usize, figure| log[line].get(figure).unwrap();
    // The discriminator starts at the second step.
    assert_eq!(figure(0, Figure::GanLoss), 0.0);
    assert!(figure(1, Figure::GanLoss) != 0.0 && figure(1, Figure::DiscriminatorLoss) > 0.0);
    assert!(figure(3, Figure::ReconstructionLoss) < figure(0, Figure::ReconstructionLoss));
    for line in 0..log.len() {
        assert_ne!(figure(line, Figure::AutoencoderAlignmentLoss), 0.0);
        assert!(figure(line, Figure::KlLoss) > 0.0);
    }

    // The saved weights sample the same images as the trainer.
    let sampling = Sampling::new(&config, &after.ema, vae(&after), Device::Cpu).unwrap();
    let labels = [0, 1, 2];
    let drawn = run.trainer().sample(0, &labels, |_| {}).unwrap();
    assert_eq!(sampling.sample(0, &labels, |_| {}).unwrap(), drawn);
    // Without the autoencoder's weights, no images can be decoded.
    let error = Sampling::new(&config, &after.ema, None, Device::Cpu).unwrap_err();
    assert!(
        error.to_string().contains("model.autoencoder.weights"),
        "{error}"
    );
}

#[test]
fn repa_e_starts_from_the_configured_weights_and_scale() {
    let folder = tempfile::tempdir().unwrap();
    let params = Params::new(Device::Cpu, 3).unwrap();
    let layout = trained_autoencoder().layout.config();
    let _vae = KlAutoencoder::new(&params.root(), &layout).unwrap();
    let weights = folder.path().join("vae.safetensors");
    write_tensors(&weights, &params.state_dict()).unwrap();
    let mut config = repa_e(config(1));
    let mut settings = trained_autoencoder();
    settings.weights = weights.clone().into();
    settings.scale = vec![0.5, 1.0, 2.0, 4.0].into();
    settings.bias = vec![0.25].into();
    config.model.autoencoder = Autoencoder::Kl(settings);
    let trainer = Trainer::new(&config, inputs()).unwrap();
    let saved = trainer.checkpoint().unwrap();
    assert_eq!(saved.others["vae"], params.state_dict());
    let values_of = |name: &str| {
        let found = saved.ema.iter().find(|(found, _)| found == name).unwrap();
        Vec::<f32>::try_from(&found.1).unwrap()
    };
    assert_eq!(values_of("bn.running_mean"), [0.25; 4]);
    assert_eq!(values_of("bn.running_var"), [4.0, 1.0, 0.25, 0.0625]);

    // A file with missing weights, or that is not a safetensors file, is named in the error.
    write_tensors(&weights, &params.state_dict()[1..]).unwrap();
    let error = Trainer::new(&config, inputs()).unwrap_err().to_string();
    assert!(
        error.contains("vae.safetensors") && error.contains("encoder.conv_in"),
        "{error}"
    );
    fs::write(&weights, b"rubbish").unwrap();
    let error = Trainer::new(&config, inputs()).unwrap_err().to_string();
    assert!(error.contains("vae.safetensors"), "{error}");
}

#[test]
fn repa_e_trains_without_alignment() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = Run::open(
        folder.path(),
        &repa_e(config(2)),
        Inputs {
            encoders: Vec::new(),
            ..inputs()
        },
    )
    .unwrap();
    let config = run.trainer().config().loader();
    for batch in Loader::new(dataset(), config, Cursor::default())
        .unwrap()
        .take(2)
    {
        let batch = DeviceBatch::new(batch.unwrap(), Device::Cpu).unwrap();
        run.step(&batch, &[]).unwrap();
    }
    let last = run.last_metrics().unwrap().clone();
    assert_eq!(last.get(Figure::AlignmentLoss), None);
    assert_eq!(last.get(Figure::AutoencoderAlignmentLoss), Some(0.0));
}

#[test]
fn an_autoencoder_loss_that_is_not_finite_stops_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = repa_e(config(3));
    if let Objective::RepaE(joint) = &mut config.objective {
        joint.loss.reconstruction_weight = f64::MAX;
    }
    let mut run = Run::open(folder.path(), &config, inputs()).unwrap();
    let mut loader = Loader::new(dataset(), config.loader(), Cursor::default()).unwrap();
    let error = loop {
        let batch = DeviceBatch::new(loader.next().unwrap().unwrap(), Device::Cpu).unwrap();
        let tokens = tokens(&batch);
        if let Err(error) = run.step(&batch, &[tokens]) {
            break error.to_string();
        }
    };
    assert!(
        error.contains("the autoencoder's") && error.contains("step 1"),
        "{error}"
    );
    assert!(
        checkpoint::list(&folder.path().join("checkpoints"))
            .unwrap()
            .is_empty()
    );
}

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
fn a_second_average_and_a_cosine_survive_an_interruption() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(6);
    config.train.second_ema_decay = Some(0.5);
    config.optimizer.schedule = Schedule::Cosine;
    config.optimizer.min_lr = 1e-5;
    advance(&folder.path().join("whole"), &config, 6, 0);
    let part = folder.path().join("part");
    advance(&part, &config, 3, 1);
    advance(&part, &config, 6, 1);
    assert_same_outcome(&folder.path().join("whole"), &part);

    let newest = checkpoint::list(&part.join("checkpoints"))
        .unwrap()
        .pop()
        .unwrap();
    let saved = Checkpoint::load(&newest).unwrap();
    let second = saved.second_ema.unwrap();
    assert_eq!(second.len(), saved.ema.len());
    let differ = |left: &[(String, Tensor)], right: &[(String, Tensor)]| {
        left.iter().zip(right).filter(|(l, r)| l.1 != r.1).count()
    };
    assert!(differ(&second, &saved.ema) > 10 && differ(&second, &saved.model) > 10);
    let log = MetricsLog::read(&part.join("metrics.jsonl")).unwrap();
    assert_eq!(log.last().unwrap().get(Figure::LearningRate), Some(1e-5));
    // A run with a longer cosine schedule does not resume from this one, and neither does one without the second
    // average.
    let longer = Config {
        train: training::TrainConfig {
            steps: 8,
            ..config.train.clone()
        },
        ..config.clone()
    };
    assert_eq!(advance(&part, &longer, 0, 0).resumed_from(), 0);
    config.train.second_ema_decay = None;
    assert_eq!(advance(&part, &config, 0, 0).resumed_from(), 0);
}

#[test]
fn a_longer_run_resumes_from_a_finished_one() {
    let folder = tempfile::tempdir().unwrap();
    advance(&folder.path().join("long"), &config(8), 8, 0);
    advance(&folder.path().join("grown"), &config(4), 4, 0);
    let run = advance(&folder.path().join("grown"), &config(8), 8, 0);
    assert_eq!(run.resumed_from(), 4);
    assert_same_outcome(&folder.path().join("long"), &folder.path().join("grown"));
}

#[test]
fn a_damaged_checkpoint_is_skipped_for_an_earlier_one() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(6);
    advance(folder.path(), &config, 6, 0);
    let checkpoints = folder.path().join("checkpoints");
    let newest = checkpoint::list(&checkpoints).unwrap().pop().unwrap();
    let file = newest.join("optimizer.safetensors");
    let mut bytes = fs::read(&file).unwrap();

    // One flipped bit, the length unchanged.
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&file, &bytes).unwrap();
    let error = Checkpoint::load(&newest).unwrap_err().to_string();
    assert!(
        error.contains("optimizer.safetensors") && error.contains("SHA-256"),
        "{error}"
    );

    // A truncated file.
    fs::write(&file, &bytes[..middle]).unwrap();
    let error = Checkpoint::load(&newest).unwrap_err().to_string();
    assert!(error.contains("bytes long"), "{error}");

    let run = Run::open(folder.path(), &config, inputs()).unwrap();
    assert_eq!(run.resumed_from(), 4);
    drop(run);
    // The damaged checkpoint is moved away, since the run keeps its newest checkpoints by their steps.
    let name = newest.file_name().unwrap();
    let newest = folder.path().join("before/1/checkpoints").join(name);
    assert!(newest.join("optimizer.safetensors").is_file());
    assert!(folder.path().join("before/1/metrics.jsonl").is_file());

    // A manifest that is not JSON or is missing is damage too.
    fs::write(newest.join("manifest.json"), "{").unwrap();
    assert!(matches!(
        Checkpoint::load(&newest),
        Err(checkpoint::CheckpointError::Manifest { .. })
    ));
    fs::remove_file(newest.join("manifest.json")).unwrap();
    let error = Checkpoint::load(&newest).unwrap_err().to_string();
    assert!(error.contains("manifest.json"), "{error}");
}

#[test]
fn a_checkpoint_of_another_configuration_is_not_resumed() {
    let folder = tempfile::tempdir().unwrap();
    advance(folder.path(), &config(2), 2, 0);
    let mut other = config(4);
    other.optimizer.lr = 5e-4;
    fs::write(folder.path().join("result.json"), "{}").unwrap();
    let log = fs::read(folder.path().join("metrics.jsonl")).unwrap();
    let run = advance(folder.path(), &other, 1, 0);
    assert_eq!(run.resumed_from(), 0);
    drop(run);
    // All files of the previous run are kept, apart from the new run's files.
    let before = folder.path().join("before/1");
    assert_eq!(fs::read(before.join("metrics.jsonl")).unwrap(), log);
    assert!(before.join("result.json").is_file());
    assert!(!folder.path().join("result.json").exists());
    assert_eq!(
        checkpoint::list(&before.join("checkpoints")).unwrap().len(),
        1
    );
}

#[test]
fn a_shorter_run_does_not_resume_from_a_longer_one() {
    let folder = tempfile::tempdir().unwrap();
    let kept = |steps| {
        let mut config = config(steps);
        config.train.keep_checkpoints = 1;
        config
    };
    advance(folder.path(), &kept(4), 4, 0);
    let run = advance(folder.path(), &kept(3), 3, 0);
    assert_eq!(run.resumed_from(), 0);
    assert_eq!(run.trainer().steps_done(), 3);
    let steps = |place: &Path| {
        let found = checkpoint::list(&place.join("checkpoints")).unwrap();
        found
            .iter()
            .map(|path| CheckpointId::read(path).unwrap().step)
            .collect::<Vec<_>>()
    };
    // The run keeps its own checkpoint, although the other one is of a later step.
    assert_eq!(steps(folder.path()), [3]);
    assert_eq!(steps(&folder.path().join("before/1")), [4]);
    assert_eq!(advance(folder.path(), &kept(4), 4, 0).resumed_from(), 3);
}

#[test]
fn a_checkpoint_is_not_written_twice() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = advance(folder.path(), &config(4), 2, 0);
    let newest = checkpoint::list(&folder.path().join("checkpoints"))
        .unwrap()
        .pop();
    let marked = newest.unwrap().join("of the first save");
    fs::write(&marked, "").unwrap();
    run.save().unwrap();
    drop(run);
    let mut run = Run::open(folder.path(), &config(4), inputs()).unwrap();
    run.save().unwrap();
    assert!(marked.exists());
    // A damaged checkpoint is replaced when the run reaches its step again.
    fs::remove_file(marked.with_file_name("manifest.json")).unwrap();
    let run = advance(folder.path(), &config(4), 2, 0);
    assert_eq!(run.resumed_from(), 0);
    assert!(!marked.exists());
    Checkpoint::load(marked.parent().unwrap()).unwrap();
    let left = fs::read_dir(folder.path().join("checkpoints")).unwrap();
    assert_eq!(left.count(), 1);
}

#[test]
fn a_checkpoint_of_another_kind_of_device_is_refused_with_advice() {
    let folder = tempfile::tempdir().unwrap();
    let run = advance(folder.path(), &config(4), 2, 0);
    let mut checkpoint = run.trainer().checkpoint().unwrap();
    // A CUDA generator's state is a seed and an offset.
    checkpoint.random[0].1 = Tensor::zeros([16], (Kind::Uint8, Device::Cpu));
    let mut trainer = Trainer::new(&config(4), inputs()).unwrap();
    let before = trainer.checkpoint().unwrap();
    let error = trainer.resume(&checkpoint).unwrap_err().to_string();
    assert!(
        error.contains("step 2") && error.contains("another kind of device than a CPU"),
        "{error}"
    );
    assert!(before.model == trainer.checkpoint().unwrap().model);
}

#[test]
fn an_unfinished_save_is_ignored_and_removed() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(4);
    advance(folder.path(), &config, 2, 0);
    // As if left behind by process 1 of another container.
    let partial = folder
        .path()
        .join("checkpoints/.step-0000004.0123456789abcdef-1-1-abcdefgh.tmp");
    fs::create_dir_all(&partial).unwrap();
    fs::write(partial.join("model.safetensors"), "half").unwrap();
    let run = advance(folder.path(), &config, 4, 0);
    assert_eq!(run.resumed_from(), 2);
    assert!(!partial.exists());
}

#[test]
fn a_truncated_line_of_the_log_is_written_again() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(4);
    advance(&folder.path().join("whole"), &config, 4, 0);
    let truncated = folder.path().join("truncated");
    advance(&truncated, &config, 2, 0);
    let log = truncated.join("metrics.jsonl");
    let mut text = fs::read_to_string(&log).unwrap();
    text.push_str("{\"step\":3,\"loss\":0.");
    fs::write(&log, text).unwrap();
    advance(&truncated, &config, 4, 0);
    assert_same_outcome(&folder.path().join("whole"), &truncated);
    assert_eq!(MetricsLog::read(&log).unwrap().len(), 4);
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

#[test]
fn a_finer_grid_is_averaged_with_pool_tokens() {
    // The fine tokens are constant over blocks of 2 x 2, so their averages are known.
    let mut pooling = config(1);
    let mut fine = inputs();
    fine.encoders[0].grid = (8, 8);
    assert!(matches!(
        Trainer::new(&pooling, fine.clone()),
        Err(TrainError::TokenGrid { .. })
    ));
    pooling.alignment.pool_tokens = true;
    let mut loader = Loader::new(dataset(), pooling.loader(), Cursor::default()).unwrap();
    let batch = DeviceBatch::new(loader.next().unwrap().unwrap(), Device::Cpu).unwrap();
    let coarse = tokens(&batch);
    let blocks = coarse
        .view([8, 4, 1, 4, 1, WIDTH])
        .expand([8, 4, 2, 4, 2, WIDTH], false)
        .reshape([8, 64, WIDTH]);
    let alignment = |inputs, tokens: &Tensor| {
        let mut trainer = Trainer::new(&pooling, inputs).unwrap();
        trainer.step(&batch, &[tokens.shallow_clone()]).unwrap();
        trainer
            .finish_step()
            .unwrap()
            .unwrap()
            .get(Figure::AlignmentLoss)
            .unwrap()
    };
    let difference = alignment(inputs(), &coarse) - alignment(fine.clone(), &blocks);
    assert!(difference.abs() < 1e-5, "{difference}");
    // A grid that is not a multiple is refused even with `pool_tokens`.
    fine.encoders[0].grid = (7, 7);
    assert!(Trainer::new(&pooling, fine).is_err());
}

#[test]
fn accumulation_averages_the_gradients_of_the_parts() {
    // With a learning rate of 0 and no clipping, the gradients follow from AdamW's first moment: it is
    // 0.1 g after one step, and 0.9 m + 0.1 g after the next.
    let mut without_updates = config(2);
    without_updates.optimizer.lr = 0.0;
    without_updates.optimizer.max_grad_norm = 1e9;
    let mut loader = Loader::new(dataset(), without_updates.loader(), Cursor::default()).unwrap();
    let batch = DeviceBatch::new(loader.next().unwrap().unwrap(), Device::Cpu).unwrap();
    let moments = |trainer: &Trainer| -> Vec<Tensor> {
        let moments = trainer.checkpoint().unwrap().optimizer;
        let first = moments
            .into_iter()
            .filter(|(name, _)| name.starts_with("exp_avg."));
        first.map(|(_, moment)| moment.copy()).collect()
    };

    let mut accumulating = Trainer::new(&without_updates, inputs()).unwrap();
    accumulating.step(&batch, &[tokens(&batch)]).unwrap();

    let mut halves = without_updates.clone();
    halves.train.batch_size = 4;
    halves.train.accumulation = 1;
    let mut stepping = Trainer::new(&halves, inputs()).unwrap();
    let mut moments_after = Vec::new();
    for start in [0, 4] {
        let half = DeviceBatch {
            moments: None,
            images: batch.images.narrow(0, start, 4),
            labels: batch.labels.narrow(0, start, 4),
            ids: batch.ids.clone(),
            flipped: batch.flipped.clone(),
            cursor: batch.cursor,
        };
        stepping.step(&half, &[tokens(&half)]).unwrap();
        moments_after.push(moments(&stepping));
    }
    for (index, whole) in moments(&accumulating).iter().enumerate() {
        let (first, second) = (&moments_after[0][index], &moments_after[1][index]);
        let parts: Tensor = (first + (second - first * 0.9)) / 2.0;
        let scale = whole.abs().max().double_value(&[]).max(1e-6);
        let difference = (whole - parts).abs().max().double_value(&[]);
        assert!(
            difference < 1e-4 * scale,
            "weight {index}: {difference} of {scale}"
        );
    }
}

#[test]
fn losses_of_both_recipes_fall_and_the_average_follows_the_weights() {
    for (norm, head) in [
        (SpatialNorm::None, HeadConfig::Mlp { width: 64 }),
        (SpatialNorm::default(), HeadConfig::default()),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(40);
        config.alignment.spatial_norm = norm;
        config.alignment.head = head;
        config.train.checkpoint_every = 40;
        let run = advance(folder.path(), &config, 40, 0);
        let log = MetricsLog::read(&folder.path().join("metrics.jsonl")).unwrap();
        let mean = |lines: &[training::StepMetrics]| {
            let losses = lines.iter().map(|line| line.get(Figure::Loss).unwrap());
            losses.sum::<f64>() / lines.len() as f64
        };
        assert!(mean(&log[30..]) < mean(&log[..10]) - 0.1);
        let alignment = |line: usize| log[line].get(Figure::AlignmentLoss).unwrap();
        assert!(alignment(39) < alignment(0) - 0.1);
        let checkpoint = checkpoint::list(&folder.path().join("checkpoints"))
            .unwrap()
            .pop()
            .unwrap();
        let model = read_tensors(&checkpoint.join("model.safetensors")).unwrap();
        let average = read_tensors(&checkpoint.join("ema.safetensors")).unwrap();
        let difference: f64 = model
            .iter()
            .zip(&average)
            .map(|((_, model), (_, average))| (model - average).abs().max().double_value(&[]))
            .fold(0.0, f64::max);
        assert!(difference > 0.0 && difference < 0.1, "{difference}");
        let samples = run.trainer().sample(0, &[0, 1, 2], |_| {});
        assert!(samples.is_ok(), "{samples:?}");
    }
}

#[test]
fn bf16_trains_within_a_few_percent_of_fp32() {
    let losses: Vec<f64> = [
        training::TrainPrecision::Fp32,
        training::TrainPrecision::Bf16,
    ]
    .into_iter()
    .map(|precision| {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(20);
        config.train.precision = precision;
        config.train.checkpoint_every = 20;
        advance(folder.path(), &config, 20, 0);
        let log = MetricsLog::read(&folder.path().join("metrics.jsonl")).unwrap();
        log[10..]
            .iter()
            .map(|line| line.get(Figure::DenoisingLoss).unwrap())
            .sum::<f64>()
    })
    .collect();
    assert_ne!(losses[0], losses[1], "autocast had no effect");
    assert!((losses[0] / losses[1] - 1.0).abs() < 0.05, "{losses:?}");
}

#[test]
fn fused_operations_change_training_only_by_rounding() {
    for (precision, limit) in [
        (training::TrainPrecision::Fp32, 1e-5),
        // A different rounding in bfloat16 is a relative change of 4e-3.
        (training::TrainPrecision::Bf16, 5e-3),
    ] {
        let logs = [true, false].map(|fused| {
            let folder = tempfile::tempdir().unwrap();
            let mut config = config(6);
            config.train.precision = precision;
            config.train.fused = fused;
            advance(folder.path(), &config, 6, 0);
            MetricsLog::read(&folder.path().join("metrics.jsonl")).unwrap()
        });
        for (fused, composed) in logs[0].iter().zip(&logs[1]) {
            let figures = |line: &training::StepMetrics| {
                [Figure::Loss, Figure::AlignmentLoss, Figure::GradNorm]
                    .map(|figure| line.get(figure).unwrap())
            };
            for (fused, composed) in figures(fused).into_iter().zip(figures(composed)) {
                let error = (fused - composed).abs() / composed.abs().max(0.1);
                assert!(error < limit, "{precision:?}: {fused} against {composed}");
            }
        }
    }
    let hash = |fused| {
        let mut config = config(1);
        config.train.fused = fused;
        config.training_hash("")
    };
    assert_ne!(
        hash(true),
        hash(false),
        "`train.fused` must change the hash, since it changes the weights"
    );
}

/// Trains with evaluations, whose figure is the sum of the averaged weights. The evaluation at the step `interrupted`
/// is interrupted, and the run ends there.
fn evaluate_until(folder: &Path, config: &Config, interrupted: Option<u64>) {
    let mut run = Run::open(folder, config, inputs()).unwrap();
    let checkpoints = folder.join("checkpoints");
    let quality = |trainer: &Trainer| {
        let step = trainer.steps_done();
        // An evaluation may take hours, so the steps before it must have been saved.
        let saved = checkpoint::list(&checkpoints).unwrap().pop().unwrap();
        assert!(saved.ends_with(format!("step-{step:07}")));
        if interrupted == Some(step) {
            return Err(TrainError::Interrupted);
        }
        let weights = trainer.average().state_dict();
        let sum = weights.iter().map(|(_, tensor)| tensor.sum(Kind::Double));
        let sum = sum.map(|sum| sum.double_value(&[])).sum();
        Ok(Figures::from([(Figure::Fd, sum)]))
    };
    run.evaluate(quality).unwrap();
    let loader = Loader::new(dataset(), config.loader(), run.trainer().cursor()).unwrap();
    for batch in loader {
        if run.is_finished() {
            break;
        }
        let batch = DeviceBatch::new(batch.unwrap(), Device::Cpu).unwrap();
        let tokens = tokens(&batch);
        if run.step_and_evaluate(&batch, &[tokens], quality).is_err() {
            assert!(run.evaluation_is_due());
            return;
        }
    }
    assert!(!run.evaluation_is_due());
}

#[test]
fn an_interrupted_evaluation_is_repeated_when_the_run_resumes() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(8);
    config.evaluate.every = 4;
    config.evaluate.fd_encoder = "hog".to_owned();
    config.sample.count = 4;
    config.train.checkpoint_every = 100;
    // With a log line at each step, and with lines only for the evaluations.
    for log_every in [1, 100] {
        config.train.log_every = log_every;
        let place = |name: &str| folder.path().join(format!("{name}-{log_every}"));
        evaluate_until(&place("whole"), &config, None);
        for interrupted in [4, 8] {
            let part = place(&format!("interrupted-at-{interrupted}"));
            evaluate_until(&part, &config, Some(interrupted));
            let last = MetricsLog::read(&part.join("metrics.jsonl")).unwrap().pop();
            let last = last.unwrap();
            assert_eq!((last.step, last.get(Figure::Fd)), (interrupted, None));
            evaluate_until(&part, &config, None);
            assert_same_outcome(&part, &place("whole"));
        }
        let lines = MetricsLog::read(&place("whole").join("metrics.jsonl")).unwrap();
        let evaluated = lines.iter().filter(|line| line.get(Figure::Fd).is_some());
        let steps: Vec<u64> = evaluated.map(|line| line.step).collect();
        assert_eq!(steps, [4, 8]);
        assert_eq!(lines.len(), if log_every == 1 { 8 } else { 2 });
    }
}

#[test]
fn an_evaluation_that_measures_nothing_leaves_no_line() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(4);
    config.evaluate.every = 2;
    config.evaluate.fd_encoder = "hog".to_owned();
    config.sample.count = 4;
    config.train.log_every = 3;
    let run = &mut Run::open(folder.path(), &config, inputs()).unwrap();
    let loader = Loader::new(dataset(), config.loader(), run.trainer().cursor()).unwrap();
    for batch in loader.take(4) {
        let batch = DeviceBatch::new(batch.unwrap(), Device::Cpu).unwrap();
        let tokens = tokens(&batch);
        let nothing = |_: &Trainer| Ok::<_, TrainError>(Figures::default());
        run.step_and_evaluate(&batch, &[tokens], nothing).unwrap();
    }
    let lines = MetricsLog::read(&folder.path().join("metrics.jsonl")).unwrap();
    let steps: Vec<u64> = lines.iter().map(|line| line.step).collect();
    assert_eq!(steps, [3, 4]);
}

/// The expected error, and a function that causes it.
type Fault<'a> = (&'static str, Box<dyn Fn() + 'a>);

/// Ways in which an existing checkpoint cannot be read: a link to itself, a folder in place of a file, a file in place
/// of a folder, and a link to a disk that is not mounted.
#[cfg(unix)]
fn unreadable(checkpoints: &Path) -> Vec<Fault<'_>> {
    use std::os::unix::fs::symlink;
    let newest = checkpoint::list(checkpoints).unwrap().pop().unwrap();
    let in_place_of = |path: PathBuf, make: fn(&Path)| {
        move || {
            let kept = path.with_extension("kept");
            fs::rename(&path, kept).unwrap();
            make(&path);
        }
    };
    vec![
        (
            "symbolic links",
            Box::new(in_place_of(newest.clone(), |path| {
                symlink(path, path).unwrap()
            })),
        ),
        (
            "directory",
            Box::new(in_place_of(newest.join("model.safetensors"), |path| {
                fs::create_dir(path).unwrap();
            })),
        ),
        (
            "directory",
            Box::new(in_place_of(newest.join("manifest.json"), |path| {
                fs::create_dir(path).unwrap();
            })),
        ),
        (
            "irectory",
            Box::new(in_place_of(newest.clone(), |path| {
                fs::write(path, "").unwrap()
            })),
        ),
        (
            "No such file",
            Box::new(in_place_of(newest, |path| {
                symlink("/nowhere/step", path).unwrap();
            })),
        ),
        (
            "symbolic links",
            Box::new(in_place_of(checkpoints.to_owned(), |path| {
                symlink(path, path).unwrap();
            })),
        ),
        (
            "No such file",
            Box::new(in_place_of(checkpoints.to_owned(), |path| {
                symlink("/nowhere/checkpoints", path).unwrap();
            })),
        ),
    ]
}

/// Returns the names, kinds and contents of everything below a folder.
#[cfg(unix)]
fn everything(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        if kind.is_dir() {
            found.extend(everything(&path));
        } else if kind.is_file() {
            found.push((path.clone(), fs::read(&path).unwrap()));
        }
        found.push((path, format!("{kind:?}").into_bytes()));
    }
    found.sort();
    found
}

#[cfg(unix)]
#[test]
fn a_checkpoint_that_cannot_be_read_is_an_error_and_nothing_is_changed() {
    /// Index of the fault that concerns only the weights.
    const WEIGHTS: usize = 1;
    for index in 0.. {
        let folder = tempfile::tempdir().unwrap();
        let config = config(4);
        advance(folder.path(), &config, 4, 0);
        let checkpoints = folder.path().join("checkpoints");
        let faults = unreadable(&checkpoints);
        let Some((reason, cause_fault)) = faults.get(index) else {
            assert_eq!(index, 7);
            break;
        };
        cause_fault();
        let before = everything(folder.path());
        // A run with other settings, which would start anew, fails too, unless only the weights cannot be read.
        let rates = [config.optimizer.lr, 5e-4];
        for lr in &rates[..if index == WEIGHTS { 1 } else { 2 }] {
            let mut config = config.clone();
            config.optimizer.lr = *lr;
            let error = Run::open(folder.path(), &config, inputs()).unwrap_err();
            let error = error.to_string();
            assert!(error.contains(reason), "{index}: {error}");
            assert!(error.contains("checkpoints"), "{index}: {error}");
        }
        assert_eq!(everything(folder.path()), before, "{index}");
    }
}

#[test]
fn a_run_without_checkpoints_is_not_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    advance(folder.path(), &config(4), 4, 0);
    fs::remove_dir_all(folder.path().join("checkpoints")).unwrap();
    fs::write(folder.path().join("config.toml"), "old").unwrap();
    fs::write(folder.path().join("a user's notes"), "").unwrap();
    fs::create_dir(folder.path().join("samples")).unwrap();
    fs::write(folder.path().join("samples/1.png"), "png").unwrap();
    let log = fs::read(folder.path().join("metrics.jsonl")).unwrap();
    let run = Run::open(folder.path(), &config(4), inputs()).unwrap();
    assert_eq!(run.resumed_from(), 0);
    let before = folder.path().join("before/1");
    assert_eq!(fs::read(before.join("metrics.jsonl")).unwrap(), log);
    assert!(before.join("config.toml").exists() && before.join("samples/1.png").exists());
    assert!(training::EventLog::path_in(&before).exists());
    assert!(folder.path().join("a user's notes").exists());
    drop(run);
    // A run without a logged step has nothing worth keeping.
    drop(Run::open(folder.path(), &config(4), inputs()).unwrap());
    assert!(!folder.path().join("before/2").exists());
}

#[test]
fn errors_name_the_kind_of_a_foreign_file() {
    let folder = tempfile::tempdir().unwrap();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n";
    let weights = folder.path().join("weights.safetensors");
    fs::write(&weights, pointer).unwrap();
    let error = read_tensors(&weights).unwrap_err().to_string();
    assert!(error.contains("Git LFS pointer"), "{error}");

    let checkpoint = folder.path().join("step-0000001");
    fs::create_dir(&checkpoint).unwrap();
    let utf16: Vec<u8> = "{\"format\": 1}"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    fs::write(checkpoint.join("manifest.json"), utf16).unwrap();
    let error = Checkpoint::load(&checkpoint).unwrap_err();
    assert!(
        error.is_damage() && error.to_string().contains("UTF-16"),
        "{error}"
    );
}
