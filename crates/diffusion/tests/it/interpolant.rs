use diffusion::DiffusionError;
use diffusion::interpolant::{Interpolant, TimeSampling};
use diffusion::nn::{sincos_2d, timestep_sinusoids};
use tch::{Device, Kind, Tensor};
use torch_ext::Generator;

use crate::golden::Golden;

const INTERPOLANTS: [(&str, Interpolant); 2] = [
    ("linear", Interpolant::Linear),
    ("cosine", Interpolant::Cosine),
];

#[test]
fn coefficients_follow_upstream() {
    let golden = Golden::open("interpolant");
    for (name, interpolant) in INTERPOLANTS {
        let c = interpolant.coefficients(&golden.tensor("in.t")).unwrap();
        golden.check(&format!("out.{name}.alpha"), &c.alpha);
        golden.check(&format!("out.{name}.sigma"), &c.sigma);
        golden.check(&format!("out.{name}.d_alpha"), &c.d_alpha);
        golden.check(&format!("out.{name}.d_sigma"), &c.d_sigma);
    }
}

#[test]
fn lognormal_times_follow_upstream() {
    let golden = Golden::open("lognormal_time");
    let normal = golden.tensor("in.rnd_normal");
    for (name, interpolant) in INTERPOLANTS {
        let t = interpolant.lognormal_time(&normal).unwrap();
        golden.check(&format!("out.t_{name}"), &t);
    }
}

#[test]
fn scores_follow_upstream() {
    let golden = Golden::open("score_from_velocity");
    let [velocity, x, t] = ["in.velocity", "in.x", "in.t"].map(|key| golden.tensor(key));
    for (name, interpolant) in INTERPOLANTS {
        let score = interpolant.score(&velocity, &x, &t).unwrap();
        golden.check(&format!("out.score_{name}"), &score);
    }
}

#[test]
fn embeddings_of_positions_and_times_follow_upstream() {
    let golden = Golden::open("sit_pos_embed");
    for pair in golden.config("dim_grid_pairs").as_array().unwrap() {
        let (width, side) = (pair[0].as_i64().unwrap(), pair[1].as_i64().unwrap());
        let positions = sincos_2d(width, side).unwrap();
        let case = format!("dim{width}_grid{side}");
        golden.check_within(&format!("out.pos_f64.{case}"), &positions, 1e-12, 0.0);
        golden.check(&format!("out.pos.{case}"), &positions.to_kind(Kind::Float));
    }
    for width in golden.config("timestep_dims").as_array().unwrap() {
        let width = width.as_i64().unwrap();
        let embedded = timestep_sinusoids(&golden.tensor("in.t"), width).unwrap();
        golden.check(&format!("out.timestep.dim{width}"), &embedded);
    }
}

#[test]
fn the_score_of_the_velocity_is_the_negative_noise_over_sigma() {
    let mut generator = Generator::new(Device::Cpu, 0).unwrap();
    let x0 = generator.randn(&[5, 2, 3, 3], Kind::Double).unwrap();
    let noise = generator.randn(&[5, 2, 3, 3], Kind::Double).unwrap();
    let t = Tensor::from_slice(&[0.1, 0.3, 0.5, 0.8, 0.99]);
    for (name, interpolant) in INTERPOLANTS {
        let (x, velocity) = interpolant.interpolate(&x0, &noise, &t).unwrap();
        let sigma = interpolant
            .coefficients(&t)
            .unwrap()
            .sigma
            .view([5, 1, 1, 1]);
        let difference = interpolant.score(&velocity, &x, &t).unwrap() + &noise / sigma;
        assert!(difference.abs().max().double_value(&[]) < 1e-11, "{name}");
    }
}

#[test]
fn the_velocity_is_the_derivative_of_the_interpolant() {
    let mut generator = Generator::new(Device::Cpu, 0).unwrap();
    let x0 = generator.randn(&[4, 1, 2, 2], Kind::Double).unwrap();
    let noise = generator.randn(&[4, 1, 2, 2], Kind::Double).unwrap();
    let t = generator.rand(&[4], Kind::Double).unwrap();
    let half = 1e-5;
    for (name, interpolant) in INTERPOLANTS {
        let (_, velocity) = interpolant.interpolate(&x0, &noise, &t).unwrap();
        let (before, _) = interpolant.interpolate(&x0, &noise, &(&t - half)).unwrap();
        let (after, _) = interpolant.interpolate(&x0, &noise, &(&t + half)).unwrap();
        let difference = (after - before) / (2.0 * half) - velocity;
        assert!(difference.abs().max().double_value(&[]) < 1e-8, "{name}");
    }
}

#[test]
fn times_are_in_range_and_reproducible() {
    for (_, interpolant) in INTERPOLANTS {
        for sampling in [TimeSampling::Uniform, TimeSampling::LogNormal] {
            let draw = |seed| {
                let mut generator = Generator::new(Device::Cpu, seed).unwrap();
                sampling.draw(interpolant, 1000, &mut generator).unwrap()
            };
            let t = draw(1);
            assert_eq!((t.size(), t.kind()), (vec![1000], Kind::Float));
            let (low, high) = (t.min().double_value(&[]), t.max().double_value(&[]));
            assert!(0.0 <= low && high < 1.0 && high - low > 0.8, "{low} {high}");
            assert_eq!(t, draw(1));
            assert_ne!(t, draw(2));
        }
    }
}

#[test]
fn mismatched_shapes_are_named() {
    let ones = |size: &[i64]| Tensor::ones(size, (Kind::Float, Device::Cpu));
    let x0 = ones(&[2, 3, 4, 4]);
    let error = Interpolant::Linear.interpolate(&x0, &ones(&[2, 3, 4, 5]), &ones(&[2]));
    assert_eq!(
        error.unwrap_err().to_string(),
        "shape of the noise is [2, 3, 4, 5], expected [2, 3, 4, 4]"
    );
    for t in [ones(&[3]), ones(&[2, 1]), ones(&[])] {
        let error = Interpolant::Linear.interpolate(&x0, &x0, &t);
        assert!(matches!(
            error,
            Err(DiffusionError::Shape { what: "t", .. })
        ));
    }
    let error = Interpolant::Linear.score(&x0, &ones(&[1]), &ones(&[1]));
    assert!(matches!(error, Err(DiffusionError::Shape { .. })));
    assert!(timestep_sinusoids(&ones(&[2, 2]), 8).is_err());
    assert!(timestep_sinusoids(&ones(&[2]), 1).is_err());
    assert!(sincos_2d(6, 2).is_err());
    assert!(sincos_2d(8, 0).is_err());
}
