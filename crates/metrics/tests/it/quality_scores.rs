//! Properties and edge cases of Inception score, KID, precision and recall.

use std::sync::atomic::{AtomicBool, Ordering};

use metrics::MetricsError;
use metrics::quality::{
    Estimator, InceptionScores, KidOptions, PrecisionRecall, Splits, inception_score, kid,
    kid_of_subsets, kid_until, manifolds, mmd2, precision_recall, precision_recall_until,
};
use ndarray::{Array2, Axis, array, concatenate, s};
use proptest::prelude::*;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn random(samples: usize, dimension: usize, seed: u64) -> Array2<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    Array2::from_shape_fn((samples, dimension), |_| rng.random_range(-2.0_f32..2.0))
}

fn in_pool<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
    pool.build().unwrap().install(work)
}

#[test]
fn equal_predictions_score_one_and_certain_predictions_the_number_of_classes() {
    let equal = Array2::from_elem((6, 4), 0.3);
    let score = inception_score(equal.view(), Splits::Count(2)).unwrap();
    assert!((score.mean - 1.0).abs() < 1e-12 && score.deviation < 1e-12);
    // Each class twice, with certainty.
    let certain = Array2::from_shape_fn((8, 4), |(n, c)| if n % 4 == c { 1000.0 } else { 0.0 });
    let score = inception_score(certain.view(), Splits::Size(4)).unwrap();
    assert_eq!(score.parts.len(), 2);
    assert!((score.mean - 4.0).abs() < 1e-9, "{}", score.mean);
}

#[test]
fn the_last_part_of_fixed_size_can_be_shorter() {
    let logits = random(11, 5, 0);
    let score = inception_score(logits.view(), Splits::Size(4)).unwrap();
    let last = inception_score(logits.slice(s![8.., ..]), Splits::Count(1)).unwrap();
    assert_eq!((score.parts.len(), score.parts[2]), (3, last.mean));
}

#[test]
fn scores_refuse_invalid_input_and_remain_unchanged() {
    let logits = random(6, 3, 1);
    let mut scores = InceptionScores::new(3, Splits::Count(2), 6).unwrap();
    scores.push(logits.slice(s![..4, ..])).unwrap();
    assert!(scores.push(random(1, 4, 0).view()).is_err());
    assert!(scores.push(random(3, 3, 0).view()).is_err());
    assert!(
        scores
            .push(array![[0.0, f32::INFINITY, 0.0]].view())
            .is_err()
    );
    let too_few = scores.clone().finish();
    assert!(matches!(
        too_few,
        Err(MetricsError::TooFew {
            found: 4,
            needed: 6,
            ..
        })
    ));
    scores.push(logits.slice(s![4.., ..])).unwrap();
    let whole = inception_score(logits.view(), Splits::Count(2)).unwrap();
    assert_eq!(scores.finish().unwrap(), whole);
    assert!(InceptionScores::new(3, Splits::Count(7), 6).is_err());
    assert!(InceptionScores::new(3, Splits::Count(0), 6).is_err());
    assert!(InceptionScores::new(3, Splits::Size(0), 6).is_err());
    assert!(InceptionScores::new(0, Splits::ADM, 6).is_err());
    assert!(InceptionScores::new(3, Splits::ADM, 0).is_err());
}

#[test]
fn kid_is_seeded_and_around_zero_for_equal_distributions() {
    let (real, fake) = (random(300, 8, 2), random(300, 8, 3));
    let options = KidOptions {
        subsets: 20,
        subset_size: 50,
        seed: 4,
    };
    let first = kid(real.view(), fake.view(), &options).unwrap();
    assert_eq!(kid(real.view(), fake.view(), &options).unwrap(), first);
    let other = KidOptions { seed: 5, ..options };
    assert_ne!(kid(real.view(), fake.view(), &other).unwrap(), first);
    assert!(first.mean.abs() < 0.1, "{first:?}");
    assert!(first.deviation.unwrap() > 0.0, "{first:?}");
    let shifted = fake.mapv(|x| x + 1.0);
    assert!(kid(real.view(), shifted.view(), &options).unwrap().mean > 1.0);
    // A set with fewer samples than a subset is used completely.
    let small = kid(real.view(), fake.slice(s![..9, ..]), &options).unwrap();
    assert_eq!(small.subsets.len(), 20);
}

