use diffusion::models::meanflow::MeanFlowSit;
use diffusion::objective::meanflow::{
    MeanFlow, NoisyBatch, RandomInputs, TimeDistribution, TimeSampling, Weighting,
};
use diffusion::{Denoiser, DiffusionError, Interpolant, SitConfig, drop_labels};
use tch::{Device, Kind, Tensor};
use torch_ext::{Params, autocast};

use super::{batch, build, generator, largest, open, randomised, tiny};
use crate::golden::Golden;

/// The settings and the random inputs of a golden case.
fn settings(golden: &Golden) -> (MeanFlow, RandomInputs) {
    let loss = golden.config("loss");
    let number = |key: &str| loss[key].as_f64().unwrap();
    let objective = MeanFlow {
        weighting: match loss["weighting"].as_str().unwrap() {
            "adaptive" => Weighting::AdaptiveSquared,
            _ => Weighting::Uniform,
        },
        adaptive_p: number("adaptive_p"),
        cfg_omega: number("cfg_omega"),
        cfg_kappa: number("cfg_kappa"),
        cfg_min_t: number("cfg_min_t"),
        cfg_max_t: number("cfg_max_t"),
        ..MeanFlow::default()
    };
    let random_inputs = RandomInputs {
        dropped: golden
            .tensor("in.drop_uniform")
            .lt(number("label_dropout_prob")),
        r: golden.tensor("in.r"),
        t: golden.tensor("in.t"),
        noise: golden.tensor("in.noise"),
    };
    (objective, random_inputs)
}

fn loss_follows_upstream(case: &str) {
    let golden = open(case);
    let (params, network) = build(&golden);
    let (objective, random_inputs) = settings(&golden);
    let [x, y] = ["in.x", "in.y"].map(|key| golden.tensor(key));

    let noisy = objective
        .add_noise(&network, &x, &y, &random_inputs)
        .unwrap();
    golden.check("out.z_t", &noisy.z);
    golden.check("out.v_t", &noisy.velocity);
    golden.check("out.labels_dropped", &noisy.labels);
    assert_eq!(noisy.labels, golden.tensor("in.y_final"));
    golden.check("out.cfg_mask", &noisy.guided.to_kind(Kind::Int64));

    let rows = |mask: &Tensor| mask.nonzero().flatten(0, -1);
    let (guided, others) = (rows(&noisy.guided), rows(&noisy.guided.logical_not()));
    // Upstream's step consists of these calls; this implementation computes both derivatives in the pass of u.
    let (batch, count) = (x.size()[0], guided.size()[0]);
    let sizes = [batch, 2 * count, count, batch - count];
    golden.check("out.model_batch_sizes", &Tensor::from_slice(&sizes));

    let at_t = |labels: &Tensor| {
        let [z, t, y] = [&noisy.z, &noisy.t, labels].map(|x| x.index_select(0, &guided));
        tch::no_grad(|| network.forward(&z, &t, &t, &y, &[]).unwrap().prediction)
    };
    golden.check("out.cfg_u_cond", &at_t(&noisy.labels));
    let null = noisy
        .labels
        .full_like(network.dimensions().null_class.unwrap());
    golden.check("out.cfg_u_uncond", &at_t(&null));

    let noisy = objective.guide(&network, noisy).unwrap();
    let v = &noisy.velocity;
    assert!(!v.requires_grad());
    golden.check("out.cfg_v_tilde", &v.index_select(0, &guided));

    let output = objective.forward(&network, &noisy, &[]).unwrap();
    golden.check("out.u", &output.u);
    golden.check("out.cfg_dudt", &output.dudt.index_select(0, &guided));
    golden.check("out.no_cfg_dudt", &output.dudt.index_select(0, &others));
    let target = objective.target(&output, &noisy).unwrap();
    assert!(!target.requires_grad());
    golden.check("out.u_target", &target);

    let loss = objective.loss(&output, &noisy).unwrap();
    golden.check("out.loss", &loss.value);
    golden.check("out.loss_mid", &loss.squared_error);
    let mean_squared = loss.squared_error.sum(None) / x.numel() as f64;
    golden.check("out.loss_mean_ref", &mean_squared);
    let paper = MeanFlow {
        weighting: Weighting::Adaptive,
        ..objective
    };
    let paper = paper.loss(&output, &noisy).unwrap().value;
    golden.check("out.paper_adaptive_loss", &paper);
    let mean = loss.value.mean(None);
    golden.check("out.loss_mean", &mean);

    mean.backward();
    for param in params.entries().iter().filter(|param| param.trainable) {
        golden.check(&format!("grad.{}", param.name), &param.tensor.grad());
    }
}

