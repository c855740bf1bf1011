use std::cell::RefCell;

use diffusion::samplers::{Method, Sampler, SamplerConfig};
use diffusion::{Denoiser, DiffusionError, Dimensions, Interpolant, Mode, Output, SitConfig};
use tch::{Device, Kind, Tensor};
use torch_ext::Generator;

use crate::golden::Golden;
use crate::sit::{Case, randomised, tiny};

/// A denoiser that records the batch size of each call.
#[derive(Debug)]
pub struct Counted<D> {
    inner: D,
    pub batches: RefCell<Vec<i64>>,
}

impl<D: Denoiser> Counted<D> {
    pub fn new(inner: D) -> Self {
        let batches = RefCell::default();
        Self { inner, batches }
    }
}

impl<D: Denoiser> Denoiser for Counted<D> {
    fn forward(
        &self,
        x: &Tensor,
        t: &Tensor,
        labels: &Tensor,
        depths: &[i64],
        mode: Mode<'_>,
    ) -> Result<Output, DiffusionError> {
        self.batches.borrow_mut().push(labels.size()[0]);
        self.inner.forward(x, t, labels, depths, mode)
    }
    fn dimensions(&self) -> Dimensions {
        self.inner.dimensions()
    }
}

fn follows_upstream(name: &str, method: Method) {
    let golden = Golden::open(name);
    let case = Case::build(&golden);
    let number = |key| golden.config(key).as_f64().unwrap();
    let config = SamplerConfig {
        method,
        num_steps: number("num_steps") as usize,
        cfg_scale: number("cfg_scale"),
        guidance_low: number("guidance_low"),
        guidance_high: number("guidance_high"),
    };
    let sampler = Sampler::new(config, Interpolant::Linear).unwrap();
    let [latents, labels] = ["in.latents", "in.y"].map(|key| golden.tensor(key));
    let sit = Counted::new(case.sit);

    let mut drawn = 0;
    let noise = |size: &[i64]| {
        let noise = golden.tensor("in.noise_sequence").f_get(drawn)?;
        assert_eq!(noise.size(), size);
        drawn += 1;
        Ok(noise)
    };
    let mut states = Vec::new();
    let result = sampler
        .sample_with(&sit, &latents, &labels, noise, |progress| {
            assert_eq!(progress.steps, config.num_steps);
            assert_eq!(progress.step, states.len() + 1);
            states.push(progress.state.shallow_clone());
        })
        .unwrap();

    golden.check("out.final", &result);
    golden.check("out.after_first_step", &states[0]);
    golden.check("out.t_steps", &Tensor::from_slice(&sampler.times()));
    assert_eq!(states.len(), config.num_steps);
    assert_eq!(
        drawn,
        if method == Method::EulerMaruyama {
            9
        } else {
            0
        }
    );
    let calls: Vec<i64> = golden
        .config("batch_multiplier_per_model_call")
        .as_array()
        .unwrap()
        .iter()
        .map(|multiplier| 3 * multiplier.as_i64().unwrap())
        .collect();
    assert_eq!(*sit.batches.borrow(), calls);
}

#[test]
fn euler_follows_upstream() {
    follows_upstream("sampler_euler", Method::Euler);
}

#[test]
fn euler_with_a_guidance_interval_follows_upstream() {
    follows_upstream("sampler_euler_cfg_interval", Method::Euler);
}

#[test]
fn guided_heun_follows_upstream() {
    follows_upstream("sampler_heun_cfg", Method::Heun);
}

#[test]
fn euler_maruyama_follows_upstream() {
    follows_upstream("sampler_em", Method::EulerMaruyama);
}

#[test]
fn guided_euler_maruyama_follows_upstream() {
    follows_upstream("sampler_em_cfg", Method::EulerMaruyama);
}

/// The dimensions of a denoiser that knows a single image of 2 x 2 pixels.
pub const ONE_IMAGE: Dimensions = Dimensions {
    image: [1, 2, 2],
    num_classes: 1,
    null_class: None,
    depth: 0,
    token_grid: (2, 2),
    hidden_width: 1,
};

/// A denoiser with the exact velocity for data that consists of a single image, whose pixels are all `mean`:
/// `v = (x - mean) / t`. It ignores labels.
#[derive(Debug)]
struct OneImage {
    mean: f64,
}

impl Denoiser for OneImage {
    fn forward(
        &self,
        x: &Tensor,
        t: &Tensor,
        _: &Tensor,
        _: &[i64],
        _: Mode<'_>,
    ) -> Result<Output, DiffusionError> {
        let prediction = x
            .f_sub_scalar(self.mean)?
            .f_div(&t.f_view([-1, 1, 1, 1])?)?;
        Ok(Output {
            prediction,
            hidden: vec![],
        })
    }
    fn dimensions(&self) -> Dimensions {
        ONE_IMAGE
    }
}

fn latents(size: &[i64]) -> Tensor {
    let mut generator = Generator::new(Device::Cpu, 2).unwrap();
    generator.randn(size, Kind::Float).unwrap()
}

fn labels(labels: &[i64]) -> Tensor {
    Tensor::from_slice(labels)
}

fn sampler(method: Method, num_steps: usize) -> Sampler {
    let config = SamplerConfig {
        method,
        num_steps,
        ..SamplerConfig::default()
    };
    Sampler::new(config, Interpolant::Linear).unwrap()
}

