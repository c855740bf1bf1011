//! Properties and edge cases of moments and the Frechet distance.

use metrics::MetricsError;
use metrics::quality::{Gaussian, Moments, frechet_distance, frechet_distance_of_features};
use ndarray::{Array1, Array2, ArrayView2, array, s};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Correlated features with means that differ by dimension.
fn random_features(samples: usize, dimension: usize, seed: u64) -> Array2<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let noise = Array2::from_shape_fn((samples, dimension), |_| rng.random_range(-1.0_f32..1.0));
    let mixing = Array2::from_shape_fn((dimension, dimension), |_| rng.random_range(-1.0_f32..1.0));
    let mean = Array1::from_shape_fn(dimension, |_| rng.random_range(-3.0_f32..3.0));
    noise.dot(&mixing) + mean
}

fn moments(features: ArrayView2<'_, f32>) -> Moments {
    let mut moments = Moments::new(features.ncols());
    moments.push(features).unwrap();
    moments
}

fn assert_same_moments(left: &Moments, right: &Moments) {
    assert_eq!(left.count(), right.count());
    let close = |a: f64, b: f64| (a - b).abs() <= 1e-11 * (1.0 + b.abs());
    let means = left
        .mean()
        .into_iter()
        .zip(right.mean())
        .all(|(&a, &b)| close(a, b));
    let (left, right) = (left.covariance().unwrap(), right.covariance().unwrap());
    let covariances = left.iter().zip(&right).all(|(&a, &b)| close(a, b));
    assert!(means && covariances);
}

fn in_pool<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
    pool.build().unwrap().install(work)
}

#[test]
fn distance_in_one_dimension_is_the_sum_over_means_and_deviations() {
    // Means 2 and 12; deviations 1 and 4.
    let real = array![[1.0], [2.0], [3.0]];
    let fake = array![[8.0], [12.0], [16.0]];
    let expected = 10.0 * 10.0 + 3.0 * 3.0;
    let distance = frechet_distance(&moments(real.view()), &moments(fake.view())).unwrap();
    assert!((distance - expected).abs() < 1e-12);
    let distance = frechet_distance_of_features(real.view(), fake.view()).unwrap();
    assert!((distance - expected).abs() < 1e-12);
}

#[test]
fn distance_of_constant_features_is_that_of_their_means() {
    let real = Array2::from_elem((5, 3), 1.0);
    let fake = Array2::from_elem((7, 3), 3.0);
    let distance = frechet_distance(&moments(real.view()), &moments(fake.view())).unwrap();
    assert_eq!(distance, 12.0);
    let distance = frechet_distance_of_features(real.view(), fake.view()).unwrap();
    assert_eq!(distance, 12.0);
}

#[test]
fn distance_from_constant_features_adds_the_variance() {
    let real = random_features(30, 4, 0);
    let constant = moments(Array2::zeros((2, 4)).view());
    let real = moments(real.view());
    let variance = real.covariance().unwrap().diag().sum();
    let expected = real.mean().dot(&real.mean()) + variance;
    let distance = frechet_distance(&real, &constant).unwrap();
    assert!((distance - expected).abs() < 1e-12 * expected);
}

#[test]
fn samples_without_features_are_refused() {
    let features = Array2::zeros((3, 0));
    let empty = moments(features.view());
    let has_no_features = |error| {
        matches!(
            error,
            MetricsError::TooFew {
                unit: "features",
                ..
            }
        )
    };
    assert!(has_no_features(
        frechet_distance(&empty, &empty).unwrap_err()
    ));
    assert!(has_no_features(
        frechet_distance_of_features(features.view(), features.view()).unwrap_err()
    ));
}

#[test]
fn partly_overlapping_supports_lose_no_precision() {
    // Features 0..6 of one set and 4..10 of the other vary, so the product of the covariances has rank 2.
    let mut real = random_features(50, 10, 1);
    let mut fake = random_features(50, 10, 2);
    real.slice_mut(s![.., 6..]).fill(0.5);
    fake.slice_mut(s![.., ..4]).fill(0.5);
    let exact = frechet_distance_of_features(real.view(), fake.view()).unwrap();
    let distance = frechet_distance(&moments(real.view()), &moments(fake.view())).unwrap();
    assert!((distance - exact).abs() < 1e-11 * exact);
}

#[test]
fn a_fitted_reference_returns_the_same_bits() {
    let (real, fake) = (random_features(20, 8, 1), random_features(30, 8, 2));
    let expected = frechet_distance(&moments(real.view()), &moments(fake.view())).unwrap();
    let reference = Gaussian::from_moments(&moments(real.view())).unwrap();
    for _ in 0..2 {
        let fitted = Gaussian::from_moments(&moments(fake.view())).unwrap();
        assert_eq!(reference.frechet_distance(&fitted).unwrap(), expected);
    }
    // One set is fitted from moments and the other from features.
    let fitted = Gaussian::from_features(fake.view()).unwrap();
    let distance = reference.frechet_distance(&fitted).unwrap();
    assert!((distance - expected).abs() < 1e-11 * expected);
    let narrow = Gaussian::from_features(fake.slice(s![.., ..4])).unwrap();
    assert!(matches!(
        reference.frechet_distance(&narrow),
        Err(MetricsError::Shape { .. })
    ));
}