#[test]
fn the_guided_loss_weighted_adaptively_and_its_gradients_follow_upstream() {
    loss_follows_upstream("loss_cfg_adaptive");
}

#[test]
#[ignore = "its data is not in the repository; IREPA_GOLDEN names a folder that contains it"]
fn the_guided_loss_and_its_gradients_follow_upstream() {
    loss_follows_upstream("loss_cfg_uniform");
}

#[test]
#[ignore = "its data is not in the repository; IREPA_GOLDEN names a folder that contains it"]
fn the_loss_weighted_adaptively_and_its_gradients_follow_upstream() {
    loss_follows_upstream("loss_nocfg_adaptive");
}

#[test]
fn the_loss_and_its_gradients_follow_upstream() {
    loss_follows_upstream("loss_nocfg_uniform");
}

#[test]
fn times_follow_upstream() {
    let golden = open("time_sampler");
    let samplers = golden.config("samplers").as_array().unwrap();
    for (index, sampler) in samplers.iter().enumerate() {
        let number = |key: &str| sampler[key].as_f64().unwrap();
        let (distribution, numbers) = match sampler["time_sampler"].as_str().unwrap() {
            "uniform" => (TimeDistribution::Uniform, "in.uniform"),
            _ => (TimeDistribution::LogitNormal, "in.normal"),
        };
        let sampling = TimeSampling {
            distribution,
            mu: number("time_mu"),
            sigma: number("time_sigma"),
            ratio_r_not_equal_t: number("ratio_r_not_equal_t"),
        };
        let mask = golden.tensor("in.mask_uniform");
        let times = sampling.times_from(&golden.tensor(numbers), &mask).unwrap();
        golden.check(&format!("out.r.{index}"), &times.r);
        golden.check(&format!("out.t.{index}"), &times.t);
        let equal = times.equal.to_kind(Kind::Int64);
        golden.check(&format!("out.equal_mask.{index}"), &equal);
    }
}

/// A batch of 4 images and labels for [`tiny`].
fn images() -> (Tensor, Tensor) {
    let x0 = generator(3).randn(&[4, 3, 8, 8], Kind::Float).unwrap();
    (x0, Tensor::from_slice(&[0i64, 1, 2, 0]))
}

/// The guidance settings of the paper's largest model.
fn guided() -> MeanFlow {
    MeanFlow {
        cfg_omega: 0.2,
        cfg_kappa: 0.92,
        ..MeanFlow::default()
    }
}

#[test]
fn random_numbers_are_drawn_in_upstreams_order() {
    let (_params, network) = randomised(&SitConfig {
        class_dropout: 0.5,
        ..tiny()
    });
    let (x0, labels) = images();
    let objective = MeanFlow::default();
    let mut source = generator(11);
    let noisy = objective.draw(&network, &x0, &labels, &mut source).unwrap();

    // Label dropout, times, which samples have equal times, noise.
    let mut again = generator(11);
    let drop = again.rand(&[4], Kind::Float).unwrap();
    let normal = again.randn(&[4, 2], Kind::Float).unwrap();
    let mask = again.rand(&[4], Kind::Float).unwrap();
    let noise = again.randn(&[4, 3, 8, 8], Kind::Float).unwrap();
    assert_eq!(source.state().unwrap(), again.state().unwrap());
    let times = objective.time.times_from(&normal, &mask).unwrap();
    assert_eq!((noisy.r, &noisy.t), (times.r, &times.t));
    let (z, velocity) = objective.path.interpolate(&x0, &noise, &times.t).unwrap();
    assert_eq!((noisy.z, noisy.velocity), (z, velocity));
    let dropped = drop_labels(&labels, &drop, 0.5, 3).unwrap();
    assert_eq!(noisy.labels, dropped);
    assert_eq!(noisy.guided, dropped.ne(3));
}