#[test]
fn kid_of_sets_no_larger_than_a_subset_has_no_deviation() {
    let (real, fake) = (random(30, 8, 2), random(30, 8, 3));
    let kid_with = |subset_size| {
        let options = KidOptions {
            subset_size,
            ..KidOptions::default()
        };
        kid(real.view(), fake.view(), &options).unwrap()
    };
    let whole = mmd2(real.view(), fake.view(), Estimator::Unbiased).unwrap();
    for size in [30, 31, 1000] {
        let found = kid_with(size);
        assert_eq!((found.subsets.len(), found.deviation), (1, None), "{size}");
        assert_eq!(found.mean, whole);
    }
    let found = kid_with(29);
    assert_eq!(found.subsets.len(), 100);
    assert!(found.deviation.unwrap() > 1e-6, "{found:?}");
}

#[test]
fn sorted_samples_are_distinguished_from_samples_in_random_order() {
    // 1000 classes predicted with certainty, ten samples of each.
    let certain = |class_of: &dyn Fn(usize) -> usize| {
        let mut logits = Array2::zeros((10_000, 1000));
        for (n, mut row) in logits.outer_iter_mut().enumerate() {
            row[class_of(n)] = 1000.0;
        }
        inception_score(logits.view(), Splits::Size(5000)).unwrap()
    };
    let sorted = certain(&|n| n / 10);
    assert!((sorted.mean - 500.0).abs() < 1e-6, "{}", sorted.mean);
    assert!(sorted.is_biased_by_order());
    // 5000 samples in random order contain about five of each class, which lowers the score by a few percent.
    let shuffled = sorted.shuffled.unwrap().mean;
    assert!((900.0..1000.0).contains(&shuffled), "{shuffled}");

    let mut order: Vec<usize> = (0..10_000).collect();
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(7));
    let random_order = certain(&|n| order[n] / 10);
    assert!(!random_order.is_biased_by_order());
    let expected = random_order.mean;
    assert!((shuffled - expected).abs() < 0.01 * expected, "{shuffled}");
    // The order of `runner sample`: one sample of each class in turn.
    assert!(!certain(&|n| n % 1000).is_biased_by_order());

    // With few samples and classes, random variation must not be taken for an order.
    for seed in 0..20 {
        let logits = random(70, 5, seed);
        let score = inception_score(logits.view(), Splits::Size(20)).unwrap();
        assert!(!score.is_biased_by_order(), "{score:?}");
    }
    let one = inception_score(random(70, 5, 0).view(), Splits::ADM).unwrap();
    assert_eq!(one.shuffled, None);
}

#[test]
fn kid_of_two_samples_equals_the_formula() {
    let (real, fake) = (
        array![[1.0_f32, 0.0], [0.0, 2.0]],
        array![[1.0_f32, 1.0], [0.0, 0.0]],
    );
    // Within each set: (0 / 2 + 1)^3, twice, over 2. Across: 1.5^3, 1, 2^3, 1, times 2.
    let expected = 1.0 + 1.0 - 2.0 * (3.375 + 1.0 + 8.0 + 1.0) / 4.0;
    let found = mmd2(real.view(), fake.view(), Estimator::Unbiased).unwrap();
    assert!((found - expected).abs() < 1e-12, "{found}");
}

