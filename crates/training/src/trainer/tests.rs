use diffusion::objective::meanflow::MeanFlow;
use diffusion::objective::velocity::Velocity;
use diffusion::objective::x_prediction::XPrediction;
use diffusion::samplers::Method;

use super::*;
use crate::Precision;

const WIDTH: i64 = 24;

fn config(model: &str, objective: Objective) -> Config {
    let mut config = Config::default();
    config.model.name = model.to_owned();
    config.objective = objective;
    config.data.resolution = 16;
    config.train.batch_size = 4;
    config.train.precision = Precision::Bf16;
    config.train.ema_decay = 0.9;
    config.optimizer.lr = 1e-3;
    config.alignment.encoder = "given".to_owned();
    config.sample.sampler.method = Method::Euler;
    config
}

fn inputs(grid: i64) -> Inputs {
    Inputs {
        device: Device::Cpu,
        num_classes: 10,
        encoders: vec![EncoderShape {
            name: "given".to_owned(),
            width: WIDTH,
            grid: (grid, grid),
        }],
        identity: String::new(),
    }
}

/// A batch and its tokens.
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

/// Figures of some steps, and the checkpoint after them.
fn outcome(trainer: &mut Trainer, steps: u64) -> (Vec<StepMetrics>, Checkpoint) {
    let (rows, _) = trainer.model.network.denoiser().token_grid();
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
fn bfloat16_copies_train_with_the_bits_of_autocast() {
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
        let [copies, casts] = [copies(&config), None].map(|copies| {
            let mut trainer = Trainer::with_copies(&config, inputs(grid), copies).unwrap();
            let entries = trainer.model.params.entries();
            let copied = entries.iter().filter(|param| param.copy.is_some()).count();
            drop(entries);
            assert_eq!(copied > 0, copies.is_some(), "{model}");
            outcome(&mut trainer, 4)
        });
        assert_same(&copies, &casts);
    }
}

#[test]
fn copies_follow_weights_that_come_from_outside() {
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

    // Other weights than those of the seed, which are overwritten.
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
fn weights_are_cast_where_gradients_add_up() {
    let plain = config("SiT-XS/4", Objective::default());
    assert_eq!(copies(&plain), Some(Kind::BFloat16));
    let change = |change: fn(&mut Config)| {
        let mut changed = plain.clone();
        change(&mut changed);
        copies(&changed)
    };
    assert_eq!(change(|config| config.train.accumulation = 2), None);
    assert_eq!(change(|config| config.train.fused = false), None);
    assert_eq!(
        change(|config| config.train.precision = Precision::Fp32),
        None
    );
    assert_eq!(
        change(|config| config.objective = Objective::RepaE(Box::default())),
        None
    );
}

#[test]
fn what_a_model_keeps_is_float32() {
    let trainer = Trainer::new(&config("SiT-XS/4", Objective::default()), inputs(4)).unwrap();
    for (name, tensor) in trainer.params().state_dict() {
        assert_eq!(tensor.kind(), Kind::Float, "{name}");
    }
}

thread_local! {
    static BEGUN: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// As a device's copy: taken when it is begun, whatever happens to the tensor later. It is told by a denoising loss
/// that is the number of the copy.
fn counted(figures: &Tensor) -> Result<Readback, TorchError> {
    BEGUN.set(BEGUN.get() + 1);
    let copy = figures.copy();
    let _filled = copy.narrow(0, 1, 1).fill_(BEGUN.get() as f64);
    Readback::begin(&copy)
}

#[test]
fn a_steps_figures_are_on_their_way_before_the_next_step_is_queued() {
    let mut trainer = Trainer::new(&config("SiT-XS/4", Objective::default()), inputs(4)).unwrap();
    trainer.read_back = counted;
    for step in 0..3 {
        let (batch, tokens) = batch(step, 4);
        let before = trainer.step(&batch, &[tokens]).unwrap();
        // One copy a step, begun with it, and not when the figures are asked for.
        assert_eq!(BEGUN.get(), step + 1);
        assert_eq!(
            before.map(|metrics| metrics.denoising_loss),
            (step > 0).then_some(step as f64)
        );
    }
    let last = trainer.finish_step().unwrap().unwrap();
    assert_eq!((last.step, last.denoising_loss), (3, 3.0));
    assert_eq!((BEGUN.get(), trainer.finish_step().unwrap()), (3, None));
}
