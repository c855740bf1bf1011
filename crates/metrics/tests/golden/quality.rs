use metrics::quality::{Moments, frechet_distance, frechet_distance_of_features};
use ndarray::Array2;

use crate::case::Case;

struct Features {
    case: Case,
    real: Array2<f32>,
    fake: Array2<f32>,
}

impl Features {
    fn open(name: &str) -> Self {
        let case = Case::open(name);
        Self {
            real: case.matrix("in.real").mapv(|x| x as f32),
            fake: case.matrix("in.fake").mapv(|x| x as f32),
            case,
        }
    }

    fn moments(features: &Array2<f32>) -> Moments {
        let mut moments = Moments::new(features.ncols());
        moments.push(features.view()).unwrap();
        moments
    }
}

fn check_case(name: &str) {
    let features = Features::open(name);
    let case = &features.case;
    let real = Features::moments(&features.real);
    let fake = Features::moments(&features.fake);

    let tolerance = case.tolerance("out.mu_*, out.sigma_*");
    for (set, moments) in [("real", &real), ("fake", &fake)] {
        case.check(
            &format!("out.mu_{set}"),
            &moments.mean().to_vec(),
            tolerance,
        );
        let covariance = moments.covariance().unwrap();
        let key = format!("out.sigma_{set}");
        case.check(&key, covariance.as_slice().unwrap(), tolerance);
    }

    let from_moments = frechet_distance(&real, &fake).unwrap();
    let from_features =
        frechet_distance_of_features(features.real.view(), features.fake.view()).unwrap();
    for distance in [from_moments, from_features] {
        case.check("out.fid", &[distance], case.tolerance("out.fid"));
        // What the two usual implementations give, at the looser bounds of their routes.
        for other in ["out.fid_pytorch_fid", "out.fid_torch_fidelity"] {
            case.check(other, &[distance], case.tolerance(other));
        }
    }
    // The page allows singular covariances 1e-6, which the roots of eigenvalues need. Neither route here
    // takes such roots.
    let expected = case.vector("out.fid")[0];
    for distance in [from_moments, from_features] {
        let error = (distance - expected).abs();
        assert!(error < 1e-11 * expected.max(1.0), "off by {error:e}");
    }
}

#[test]
fn frechet_distance_equals_reference() {
    check_case("quality/fid");
}

#[test]
fn frechet_distance_with_constant_features_equals_reference() {
    check_case("quality/fid_dead_dims");
}

#[test]
fn frechet_distance_of_identical_features_is_zero() {
    check_case("quality/fid_identical");
}

#[test]
fn frechet_distance_of_fewer_samples_than_features_equals_reference() {
    check_case("quality/fid_rank_deficient");
}

#[test]
fn frechet_distance_of_stored_statistics_equals_reference() {
    let case = Case::open("quality/fid");
    let moments = |set: &str| {
        let mean = case.vector(&format!("out.mu_{set}"));
        let covariance = case.matrix(&format!("out.sigma_{set}"));
        Moments::from_statistics(512, mean.view(), covariance.view()).unwrap()
    };
    let distance = frechet_distance(&moments("real"), &moments("fake")).unwrap();
    case.check("out.fid", &[distance], case.tolerance("out.fid"));
}
