//! Training with CUDA graphs against training without.

use alignment::{HeadConfig, SpatialNorm};
use data::Cursor;
use diffusion::objective::meanflow::MeanFlow;
use diffusion::objective::x_prediction::XPrediction;
use diffusion::samplers::Method;
use metrics::figures::Figure;
use tch::{Device, Kind, Tensor};
use torch_ext::Generator;
use training::{Config, DeviceBatch, EncoderShape, Inputs, Objective, StepMetrics, Trainer};

const BATCH: i64 = 8;
const WIDTH: i64 = 24;

fn sit() -> Config {
    let mut config = Config::default();
    config.model.name = "SiT-XS/4".into();
    config.data.resolution = 16;
    config.train.batch_size = BATCH as usize;
    config.train.ema_decay = 0.9;
    config.optimizer.lr = 1e-3;
    config.alignment.head = HeadConfig::default();
    config.alignment.spatial_norm = SpatialNorm::default();
    config
}

fn jit() -> Config {
    let mut config = sit();
    config.model.name = "JiT-XS/4".into();
    config.objective = Objective::XPrediction(XPrediction::default());
    config.sample.sampler.method = Method::Euler;
    config
}

fn trainer(config: &Config, device: Device) -> Trainer {
    let inputs = Inputs {
        device,
        num_classes: 9,
        encoders: vec![EncoderShape {
            name: "fixed".into(),
            width: WIDTH,
            grid: (4, 4),
        }],
        identity: "test".into(),
    };
    Trainer::new(config, inputs).unwrap()
}

/// Returns the figures of `steps` steps, each on another random batch.
fn train(trainer: &mut Trainer, steps: u64, device: Device) -> Vec<StepMetrics> {
    (0..steps)
        .map(|step| {
            let mut generator = Generator::new(Device::Cpu, step).unwrap();
            let pixels = generator.rand(&[BATCH, 3, 16, 16], Kind::Float).unwrap() * 255.0;
            let tokens = generator.randn(&[BATCH, 16, WIDTH], Kind::Float).unwrap();
            let batch = DeviceBatch {
                images: pixels.to_kind(Kind::Uint8).to_device(device),
                moments: None,
                labels: Tensor::arange(BATCH, (Kind::Int64, device)),
                ids: (0..BATCH as u64).collect(),
                flipped: vec![false; BATCH as usize],
                cursor: Cursor::default(),
            };
            trainer.step(&batch, &[tokens.to_device(device)]).unwrap();
            trainer.finish_step().unwrap().unwrap()
        })
        .collect()
}

mod needs_cuda {
    use super::*;

    #[test]
    #[ignore = "needs a CUDA device: `cargo xtask test --cuda`"]
    fn steps_with_a_graph_have_the_figures_of_steps_without() {
        let device = Device::Cuda(0);
        torch_ext::device::load_cuda().unwrap();
        for config in [sit(), jit()] {
            let mut plain = trainer(&config, device);
            let mut config = config;
            config.train.cuda_graphs = true;
            let mut graph = trainer(&config, device);
            let name = &config.model.name;
            let (expected, found) = (train(&mut plain, 6, device), train(&mut graph, 6, device));
            for (expected, found) in expected.iter().zip(&found) {
                let figures = |metrics: &StepMetrics| {
                    [
                        Figure::Loss,
                        Figure::DenoisingLoss,
                        Figure::AlignmentLoss,
                        Figure::GradNorm,
                    ]
                    .map(|figure| metrics.get(figure).unwrap())
                };
                for (expected, found) in figures(expected).into_iter().zip(figures(found)) {
                    let difference = (expected - found).abs();
                    assert!(
                        difference <= 1e-4 * expected.abs().max(1.0),
                        "{name}: {expected} {found}"
                    );
                }
            }
            // Both trainers have drawn the same number of times, noise and dropped labels.
            let random = |trainer: &Trainer| trainer.checkpoint().unwrap().random.remove(0).1;
            assert_eq!(random(&plain), random(&graph), "{name}");
        }
    }
}

#[test]
fn cuda_graphs_have_no_effect_on_the_cpu() {
    let mut config = sit();
    let plain = train(&mut trainer(&config, Device::Cpu), 2, Device::Cpu);
    config.train.cuda_graphs = true;
    let graphs = train(&mut trainer(&config, Device::Cpu), 2, Device::Cpu);
    assert_eq!(plain, graphs);
    // The hashes are the same too.
    assert_eq!(config.hash("x"), sit().hash("x"));
    assert_eq!(config.training_hash("x"), sit().training_hash("x"));
}

#[test]
fn a_step_that_cannot_be_recorded_is_refused() {
    let with = |change: &dyn Fn(&mut Config)| {
        let mut config = jit();
        config.train.cuda_graphs = true;
        change(&mut config);
        config.validate().map_err(|error| error.to_string())
    };
    assert_eq!(with(&|_| {}), Ok(()));
    let refused = |change: &dyn Fn(&mut Config), obstacle: &str| {
        let error = with(change).unwrap_err();
        assert!(
            error.starts_with("`train.cuda_graphs`") && error.contains(obstacle),
            "{error}"
        );
    };
    refused(
        &|config| config.train.accumulation = 2,
        "train.accumulation is 2",
    );
    refused(
        &|config| config.model.proj_dropout = 0.1,
        "model.proj_dropout is 0.1",
    );
    refused(
        &|config| {
            config.model.name = "SiT-XS/4".into();
            config.objective = Objective::Meanflow(MeanFlow::default());
        },
        "objective.kind is meanflow",
    );
}
