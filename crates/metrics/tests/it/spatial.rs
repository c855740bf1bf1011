//! Properties and edge cases of the spatial metrics.

use metrics::MetricsError;
use metrics::spatial::{
    Grid, SpatialMetrics, SpatialOptions, cds, cosine_similarity, distance_profile, evaluate,
    evaluate_images, lds, patch_mask, rmsc, srss,
};
use ndarray::{Array2, Array3, Axis, array, s};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const GRID: Grid = Grid {
    height: 4,
    width: 6,
};

/// Options for which all terms occur on [`GRID`].
const OPTIONS: SpatialOptions = SpatialOptions {
    lds_far_distance: 4,
    cds_max_distance: 5,
    srss_near_distance: 1,
    srss_far_distance: 3,
};

fn random_tokens(images: usize, grid: Grid, width: usize, seed: u64) -> Array3<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    Array3::from_shape_fn((images, grid.tokens(), width), |_| {
        rng.random_range(-1.0..1.0)
    })
}

fn random_masks(images: usize, grid: Grid, seed: u64) -> Array2<bool> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    Array2::from_shape_fn((images, grid.tokens()), |_| rng.random_bool(0.5))
}

fn in_pool<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
    pool.build().unwrap().install(work)
}

fn assert_close(left: &SpatialMetrics, right: &SpatialMetrics) {
    let close = |a: f64, b: f64| (a - b).abs() < 1e-5;
    let srss = match (left.srss, right.srss) {
        (Some(a), Some(b)) => close(a, b),
        (None, None) => true,
        _ => false,
    };
    assert!(
        close(left.lds, right.lds)
            && close(left.cds, right.cds)
            && close(left.rmsc, right.rmsc)
            && srss,
        "{left:?} and {right:?}"
    );
}

#[test]
fn equal_tokens_have_no_structure() {
    let tokens = Array3::from_shape_fn((1, GRID.tokens(), 3), |(_, _, d)| d as f32 + 1.0);
    let masks = random_masks(1, GRID, 0);
    let metrics = evaluate(tokens.view(), GRID, Some(masks.view()), &OPTIONS).unwrap();
    let none = SpatialMetrics {
        lds: 0.0,
        cds: 0.0,
        srss: Some(0.0),
        rmsc: 0.0,
    };
    assert_close(&metrics, &none);
}

#[test]
fn metrics_of_zero_tokens_are_zero_and_not_nan() {
    let tokens = Array3::zeros((1, GRID.tokens(), 3));
    let masks = random_masks(1, GRID, 0);
    let metrics = evaluate(tokens.view(), GRID, Some(masks.view()), &OPTIONS).unwrap();
    let zero = SpatialMetrics {
        lds: 0.0,
        cds: 0.0,
        srss: Some(0.0),
        rmsc: 0.0,
    };
    assert_eq!(metrics, zero);
}

#[test]
fn tokens_without_channels_count_as_zero_tokens() {
    let tokens = Array3::zeros((1, GRID.tokens(), 0));
    let metrics = evaluate(tokens.view(), GRID, None, &OPTIONS).unwrap();
    assert_eq!((metrics.lds, metrics.cds, metrics.rmsc), (0.0, 0.0, 0.0));
}

#[test]
fn two_orthogonal_halves_have_known_metrics() {
    // Left half (1, 0), right half (0, 1), on 1x4: cosines are 1 within a half, 0 across.
    let grid = Grid {
        height: 1,
        width: 4,
    };
    let tokens = array![[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]];
    let profile = distance_profile(tokens.view(), grid).unwrap();
    assert_eq!(profile, [2.0 / 3.0, 0.0, 0.0]);
    assert_eq!(lds(tokens.view(), grid, 2).unwrap(), 2.0 / 3.0);
    let slope = cds(tokens.view(), grid, 3).unwrap();
    assert!((slope - 1.0 / 3.0).abs() < 1e-15);
    let mask = [true, true, false, false];
    assert_eq!(srss(tokens.view(), grid, &mask, 1, 2).unwrap(), Some(1.0));
    assert_eq!(rmsc(tokens.view()).unwrap(), 0.5_f64.sqrt());
}

