//! Bfloat16 copies of the weights, and the readback of figures.

use diffusion::objective::meanflow::MeanFlow;
use diffusion::objective::velocity::Velocity;
use diffusion::objective::x_prediction::XPrediction;
use diffusion::samplers::Method;
use metrics::figures::Figure;
use tch::Device;

use super::*;
use crate::{Checkpoint, EncoderShape, TrainPrecision};

/// Width of the encoder's tokens.
const WIDTH: i64 = 24;

fn config(model: &str, objective: Objective) -> Config {
    let mut config = Config::default();
    config.model.name = model.to_owned();
    config.objective = objective;
    config.data.resolution = 16;
    config.train.batch_size = 4;
    config.train.precision = TrainPrecision::Bf16;
    config.train.ema_decay = 0.9;
    config.optimizer.lr = 1e-3;
    config.alignment.encoder = "random".to_owned();
    config.sample.sampler.method = Method::Euler;
    config
}

fn inputs(grid: i64) -> Inputs {
    Inputs {
        device: Device::Cpu,
        num_classes: 10,
        encoders: vec![EncoderShape {
            name: "random".to_owned(),
            width: WIDTH,
            grid: (grid, grid),
        }],
        identity: String::new(),
    }
}

/// Returns a random batch and its tokens.
fn batch(step: u64, grid: i64) -> (DeviceBatch, Tensor) {
    let mut generator = Generator::new(Device::Cpu, step).unwrap();
    let pixels = generator.randn(&[4, 3, 16, 16], Kind::Float).unwrap() * 60.0 + 128.0;
    let tokens = generator.randn(&[4, grid * grid, WIDTH], Kind::Float);
    let batch = DeviceBatch {
        images: pixels.clamp(0.0, 255.0).to_kind(Kind::Uint8),
        labels: Tensor::arange(4, (Kind::Int64, Device::Cpu)),
        moments: None,
        ids: (0..4).collect(),
        flipped: vec![false; 4],
        cursor: Cursor::default(),
    };
    (batch, tokens.unwrap())
}

/// Runs `steps` steps. Returns their figures, and the checkpoint after them.
fn outcome(trainer: &mut Trainer, steps: u64) -> (Vec<StepMetrics>, Checkpoint) {
    let (rows, _) = trainer.task.denoiser().dimensions().token_grid;
    let first = trainer.steps_done();
    let figures = (first..first + steps)
        .map(|step| {
            let (batch, tokens) = batch(step, rows);
            trainer.step(&batch, &[tokens]).unwrap();
            trainer.finish_step().unwrap().unwrap()
        })
        .collect();
    (figures, trainer.checkpoint().unwrap())
}

fn assert_same(left: &(Vec<StepMetrics>, Checkpoint), right: &(Vec<StepMetrics>, Checkpoint)) {
    assert_eq!(format!("{:?}", left.0), format!("{:?}", right.0));
    for (left, right) in [
        (&left.1.model, &right.1.model),
        (&left.1.ema, &right.1.ema),
        (&left.1.optimizer, &right.1.optimizer),
    ] {
        assert_eq!(left.len(), right.len());
        for ((name, left), (other, right)) in left.iter().zip(right) {
            assert_eq!(name, other);
            assert!(left == right, "{name} differs");
        }
    }
}

#[test]
fn training_with_bfloat16_copies_equals_training_with_autocast() {
    for (model, grid, objective) in [
        ("SiT-XS/4", 4, Objective::Velocity(Velocity::default())),
        ("SiT-XS/4", 4, Objective::Meanflow(MeanFlow::default())),
        (
            "JiT-XS/4",
            4,
            Objective::XPrediction(XPrediction::default()),
        ),
    ] {
        let config = config(model, objective);
        let [copies, casts] = [dtype_of_copies(&config), None].map(|copies| {
            let mut trainer = Trainer::with_copies(&config, inputs(grid), copies).unwrap();
            let entries = trainer.weights.params.entries();
            let copied = entries.iter().filter(|param| param.copy.is_some()).count();
            drop(entries);
            assert_eq!(copied > 0, copies.is_some(), "{model}");
            outcome(&mut trainer, 4)
        });
        assert_same(&copies, &casts);
    }
}

