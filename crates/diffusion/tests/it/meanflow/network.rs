use diffusion::models::meanflow::{Direction, MeanFlowSit};
use diffusion::samplers::{Method, Sampler, SamplerConfig};
use diffusion::{Denoiser, DiffusionError, Interpolant, Mode, SitConfig, drop_labels};
use tch::{Device, Kind, Tensor};
use torch_ext::autocast;

use super::{batch, build, generator, in_double, largest, open, randomised, tiny};

#[test]
fn forward_follows_upstream() {
    forward("forward_small");
}

#[test]
#[ignore = "its data is not in the repository; IREPA_GOLDEN names a folder that contains it"]
fn a_larger_forward_follows_upstream() {
    forward("forward");
}

fn forward(case: &str) {
    let golden = open(case);
    let [z, r, t, y] = ["in.z", "in.r", "in.t", "in.y"].map(|key| golden.tensor(key));
    let (_params, network) = build(&golden);
    let output = network.forward(&z, &r, &t, &y, &[1, 2, 3]).unwrap();
    for (index, hidden) in output.hidden.iter().enumerate() {
        golden.check(&format!("out.block.{index}"), hidden);
    }
    golden.check("out.u", &output.prediction);
    let [of_t, of_difference] = network.embed_times(&r, &t).unwrap();
    golden.check("out.r_embedder_input", &(&t - &r));
    golden.check("out.t_embed", &of_t);
    golden.check("out.r_embed", &of_difference);
    golden.check("out.c", &network.conditioning(&r, &t, &y).unwrap());
    golden.check("out.tokens", &network.tokens(&z).unwrap());
}

#[test]
fn the_derivative_follows_upstream_and_its_finite_difference() {
    let golden = open("jvp");
    let (_params, network) = build(&golden);
    let [z, r, t, y, v] = ["in.z", "in.r", "in.t", "in.y", "in.v"].map(|key| golden.tensor(key));
    let run = |z_direction: &Tensor, t_direction: f64| {
        let direction = Direction {
            z: z_direction,
            r: 0.0,
            t: t_direction,
        };
        network.jvp(&z, &r, &t, &y, &direction, &[2]).unwrap()
    };
    let output = run(&v, 1.0);
    golden.check("out.u", &output.u);
    golden.check("out.dudt", &output.dudt);
    golden.check("out.dudt_f64", &output.dudt);
    golden.check("out.dudt_fd", &output.dudt);
    golden.check("out.du_dz_v", &run(&v, 0.0).dudt);
    golden.check("out.du_dt_only", &run(&v.zeros_like(), 1.0).dudt);
}

#[test]
fn the_derivative_equals_a_finite_difference_in_float64() {
    for qk_norm in [false, true] {
        let (_params, network) = in_double(&SitConfig { qk_norm, ..tiny() });
        let [z, r, t, y, v] = batch(Kind::Double);
        for (dr, dt) in [(0.0, 1.0), (1.0, 0.0), (-0.5, 2.0)] {
            let direction = Direction {
                z: &v,
                r: dr,
                t: dt,
            };
            let output = network.jvp(&z, &r, &t, &y, &direction, &[2]).unwrap();
            assert_eq!(output.dudt.kind(), Kind::Double);
            let at = |h: f64| {
                let (z, r, t) = (&z + &v * h, &r + dr * h, &t + dt * h);
                let output = network.forward(&z, &r, &t, &y, &[]).unwrap();
                output.prediction.detach()
            };
            let h = 1e-6;
            let difference = (at(h) - at(-h)) / (2.0 * h);
            let error = largest(&(&output.dudt - &difference)) / largest(&difference);
            assert!(error < 2e-8, "qk_norm {qk_norm}, ({dr}, {dt}): {error:e}");
        }
    }
}

#[test]
fn the_value_and_its_gradients_equal_the_plain_network_and_the_tangent_has_no_gradient() {
    let (params, network) = randomised(&tiny());
    let [z, r, t, y, v] = batch(Kind::Float);
    let direction = Direction::along(&v);
    let gradients = |u: &Tensor, hidden: &Tensor| {
        (u.square().sum(Kind::Float) + hidden.square().sum(Kind::Float)).backward();
        let gradients: Vec<Tensor> = params.trainable().iter().map(|w| w.grad().copy()).collect();
        params.trainable().iter_mut().for_each(Tensor::zero_grad);
        gradients
    };
    let output = network.jvp(&z, &r, &t, &y, &direction, &[2]).unwrap();
    assert!(!output.dudt.requires_grad());
    assert!(output.u.requires_grad() && output.hidden[0].requires_grad());
    let shared = gradients(&output.u, &output.hidden[0]);
    let plain = network.forward(&z, &r, &t, &y, &[2]).unwrap();
    assert_eq!(output.u, plain.prediction);
    assert_eq!(output.hidden, plain.hidden);
    assert_eq!(shared, gradients(&plain.prediction, &plain.hidden[0]));

    let separate = network.jvp_in_two_passes(&z, &r, &t, &y, &direction, &[2]);
    let separate = separate.unwrap();
    assert!(!separate.dudt.requires_grad());
    assert_eq!(output.dudt, separate.dudt);
    assert_eq!(shared, gradients(&separate.u, &separate.hidden[0]));
}

#[test]
fn without_gradients_the_derivative_is_the_same() {
    let (_params, network) = randomised(&tiny());
    let [z, r, t, y, v] = batch(Kind::Float);
    let run = || {
        network
            .jvp(&z, &r, &t, &y, &Direction::along(&v), &[2])
            .unwrap()
    };
    let recorded = run();
    let plain = tch::no_grad(run);
    assert!(!plain.u.requires_grad());
    assert_eq!((recorded.u, recorded.dudt), (plain.u, plain.dudt));
}

