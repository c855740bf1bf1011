//! REPA-E: joint training of denoiser, autoencoder and discriminator.

use std::fs;

use data::{Cursor, Loader};
use diffusion::autoencoder::KlAutoencoder;
use metrics::figures::Figure;
use tch::{Device, Tensor};
use torch_ext::Params;
use training::checkpoint::{self, Checkpoint};
use training::{
    Autoencoder, DeviceBatch, Inputs, MetricsLog, Objective, Run, Sampling, Trainer, write_tensors,
};

use crate::runs::{advance, config, dataset, inputs, repa_e, tokens, trained_autoencoder, vae};

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