#[test]
fn copies_follow_loaded_weights() {
    let config = config("SiT-XS/4", Objective::default());
    let mut whole = Trainer::new(&config, inputs(4)).unwrap();
    let (_, halfway) = outcome(&mut whole, 2);
    let halfway = Checkpoint {
        model: copied(&halfway.model),
        ema: copied(&halfway.ema),
        optimizer: copied(&halfway.optimizer),
        ..halfway
    };
    let end = outcome(&mut whole, 2);

    // Another seed, so that the initial weights differ from the loaded ones.
    let mut other = config.clone();
    other.train.seed = 1;
    let mut resumed = Trainer::new(&other, inputs(4)).unwrap();
    resumed.resume(&halfway).unwrap();
    assert_same(&outcome(&mut resumed, 2), &end);

    let start = |copies| {
        let mut trainer = Trainer::with_copies(&other, inputs(4), copies).unwrap();
        trainer.initialise(&halfway.model, false).unwrap();
        outcome(&mut trainer, 2)
    };
    assert_same(&start(Some(Kind::BFloat16)), &start(None));
}

fn copied(tensors: &[(String, Tensor)]) -> Vec<(String, Tensor)> {
    let copy = |(name, tensor): &(String, Tensor)| (name.clone(), tensor.copy());
    tensors.iter().map(copy).collect()
}

#[test]
fn only_single_pass_fused_bfloat16_training_has_copies() {
    let plain = config("SiT-XS/4", Objective::default());
    assert_eq!(dtype_of_copies(&plain), Some(Kind::BFloat16));
    let change = |change: fn(&mut Config)| {
        let mut changed = plain.clone();
        change(&mut changed);
        dtype_of_copies(&changed)
    };
    assert_eq!(change(|config| config.train.accumulation = 2), None);
    assert_eq!(change(|config| config.train.fused = false), None);
    assert_eq!(
        change(|config| config.train.precision = TrainPrecision::Fp32),
        None
    );
    assert_eq!(
        change(|config| config.objective = Objective::RepaE(Box::default())),
        None
    );
}

#[test]
fn saved_weights_are_float32() {
    let trainer = Trainer::new(&config("SiT-XS/4", Objective::default()), inputs(4)).unwrap();
    for (name, tensor) in trainer.params().state_dict() {
        assert_eq!(tensor.kind(), Kind::Float, "{name}");
    }
}

thread_local! {
    static READBACKS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// Copies the figures when it is called, as a device would, and writes the number of the copy as the denoising loss.
fn counted(figures: &Tensor) -> Result<Readback, TorchError> {
    READBACKS.set(READBACKS.get() + 1);
    let copy = figures.copy();
    let _filled = copy.narrow(0, 1, 1).fill_(READBACKS.get() as f64);
    Readback::begin(&copy)
}

#[test]
fn the_copy_of_a_steps_figures_begins_before_the_next_step_is_queued() {
    let mut trainer = Trainer::new(&config("SiT-XS/4", Objective::default()), inputs(4)).unwrap();
    trainer.read_back = counted;
    for step in 0..3 {
        let (batch, tokens) = batch(step, 4);
        let previous = trainer.step(&batch, &[tokens]).unwrap();
        // Each step begins one copy itself, instead of when the figures are read.
        assert_eq!(READBACKS.get(), step + 1);
        assert_eq!(
            previous.and_then(|metrics| metrics.get(Figure::DenoisingLoss)),
            (step > 0).then_some(step as f64)
        );
    }
    let last = trainer.finish_step().unwrap().unwrap();
    assert_eq!((last.step, last.get(Figure::DenoisingLoss)), (3, Some(3.0)));
    assert_eq!((READBACKS.get(), trainer.finish_step().unwrap()), (3, None));
}
