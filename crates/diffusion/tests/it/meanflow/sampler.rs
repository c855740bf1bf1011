use diffusion::models::meanflow::MeanFlowSit;
use diffusion::samplers::meanflow::{MeanFlowSampler, MeanFlowSamplerConfig};
use diffusion::{DiffusionError, SitConfig};
use tch::{Device, Kind, Tensor};
use torch_ext::Params;

use super::{batch, build, open, randomised, tiny};

fn sampler(num_steps: usize, cfg_scale: f64) -> Result<MeanFlowSampler, DiffusionError> {
    MeanFlowSampler::new(MeanFlowSamplerConfig {
        num_steps,
        cfg_scale,
    })
}

#[test]
fn samples_follow_upstream() {
    samples("sample_small");
}

#[test]
#[ignore = "its data is not in the repository; IREPA_GOLDEN names a folder that contains it"]
fn samples_of_a_larger_model_follow_upstream() {
    samples("sample");
}

fn samples(case: &str) {
    let golden = open(case);
    let (_params, network) = build(&golden);
    let [noise, labels] = ["in.noise", "in.y"].map(|key| golden.tensor(key));
    for num_steps in [1, 2, 4] {
        for scale in [1, 2] {
            let sampler = sampler(num_steps, f64::from(scale)).unwrap();
            let mut times = Vec::new();
            let mut from = 1.0;
            let images = sampler.sample(&network, &noise, &labels, |progress| {
                assert_eq!(progress.steps, num_steps);
                times.extend([progress.time, from]);
                from = progress.time;
            });
            let images = images.unwrap();
            assert_eq!(
                (images.kind(), images.requires_grad()),
                (Kind::Double, false)
            );
            let key = format!("out.steps{num_steps}.cfg{scale}");
            golden.check(&key, &images.to_kind(Kind::Float));
            let times = Tensor::from_slice(&times).view([-1, 2]);
            let key = format!("out.times.steps{num_steps}");
            golden.check(&key, &times.to_kind(Kind::Float));
        }
    }
}

#[test]
fn one_step_subtracts_the_average_velocity() {
    let (_params, network) = randomised(&tiny());
    let [z, _, _, labels, _] = batch(Kind::Float);
    let zero = Tensor::zeros([4], (Kind::Float, Device::Cpu));
    let u = network
        .forward(&z, &zero, &zero.ones_like(), &labels, &[])
        .unwrap();
    let expected = z.to_kind(Kind::Double) - u.prediction.to_kind(Kind::Double);
    let config = MeanFlowSamplerConfig::default();
    let sampler = MeanFlowSampler::new(config).unwrap();
    assert_eq!(sampler.times(), [1.0, 0.0]);
    let images = sampler.sample(&network, &z, &labels, |_| {}).unwrap();
    assert_eq!(images, expected.detach());
}

#[test]
fn settings_out_of_range_are_named() {
    let message = |num_steps, scale| sampler(num_steps, scale).unwrap_err().to_string();
    assert_eq!(message(0, 1.0), "num_steps is 0, must be at least 1");
    let expected = "cfg_scale is 0.5, must be 1 (no guidance) or more";
    assert_eq!(message(1, 0.5), expected);
    assert!(sampler(1, f64::INFINITY).is_err());
    let read = serde_json::from_str::<MeanFlowSamplerConfig>;
    assert_eq!(read(r#"{"num_steps": 1}"#).unwrap(), Default::default());
    assert!(read(r#"{"steps": 1}"#).is_err());
}

#[test]
fn guidance_without_a_null_class_and_wrong_shapes_are_errors() {
    let [z, _, _, labels, _] = batch(Kind::Float);
    let params = Params::new(Device::Cpu, 0).unwrap();
    let config = SitConfig {
        class_dropout: 0.0,
        ..tiny()
    };
    let network = MeanFlowSit::new(&params.root(), &config).unwrap();
    let error = sampler(1, 2.0)
        .unwrap()
        .sample(&network, &z, &labels, |_| {});
    assert!(matches!(error, Err(DiffusionError::NoNullClass(_))));
    for (z, labels) in [
        (z.narrow(1, 0, 2), labels.shallow_clone()),
        (z.shallow_clone(), labels.narrow(0, 0, 3)),
    ] {
        let error = sampler(1, 1.0)
            .unwrap()
            .sample(&network, &z, &labels, |_| {});
        assert!(matches!(error, Err(DiffusionError::Shape { .. })));
    }
}