#[test]
fn every_method_reaches_the_only_image() {
    let start = latents(&[3, 1, 2, 2]);
    let denoiser = OneImage { mean: 2.5 };
    for (method, allowed) in [
        (Method::Euler, 1e-5),
        (Method::Heun, 1e-5),
        (Method::EulerMaruyama, 0.2),
    ] {
        let mut generator = Generator::new(Device::Cpu, 0).unwrap();
        let image = sampler(method, 100)
            .sample(
                &denoiser,
                &start,
                &labels(&[0, 0, 0]),
                &mut generator,
                |_| {},
            )
            .unwrap();
        let error = (image - 2.5).abs().max().double_value(&[]);
        assert!(error < allowed, "{method:?}: {error}");
    }
}

#[test]
fn a_single_step_works_in_every_method() {
    let start = latents(&[2, 1, 2, 2]);
    for method in [Method::Euler, Method::Heun, Method::EulerMaruyama] {
        let mut generator = Generator::new(Device::Cpu, 0).unwrap();
        let image = sampler(method, 1)
            .sample(
                &OneImage { mean: 1.0 },
                &start,
                &labels(&[0, 0]),
                &mut generator,
                |progress| assert_eq!((progress.step, progress.time), (1, 0.0)),
            )
            .unwrap();
        assert!(image.isfinite().all().int64_value(&[]) == 1, "{method:?}");
    }
}

#[test]
fn samples_are_float64_without_gradient_and_depend_on_the_seed() {
    let (_params, sit) = randomised(&tiny());
    let start = latents(&[2, 3, 8, 8]);
    let draw = |seed| {
        let mut generator = Generator::new(Device::Cpu, seed).unwrap();
        sampler(Method::EulerMaruyama, 5)
            .sample(&sit, &start, &labels(&[0, 1]), &mut generator, |_| {})
            .unwrap()
    };
    let image = draw(1);
    assert_eq!(image.kind(), Kind::Double);
    assert!(!image.requires_grad());
    assert_eq!(image, draw(1));
    assert_ne!(image, draw(2));
    // The input has not changed.
    assert_eq!(start, latents(&[2, 3, 8, 8]));
}

#[test]
fn guidance_needs_a_null_class() {
    let config = SitConfig {
        class_dropout: 0.0,
        ..tiny()
    };
    let (_params, sit) = randomised(&config);
    let guided = SamplerConfig {
        cfg_scale: 1.5,
        num_steps: 2,
        ..SamplerConfig::default()
    };
    let mut generator = Generator::new(Device::Cpu, 0).unwrap();
    let error = Sampler::new(guided, Interpolant::Linear)
        .unwrap()
        .sample(
            &sit,
            &latents(&[2, 3, 8, 8]),
            &labels(&[0, 1]),
            &mut generator,
            |_| {},
        )
        .unwrap_err();
    assert!(matches!(error, DiffusionError::NoNullClass(_)), "{error}");
}

#[test]
fn shapes_and_labels_are_checked() {
    let (_params, sit) = randomised(&tiny());
    let mut generator = Generator::new(Device::Cpu, 0).unwrap();
    let mut refused = |size: &[i64], classes: &[i64]| {
        sampler(Method::Euler, 2)
            .sample(
                &sit,
                &latents(size),
                &labels(classes),
                &mut generator,
                |_| {},
            )
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        refused(&[2, 4, 8, 8], &[0, 1]),
        "shape of the latents is [2, 4, 8, 8], expected [_, 3, 8, 8]"
    );
    assert_eq!(
        refused(&[2, 3, 8, 8], &[0]),
        "shape of labels is [1], expected [2]"
    );
    assert_eq!(
        refused(&[2, 3, 8, 8], &[0, 9]),
        "label 9 is not in 0..=3 (3 is the null class)"
    );
}

#[test]
fn settings_out_of_range_are_named() {
    let default = SamplerConfig::default();
    for (expected, config) in [
        (
            "num_steps",
            SamplerConfig {
                num_steps: 0,
                ..default
            },
        ),
        (
            "cfg_scale",
            SamplerConfig {
                cfg_scale: 0.5,
                ..default
            },
        ),
        (
            "cfg_scale",
            SamplerConfig {
                cfg_scale: f64::NAN,
                ..default
            },
        ),
        (
            "guidance_low",
            SamplerConfig {
                guidance_low: -0.1,
                ..default
            },
        ),
        (
            "guidance_high",
            SamplerConfig {
                guidance_high: 1.1,
                ..default
            },
        ),
        (
            "guidance_high",
            SamplerConfig {
                guidance_low: 0.6,
                guidance_high: 0.5,
                ..default
            },
        ),
    ] {
        match Sampler::new(config, Interpolant::Linear) {
            Err(DiffusionError::Setting { name, .. }) => assert_eq!(name, expected),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn configuration_reads_by_name_and_rejects_unknown_keys() {
    let read = serde_json::from_str::<SamplerConfig>;
    let config = read(r#"{"method": "euler-maruyama", "num_steps": 250}"#).unwrap();
    assert_eq!(config, SamplerConfig::default());
    assert_eq!(read(r#"{"method": "heun"}"#).unwrap().method, Method::Heun);
    assert!(read(r#"{"method": "rk45"}"#).is_err());
    assert!(read(r#"{"steps": 3}"#).is_err());
}
