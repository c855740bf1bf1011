//! Properties and edge cases of the statistics.

use std::f64::consts::PI;

use metrics::MetricsError;
use metrics::statistics::{
    Interval, bootstrap_interval, correlation_p_value, fit_line, pearson, ranks, spearman,
};
use proptest::prelude::*;

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The mean of `x` as a statistic of pairs.
fn mean_of_x(x: &[f64], _: &[f64]) -> Result<f64, MetricsError> {
    Ok(mean(x))
}

fn in_pool<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
    pool.build().unwrap().install(work)
}

fn assert_close(actual: f64, expected: f64, bound: f64) {
    assert!(
        (actual - expected).abs() <= bound,
        "{actual} instead of {expected}"
    );
}

#[test]
fn tied_values_share_the_mean_of_their_ranks() {
    assert_eq!(
        ranks(&[30.0, 10.0, 20.0, 10.0]).unwrap(),
        [4.0, 1.5, 3.0, 1.5]
    );
    assert_eq!(ranks(&[0.0, -0.0, 7.0]).unwrap(), [1.5, 1.5, 3.0]);
    assert_eq!(ranks(&[5.0; 4]).unwrap(), [2.5; 4]);
    assert_eq!(ranks(&[]).unwrap(), [0.0; 0]);
}

#[test]
fn a_constant_column_is_refused() {
    // The rounded mean of three times 0.1 differs from 0.1, so that the differences are not zero.
    for constant in [[0.1; 3], [0.0, -0.0, 0.0], [1e300; 3]] {
        let varied = [1.0, 2.0, 4.0];
        let names_column = |error: MetricsError, column: &str| match error {
            MetricsError::Constant { what, count: 3, .. } => what == column,
            _ => false,
        };
        for statistic in [pearson, spearman] {
            assert!(names_column(
                statistic(&constant, &varied).unwrap_err(),
                "x"
            ));
            assert!(names_column(
                statistic(&varied, &constant).unwrap_err(),
                "y"
            ));
        }
        assert!(names_column(fit_line(&constant, &varied).unwrap_err(), "x"));
        let line = fit_line(&varied, &constant).unwrap();
        assert_close(line.slope, 0.0, 1e-16 * constant[0]);
        assert_close(line.intercept, constant[0], 1e-15 * constant[0]);
    }
}

#[test]
fn errors_name_nan_and_infinity() {
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let (good, bad) = ([1.0, 2.0, 3.0], [1.0, bad, 2.0]);
        let names_column = |error: MetricsError, column: &str| match error {
            MetricsError::NonFinite { what, index, .. } => what == column && index == [1],
            _ => false,
        };
        for statistic in [pearson, spearman] {
            assert!(names_column(statistic(&good, &bad).unwrap_err(), "y"));
            assert!(names_column(statistic(&bad, &good).unwrap_err(), "x"));
        }
        assert!(names_column(fit_line(&bad, &good).unwrap_err(), "x"));
        assert!(names_column(ranks(&bad).unwrap_err(), "the values"));
        assert!(names_column(
            bootstrap_interval(&good, &bad, mean_of_x, 9, 0.9, 0).unwrap_err(),
            "y"
        ));
    }
}

#[test]
fn too_few_and_unpaired_values_are_refused() {
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
    for statistic in [pearson, spearman] {
        assert!(is_too_few(statistic(&[1.0], &[1.0]).unwrap_err()));
        let unpaired = statistic(&[1.0, 2.0], &[1.0, 2.0, 3.0]).unwrap_err();
        assert!(matches!(unpaired, MetricsError::Shape { what: "y", .. }));
    }
    assert!(is_too_few(fit_line(&[1.0], &[1.0]).unwrap_err()));
    assert!(fit_line(&[], &[]).is_err());
}