#[test]
fn kid_refuses_invalid_input() {
    let (real, narrow) = (random(9, 4, 6), random(9, 3, 6));
    let options = KidOptions::default();
    let is_shape = |error| matches!(error, MetricsError::Shape { .. });
    assert!(is_shape(
        kid(real.view(), narrow.view(), &options).unwrap_err()
    ));
    let single = real.slice(s![..1, ..]);
    let error = kid(real.view(), single, &options).unwrap_err();
    assert!(
        matches!(error, MetricsError::TooFew { found: 1, .. }),
        "{error}"
    );
    let none = KidOptions {
        subsets: 0,
        ..options
    };
    assert!(kid(real.view(), real.view(), &none).is_err());
    let mut bad = real.clone();
    bad[(3, 1)] = f32::NAN;
    assert!(kid(real.view(), bad.view(), &options).is_err());
    let subsets = [(vec![0, 1], vec![0, 9])];
    assert!(kid_of_subsets(real.view(), real.view(), &subsets).is_err());
}

#[test]
fn a_set_has_full_precision_and_recall_against_itself() {
    let features = random(30, 6, 7);
    let found = precision_recall(features.view(), features.view(), 3).unwrap();
    assert_eq!(
        (found.precision, found.recall, found.coverage),
        (1.0, 1.0, 1.0)
    );
    // Duplicates have radius 0 and are on the surface of each other's balls.
    let twice = concatenate![Axis(0), features, features, features, features];
    let found = precision_recall(twice.view(), features.view(), 3).unwrap();
    assert_eq!((found.precision, found.recall), (1.0, 1.0));
}

#[test]
fn few_modes_reduce_recall_and_noise_reduces_precision() {
    let real = random(400, 2, 8);
    let narrow = random(400, 2, 9).mapv(|x| x * 0.05);
    let found = precision_recall(real.view(), narrow.view(), 3).unwrap();
    assert!(found.precision > 0.95 && found.recall < 0.1, "{found:?}");
    let wide = random(400, 2, 10).mapv(|x| x * 20.0);
    let found = precision_recall(real.view(), wide.view(), 3).unwrap();
    assert!(found.precision < 0.1 && found.recall > 0.6, "{found:?}");
}

#[test]
fn a_large_mean_does_not_change_the_manifolds() {
    let (real, fake) = (random(300, 5, 11), random(300, 5, 12));
    // Multiples of 1/64 remain exact in float32 after adding 4096.
    let rounded = |set: &Array2<f32>| set.mapv(|x| (x * 64.0).round() / 64.0);
    let (real, fake) = (rounded(&real), rounded(&fake));
    let near = manifolds(real.view(), fake.view(), 3).unwrap();
    let moved = |set: &Array2<f32>| set.mapv(|x| x + 4096.0);
    let far = manifolds(moved(&real).view(), moved(&fake).view(), 3).unwrap();
    assert_eq!(near, far);
}

