use alignment::SpatialNorm;
use diffusion::interpolant::{Interpolant, TimeSampling};
use diffusion::objective::velocity::Velocity;
use diffusion::{Denoiser, DiffusionError, Mode, Sit, drop_labels};
use tch::{Device, Kind, Tensor};
use torch_ext::{Generator, Params};

use crate::golden::Golden;
use crate::sit::{Case, randomised, tiny};
use crate::terms;

fn loss(name: &str, path: Interpolant, spatial_norm: SpatialNorm) {
    let golden = Golden::open(name);
    for composed in [false, true] {
        ops::composed_if(composed, || loss_in_form(&golden, path, spatial_norm));
    }
}

fn loss_in_form(golden: &Golden, path: Interpolant, spatial_norm: SpatialNorm) {
    let case = Case::build(golden);
    let objective = Velocity {
        path,
        ..Velocity::default()
    };
    let [x0, noise, t, y] = ["in.images", "in.noise", "in.t", "in.y"].map(|key| golden.tensor(key));

    let noisy = objective.add_noise(&x0, &t, &noise).unwrap();
    let output = case
        .sit
        .forward(&noisy.x, &noisy.t, &y, &[case.depth], Mode::Eval)
        .unwrap();
    let denoising = objective.loss(&output.prediction, &noisy).unwrap();
    let features = golden.tensor("in.encoder_features");
    let target = spatial_norm.forward(&features).unwrap();
    let projected = case.head.forward(&output.hidden[0]).unwrap();
    let coefficient = golden.config("proj_coeff").as_f64().unwrap();
    let tokens = [projected.shallow_clone()];
    let aligned = terms::compare(spatial_norm, coefficient, &[features], &tokens).unwrap();
    let total = denoising.mean(None) + &aligned.total;
    total.backward();

    golden.check("out.model_input", &noisy.x);
    golden.check("out.model_target", &noisy.target);
    golden.check("out.velocity", &output.prediction);
    golden.check("out.denoising_loss", &denoising);
    golden.check("out.zs", &target);
    golden.check("out.zs_tilde", &projected);
    golden.check("out.projection_loss", &aligned.terms[0].value);
    golden.check("out.projection_loss_weighted", &aligned.total);
    golden.check("out.total", &total);
    // The page of the cosine case omits the gradients of the middle block.
    let left_out = |name: &str| path == Interpolant::Cosine && name.starts_with("blocks.1.");
    for param in case.params.entries().iter() {
        if param.trainable && !left_out(&param.name) {
            golden.check(&format!("grad.{}", param.name), &param.tensor.grad());
        }
    }
}

#[test]
fn the_repa_loss_and_all_its_gradients_follow_upstream() {
    loss("sit_loss_repa", Interpolant::Linear, SpatialNorm::None);
}

#[test]
fn the_irepa_loss_and_all_its_gradients_follow_upstream() {
    loss(
        "sit_loss_irepa",
        Interpolant::Linear,
        SpatialNorm::default(),
    );
}

#[test]
fn the_loss_on_the_cosine_path_and_its_gradients_follow_upstream() {
    let norm = SpatialNorm::ZScore {
        alpha: 1.0,
        eps: 1e-6,
    };
    loss("sit_loss_cosine_path", Interpolant::Cosine, norm);
}

fn generator(seed: u64) -> Generator {
    Generator::new(Device::Cpu, seed).unwrap()
}

fn images() -> Tensor {
    generator(3).randn(&[4, 3, 8, 8], Kind::Float).unwrap()
}

#[test]
fn random_numbers_are_drawn_in_upstreams_order() {
    let (_params, sit) = randomised(&tiny());
    let labels = Tensor::from_slice(&[0i64, 1, 2, 0]);
    let x0 = images();
    let objective = Velocity::default();

    let mut source = generator(11);
    let noisy = objective.draw(&x0, &mut source).unwrap();
    let output = sit
        .forward(&noisy.x, &noisy.t, &labels, &[], Mode::Train(&mut source))
        .unwrap();

    // Time, noise, label dropout.
    let mut source = generator(11);
    let t = source
        .rand(&[4, 1, 1, 1], Kind::Float)
        .unwrap()
        .flatten(0, -1);
    let noise = source.randn(&[4, 3, 8, 8], Kind::Float).unwrap();
    let draws = source.rand(&[4], Kind::Float).unwrap();
    let by_hand = objective.add_noise(&x0, &t, &noise).unwrap();
    assert_eq!((&noisy.x, &noisy.t), (&by_hand.x, &by_hand.t));
    assert_eq!(noisy.target, &noise - &x0);
    let dropped = drop_labels(&labels, &draws, 0.1, 3).unwrap();
    let expected = sit
        .forward(&by_hand.x, &t, &dropped, &[], Mode::Eval)
        .unwrap();
    assert_eq!(output.prediction, expected.prediction);
}