#[test]
fn cosine_of_a_token_with_itself_is_one_and_of_a_zero_token_is_zero() {
    let similarity =
        cosine_similarity(array![[3.0, 4.0], [0.0, 0.0], [-6.0, -8.0]].view()).unwrap();
    assert!((similarity[(0, 0)] - 1.0).abs() < 1e-6);
    assert!((similarity[(0, 2)] + 1.0).abs() < 1e-6);
    assert_eq!(similarity.row(1).to_vec(), [0.0; 3]);
}

#[test]
fn huge_tokens_do_not_overflow() {
    let tokens = random_tokens(1, GRID, 8, 1);
    let masks = random_masks(1, GRID, 2);
    let plain = evaluate(tokens.view(), GRID, Some(masks.view()), &OPTIONS).unwrap();
    let huge = tokens.mapv(|x| x * 1e38);
    let huge = evaluate(huge.view(), GRID, Some(masks.view()), &OPTIONS).unwrap();
    assert_close(&plain, &huge);
}

#[test]
fn very_short_tokens_are_shrunk_in_all_metrics_but_srss() {
    // Norm 1e-9 is below the floor of LDS, CDS and RMSC (1e-8) and above that of SRSS (1e-12).
    let tokens = array![[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]].mapv(|x: f32| x * 1e-9);
    let tokens = tokens.insert_axis(Axis(0));
    let grid = Grid {
        height: 1,
        width: 4,
    };
    let masks = array![[true, true, false, false]];
    let options = SpatialOptions {
        lds_far_distance: 2,
        srss_far_distance: 2,
        ..SpatialOptions::default()
    };
    let metrics = evaluate(tokens.view(), grid, Some(masks.view()), &options).unwrap();
    assert!((metrics.lds - 0.01 * 2.0 / 3.0).abs() < 1e-8);
    assert!((metrics.rmsc - 0.1 * 0.5_f64.sqrt()).abs() < 1e-8);
    assert!((metrics.srss.unwrap() - 1.0).abs() < 1e-6);
}

#[test]
fn extreme_distances_exclude_terms() {
    let tokens = random_tokens(1, GRID, 8, 3);
    let tokens = tokens.index_axis(Axis(0), 0);
    let profile = distance_profile(tokens, GRID).unwrap();
    assert_eq!(profile.len(), GRID.max_distance());
    assert_eq!(lds(tokens, GRID, 99).unwrap(), profile[0]);
    assert_eq!(
        cds(tokens, GRID, 99).unwrap(),
        cds(tokens, GRID, 8).unwrap()
    );
    // A token is never far from itself, whatever the distance.
    let cosines = cosine_similarity(tokens).unwrap().mapv(f64::from);
    let others = (cosines.sum() - cosines.diag().sum()) / (24.0 * 23.0);
    for far_distance in [0, 1] {
        let all_pairs_are_far = lds(tokens, GRID, far_distance).unwrap();
        assert!((all_pairs_are_far - (profile[0] - others)).abs() < 1e-12);
    }
    for fewer_than_two_distances in [0, 1] {
        assert_eq!(cds(tokens, GRID, fewer_than_two_distances).unwrap(), 0.0);
    }
}

#[test]
fn srss_needs_near_foreground_and_far_background() {
    let tokens = random_tokens(1, GRID, 8, 4);
    let tokens = tokens.index_axis(Axis(0), 0);
    let with_foreground = |foreground: &[usize]| {
        let mask: Vec<bool> = (0..GRID.tokens())
            .map(|t| foreground.contains(&t))
            .collect();
        srss(tokens, GRID, &mask, 1, 3).unwrap()
    };
    let all: Vec<usize> = (0..GRID.tokens()).collect();
    assert_eq!(with_foreground(&[]), None);
    assert_eq!(with_foreground(&[0]), None);
    assert_eq!(with_foreground(&[0, 2]), None, "not neighbours");
    assert_eq!(with_foreground(&all), None);
    assert!(with_foreground(&[0, 1]).is_some());
}

#[test]
fn mean_excludes_images_without_srss() {
    let image = |lds, srss| SpatialMetrics {
        lds,
        cds: 0.0,
        srss,
        rmsc: 0.0,
    };
    let mean = SpatialMetrics::mean(&[image(1.0, None), image(3.0, Some(0.5))]).unwrap();
    assert_eq!((mean.lds, mean.srss), (2.0, Some(0.5)));
    let mean = SpatialMetrics::mean(&[image(1.0, None)]).unwrap();
    assert_eq!(mean.srss, None);
}

