//! How well a metric of the encoder predicts the Frechet distance.

use metrics::statistics::{bootstrap_interval, fit_line, pearson};

use super::columns::Column;
use super::comparison::Group;

/// Below this number of encoders no correlation is claimed.
pub(super) const FEWEST: usize = 4;
/// Resamples of the bootstrap.
pub(super) const RESAMPLES: usize = 2000;
/// Coverage of the bootstrap interval.
pub(super) const LEVEL: f64 = 0.95;
const SEED: u64 = 0;

/// One encoder: `(metric, Frechet distance)`, averaged over seeds.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Point {
    pub encoder: String,
    pub x: f64,
    pub y: f64,
}

/// The relation over all encoders of one recipe.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Relation {
    Fitted {
        slope: f64,
        intercept: f64,
        r: f64,
        /// Ends of the bootstrap interval of `r`, where it could be computed.
        interval: Option<(f64, f64)>,
        n: usize,
    },
    TooFew {
        n: usize,
    },
    /// All encoders share one value of the metric or of the distance.
    Undefined {
        n: usize,
    },
}

/// The encoders of `recipe` that have both figures.
pub(super) fn points(
    group: &Group<'_>,
    recipe: &str,
    metric: &Column,
    frechet: &Column,
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

/// Pearson's r with its interval, and the least-squares line.
pub(super) fn relation(points: &[Point]) -> Relation {
    let n = points.len();
    if n < FEWEST {
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
    let interval = bootstrap_interval(&x, &y, pearson, RESAMPLES, LEVEL, SEED)
        .ok()
        .map(|interval| (interval.low, interval.high))
        .filter(|(low, high)| low.is_finite() && high.is_finite());
    Relation::Fitted {
        slope: line.slope,
        intercept: line.intercept,
        r,
        interval,
        n,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(values: &[(f64, f64)]) -> Vec<Point> {
        let points = values.iter().map(|&(x, y)| Point {
            encoder: String::new(),
            x,
            y,
        });
        points.collect()
    }

    #[test]
    fn three_points_claim_nothing() {
        let three = points(&[(0.0, 0.0), (1.0, 1.0), (2.0, 2.0)]);
        assert_eq!(relation(&three), Relation::TooFew { n: 3 });
    }

    #[test]
    fn a_constant_metric_has_no_correlation() {
        let constant = points(&[(1.0, 0.0), (1.0, 1.0), (1.0, 2.0), (1.0, 5.0)]);
        assert_eq!(relation(&constant), Relation::Undefined { n: 4 });
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
        let (low, high) = interval.unwrap();
        assert!(low <= r + 1e-9 && r <= high + 1e-9);
    }
}
