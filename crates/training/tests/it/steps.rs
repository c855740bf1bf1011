//! The training step: pooling, accumulation, precision, fused operations.

use alignment::{HeadConfig, SpatialNorm};
use data::{Cursor, Loader};
use metrics::figures::Figure;
use tch::{Device, Tensor};
use training::{DeviceBatch, MetricsLog, TrainError, Trainer, checkpoint, read_tensors};

use crate::runs::{WIDTH, advance, config, dataset, inputs, tokens};

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