#[test]
fn results_have_the_same_bits_for_any_number_of_threads() {
    let tokens = random_tokens(13, GRID, 40, 5);
    let masks = random_masks(13, GRID, 6);
    let run = || evaluate(tokens.view(), GRID, Some(masks.view()), &OPTIONS).unwrap();
    let expected = in_pool(1, run);
    for threads in [2, 3, 7] {
        assert_eq!(in_pool(threads, run), expected);
    }
}

#[test]
fn results_do_not_depend_on_the_strides_of_the_view() {
    let tokens = random_tokens(3, GRID, 8, 7);
    let transposed = tokens.clone().permuted_axes([2, 1, 0]);
    let transposed = transposed.as_standard_layout().into_owned();
    let strided = transposed.view().permuted_axes([2, 1, 0]);
    assert_eq!(
        evaluate(tokens.view(), GRID, None, &OPTIONS),
        evaluate(strided, GRID, None, &OPTIONS)
    );
}

#[test]
fn tokens_that_do_not_match_the_grid_are_refused() {
    let tokens = random_tokens(1, GRID, 8, 0);
    for grid in [
        Grid {
            height: 5,
            width: 5,
        },
        Grid {
            height: 0,
            width: 3,
        },
        Grid {
            height: usize::MAX,
            width: usize::MAX,
        },
    ] {
        let error = evaluate(tokens.view(), grid, None, &OPTIONS).unwrap_err();
        assert_eq!(error, MetricsError::GridMismatch { found: 24, grid });
    }
    let message = lds(
        tokens.index_axis(Axis(0), 0),
        Grid {
            height: 5,
            width: 5,
        },
        6,
    );
    let message = message.unwrap_err().to_string();
    assert!(
        message.contains("24 tokens") && message.contains("5x5 grid has 25"),
        "{message}"
    );
}

#[test]
fn a_grid_without_pairs_is_refused() {
    let grid = Grid {
        height: 1,
        width: 1,
    };
    let tokens = Array3::ones((1, 1, 4));
    let error = evaluate(tokens.view(), grid, None, &OPTIONS).unwrap_err();
    assert_eq!(error, MetricsError::GridTooSmall { grid });
    assert!(rmsc(tokens.index_axis(Axis(0), 0)).unwrap() < 1e-7);
    assert!(matches!(
        rmsc(Array2::zeros((0, 4)).view()),
        Err(MetricsError::TooFew { .. })
    ));
}

#[test]
fn an_empty_batch_has_no_mean() {
    let tokens = Array3::zeros((0, GRID.tokens(), 4));
    assert_eq!(
        evaluate_images(tokens.view(), GRID, None, &OPTIONS),
        Ok(vec![])
    );
    let error = evaluate(tokens.view(), GRID, None, &OPTIONS).unwrap_err();
    assert!(matches!(error, MetricsError::TooFew { unit: "images", .. }));
}

#[test]
fn masks_of_another_shape_are_refused() {
    let tokens = random_tokens(2, GRID, 8, 0);
    let masks = random_masks(3, GRID, 0);
    let error = evaluate(tokens.view(), GRID, Some(masks.view()), &OPTIONS).unwrap_err();
    let MetricsError::Shape {
        found, expected, ..
    } = error
    else {
        panic!("{error}");
    };
    assert_eq!((found, expected), (vec![3, 24], vec![2, 24]));
    let error = srss(tokens.index_axis(Axis(0), 0), GRID, &[true; 3], 1, 6).unwrap_err();
    assert!(matches!(error, MetricsError::Shape { .. }));
}

#[test]
fn errors_name_the_first_token_that_is_not_finite() {
    let mut tokens = random_tokens(9, GRID, 8, 0);
    tokens[(4, 3, 2)] = f32::INFINITY;
    tokens[(7, 0, 0)] = f32::NAN;
    for threads in [1, 4] {
        let run = || evaluate(tokens.view(), GRID, None, &OPTIONS).unwrap_err();
        let expected = MetricsError::NonFinite {
            what: "tokens",
            index: vec![4, 3, 2],
            value: f64::INFINITY,
        };
        assert_eq!(in_pool(threads, run), expected);
    }
}