#[test]
fn the_loss_has_the_gradients_of_the_two_pass_form() {
    let (params, network) = randomised(&tiny());
    let (x0, labels) = images();
    let objective = guided();
    let noisy = objective.draw(&network, &x0, &labels, &mut generator(4));
    let noisy = objective.guide(&network, noisy.unwrap()).unwrap();
    let direction = diffusion::models::meanflow::Direction::along(&noisy.velocity);
    let outputs = [
        objective.forward(&network, &noisy, &[]).unwrap(),
        network
            .jvp_in_two_passes(&noisy.z, &noisy.r, &noisy.t, &noisy.labels, &direction, &[])
            .unwrap(),
    ];
    let [shared, separate] = outputs.map(|output| {
        let loss = objective.loss(&output, &noisy).unwrap();
        assert!(!loss.squared_error.requires_grad());
        loss.value.mean(None).backward();
        let gradients: Vec<Tensor> = params.trainable().iter().map(|w| w.grad().copy()).collect();
        params.trainable().iter_mut().for_each(Tensor::zero_grad);
        gradients
    });
    assert_eq!(shared, separate);
}

#[test]
fn where_r_equals_t_the_target_is_the_velocity() {
    let (_params, network) = randomised(&tiny());
    let (x0, labels) = images();
    let objective = MeanFlow {
        time: TimeSampling {
            ratio_r_not_equal_t: 0.0,
            ..TimeSampling::default()
        },
        ..MeanFlow::default()
    };
    let noisy = objective.draw(&network, &x0, &labels, &mut generator(0));
    let noisy = noisy.unwrap();
    assert_eq!(noisy.r, noisy.t);
    let output = objective.forward(&network, &noisy, &[]).unwrap();
    assert_eq!(objective.target(&output, &noisy).unwrap(), noisy.velocity);
}

#[test]
fn the_configured_fraction_of_samples_has_r_before_t() {
    let fraction = |ratio_r_not_equal_t| {
        let sampling = TimeSampling {
            ratio_r_not_equal_t,
            ..TimeSampling::default()
        };
        let times = sampling.draw(10_000, &mut generator(1)).unwrap();
        assert_eq!(times.r.gt_tensor(&times.t).any(), Tensor::from(false));
        let apart = times.r.lt_tensor(&times.t).to_kind(Kind::Float);
        apart.mean(None).double_value(&[])
    };
    assert_eq!((fraction(0.0), fraction(1.0)), (0.0, 1.0));
    assert!((fraction(0.25) - 0.25).abs() < 0.02);
}

#[test]
fn the_guidance_interval_includes_both_ends_and_excludes_dropped_labels() {
    let (_params, network) = randomised(&tiny());
    let objective = MeanFlow {
        cfg_min_t: 0.1,
        cfg_max_t: 0.8,
        ..guided()
    };
    let t = Tensor::from_slice(&[0.1f32, 0.8, 0.8 + 1e-7, 0.1 - 1e-8, 0.5]);
    let x0 = Tensor::ones([5, 3, 8, 8], (Kind::Float, Device::Cpu));
    let random_inputs = RandomInputs {
        dropped: Tensor::from_slice(&[false, false, false, false, true]),
        r: &t * 0.5,
        t,
        noise: x0.zeros_like(),
    };
    let labels = Tensor::from_slice(&[0i64; 5]);
    let noisy = objective
        .add_noise(&network, &x0, &labels, &random_inputs)
        .unwrap();
    let expected = Tensor::from_slice(&[true, true, false, false, false]);
    assert_eq!(noisy.guided, expected);
    assert_eq!(noisy.labels, Tensor::from_slice(&[0i64, 0, 0, 0, 3]));
    let path = noisy.velocity.copy();
    let noisy = objective.guide(&network, noisy).unwrap();
    let moved = (&noisy.velocity - path)
        .flatten(1, -1)
        .abs()
        .amax([1], false);
    assert_eq!(moved.gt(0.0), expected);
}

