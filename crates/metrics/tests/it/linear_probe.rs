//! The linear probe on data with known results.

use metrics::MetricsError;
use metrics::linear_probe::{ProbeOptions, linear_probe};
use ndarray::{Array1, Array2, array};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Clusters around `classes` corners with noise of up to `spread`.
fn clusters(count: usize, classes: usize, spread: f32, seed: u64) -> (Array2<f32>, Array1<i64>) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let labels = Array1::from_shape_fn(count, |i| (i % classes) as i64);
    let features = Array2::from_shape_fn((count, classes + 2), |(i, j)| {
        let centre = if i % classes == j { 1.0 } else { 0.0 };
        centre + rng.random_range(-spread..spread)
    });
    (features, labels)
}

#[test]
fn separate_clusters_are_classified_correctly() {
    let (train, labels) = clusters(600, 4, 0.4, 1);
    let probe = linear_probe(train.view(), labels.view(), 4, &ProbeOptions::default()).unwrap();
    let (test, labels) = clusters(200, 4, 0.4, 2);
    let score = probe.score(test.view(), labels.view()).unwrap();
    assert_eq!((score.accuracy(), score.top(4)), (1.0, 1.0));
    assert!(score.cross_entropy < 0.3, "{}", score.cross_entropy);
}

#[test]
fn accuracy_on_random_labels_is_at_chance_level() {
    let (train, _) = clusters(2000, 4, 3.0, 3);
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let labels = Array1::from_shape_fn(2000, |_| rng.random_range(0..5_i64));
    let probe = linear_probe(train.view(), labels.view(), 5, &ProbeOptions::default()).unwrap();
    let (test, _) = clusters(2000, 4, 3.0, 5);
    let accuracy = probe.score(test.view(), labels.view()).unwrap().accuracy();
    assert!((accuracy - 0.2).abs() < 0.04, "{accuracy}");
}

/// At the optimum, the derivative with respect to each bias is the difference between the mean probability and the
/// frequency of the class, which is zero.
#[test]
fn mean_probabilities_at_the_optimum_equal_the_class_frequencies() {
    let (train, mut labels) = clusters(300, 3, 1.5, 6);
    labels.iter_mut().step_by(5).for_each(|label| *label = 0);
    let options = ProbeOptions {
        weight_decay: 0.01,
        steps: 5000,
        tolerance: 1e-9,
        ..ProbeOptions::default()
    };
    let probe = linear_probe(train.view(), labels.view(), 3, &options).unwrap();
    assert!(probe.converged);
    let logits = probe.logits(train.view()).unwrap();
    let mut excess = [0.0; 3];
    for (row, &label) in logits.outer_iter().zip(&labels) {
        let sum: f64 = row.iter().map(|x| x.exp()).sum();
        for (excess, logit) in excess.iter_mut().zip(row) {
            *excess += logit.exp() / sum;
        }
        excess[label as usize] -= 1.0;
    }
    assert!(
        excess.iter().all(|excess| excess.abs() < 1e-5),
        "{excess:?}"
    );
    assert!(
        probe
            .weight
            .sum_axis(ndarray::Axis(0))
            .iter()
            .all(|sum| sum.abs() < 1e-12)
    );
}

#[test]
fn a_rate_that_diverges_is_skipped() {
    let (train, labels) = clusters(100, 3, 0.5, 7);
    let probe_with = |rates: Vec<f64>| {
        let options = ProbeOptions {
            rates,
            ..ProbeOptions::default()
        };
        linear_probe(train.view(), labels.view(), 3, &options)
    };
    let probe = probe_with(vec![1e9, 1.0]).unwrap();
    assert_eq!(probe.rate, 1.0);
    let error = probe_with(vec![1e9]).unwrap_err();
    assert!(matches!(error, MetricsError::Diverged { .. }), "{error}");
}

#[test]
fn results_have_the_same_bits_for_any_number_of_threads() {
    let (train, labels) = clusters(1500, 5, 2.0, 8);
    let options = ProbeOptions {
        steps: 30,
        ..ProbeOptions::default()
    };
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build()
            .unwrap()
            .install(|| linear_probe(train.view(), labels.view(), 5, &options).unwrap())
    };
    let expected = run(1);
    for threads in [2, 3, 5] {
        assert_eq!(run(threads), expected);
    }
}

#[test]
fn invalid_input_is_refused() {
    let features = array![[1.0_f32, 0.0], [0.0, 1.0]];
    let labels = array![0_i64, 1];
    let fit = |features: &Array2<f32>, labels: &Array1<i64>, classes, options: &ProbeOptions| {
        linear_probe(features.view(), labels.view(), classes, options)
            .unwrap_err()
            .to_string()
    };
    let options = ProbeOptions::default();
    assert!(fit(&features, &array![0], 2, &options).contains("shape [1], but [2]"));
    assert!(fit(&features, &array![0, 2], 2, &options).contains("label of the linear probe is 2"));
    assert!(fit(&features, &array![0, -1], 2, &options).contains("is -1"));
    assert!(fit(&features, &labels, 1, &options).contains("number of classes is 1"));
    assert!(
        fit(&Array2::zeros((0, 2)), &array![], 2, &options)
            .contains("at least 1 samples, but has 0")
    );
    assert!(fit(&array![[1.0, f32::NAN], [0.0, 1.0]], &labels, 2, &options).contains("NaN"));
    for options in [
        ProbeOptions {
            rates: vec![],
            ..options.clone()
        },
        ProbeOptions {
            rates: vec![-1.0],
            ..options.clone()
        },
        ProbeOptions {
            weight_decay: f64::NAN,
            ..options.clone()
        },
        ProbeOptions {
            tolerance: 0.0,
            ..options.clone()
        },
    ] {
        fit(&features, &labels, 2, &options);
    }
    let probe = linear_probe(features.view(), labels.view(), 2, &options).unwrap();
    assert!(probe.logits(Array2::zeros((1, 3)).view()).is_err());
    assert!(probe.score(features.view(), array![0, 7].view()).is_err());
}