#[test]
fn samples_of_a_batch_are_independent() {
    // The batch has more attention scores than are computed at once, so the tangent is computed in parts.
    let config = SitConfig {
        input_size: 32,
        num_heads: 8,
        ..tiny()
    };
    let (_params, network) = in_double(&config);
    let mut generator = generator(2);
    let mut normal = || generator.randn(&[5, 3, 32, 32], Kind::Double).unwrap();
    let (z, v) = (normal(), normal());
    let t = Tensor::from_slice(&[0.9, 0.8, 0.7, 0.6, 0.5]);
    let r = &t * 0.5;
    let y = Tensor::from_slice(&[0i64, 1, 2, 3, 0]);
    let all = network
        .jvp(&z, &r, &t, &y, &Direction::along(&v), &[2])
        .unwrap();
    for index in 0..5 {
        let one = |x: &Tensor| x.narrow(0, index, 1);
        let v = one(&v);
        let direction = Direction::along(&v);
        let output = network.jvp(&one(&z), &one(&r), &one(&t), &one(&y), &direction, &[2]);
        let error = largest(&(output.unwrap().dudt - one(&all.dudt)));
        assert!(error < 1e-10, "{index}: {error:e}");
    }
}

#[test]
fn bfloat16_autocast_stays_near_float32() {
    let (params, network) = randomised(&tiny());
    for mut weight in params.trainable() {
        let _ = tch::no_grad(|| weight.f_mul_scalar_(0.5).unwrap());
    }
    let [z, r, t, y, v] = batch(Kind::Float);
    let run = || {
        network
            .jvp(&z, &r, &t, &y, &Direction::along(&v), &[2])
            .unwrap()
    };
    let full = run();
    let half = autocast::run(Device::Cpu, Some(Kind::BFloat16), run).unwrap();
    for (full, half) in [(&full.u, &half.u), (&full.dudt, &half.dudt)] {
        assert_eq!(half.kind(), Kind::BFloat16);
        let error = largest(&(full - half)) / largest(full);
        assert!(error < 0.02, "{error}");
    }
    half.u.to_kind(Kind::Float).square().mean(None).backward();
    for weight in params.trainable() {
        assert_eq!(weight.grad().kind(), Kind::Float);
    }
}

#[test]
fn as_a_denoiser_it_predicts_the_velocity_at_t() {
    let (_params, network) = randomised(&tiny());
    let [z, _, t, y, _] = batch(Kind::Float);
    let expected = network.forward(&z, &t, &t, &y, &[]).unwrap();
    let denoiser: &dyn Denoiser = &network;
    let found = denoiser.forward(&z, &t, &y, &[], Mode::Eval).unwrap();
    assert_eq!(found.prediction, expected.prediction);
    let dimensions = denoiser.dimensions();
    assert_eq!(
        (dimensions.null_class, dimensions.num_classes),
        (Some(3), 3)
    );
    assert_eq!(
        (dimensions.token_grid, dimensions.hidden_width),
        ((4, 4), 32)
    );

    let draws = generator(9).rand(&[4], Kind::Float).unwrap();
    let dropped = drop_labels(&y, &draws, 0.1, 3).unwrap();
    let expected = network.forward(&z, &t, &t, &dropped, &[]).unwrap();
    let mode = Mode::Train(&mut generator(9));
    let found = denoiser.forward(&z, &t, &y, &[], mode).unwrap();
    assert_eq!(found.prediction, expected.prediction);

    let config = SamplerConfig {
        method: Method::Heun,
        num_steps: 2,
        ..SamplerConfig::default()
    };
    let sampler = Sampler::new(config, Interpolant::Linear).unwrap();
    let images = sampler.sample(denoiser, &z, &y, &mut generator(0), |_| {});
    assert_eq!(images.unwrap().size(), z.size());
}

#[test]
fn wrong_shapes_and_labels_are_named() {
    let (_params, network) = randomised(&tiny());
    let [z, r, t, y, v] = batch(Kind::Float);
    let message = |result: Result<_, DiffusionError>| result.err().unwrap().to_string();
    let forward = |z: &Tensor, r: &Tensor, t: &Tensor, y: &Tensor| {
        let jvp = network.jvp(z, r, t, y, &Direction::along(&z.zeros_like()), &[2]);
        let error = message(network.forward(z, r, t, y, &[]).map(drop));
        assert_eq!(message(jvp.map(drop)), error);
        error
    };
    assert_eq!(
        forward(&z.narrow(2, 0, 4), &r, &t, &y),
        "shape of the noisy image is [4, 3, 4, 8], expected [_, 3, 8, 8]"
    );
    assert_eq!(
        forward(&z, &r.narrow(0, 0, 3), &t, &y),
        "shape of r is [3], expected [4]"
    );
    assert_eq!(
        forward(&z, &r, &t.unsqueeze(1), &y),
        "shape of t is [4, 1], expected [4]"
    );
    assert_eq!(
        forward(&z, &r, &t, &(&y + 1)),
        "label 4 is not in 0..=3 (3 is the null class)"
    );
    let direction = Direction::along(&v);
    let error = network.jvp(&z.narrow(0, 0, 2), &r, &t, &y, &direction, &[2]);
    assert_eq!(
        message(error.map(drop)),
        "shape of the direction of z is [4, 3, 8, 8], expected [2, 3, 8, 8]"
    );
    let params = torch_ext::Params::new(Device::Cpu, 0).unwrap();
    let config = SitConfig { depth: 0, ..tiny() };
    let error = MeanFlowSit::new(&params.root(), &config);
    assert!(matches!(error, Err(DiffusionError::Setting { .. })));
}