#[test]
fn a_large_mean_loses_no_precision() {
    // Multiples of 1/64 around 65536 are exact in float32.
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let near = Array2::from_shape_fn((500, 6), |_| rng.random_range(0_i16..256) as f32 / 64.0);
    let far = near.mapv(|x| x + 65536.0);
    let (near, far) = (moments(near.view()), moments(far.view()));
    let (near, far) = (near.covariance().unwrap(), far.covariance().unwrap());
    let error = (&near - &far)
        .iter()
        .fold(0.0_f64, |error, x| error.max(x.abs()));
    assert!(error < 1e-12, "{error:e}");
}

#[test]
fn results_have_the_same_bits_for_any_number_of_threads() {
    let (real, fake) = (random_features(700, 300, 3), random_features(200, 300, 4));
    let run = || {
        let (real, fake) = (real.view(), fake.view());
        let from_moments = frechet_distance(&moments(real), &moments(fake)).unwrap();
        let from_features = frechet_distance_of_features(real, fake).unwrap();
        (from_moments.to_bits(), from_features.to_bits())
    };
    let expected = in_pool(1, run);
    for threads in [2, 3, 5] {
        assert_eq!(in_pool(threads, run), expected);
    }
}

#[test]
fn a_batch_longer_than_one_update_equals_a_direct_computation() {
    let features = random_features(2500, 3, 5);
    let wide = features.mapv(f64::from);
    let mean = wide.mean_axis(ndarray::Axis(0)).unwrap();
    let centred = &wide - &mean;
    let covariance = centred.t().dot(&centred) / 2499.0;
    let expected = Moments::from_statistics(2500, mean.view(), covariance.view()).unwrap();
    assert_same_moments(&moments(features.view()), &expected);
}

#[test]
fn empty_batches_and_empty_moments_change_nothing() {
    let features = random_features(20, 4, 6);
    let expected = moments(features.view());
    let mut moments = Moments::new(4);
    moments.push(Array2::zeros((0, 4)).view()).unwrap();
    moments.merge(&Moments::new(4)).unwrap();
    assert_eq!(
        (moments.count(), moments.mean().to_vec()),
        (0, vec![0.0; 4])
    );
    moments.merge(&expected).unwrap();
    moments.merge(&Moments::new(4)).unwrap();
    assert_same_moments(&moments, &expected);
}

#[test]
fn other_dimensions_are_refused() {
    let mut four = moments(random_features(9, 4, 0).view());
    let five = random_features(9, 5, 0);
    let is_shape = |error: MetricsError| matches!(error, MetricsError::Shape { .. });
    assert!(is_shape(four.push(five.view()).unwrap_err()));
    assert!(is_shape(four.merge(&moments(five.view())).unwrap_err()));
    assert!(is_shape(
        frechet_distance(&four, &moments(five.view())).unwrap_err()
    ));
    let features = random_features(9, 4, 0);
    assert!(is_shape(
        frechet_distance_of_features(features.view(), five.view()).unwrap_err()
    ));
    assert_eq!(four.count(), 9);
}