#[test]
fn guidance_without_guided_samples_changes_nothing() {
    let (_params, network) = randomised(&tiny());
    let (x0, labels) = images();
    let none = MeanFlow::default();
    let outside = MeanFlow {
        cfg_min_t: 1.0,
        ..guided()
    };
    for objective in [none, outside] {
        let noisy = objective.draw(&network, &x0, &labels, &mut generator(0));
        let noisy = noisy.unwrap();
        let before = noisy.velocity.copy();
        assert_eq!(objective.guide(&network, noisy).unwrap().velocity, before);
    }
}

#[test]
fn autocast_trains_all_weights_with_float32_losses() {
    let (params, network) = randomised(&tiny());
    let (x0, labels) = images();
    let objective = guided();
    let noisy = objective.draw(&network, &x0, &labels, &mut generator(4));
    let half = Some(Kind::BFloat16);
    let noisy = autocast::run(Device::Cpu, half, || {
        objective.guide(&network, noisy.unwrap()).unwrap()
    })
    .unwrap();
    let output = autocast::run(Device::Cpu, half, || {
        objective.forward(&network, &noisy, &[]).unwrap()
    })
    .unwrap();
    assert_eq!(output.u.kind(), Kind::BFloat16);
    assert_eq!(noisy.velocity.kind(), Kind::Float);
    let loss = objective.loss(&output, &noisy).unwrap();
    assert_eq!(loss.value.kind(), Kind::Float);
    loss.value.mean(None).backward();
    for param in params.entries().iter().filter(|param| param.trainable) {
        assert!(largest(&param.tensor.grad()) > 0.0, "{}", param.name);
    }
}

#[test]
fn the_adaptive_loss_does_not_pass_gradients_through_its_weight() {
    let error = Tensor::from_slice(&[0.5f64, 4.0]).set_requires_grad(true);
    let noisy = |velocity: Tensor| NoisyBatch {
        z: velocity.shallow_clone(),
        r: Tensor::from_slice(&[0.0, 0.0]),
        t: Tensor::from_slice(&[1.0, 1.0]),
        labels: Tensor::from_slice(&[0i64, 0]),
        guided: Tensor::from_slice(&[false, false]),
        velocity,
    };
    for (weighting, expected) in [
        (Weighting::Uniform, [1.0, 8.0]),
        (Weighting::Adaptive, [1.0 / 0.26, 8.0 / 16.01]),
        // d(e^2) / e^2 with e = x^2.
        (
            Weighting::AdaptiveSquared,
            [4.0 * 0.125 / (0.0625 + 1e-3), 4.0 * 64.0 / (256.0 + 1e-3)],
        ),
    ] {
        let objective = MeanFlow {
            weighting,
            ..MeanFlow::default()
        };
        let u = error.view([2, 1, 1, 1]);
        let output = diffusion::models::meanflow::Jvp {
            dudt: u.detach().zeros_like(),
            hidden: vec![],
            u,
        };
        let zero = output.dudt.shallow_clone();
        let loss = objective.loss(&output, &noisy(zero)).unwrap();
        loss.value.sum(None).backward();
        let mut leaf = error.shallow_clone();
        let found = Vec::<f64>::try_from(leaf.grad()).unwrap();
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-12 * expected, "{weighting:?}");
        }
        leaf.zero_grad();
    }
}

#[test]
fn settings_out_of_range_are_named() {
    let message = |objective: MeanFlow| objective.validate().unwrap_err().to_string();
    let default = MeanFlow::default();
    default.validate().unwrap();
    let time = |time| MeanFlow { time, ..default };
    let sampling = TimeSampling::default();
    for (objective, expected) in [
        (
            MeanFlow {
                adaptive_p: -1.0,
                ..default
            },
            "adaptive_p is -1, must be 0 or more",
        ),
        (
            MeanFlow {
                cfg_kappa: f64::NAN,
                ..default
            },
            "cfg_kappa is NaN, must be a finite number",
        ),
        (
            MeanFlow {
                cfg_min_t: -0.1,
                ..default
            },
            "cfg_min_t is -0.1, must be between 0 and 1",
        ),
        (
            MeanFlow {
                cfg_min_t: 0.5,
                cfg_max_t: 0.4,
                ..default
            },
            "cfg_max_t is 0.4, must be between cfg_min_t = 0.5 and 1",
        ),
        (
            time(TimeSampling {
                sigma: -1.0,
                ..sampling
            }),
            "sigma is -1, must be 0 or more",
        ),
        (
            time(TimeSampling {
                ratio_r_not_equal_t: 1.5,
                ..sampling
            }),
            "ratio_r_not_equal_t is 1.5, must be between 0 and 1",
        ),
    ] {
        assert_eq!(message(objective), expected);
    }
    let (_params, network) = randomised(&tiny());
    let (x0, labels) = images();
    let bad = MeanFlow {
        adaptive_p: -1.0,
        ..default
    };
    let error = bad.draw(&network, &x0, &labels, &mut generator(0));
    assert!(matches!(error, Err(DiffusionError::Setting { .. })));
}