#[test]
fn precision_and_recall_refuse_invalid_input() {
    let (real, narrow) = (random(9, 4, 13), random(9, 3, 13));
    assert!(precision_recall(real.view(), narrow.view(), 3).is_err());
    assert!(precision_recall(real.view(), real.view(), 0).is_err());
    let error = precision_recall(real.view(), real.slice(s![..3, ..]), 3).unwrap_err();
    assert!(
        matches!(
            error,
            MetricsError::TooFew {
                what: "the set of fake features",
                needed: 4,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn results_have_the_same_bits_for_any_number_of_threads() {
    let (real, fake) = (random(700, 20, 14), random(650, 20, 15));
    let options = KidOptions {
        subsets: 5,
        subset_size: 100,
        seed: 0,
    };
    let run = || {
        (
            manifolds(real.view(), fake.view(), 3).unwrap(),
            kid(real.view(), fake.view(), &options).unwrap(),
            inception_score(real.view(), Splits::Size(200)).unwrap(),
        )
    };
    let expected = in_pool(1, run);
    for threads in [2, 3, 5] {
        assert_eq!(in_pool(threads, run), expected);
    }
}

/// Computes the scores by their definition, one distance at a time.
fn by_definition(real: &Array2<f32>, fake: &Array2<f32>, k: usize) -> PrecisionRecall {
    let distance = |a: ndarray::ArrayView1<f32>, b: ndarray::ArrayView1<f32>| -> f64 {
        let terms = a.iter().zip(b);
        terms
            .map(|(&x, &y)| (f64::from(x) - f64::from(y)).powi(2))
            .sum()
    };
    let radii = |set: &Array2<f32>| -> Vec<f64> {
        let radius = |i: usize| {
            let others = (0..set.nrows()).filter(|&j| j != i);
            let mut all: Vec<f64> = others.map(|j| distance(set.row(i), set.row(j))).collect();
            all.sort_by(f64::total_cmp);
            all[k - 1]
        };
        (0..set.nrows()).map(radius).collect()
    };
    let (real_radii, fake_radii) = (radii(real), radii(fake));
    let balls = |points: &Array2<f32>, centres: &Array2<f32>, radii: &[f64]| -> Vec<usize> {
        let inside = |point| {
            let centres = centres.outer_iter().zip(radii);
            centres
                .filter(|&(centre, &radius)| distance(point, centre) <= radius)
                .count()
        };
        points.outer_iter().map(inside).collect()
    };
    let fake_in = balls(fake, real, &real_radii);
    let real_in = balls(real, fake, &fake_radii);
    let covered = real
        .outer_iter()
        .zip(&real_radii)
        .filter(|&(centre, &radius)| {
            fake.outer_iter()
                .any(|point| distance(point, centre) <= radius)
        });
    let fraction = |counts: &[usize]| {
        counts.iter().filter(|&&count| count > 0).count() as f64 / counts.len() as f64
    };
    PrecisionRecall {
        precision: fraction(&fake_in),
        recall: fraction(&real_in),
        density: fake_in.iter().sum::<usize>() as f64 / (k * fake.nrows()) as f64,
        coverage: covered.count() as f64 / real.nrows() as f64,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn scores_by_blocks_equal_the_definition(
        seed: u64, real in 5_usize..300, fake in 5_usize..300, dimension in 1_usize..6, k in 1_usize..5,
        coarse: bool,
    ) {
        // Integers cause ties and duplicates.
        let round = |set: Array2<f32>| if coarse { set.mapv(f32::round) } else { set };
        let (real, fake) = (
            round(random(real, dimension, seed)),
            round(random(fake, dimension, seed.wrapping_add(1))),
        );
        prop_assert_eq!(precision_recall(real.view(), fake.view(), k).unwrap(), by_definition(&real, &fake, k));
    }

    #[test]
    fn scores_do_not_depend_on_the_batches(
        seed: u64, samples in 4_usize..60, batch in 1_usize..70, size in 1_usize..30,
    ) {
        let logits = random(samples, 7, seed);
        let whole = inception_score(logits.view(), Splits::Size(size)).unwrap();
        let mut scores = InceptionScores::new(7, Splits::Size(size), samples).unwrap();
        for part in logits.axis_chunks_iter(Axis(0), batch) {
            scores.push(part).unwrap();
        }
        prop_assert_eq!(scores.finish().unwrap(), whole);
    }
}

#[test]
fn comparisons_end_when_they_are_interrupted() {
    let (real, fake) = (random(40, 8, 0), random(40, 8, 1));
    let interrupted = AtomicBool::new(true);
    let options = KidOptions {
        subset_size: 10,
        ..KidOptions::default()
    };
    let kid = kid_until(&interrupted, real.view(), fake.view(), &options);
    assert_eq!(kid.unwrap_err(), MetricsError::Interrupted);
    let found = precision_recall_until(&interrupted, real.view(), fake.view(), 3);
    assert_eq!(found.unwrap_err(), MetricsError::Interrupted);
    interrupted.store(false, Ordering::Relaxed);
    let found = precision_recall_until(&interrupted, real.view(), fake.view(), 3).unwrap();
    assert_eq!(
        found,
        precision_recall(real.view(), fake.view(), 3).unwrap()
    );
}