#[test]
fn a_batch_that_is_not_finite_is_refused_completely() {
    let before = moments(random_features(9, 4, 0).view());
    let mut bad = random_features(1500, 4, 1);
    bad[(1400, 2)] = f32::NAN;
    let mut after = before.clone();
    let error = after.push(bad.view()).unwrap_err();
    let MetricsError::NonFinite { index, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(*index, [1400, 2]);
    assert_same_moments(&before, &after);
    let features = random_features(9, 4, 0);
    assert!(frechet_distance_of_features(features.view(), bad.view()).is_err());
    assert!(frechet_distance_of_features(bad.view(), features.view()).is_err());
}

#[test]
fn a_single_sample_has_no_distance() {
    let many = random_features(9, 4, 0);
    let one = many.slice(s![..1, ..]);
    let is_too_few = |error| {
        matches!(
            error,
            MetricsError::TooFew {
                found: 1,
                needed: 2,
                ..
            }
        )
    };
    let (all, single) = (moments(many.view()), moments(one));
    assert!(is_too_few(frechet_distance(&all, &single).unwrap_err()));
    assert!(is_too_few(frechet_distance(&single, &all).unwrap_err()));
    assert!(is_too_few(single.covariance().unwrap_err()));
    assert!(is_too_few(
        frechet_distance_of_features(many.view(), one).unwrap_err()
    ));
    let statistics = Moments::from_statistics(1, array![0.0].view(), array![[1.0]].view());
    assert!(is_too_few(statistics.unwrap_err()));
}

#[test]
fn matrices_that_are_not_covariances_are_refused() {
    let from = |covariance: Array2<f64>| {
        Moments::from_statistics(100, Array1::zeros(2).view(), covariance.view())
    };
    let message = |covariance| from(covariance).unwrap_err().to_string();
    assert!(message(array![[1.0, 0.5], [0.2, 1.0]]).contains("not symmetric"));
    assert!(message(array![[1.0, 0.0], [0.0, -1.0]]).contains("variance at [1, 1] is -1"));
    assert!(message(array![[1.0, f64::NAN], [0.0, 1.0]]).contains("NaN at [0, 1]"));
    assert!(message(Array2::zeros((2, 3))).contains("[2, 3], but [2, 2]"));
    let mean = array![f64::INFINITY, 0.0];
    assert!(Moments::from_statistics(100, mean.view(), Array2::eye(2).view()).is_err());

    // Symmetric with positive variances, but correlations above 1.
    let indefinite = from(array![[1.0, 2.0], [2.0, 1.0]]).unwrap();
    let error = frechet_distance(&indefinite, &indefinite).unwrap_err();
    assert!(
        matches!(error, MetricsError::NotCovariance { .. }),
        "{error}"
    );
}

#[test]
fn statistics_stored_in_float32_are_accepted() {
    let (real, fake) = (random_features(40, 30, 7), random_features(25, 30, 8));
    let (real, fake) = (moments(real.view()), moments(fake.view()));
    let exact = frechet_distance(&real, &fake).unwrap();
    let stored = fake.covariance().unwrap().mapv(|x| f64::from(x as f32));
    // Rounding to float32 adds variance in the 6 dimensions in which 25 samples do not vary. The number of samples
    // distinguishes it from true variance.
    for (count, bound) in [(25, 1e-6), (10_000, 1e-3)] {
        let stored = Moments::from_statistics(count, fake.mean(), stored.view()).unwrap();
        let error = (frechet_distance(&real, &stored).unwrap() - exact).abs() / exact;
        assert!(error < bound, "{error:e} with {count} samples");
        assert!(
            count == 25 || error > 1e-6,
            "{error:e}: the count makes no difference"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn distance_is_symmetric_and_not_negative(
        seed: u64, dimension in 1_usize..9, real in 2_usize..20, fake in 2_usize..20,
    ) {
        let (real, fake) = (
            random_features(real, dimension, seed),
            random_features(fake, dimension, seed.wrapping_add(1)),
        );
        let of_features = frechet_distance_of_features(real.view(), fake.view()).unwrap();
        let (real, fake) = (moments(real.view()), moments(fake.view()));
        let distance = frechet_distance(&real, &fake).unwrap();
        let swapped = frechet_distance(&fake, &real).unwrap();
        let variance = |moments: &Moments| moments.covariance().unwrap().diag().sum();
        let scale = 1.0 + distance + variance(&real) + variance(&fake);
        prop_assert!(distance > -1e-12 * scale);
        prop_assert!((distance - swapped).abs() < 1e-12 * scale);
        let own = frechet_distance(&real, &real).unwrap();
        prop_assert!(own.is_sign_positive() && own < 1e-12 * scale, "{own:e}");
        // Random covariances can be nearly singular, for which moments lose precision.
        prop_assert!((distance - of_features).abs() < 1e-7 * scale);
    }

    #[test]
    fn a_shift_adds_its_squared_length(seed: u64, shift in -4_i8..5) {
        let features = random_features(12, 5, seed).mapv(|x| (x * 64.0).round() / 64.0);
        let shifted = features.mapv(|x| x + f32::from(shift));
        let distance = frechet_distance(&moments(features.view()), &moments(shifted.view())).unwrap();
        let expected = 5.0 * f64::from(shift).powi(2);
        prop_assert!((distance - expected).abs() < 1e-10);
    }

    #[test]
    fn moments_do_not_depend_on_the_split(
        seed: u64, samples in 2_usize..40, cuts in prop::collection::vec(0_usize..40, 0..5),
    ) {
        let features = random_features(samples, 6, seed);
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(samples)).collect();
        cuts.extend([0, samples]);
        cuts.sort_unstable();
        let (mut pushed, mut merged) = (Moments::new(6), Moments::new(6));
        for cut in cuts.windows(2) {
            let part = features.slice(s![cut[0]..cut[1], ..]);
            pushed.push(part).unwrap();
            merged.merge(&moments(part)).unwrap();
        }
        let whole = moments(features.view());
        assert_same_moments(&pushed, &whole);
        assert_same_moments(&merged, &whole);
    }

    #[test]
    fn stored_statistics_can_be_continued(seed: u64) {
        let features = random_features(30, 5, seed);
        let (first, second) = (features.slice(s![..12, ..]), features.slice(s![12.., ..]));
        let part = moments(first);
        let covariance = part.covariance().unwrap();
        let mut restored = Moments::from_statistics(12, part.mean(), covariance.view()).unwrap();
        restored.push(second).unwrap();
        assert_same_moments(&restored, &moments(features.view()));
    }
}
