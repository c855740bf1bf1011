use metrics::linear_probe::{ProbeOptions, linear_probe};
use metrics::quality::{
    Estimator, Gaussian, Moments, Splits, frechet_distance, frechet_distance_of_features,
    inception_score, kid_of_subsets, manifolds, mmd2, polynomial_kernel,
};
use ndarray::{Array2, ArrayView2, Axis};

use super::case::{Case, Tolerance};

struct Features {
    case: Case,
    real: Array2<f32>,
    fake: Array2<f32>,
}

impl Features {
    fn open(name: &str) -> Self {
        let case = Case::open(name);
        Self {
            real: case.floats("in.real"),
            fake: case.floats("in.fake"),
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
        // The results of two common implementations, with the looser tolerances of their methods.
        for other in ["out.fid_pytorch_fid", "out.fid_torch_fidelity"] {
            case.check(other, &[distance], case.tolerance(other));
        }
    }
    // The golden tolerance for singular covariances is 1e-6, because of the square roots of eigenvalues. Neither
    // method here computes such square roots.
    let expected = case.vector("out.fid")[0];
    for distance in [from_moments, from_features] {
        let error = (distance - expected).abs();
        assert!(error < 1e-11 * expected.max(1.0), "off by {error:e}");
    }
    check_terms(case, &real, &fake);
    case.all_compared();
}

fn check_terms(case: &Case, real: &Moments, fake: &Moments) {
    let tolerance = case.tolerance("out.tr_covmean, tr_covmean_sym, trace_term");
    let terms = |real: &Moments, fake: &Moments| {
        let real = Gaussian::from_moments(real).unwrap();
        real.frechet_terms(&Gaussian::from_moments(fake).unwrap())
            .unwrap()
    };
    let found = terms(real, fake);
    for (key, value) in [
        ("out.mean_term", found.mean),
        ("out.trace_real", found.trace_real),
        ("out.trace_fake", found.trace_fake),
        ("out.tr_covmean", found.trace_root),
        ("out.tr_covmean_sym", found.trace_root),
        ("out.trace_term", found.covariance()),
    ] {
        case.check(key, &[value], tolerance);
    }
    // The fallback of common implementations: a constant on the diagonals, only inside the square root.
    let eps = case.config()["eps"].as_f64().unwrap();
    let with_eps = |moments: &Moments| {
        let mut covariance = moments.covariance().unwrap();
        covariance.diag_mut().mapv_inplace(|x| x + eps);
        Moments::from_statistics(10_000, moments.mean(), covariance.view()).unwrap()
    };
    let inside = terms(&with_eps(real), &with_eps(fake)).trace_root;
    let distance = found.mean + found.trace_real + found.trace_fake - 2.0 * inside;
    case.check("out.fid_eps", &[distance], case.tolerance("out.fid_eps"));
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

#[test]
fn inception_score_equals_reference() {
    check_inception_score(&Case::open("quality/inception_score_small"));
}

#[test]
#[ignore = "needs data that is not in the repository: set IREPA_GOLDEN to its folder"]
fn inception_score_of_more_samples_equals_reference() {
    check_inception_score(&Case::outside("quality/inception_score"));
}

fn check_inception_score(case: &Case) {
    let logits = case.floats("in.logits");
    let number = |key: &str| case.config()[key].as_u64().unwrap() as usize;
    let tolerance = case.tolerance("all");
    let score = |logits: &Array2<f32>, splits| inception_score(logits.view(), splits).unwrap();

    let plain = score(&logits, Splits::Count(number("splits")));
    case.check("out.is_per_split", &plain.parts, tolerance);
    case.check("out.is_mean", &[plain.mean], tolerance);
    case.check("out.is_std", &[plain.deviation], tolerance);

    let order = case.vector("in.perm").mapv(|x| x as usize).to_vec();
    let shuffled = score(
        &logits.select(Axis(0), &order),
        Splits::Count(number("splits")),
    );
    case.check("out.is_mean_shuffled", &[shuffled.mean], tolerance);
    case.check("out.is_std_shuffled", &[shuffled.deviation], tolerance);

    let one = score(&logits, Splits::Count(1));
    case.check("out.is_one_split", &[one.mean], tolerance);
    let chunk = number("adm_chunk");
    let adm = score(&logits, Splits::Size(chunk));
    case.check(&format!("out.is_adm_chunk{chunk}"), &[adm.mean], tolerance);
    case.all_compared();
}

fn subsets(case: &Case, real: &str, fake: &str) -> Vec<(Vec<usize>, Vec<usize>)> {
    let (real, fake) = (case.indices(real), case.indices(fake));
    let rows = real.outer_iter().zip(fake.outer_iter());
    rows.map(|(real, fake)| (real.to_vec(), fake.to_vec()))
        .collect()
}

#[test]
fn kernel_inception_distance_equals_reference() {
    check_kid(&Case::open("quality/kid_small"));
}

#[test]
#[ignore = "needs data that is not in the repository: set IREPA_GOLDEN to its folder"]
fn kernel_inception_distance_of_more_samples_equals_reference() {
    check_kid(&Case::outside("quality/kid"));
}

fn check_kid(case: &Case) {
    let (real, fake) = (case.floats("in.real"), case.floats("in.fake"));
    let tolerance = case.tolerance("out.mmd2, kid_*, mmd2_*");
    let chosen = subsets(case, "in.idx_real", "in.idx_fake");

    let kid = kid_of_subsets(real.view(), fake.view(), &chosen).unwrap();
    case.check("out.mmd2", &kid.subsets, tolerance);
    case.check("out.kid_mean", &[kid.mean], tolerance);
    case.check("out.kid_std", &[kid.deviation.unwrap()], tolerance);
    // Computed in float32 there, with an error of a few 1e-5.
    let single = Tolerance {
        atol: 1e-4,
        rtol: 0.0,
    };
    case.check("out.mmd2_float32", &kid.subsets, single);

    for (key, estimator) in [
        ("out.mmd2_biased", Estimator::Biased),
        ("out.mmd2_ustat", Estimator::UStatistic),
    ] {
        let values: Vec<f64> = chosen
            .iter()
            .map(|(rows, fake_rows)| {
                let (real, fake) = (real.select(Axis(0), rows), fake.select(Axis(0), fake_rows));
                mmd2(real.view(), fake.view(), estimator).unwrap()
            })
            .collect();
        case.check(key, &values, tolerance);
    }
    let full = mmd2(real.view(), fake.view(), Estimator::Unbiased).unwrap();
    case.check("out.mmd2_full", &[full], tolerance);

    let corner = |set: &Array2<f32>, rows: &[usize]| set.select(Axis(0), &rows[..8]);
    let (left, right) = (corner(&real, &chosen[0].0), corner(&fake, &chosen[0].1));
    let kernel = polynomial_kernel(left.view(), right.view()).unwrap();
    case.check("out.kernel_rf0", kernel.as_slice().unwrap(), tolerance);

    let torch_fidelity = subsets(case, "in.tf_idx_real", "in.tf_idx_fake");
    let kid = kid_of_subsets(real.view(), fake.view(), &torch_fidelity).unwrap();
    case.check("out.tf_kid_mean", &[kid.mean], tolerance);
    case.check("out.tf_kid_std", &[kid.deviation.unwrap()], tolerance);
    case.all_compared();
}

#[test]
fn precision_and_recall_equal_reference() {
    check_precision_and_recall(&Case::open("quality/precision_recall_small"));
}

#[test]
#[ignore = "needs data that is not in the repository: set IREPA_GOLDEN to its folder"]
fn precision_and_recall_of_more_samples_equal_reference() {
    check_precision_and_recall(&Case::outside("quality/precision_recall"));
}

fn check_precision_and_recall(case: &Case) {
    let (real, fake) = (case.floats("in.real"), case.floats("in.fake"));
    let radius = case.tolerance("out.radius*");
    let extra = case.tolerance("out.density*, coverage*");
    for k in [3, 5] {
        let found = manifolds(real.view(), fake.view(), k).unwrap();
        let key = |name: &str| format!("out.{name}_k{k}");
        let inside =
            |counts: &[usize]| -> Vec<f64> { counts.iter().map(|&n| f64::from(n > 0)).collect() };
        case.check(&key("radius_real"), &found.real_radii, radius);
        case.check(&key("radius_fake"), &found.fake_radii, radius);
        let (fake_in, real_in) = (inside(&found.fake_in_real), inside(&found.real_in_fake));
        case.check(&key("fake_in_real"), &fake_in, Tolerance::EXACT);
        case.check(&key("real_in_fake"), &real_in, Tolerance::EXACT);
        let scores = found.scores();
        case.check(&key("precision"), &[scores.precision], Tolerance::EXACT);
        case.check(&key("recall"), &[scores.recall], Tolerance::EXACT);
        case.check(&key("density"), &[scores.density], extra);
        case.check(&key("coverage"), &[scores.coverage], extra);
    }
    case.all_compared();
}

#[test]
fn linear_probe_reaches_the_optimum() {
    let case = Case::open("quality/linear_probe");
    let labels = |key: &str| case.vector(key).mapv(|x| x as i64);
    let (train, test) = (case.floats("in.x_train"), case.floats("in.x_test"));
    let (train_labels, test_labels) = (labels("in.y_train"), labels("in.y_test"));
    let options = ProbeOptions {
        weight_decay: case.config()["l2"].as_f64().unwrap(),
        steps: 20_000,
        tolerance: 1e-10,
        ..ProbeOptions::default()
    };
    let classes = case.config()["K"].as_u64().unwrap() as usize;
    let probe = linear_probe(train.view(), train_labels.view(), classes, &options).unwrap();
    assert!(probe.converged, "{probe:?}");
    let objective = case.tolerance("out.objective");
    case.check("out.objective", &[probe.objective], objective);
    let weights = case.tolerance("out.weight, bias, test_logits");
    case.check("out.weight", probe.weight.as_slice().unwrap(), weights);
    case.check("out.bias", probe.bias.as_slice().unwrap(), weights);
    let logits = probe.logits(test.view()).unwrap();
    case.check("out.test_logits", logits.as_slice().unwrap(), weights);

    let score = |features: ArrayView2<'_, f32>, labels: &ndarray::Array1<i64>| {
        probe.score(features, labels.view()).unwrap()
    };
    let (train, test) = (
        score(train.view(), &train_labels),
        score(test.view(), &test_labels),
    );
    let entropy = case.tolerance("out.train_ce, test_ce");
    case.check("out.train_ce", &[train.cross_entropy], entropy);
    case.check("out.test_ce", &[test.cross_entropy], entropy);
    case.check("out.train_acc", &[train.accuracy()], Tolerance::EXACT);
    case.check("out.test_acc", &[test.accuracy()], Tolerance::EXACT);
    case.check("out.test_top2", &[test.top(2)], Tolerance::EXACT);
    case.all_compared();
}
