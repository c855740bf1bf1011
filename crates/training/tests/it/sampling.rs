//! Each sampled image depends only on its index and label: not on the number of images, the first index, or the
//! batch size.

use diffusion::objective::meanflow::MeanFlow;
use diffusion::objective::x_prediction::XPrediction;
use diffusion::samplers::Method;
use tch::{Device, Kind, Tensor};
use torch_ext::Generator;
use training::{Config, Inputs, Objective, Sampling, Trainer};

const CLASSES: i64 = 5;

fn config(model: &str, objective: Objective, method: Method) -> Config {
    let mut config = Config::default();
    config.model.name = model.into();
    config.data.resolution = 16;
    config.objective = objective;
    config.sample.sampler.method = method;
    config.sample.sampler.num_steps = 4;
    config.sample.batch_size = 7;
    config
}

/// Configurations of all samplers, with guidance.
fn configs() -> Vec<Config> {
    let sit = Objective::default();
    let mut all = vec![
        config("SiT-XS/4", sit.clone(), Method::Euler),
        config("SiT-XS/4", sit.clone(), Method::Heun),
        config("SiT-XS/4", sit, Method::EulerMaruyama),
        config(
            "SiT-XS/4",
            Objective::Meanflow(MeanFlow::default()),
            Method::Euler,
        ),
        config(
            "JiT-XS/4",
            Objective::XPrediction(XPrediction::default()),
            Method::Heun,
        ),
    ];
    for config in &mut all {
        config.sample.sampler.cfg_scale = 2.0;
    }
    all
}

/// Returns the initial weights plus noise, since a new network returns zero for any input.
fn weights(config: &Config) -> Vec<(String, Tensor)> {
    let inputs = Inputs {
        device: Device::Cpu,
        num_classes: CLASSES,
        encoders: Vec::new(),
        identity: String::new(),
    };
    let trainer = Trainer::new(config, inputs).unwrap();
    let mut generator = Generator::new(Device::Cpu, 1).unwrap();
    let weights = trainer.checkpoint().unwrap().ema;
    weights
        .into_iter()
        .map(|(name, weight)| {
            let noise = generator.randn(&weight.size(), Kind::Float).unwrap();
            (name, weight + noise * 0.05)
        })
        .collect()
}

fn labels(first: u64, count: u64) -> Vec<i64> {
    (first..first + count)
        .map(|index| index as i64 % CLASSES)
        .collect()
}

#[test]
fn an_image_does_not_depend_on_the_other_images() {
    for config in configs() {
        let weights = weights(&config);
        let sampling = |batch_size| {
            let mut config = config.clone();
            config.sample.batch_size = batch_size;
            Sampling::new(&config, &weights, None, Device::Cpu).unwrap()
        };
        let draw = |sampling: &Sampling, first, count| {
            let mut done = 0;
            let images = sampling.sample(first, &labels(first, count), |n| done = n);
            assert_eq!(done as u64, count);
            images.unwrap()
        };
        let seven = sampling(7);
        let whole = draw(&seven, 0, 20);
        assert_eq!(whole.size(), [20, 3, 16, 16]);
        for (first, count) in [(0, 1), (0, 8), (3, 2), (5, 13), (7, 1), (19, 1)] {
            let expected = whole.narrow(0, first, count);
            assert!(
                expected == draw(&seven, first as u64, count as u64),
                "{:?}: {count} from {first}",
                config.objective.name()
            );
        }
        assert!(whole == draw(&sampling(64), 0, 20));
        let [a, b] = [3, 8].map(|index| whole.get(index));
        assert!(a != b, "two indices of one class have the same image");
        assert_eq!(draw(&seven, 4, 0).size()[0], 0);
    }
}

#[test]
fn noise_depends_on_the_seed() {
    let mut config = config("SiT-XS/4", Objective::default(), Method::Euler);
    let weights = weights(&config);
    let draw = |config: &Config| {
        let sampling = Sampling::new(config, &weights, None, Device::Cpu).unwrap();
        sampling.sample(0, &labels(0, 3), |_| {}).unwrap()
    };
    let first = draw(&config);
    config.sample.seed = 1;
    assert!(first != draw(&config));
}