#[test]
fn one_foreground_pixel_makes_a_patch_foreground() {
    let grid = Grid {
        height: 2,
        width: 3,
    };
    let mut pixels = Array2::zeros((8, 6));
    pixels[(7, 1)] = 1;
    pixels[(0, 4)] = 255;
    let expected = [false, false, true, true, false, false];
    assert_eq!(patch_mask(pixels.view(), grid).unwrap(), expected);
}

#[test]
fn masks_that_do_not_divide_into_the_grid_are_refused() {
    for (height, width) in [(0, 0), (4, 5), (5, 6), (2, 6)] {
        let pixels = Array2::zeros((height, width));
        let error = patch_mask(pixels.view(), GRID).unwrap_err();
        assert!(matches!(error, MetricsError::MaskSize { .. }), "{error}");
    }
    let no_patches = Grid {
        height: 0,
        width: 0,
    };
    assert!(patch_mask(Array2::zeros((4, 6)).view(), no_patches).is_err());
}

#[test]
fn options_refuse_unknown_keys_and_default_to_upstream() {
    let options: SpatialOptions = serde_json::from_str(r#"{"cds_max_distance": 12}"#).unwrap();
    let expected = SpatialOptions {
        cds_max_distance: 12,
        ..SpatialOptions::default()
    };
    assert_eq!(options, expected);
    assert!(serde_json::from_str::<SpatialOptions>(r#"{"far": 12}"#).is_err());
}

proptest! {
    #[test]
    fn metrics_stay_in_range(seed: u64, width in 1_usize..12) {
        let tokens = random_tokens(2, GRID, width, seed);
        let masks = random_masks(2, GRID, seed);
        for image in evaluate_images(tokens.view(), GRID, Some(masks.view()), &OPTIONS).unwrap() {
            prop_assert!(image.lds.abs() <= 2.0 + 1e-5);
            prop_assert!(image.cds.abs() <= 2.0 + 1e-5);
            prop_assert!((0.0..=1.0 + 1e-5).contains(&image.rmsc));
            prop_assert!(image.srss.is_none_or(|srss| srss.abs() <= 2.0 + 1e-5));
        }
    }

    #[test]
    fn metrics_do_not_depend_on_the_length_of_tokens(seed: u64) {
        let tokens = random_tokens(1, GRID, 6, seed);
        let masks = random_masks(1, GRID, seed);
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut scaled = tokens.clone();
        for mut token in scaled.lanes_mut(Axis(2)) {
            token *= rng.random_range(0.01_f32..100.0);
        }
        let plain = evaluate(tokens.view(), GRID, Some(masks.view()), &OPTIONS).unwrap();
        let scaled = evaluate(scaled.view(), GRID, Some(masks.view()), &OPTIONS).unwrap();
        assert_close(&plain, &scaled);
    }

    #[test]
    fn metrics_of_a_mirrored_image_are_the_same(seed: u64) {
        let tokens = random_tokens(1, GRID, 6, seed);
        let masks = random_masks(1, GRID, seed);
        let mirror = |t: usize| t / GRID.width * GRID.width + (GRID.width - 1 - t % GRID.width);
        let order: Vec<usize> = (0..GRID.tokens()).map(mirror).collect();
        let plain = evaluate(tokens.view(), GRID, Some(masks.view()), &OPTIONS).unwrap();
        let mirrored = evaluate(
            tokens.select(Axis(1), &order).view(),
            GRID,
            Some(masks.select(Axis(1), &order).view()),
            &OPTIONS,
        ).unwrap();
        assert_close(&plain, &mirrored);
    }

    #[test]
    fn a_batch_equals_its_parts(seed: u64, cut in 1_usize..4) {
        let tokens = random_tokens(5, GRID, 6, seed);
        let images = |range: std::ops::Range<usize>| {
            evaluate_images(tokens.slice(s![range, .., ..]), GRID, None, &OPTIONS).unwrap()
        };
        let parts = [images(0..cut), images(cut..5)].concat();
        let whole = evaluate(tokens.view(), GRID, None, &OPTIONS).unwrap();
        prop_assert_eq!(SpatialMetrics::mean(&parts).unwrap(), whole);
    }
}
