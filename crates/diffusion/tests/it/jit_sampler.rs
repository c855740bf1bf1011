use diffusion::objective::x_prediction::XPrediction;
use diffusion::samplers::jit::JitSampler;
use diffusion::samplers::{Method, SamplerConfig};
use diffusion::{Denoiser, DiffusionError, Dimensions, Mode, Output};
use tch::{Device, Kind, Tensor};
use torch_ext::Generator;

use crate::golden::Golden;
use crate::jit::{Case, randomised, tiny};
use crate::samplers::{Counted, ONE_IMAGE};
use crate::x_prediction::objective;

fn follows_upstream(name: &str, method: Method) {
    let golden = Golden::open(name);
    let number = |key: &str| golden.config("denoiser")[key].as_f64().unwrap();
    let [noise, labels] = ["in.noise", "in.y"].map(|key| golden.tensor(key));
    let scales = golden.config("cfg_scales").as_array().unwrap().clone();
    for cfg_scale in scales.iter().map(|scale| scale.as_f64().unwrap()) {
        let config = SamplerConfig {
            method,
            num_steps: number("steps") as usize,
            cfg_scale,
            // Upstream's time starts at the noise.
            guidance_low: 1.0 - number("interval_max"),
            guidance_high: 1.0 - number("interval_min"),
        };
        let sampler = JitSampler::new(config, objective(&golden)).unwrap();
        let jit = Counted::new(Case::build(&golden).jit);
        let mut states = vec![&noise * number("noise_scale")];
        let images = sampler
            .sample(&jit, &noise, &labels, |progress| {
                assert_eq!((progress.step, progress.steps), (states.len(), 6));
                states.push(progress.state.shallow_clone());
            })
            .unwrap();
        let check =
            |what, tensor: &Tensor| golden.check(&format!("out.cfg{cfg_scale}.{what}"), tensor);
        check("sample", &images);
        check("trajectory", &Tensor::stack(&states, 0));
        let batches = Tensor::from_slice(&jit.batches.borrow()[..]);
        check("model_batch_sizes", &batches);
    }
}

#[test]
fn euler_follows_upstream() {
    follows_upstream("jit/jit_sample_euler", Method::Euler);
}

#[test]
fn heun_follows_upstream() {
    follows_upstream("jit/jit_sample_heun", Method::Heun);
}

/// A denoiser that always predicts the same image, and ignores labels.
#[derive(Debug)]
struct OneImage(f64);

impl Denoiser for OneImage {
    fn forward(
        &self,
        x: &Tensor,
        t: &Tensor,
        _: &Tensor,
        _: &[i64],
        _: Mode<'_>,
    ) -> Result<Output, DiffusionError> {
        assert_eq!((t.size(), t.kind()), (vec![x.size()[0]], x.kind()));
        Ok(Output {
            prediction: x.f_full_like(self.0)?,
            hidden: vec![],
        })
    }
    fn dimensions(&self) -> Dimensions {
        ONE_IMAGE
    }
}

fn noise(size: &[i64]) -> Tensor {
    let mut generator = Generator::new(Device::Cpu, 2).unwrap();
    generator.randn(size, Kind::Float).unwrap()
}

fn config(method: Method, num_steps: usize) -> SamplerConfig {
    SamplerConfig {
        method,
        num_steps,
        ..SamplerConfig::default()
    }
}

fn sampler(config: SamplerConfig) -> JitSampler {
    JitSampler::new(config, XPrediction::default()).unwrap()
}

#[test]
fn every_method_reaches_the_only_image() {
    let labels = Tensor::from_slice(&[0i64, 0, 0]);
    for method in [Method::Euler, Method::Heun] {
        for steps in [1, 2, 20] {
            let images = sampler(config(method, steps))
                .sample(&OneImage(2.5), &noise(&[3, 1, 2, 2]), &labels, |_| {})
                .unwrap();
            let error = (images - 2.5).abs().max().double_value(&[]);
            assert!(error < 1e-5, "{method:?}, {steps} steps: {error}");
        }
    }
}

#[test]
fn the_state_starts_as_scaled_noise_and_keeps_its_dtype() {
    let objective = XPrediction {
        noise_scale: 2.0,
        ..XPrediction::default()
    };
    let start = noise(&[2, 1, 2, 2]).to_kind(Kind::Double);
    let labels = Tensor::from_slice(&[0i64, 0]);
    let sampler = JitSampler::new(config(Method::Euler, 4), objective).unwrap();
    let mut states = Vec::new();
    let images = sampler
        .sample(&OneImage(0.0), &start, &labels, |progress| {
            states.push((progress.time, progress.state.shallow_clone()));
        })
        .unwrap();
    assert_eq!(images.kind(), Kind::Double);
    // The image is zero, so a quarter of the way leaves three quarters of the noise.
    let (time, state) = &states[0];
    assert_eq!(*time, 0.25);
    let error = (state - &start * 1.5).abs().max().double_value(&[]);
    assert!(error < 1e-12, "{error}");
    // The input has not changed.
    assert_eq!(start, noise(&[2, 1, 2, 2]).to_kind(Kind::Double));
}

