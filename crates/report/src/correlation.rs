//! Computes how well encoder metrics predict the Frechet distance.

use metrics::MetricsError;
use metrics::figures::{Figure, Kind};
use metrics::statistics::{bootstrap_interval, bootstrap_interval_of, fit_line, pearson, spearman};

use super::comparison::Group;
use super::run_folder::RunFolder;

/// Minimum number of encoders for a correlation.
pub(super) const MIN_ENCODERS: usize = 5;
/// Number of bootstrap resamples.
pub(super) const RESAMPLES: usize = 2000;
/// Confidence level of the bootstrap interval.
pub(super) const LEVEL: f64 = 0.95;
const SEED: u64 = 0;

/// One encoder: its metric `x` and its Frechet distance `y`, averaged over seeds.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Point {
    pub encoder: String,
    pub x: f64,
    pub y: f64,
}

/// The relation between metric and distance over all encoders of one recipe.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Relation {
    Fitted {
        slope: f64,
        intercept: f64,
        r: f64,
        /// Bounds of the bootstrap interval of `r`.
        interval: (f64, f64),
        n: usize,
    },
    TooFew {
        n: usize,
    },
    /// All encoders have the same metric or the same distance, or too many have for an interval. No correlation is
    /// stated without its interval.
    Undefined {
        n: usize,
    },
}

/// The encoders of `recipe` that have both values.
pub(super) fn points(
    group: &Group<'_>,
    recipe: &str,
    metric: Figure,
    frechet: Figure,
) -> Vec<Point> {
    let encoders = group.encoders().into_iter();
    encoders
        .filter_map(|encoder| {
            Some(Point {
                encoder: encoder.to_owned(),
                x: group.mean(metric, encoder, recipe)?.value,
                y: group.mean(frechet, encoder, recipe)?.value,
            })
        })
        .collect()
}

/// Computes Pearson's r with its interval, and the least-squares line.
pub(super) fn relation(points: &[Point]) -> Relation {
    let n = points.len();
    if n < MIN_ENCODERS {
        return Relation::TooFew { n };
    }
    let x: Vec<f64> = points.iter().map(|point| point.x).collect();
    let y: Vec<f64> = points.iter().map(|point| point.y).collect();
    let (Ok(r), Ok(line)) = (pearson(&x, &y), fit_line(&x, &y)) else {
        return Relation::Undefined { n };
    };
    if ![r, line.slope, line.intercept]
        .iter()
        .all(|v| v.is_finite())
    {
        return Relation::Undefined { n };
    }
    let Some(interval) = interval(&x, &y, pearson) else {
        return Relation::Undefined { n };
    };
    Relation::Fitted {
        slope: line.slope,
        intercept: line.intercept,
        r,
        interval,
        n,
    }
}

/// By how much a metric predicts the Frechet distance better than another metric does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Advantage {
    /// `|r|` of the metric minus `|r|` of the other one.
    pub difference: f64,
    /// Bounds of the bootstrap interval of the difference. Both correlations are of the same resample.
    pub interval: (f64, f64),
    /// Number of encoders with all values.
    pub n: usize,
}

/// Compares `metric` with `other` as predictors of the results of `recipe`; `None` with too few encoders, or if a
/// correlation is undefined.
pub(super) fn advantage(
    group: &Group<'_>,
    recipe: &str,
    [metric, other]: [Figure; 2],
    frechet: Figure,
) -> Option<Advantage> {
    let others = points(group, recipe, other, frechet);
    let pairs: Vec<(Point, &Point)> = points(group, recipe, metric, frechet)
        .into_iter()
        .filter_map(|point| {
            let mut others = others.iter();
            let other = others.find(|other| other.encoder == point.encoder)?;
            Some((point, other))
        })
        .collect();
    let n = pairs.len();
    if n < MIN_ENCODERS {
        return None;
    }
    let difference = |drawn: &[usize]| {
        let column = |value: fn(&(Point, &Point)) -> f64| -> Vec<f64> {
            drawn.iter().map(|&index| value(&pairs[index])).collect()
        };
        let y = column(|(point, _)| point.y);
        let r = pearson(&column(|(point, _)| point.x), &y)?;
        let of_other = pearson(&column(|(_, other)| other.x), &y)?;
        Ok::<_, MetricsError>(r.abs() - of_other.abs())
    };
    let all: Vec<usize> = (0..n).collect();
    let interval = bootstrap_interval_of(n, difference, RESAMPLES, LEVEL, SEED).ok()?;
    Some(Advantage {
        difference: difference(&all).ok()?,
        interval: (interval.low, interval.high),
        n,
    })
}

/// How well the ranking of encoders by a spatial metric, which is known before training, predicted the ranking of the
/// results.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Prediction {
    pub metric: Figure,
    pub recipe: String,
    /// Number of encoders with both values.
    pub n: usize,
    pub agreement: Agreement,
    /// The encoder that the metric ranks first, and its rank in the results, from 1.
    pub first: (String, usize),
}

/// Spearman's rank correlation of the metric with the *negative* Frechet distance; 1 if both rankings are the same.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Agreement {
    Known {
        rho: f64,
        /// Bounds of its bootstrap interval.
        interval: (f64, f64),
    },
    TooFew,
    /// All encoders have the same metric or the same distance.
    Undefined,
}