#[test]
fn guidance_needs_a_null_class() {
    let params = Params::new(Device::Cpu, 0).unwrap();
    let config = SitConfig {
        class_dropout: 0.0,
        ..tiny()
    };
    let network = MeanFlowSit::new(&params.root(), &config).unwrap();
    let (x0, labels) = images();
    let objective = guided();
    let noisy = objective.draw(&network, &x0, &labels, &mut generator(0));
    let noisy = noisy.unwrap();
    assert_eq!(noisy.labels, labels);
    let error = objective.guide(&network, noisy).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cfg_omega is 0.2, must be 1, with cfg_kappa = 0, for a network without a null class \
         (class_dropout = 0)"
    );
}

#[test]
fn wrong_shapes_are_named() {
    let (_params, network) = randomised(&tiny());
    let (x0, labels) = images();
    let objective = MeanFlow::default();
    let message = |error: DiffusionError| error.to_string();
    let error = objective.draw(&network, &x0.get(0), &labels, &mut generator(0));
    assert_eq!(
        message(error.unwrap_err()),
        "shape of the batch of images is [3, 8, 8], expected [_, _, _, _]"
    );
    let error = objective.draw(&network, &x0, &labels.narrow(0, 0, 2), &mut generator(0));
    assert_eq!(
        message(error.unwrap_err()),
        "shape of labels is [2], expected [4]"
    );
    let sampling = TimeSampling::default();
    let error = sampling.times_from(&Tensor::from_slice(&[1f32]), &Tensor::from_slice(&[1f32]));
    assert!(matches!(error, Err(DiffusionError::Shape { .. })));
    let noisy = objective.draw(&network, &x0, &labels, &mut generator(0));
    let noisy = noisy.unwrap();
    let [z, r, t, y, v] = batch(Kind::Float).map(|x| x.narrow(0, 0, 2));
    let direction = diffusion::models::meanflow::Direction::along(&v);
    let output = network.jvp(&z, &r, &t, &y, &direction, &[]).unwrap();
    let error = objective.loss(&output, &noisy);
    assert_eq!(
        message(error.unwrap_err()),
        "shape of the prediction is [2, 3, 8, 8], expected [4, 3, 8, 8]"
    );
}

#[test]
fn configuration_reads_by_name_and_defaults_to_the_paper() {
    let read = serde_json::from_str::<MeanFlow>;
    assert_eq!(read("{}").unwrap(), MeanFlow::default());
    let config = read(
        r#"{"path": "cosine", "weighting": "adaptive-squared", "cfg_omega": 0.2,
            "time": {"distribution": "uniform", "ratio_r_not_equal_t": 0.75}}"#,
    );
    assert_eq!(
        config.unwrap(),
        MeanFlow {
            path: Interpolant::Cosine,
            weighting: Weighting::AdaptiveSquared,
            cfg_omega: 0.2,
            time: TimeSampling {
                distribution: TimeDistribution::Uniform,
                ratio_r_not_equal_t: 0.75,
                ..TimeSampling::default()
            },
            ..MeanFlow::default()
        }
    );
    assert!(read(r#"{"weighting": "adaptiv"}"#).is_err());
    assert!(read(r#"{"time": {"sigmma": 1}}"#).is_err());
    assert_eq!(TimeSampling::default().ratio_r_not_equal_t, 0.25);
}