#[test]
fn the_loss_of_the_true_velocity_is_zero() {
    for path in [Interpolant::Linear, Interpolant::Cosine] {
        for time in [TimeSampling::Uniform, TimeSampling::LogNormal] {
            let objective = Velocity { path, time };
            let noisy = objective.draw(&images(), &mut generator(0)).unwrap();
            let loss = objective.loss(&noisy.target, &noisy).unwrap();
            assert_eq!(loss, Tensor::zeros([4], (Kind::Float, Device::Cpu)));
        }
    }
}

#[test]
fn the_loss_is_per_sample() {
    let objective = Velocity::default();
    let noisy = objective.draw(&images(), &mut generator(0)).unwrap();
    let offset = Tensor::from_slice(&[0f32, 1., 2., 3.]).view([4, 1, 1, 1]);
    let loss = objective.loss(&(&noisy.target + offset), &noisy).unwrap();
    let loss = Vec::<f32>::try_from(loss).unwrap();
    for (found, expected) in loss.iter().zip([0., 1., 4., 9.]) {
        assert!((found - expected).abs() < 1e-5, "{loss:?}");
    }
}

#[test]
fn the_dtype_of_the_images_is_kept() {
    let objective = Velocity::default();
    let noisy = objective
        .draw(&images().to_kind(Kind::Double), &mut generator(0))
        .unwrap();
    for tensor in [&noisy.x, &noisy.t, &noisy.target] {
        assert_eq!(tensor.kind(), Kind::Double);
    }
    // A prediction from autocast is compared in the precision of the images.
    let prediction = noisy.target.to_kind(Kind::BFloat16);
    let loss = objective.loss(&prediction, &noisy).unwrap();
    assert_eq!(loss.kind(), Kind::Double);
}

#[test]
fn wrong_shapes_are_named() {
    let objective = Velocity::default();
    let flat = Tensor::ones([4, 3], (Kind::Float, Device::Cpu));
    let error = objective.draw(&flat, &mut generator(0));
    assert!(matches!(error, Err(DiffusionError::Shape { .. })));
    let noisy = objective.draw(&images(), &mut generator(0)).unwrap();
    let error = objective.loss(&noisy.target.narrow(0, 0, 2), &noisy);
    assert_eq!(
        error.unwrap_err().to_string(),
        "shape of the prediction is [2, 3, 8, 8], expected [4, 3, 8, 8]"
    );
}

#[test]
fn configuration_reads_by_name() {
    let read = serde_json::from_str::<Velocity>;
    let config = read(r#"{"path": "cosine", "time": "lognormal"}"#).unwrap();
    assert_eq!(
        config,
        Velocity {
            path: Interpolant::Cosine,
            time: TimeSampling::LogNormal,
        }
    );
    assert_eq!(read("{}").unwrap(), Velocity::default());
    assert!(read(r#"{"paht": "cosine"}"#).is_err());
    assert!(read(r#"{"path": "quadratic"}"#).is_err());
}

/// Mean losses of the first and the last five of 30 steps of plain gradient descent.
fn train(seed: u64) -> (f64, f64, Vec<f64>) {
    let params = Params::new(Device::Cpu, seed).unwrap();
    let sit = Sit::new(&params.root(), &tiny()).unwrap();
    let objective = Velocity::default();
    let labels = Tensor::from_slice(&[0i64, 1, 2, 0]);
    let x0 = images();
    let mut source = generator(seed);
    // The same noisy batch in every step, so that only learning can lower the loss.
    let noisy = objective.draw(&x0, &mut source).unwrap();
    let mut losses = Vec::new();
    for _ in 0..30 {
        let mode = Mode::Train(&mut source);
        let output = sit.forward(&noisy.x, &noisy.t, &labels, &[], mode).unwrap();
        let loss = objective
            .loss(&output.prediction, &noisy)
            .unwrap()
            .mean(None);
        loss.backward();
        losses.push(loss.double_value(&[]));
        tch::no_grad(|| {
            for mut weight in params.trainable() {
                let step = weight.grad() * -0.1;
                let _ = weight.f_add_(&step).unwrap();
                weight.zero_grad();
            }
        });
    }
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    (mean(&losses[..5]), mean(&losses[25..]), losses)
}

#[test]
fn gradient_descent_lowers_the_loss() {
    let (first, last, losses) = train(0);
    assert!(losses.iter().all(|loss| loss.is_finite()));
    assert!(last < 0.9 * first, "{losses:?}");
}

#[test]
fn the_same_seed_trains_to_the_same_bits() {
    assert_eq!(train(7).2, train(7).2);
    assert_ne!(train(7).2, train(8).2);
}