/// The predictions of a group, for each recipe and metric with at least one point.
pub(super) fn predictions(run: &RunFolder, group: &Group<'_>, frechet: Figure) -> Vec<Prediction> {
    let mut predictions = Vec::new();
    for recipe in group.recipes() {
        for metric in Figure::of_kind(Kind::Spatial) {
            let mut points = points(group, recipe, metric, frechet);
            if let Some(ranking) = &run.ranking {
                points.retain_mut(|point| {
                    let value = ranking.value(&point.encoder, metric);
                    point.x = value.unwrap_or(f64::NAN);
                    point.x.is_finite()
                });
            }
            predictions.extend(prediction(metric, recipe, &points));
        }
    }
    predictions
}

fn prediction(metric: Figure, recipe: &str, points: &[Point]) -> Option<Prediction> {
    let first = points
        .iter()
        .reduce(|best, next| if next.x > best.x { next } else { best })?;
    let better = points.iter().filter(|other| other.y < first.y).count();
    let x: Vec<f64> = points.iter().map(|point| point.x).collect();
    let y: Vec<f64> = points.iter().map(|point| -point.y).collect();
    let agreement = if points.len() < MIN_ENCODERS {
        Agreement::TooFew
    } else {
        match (spearman(&x, &y), interval(&x, &y, spearman)) {
            (Ok(rho), Some(interval)) if rho.is_finite() => Agreement::Known { rho, interval },
            _ => Agreement::Undefined,
        }
    };
    Some(Prediction {
        metric,
        recipe: recipe.to_owned(),
        n: points.len(),
        agreement,
        first: (first.encoder.clone(), better + 1),
    })
}

/// The bootstrap interval of a correlation; `None` if it cannot be computed.
fn interval(
    x: &[f64],
    y: &[f64],
    correlation: fn(&[f64], &[f64]) -> Result<f64, MetricsError>,
) -> Option<(f64, f64)> {
    let interval = bootstrap_interval(x, y, correlation, RESAMPLES, LEVEL, SEED).ok()?;
    let bounds = (interval.low, interval.high);
    (bounds.0.is_finite() && bounds.1.is_finite()).then_some(bounds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_correct_ranking_has_full_agreement() {
        let mut line = points(&[(4.0, 1.0), (3.0, 2.0), (2.0, 4.0), (1.0, 8.0), (0.0, 16.0)]);
        line[0].encoder = "best".into();
        let predicted = prediction(Figure::Lds, "irepa", &line).unwrap();
        assert_eq!(predicted.first, ("best".into(), 1));
        let Agreement::Known { rho, interval } = predicted.agreement else {
            panic!("{predicted:?}");
        };
        assert!((rho - 1.0).abs() < 1e-12);
        let (low, high) = interval;
        assert!(low <= 1.0 && (high - 1.0).abs() < 1e-12);
        let reversed = points(&[(1.0, 1.0), (2.0, 2.0), (3.0, 4.0), (4.0, 8.0), (5.0, 16.0)]);
        let predicted = prediction(Figure::Lds, "irepa", &reversed).unwrap();
        assert_eq!(predicted.first.1, 5);
        assert!(matches!(predicted.agreement, Agreement::Known { rho, .. } if rho < -0.99));
    }

    #[test]
    fn too_few_or_equal_encoders_have_no_agreement() {
        let few = points(&[(1.0, 1.0), (2.0, 2.0), (3.0, 3.0), (4.0, 4.0)]);
        let predicted = prediction(Figure::Lds, "irepa", &few).unwrap();
        assert_eq!((predicted.agreement, predicted.n), (Agreement::TooFew, 4));
        let equal = points(&[(1.0, 1.0), (1.0, 2.0), (1.0, 3.0), (1.0, 4.0), (1.0, 5.0)]);
        let predicted = prediction(Figure::Lds, "irepa", &equal).unwrap();
        assert_eq!(predicted.agreement, Agreement::Undefined);
        assert_eq!(prediction(Figure::Lds, "irepa", &[]), None);
    }

    fn points(values: &[(f64, f64)]) -> Vec<Point> {
        let points = values.iter().map(|&(x, y)| Point {
            encoder: String::new(),
            x,
            y,
        });
        points.collect()
    }

    #[test]
    fn four_points_have_no_correlation() {
        let four = points(&[(0.0, 0.0), (1.0, 1.0), (2.0, 2.0), (3.0, 3.0)]);
        assert_eq!(relation(&four), Relation::TooFew { n: 4 });
    }

    #[test]
    fn a_constant_metric_has_no_correlation() {
        let constant = points(&[(1.0, 0.0), (1.0, 1.0), (1.0, 2.0), (1.0, 5.0), (1.0, 7.0)]);
        assert_eq!(relation(&constant), Relation::Undefined { n: 5 });
    }

    #[test]
    fn a_falling_line_has_r_of_minus_one() {
        let line = points(&[(0.0, 8.0), (1.0, 6.0), (2.0, 4.0), (3.0, 2.0), (4.0, 0.0)]);
        let Relation::Fitted {
            slope,
            intercept,
            r,
            interval,
            n,
        } = relation(&line)
        else {
            panic!("no line was fitted");
        };
        assert!((slope + 2.0).abs() < 1e-9 && (intercept - 8.0).abs() < 1e-9);
        assert!((r + 1.0).abs() < 1e-9);
        assert_eq!(n, 5);
        let (low, high) = interval;
        assert!(low <= r + 1e-9 && r <= high + 1e-9);
    }
}