fn batches(settings: SamplerConfig) -> Vec<i64> {
    let jit = Counted::new(randomised(&tiny()).1);
    let labels = Tensor::from_slice(&[1i64]);
    let images = sampler(settings)
        .sample(&jit, &noise(&[1, 3, 8, 8]), &labels, |_| {})
        .unwrap();
    assert!(!images.requires_grad());
    jit.batches.into_inner()
}

#[test]
fn the_guidance_interval_excludes_its_ends_but_includes_pure_noise() {
    let guided = SamplerConfig {
        cfg_scale: 2.0,
        guidance_low: 0.1,
        guidance_high: 0.9,
        ..config(Method::Euler, 10)
    };
    assert_eq!(batches(guided), [1, 1, 2, 2, 2, 2, 2, 2, 2, 1]);
    let from_zero = SamplerConfig {
        guidance_low: 0.0,
        guidance_high: 1.0,
        ..guided
    };
    assert_eq!(batches(from_zero), [2; 10]);
    let unguided = SamplerConfig {
        cfg_scale: 1.0,
        ..from_zero
    };
    assert_eq!(batches(unguided), [1; 10]);
}

#[test]
fn the_guidance_interval_uses_the_time_of_the_other_samplers() {
    // The paper's interval [0.1, 1], in which 0 is noise.
    let early = SamplerConfig {
        cfg_scale: 2.0,
        guidance_high: 0.9,
        ..config(Method::Euler, 10)
    };
    assert_eq!(batches(early), [1, 1, 2, 2, 2, 2, 2, 2, 2, 2]);
    let late = SamplerConfig {
        guidance_low: 0.7,
        guidance_high: 1.0,
        ..early
    };
    assert_eq!(batches(late), [2, 2, 2, 1, 1, 1, 1, 1, 1, 1]);
}

#[test]
fn each_evaluation_of_heun_is_guided_by_its_own_time() {
    let guided = SamplerConfig {
        cfg_scale: 2.0,
        guidance_low: 0.5,
        guidance_high: 1.0,
        ..config(Method::Heun, 4)
    };
    // Evaluations at times 1, 0.75 | 0.75, 0.5 | 0.5, 0.25 | 0.25.
    assert_eq!(batches(guided), [2, 2, 2, 1, 1, 1, 1]);
}

#[test]
fn times_include_both_ends_exactly() {
    for steps in 1..100 {
        let times = sampler(config(Method::Euler, steps)).times().unwrap();
        assert_eq!(times.len(), steps + 1);
        assert_eq!((times[0], times[steps]), (0.0, 1.0));
    }
}

#[test]
fn invalid_settings_and_inputs_are_errors() {
    let refused = |config| JitSampler::new(config, XPrediction::default()).unwrap_err();
    assert_eq!(
        refused(config(Method::EulerMaruyama, 4)).to_string(),
        "method is euler-maruyama, must be euler or heun for JiT"
    );
    assert_eq!(
        refused(config(Method::Heun, 0)).to_string(),
        "num_steps is 0, must be at least 1"
    );
    let wrong = XPrediction {
        t_eps: -1.0,
        ..XPrediction::default()
    };
    assert!(JitSampler::new(config(Method::Heun, 4), wrong).is_err());

    let labels = Tensor::from_slice(&[0i64, 0]);
    let guided = SamplerConfig {
        cfg_scale: 2.0,
        ..config(Method::Heun, 4)
    };
    let draw = |config, size: &[i64], labels: &Tensor| {
        sampler(config).sample(&OneImage(0.0), &noise(size), labels, |_| {})
    };
    let error = draw(guided, &[2, 1, 2, 2], &labels);
    assert!(matches!(error, Err(DiffusionError::NoNullClass(_))));
    let plain = config(Method::Heun, 4);
    assert_eq!(
        draw(plain, &[2, 3, 2, 2], &labels).unwrap_err().to_string(),
        "shape of the noise is [2, 3, 2, 2], expected [_, 1, 2, 2]"
    );
    assert_eq!(
        draw(plain, &[1, 1, 2, 2], &labels).unwrap_err().to_string(),
        "shape of labels is [2], expected [1]"
    );
}