#[test]
fn correlation_does_not_depend_on_the_size_of_the_values() {
    let (x, y) = ([1.0, 2.0, 3.0, 5.0], [2.0, 1.0, 4.0, 3.0]);
    let expected = pearson(&x, &y).unwrap();
    for scale in [1e-300, 1e-170, 1e170, 1e307] {
        let scaled = x.map(|x| x * scale);
        assert_close(pearson(&scaled, &y).unwrap(), expected, 1e-14);
        assert_close(pearson(&y, &scaled).unwrap(), expected, 1e-14);
    }
    let too_wide = [f64::MAX, f64::MIN, f64::MAX, f64::MAX];
    let error = pearson(&too_wide, &y).unwrap_err();
    assert!(
        matches!(error, MetricsError::OutOfRange { what: "x", .. }),
        "{error}"
    );
    let error = fit_line(&x.map(|x| x * 1e-300), &y.map(|y| y * 1e300)).unwrap_err();
    assert!(
        matches!(
            error,
            MetricsError::OutOfRange {
                what: "the slope",
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn two_points_define_a_line() {
    let line = fit_line(&[1.0, 3.0], &[2.0, -2.0]).unwrap();
    assert_eq!(
        (line.slope, line.intercept, line.evaluate(2.0)),
        (-2.0, 4.0, 0.0)
    );
    assert_eq!(pearson(&[1.0, 3.0], &[2.0, -2.0]), Ok(-1.0));
}

#[test]
fn p_values_of_few_pairs_equal_the_closed_forms() {
    // With 1, 2 and 4 degrees of freedom Student's distribution has a closed form (Abramowitz and Stegun
    // 26.7.3 and 26.7.4 with sin(theta) = r).
    for i in 0..=100 {
        let r = f64::from(i) / 100.0;
        let p = |n| correlation_p_value(r, n).unwrap();
        assert_close(p(3), 1.0 - 2.0 / PI * r.asin(), 1e-14);
        assert_close(p(4), 1.0 - r, 1e-14);
        assert_close(p(6), 1.0 - r * (1.0 + (1.0 - r * r) / 2.0), 1e-14);
        assert_eq!(correlation_p_value(-r, 6).unwrap(), p(6));
    }
}

#[test]
fn p_values_decrease_with_more_pairs_and_stronger_correlation() {
    for n in [3, 10, 27, 1000, 1_000_000] {
        assert_eq!(correlation_p_value(0.0, n).unwrap(), 1.0);
        assert_eq!(correlation_p_value(1.0, n).unwrap(), 0.0);
        let p: Vec<f64> = (0..=50)
            .map(|i| correlation_p_value(f64::from(i) / 50.0, n).unwrap())
            .collect();
        assert!(p.is_sorted_by(|a, b| a >= b), "{p:?}");
        assert!(p.iter().all(|p| (0.0..=1.0).contains(p)), "{p:?}");
    }
    assert!(correlation_p_value(0.3, 27).unwrap() < correlation_p_value(0.3, 26).unwrap());
}

#[test]
fn p_values_of_many_pairs_approach_the_normal_distribution() {
    // Two-sided 1.96 of the normal distribution is 0.05.
    let n = 1_000_000_usize;
    let t: f64 = 1.959_963_984_540_054;
    let r = t / (t * t + (n - 2) as f64).sqrt();
    assert_close(correlation_p_value(r, n).unwrap(), 0.05, 1e-6);
}

#[test]
fn p_values_refuse_invalid_correlations() {
    for r in [1.5, -1.01, f64::NAN] {
        let error = correlation_p_value(r, 27).unwrap_err();
        assert!(matches!(error, MetricsError::OutOfRange { .. }), "{error}");
    }
    assert!(matches!(
        correlation_p_value(0.5, 2),
        Err(MetricsError::TooFew { .. })
    ));
}

#[test]
fn bootstrap_of_two_points_has_the_quantiles_of_its_three_means() {
    // The mean of two draws from {0, 1} is 0, 1/2, 1 with probability 1/4, 1/2, 1/4.
    let (x, y) = ([0.0, 1.0], [0.0, 1.0]);
    let interval = |level| bootstrap_interval(&x, &y, mean_of_x, 4000, level, 0).unwrap();
    assert_eq!(
        interval(0.95),
        Interval {
            low: 0.0,
            high: 1.0
        }
    );
    assert_eq!(
        interval(0.4),
        Interval {
            low: 0.5,
            high: 0.5
        }
    );
}

#[test]
fn bootstrap_of_a_mean_is_close_to_normal_theory() {
    let x: Vec<f64> = (0..200).map(|i| f64::from(i * 37 % 200)).collect();
    let interval = bootstrap_interval(&x, &x, mean_of_x, 8000, 0.95, 1).unwrap();
    let variance = x.iter().map(|v| (v - mean(&x)).powi(2)).sum::<f64>() / 200.0;
    let half = 1.96 * (variance / 200.0).sqrt();
    assert_close(interval.low, mean(&x) - half, 0.05 * half);
    assert_close(interval.high, mean(&x) + half, 0.05 * half);
}

#[test]
fn bootstrap_has_the_same_bits_for_any_number_of_threads() {
    let x: Vec<f64> = (0..27).map(|i| f64::from(i * 11 % 27)).collect();
    let y: Vec<f64> = (0..27)
        .map(|i| f64::from(i * 7 % 27) + f64::from(i))
        .collect();
    let run = |seed| move || bootstrap_interval(&x, &y, spearman, 500, 0.9, seed).unwrap();
    let expected = in_pool(1, run.clone()(3));
    for threads in [2, 3, 8] {
        assert_eq!(in_pool(threads, run.clone()(3)), expected);
    }
    assert_ne!(in_pool(2, run(4)), expected);
}

#[test]
fn bootstrap_excludes_constant_resamples() {
    // One in nine resamples of three points is constant.
    let (x, y) = ([1.0, 2.0, 3.0], [1.0, 3.0, 2.0]);
    let interval = bootstrap_interval(&x, &y, pearson, 1000, 0.95, 0).unwrap();
    assert_close(interval.low, -1.0, 1e-14);
    assert_close(interval.high, 1.0, 1e-14);
}

#[test]
fn bootstrap_with_mostly_undefined_resamples_is_refused() {
    // The statistic uses only two pairs, whose x are equal in most resamples.
    let (x, y) = ([1.0, 1.0, 1.0, 1.0, 2.0], [1.0, 2.0, 3.0, 4.0, 5.0]);
    let of_two_pairs = |x: &[f64], y: &[f64]| pearson(&x[3..], &y[3..]);
    let error = bootstrap_interval(&x, &y, of_two_pairs, 1000, 0.95, 0).unwrap_err();
    let MetricsError::UndefinedResamples { defined, resamples } = error else {
        panic!("{error}");
    };
    assert!(defined < 500 && resamples == 1000);
}

#[test]
fn bootstrap_refuses_invalid_parameters() {
    let (x, y) = ([1.0, 2.0, 3.0], [1.0, 3.0, 2.0]);
    for level in [0.0, 1.0, -0.5, 95.0, f64::NAN] {
        let error = bootstrap_interval(&x, &y, pearson, 10, level, 0).unwrap_err();
        assert!(matches!(error, MetricsError::OutOfRange { .. }), "{error}");
    }
    let error = bootstrap_interval(&x, &y, pearson, 0, 0.95, 0).unwrap_err();
    assert!(matches!(
        error,
        MetricsError::TooFew {
            unit: "resamples",
            ..
        }
    ));
    let error = bootstrap_interval(&x, &[1.0; 3], pearson, 10, 0.95, 0).unwrap_err();
    assert!(matches!(error, MetricsError::Constant { what: "y", .. }));
    assert!(bootstrap_interval(&[], &[], pearson, 10, 0.95, 0).is_err());
}

/// Pairs of values of moderate size, without constant columns.
fn pairs() -> impl Strategy<Value = (Vec<f64>, Vec<f64>)> {
    let column = |n| prop::collection::vec(-1e3..1e3_f64, n);
    let varies = |values: &[f64]| values.iter().any(|v| (v - values[0]).abs() > 1e-3);
    (2_usize..30)
        .prop_flat_map(move |n| (column(n), column(n)))
        .prop_filter("constant", move |(x, y)| varies(x) && varies(y))
}

proptest! {
    #[test]
    fn correlations_are_symmetric_and_in_range((x, y) in pairs()) {
        for statistic in [pearson, spearman] {
            let r = statistic(&x, &y).unwrap();
            prop_assert!((-1.0..=1.0).contains(&r));
            assert_close(statistic(&y, &x).unwrap(), r, 1e-12);
            let negative: Vec<f64> = y.iter().map(|y| -y).collect();
            assert_close(statistic(&x, &negative).unwrap(), -r, 1e-12);
        }
    }

    #[test]
    fn a_column_has_correlation_one_with_itself((x, _) in pairs()) {
        assert_close(pearson(&x, &x).unwrap(), 1.0, 1e-14);
        assert_close(spearman(&x, &x).unwrap(), 1.0, 1e-14);
    }

    #[test]
    fn pearson_does_not_depend_on_scale_and_offset(
        (x, y) in pairs(), scale in 0.01..100.0_f64, offset in -1e3..1e3_f64,
    ) {
        let moved: Vec<f64> = x.iter().map(|x| scale * x + offset).collect();
        assert_close(pearson(&moved, &y).unwrap(), pearson(&x, &y).unwrap(), 1e-6);
    }

    #[test]
    fn spearman_does_not_depend_on_monotone_maps((x, y) in pairs()) {
        let cubed: Vec<f64> = x.iter().map(|x| x * x * x).collect();
        prop_assume!(ranks(&cubed).unwrap() == ranks(&x).unwrap());
        assert_close(spearman(&cubed, &y).unwrap(), spearman(&x, &y).unwrap(), 0.0);
    }

    #[test]
    fn ranks_have_the_sum_of_a_permutation(values in prop::collection::vec(-3_i8..3, 0..40)) {
        let values: Vec<f64> = values.into_iter().map(f64::from).collect();
        let n = values.len() as f64;
        prop_assert_eq!(ranks(&values).unwrap().iter().sum::<f64>(), n * (n + 1.0) / 2.0);
    }

    #[test]
    fn residuals_of_the_line_are_orthogonal((x, y) in pairs()) {
        let line = fit_line(&x, &y).unwrap();
        let residuals: Vec<f64> = x.iter().zip(&y).map(|(&x, y)| y - line.evaluate(x)).collect();
        let scale = 1e3 * (1.0 + line.slope.abs());
        assert_close(mean(&residuals), 0.0, 1e-12 * scale);
        let products: Vec<f64> = x.iter().zip(&residuals).map(|(x, r)| x * r).collect();
        assert_close(mean(&products), 0.0, 1e-12 * scale * 1e3);
    }

    #[test]
    fn quantiles_of_equal_values_are_that_value(value in -1e3..1e3_f64, level in 0.01..0.99_f64) {
        let constant = |_: &[f64], _: &[f64]| Ok(value);
        let interval = bootstrap_interval(&[1.0], &[1.0], constant, 10, level, 0).unwrap();
        prop_assert_eq!(interval, Interval { low: value, high: value });
    }

    #[test]
    fn higher_levels_have_wider_intervals((x, y) in pairs(), seed: u64) {
        let interval = |level| bootstrap_interval(&x, &y, mean_of_x, 50, level, seed).unwrap();
        let (narrow, wide) = (interval(0.5), interval(0.9));
        prop_assert!(wide.low <= narrow.low && narrow.low <= narrow.high);
        prop_assert!(narrow.high <= wide.high);
    }
}
