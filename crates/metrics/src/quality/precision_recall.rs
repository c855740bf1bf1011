//! Improved precision and recall, density and coverage, which count the samples inside the balls around samples of
//! the other set.

use std::sync::atomic::AtomicBool;

use faer::Mat;
use ndarray::{ArrayView2, s};
use rayon::prelude::*;

use super::moments::{check_finite, feature_means};
use crate::MetricsError;
use crate::error::check_interrupted;
use crate::linalg::sequential_product;

/// Samples per block of the distance matrix; a task needs memory for `2 BLOCK D + BLOCK^2` values.
const BLOCK: usize = 256;

/// Bound of the rounding error of squared distances, relative to the squares. Distances by
/// `|a|^2 - 2 a.b + |b|^2` have an error of about 1e-16 of the squares times the number of additions. If this error
/// could change a decision, the distance is computed from the differences instead.
const ROUNDING_ERROR: f64 = 1e-12;

/// Precision, recall, density and coverage of two sets of features.
#[derive(Debug, Clone, PartialEq)]
pub struct PrecisionRecall {
    /// Fraction of fake samples inside the ball of at least one real sample.
    pub precision: f64,
    /// Fraction of real samples inside the ball of at least one fake sample.
    pub recall: f64,
    /// Mean number of real balls that contain a fake sample, divided by `k` (Naeem et al. 2020).
    pub density: f64,
    /// Fraction of real samples whose ball contains a fake sample.
    pub coverage: f64,
}

/// Per-sample results from which [`PrecisionRecall`] is computed.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifolds {
    /// Distance of each real sample to its `k`-th nearest other real sample, `[N_r]`.
    pub real_radii: Vec<f64>,
    /// Distance of each fake sample to its `k`-th nearest other fake sample, `[N_f]`.
    pub fake_radii: Vec<f64>,
    /// Number of real balls that contain each fake sample, `[N_f]`.
    pub fake_in_real: Vec<usize>,
    /// Number of fake balls that contain each real sample, `[N_r]`.
    pub real_in_fake: Vec<usize>,
    /// Whether the ball of each real sample contains a fake sample, `[N_r]`.
    pub covered: Vec<bool>,
    k: usize,
}

/// Computes improved precision and recall (Kynkaanniemi et al. 2019, arXiv 1904.06991) of features `[N, D]`. The
/// ball of a sample extends to its `k`-th nearest neighbour in its own set; `k = 3` is usual.
///
/// A sample on the surface of a ball is inside. Distances are computed in float64, block by block: the time is that
/// of three products `[N, D] x [D, N]`, and the memory is `O(N)` besides the features, plus a few MiB per thread.
///
/// # Errors
///
/// Those of [`manifolds`].
pub fn precision_recall(
    real: ArrayView2<'_, f32>,
    fake: ArrayView2<'_, f32>,
    k: usize,
) -> Result<PrecisionRecall, MetricsError> {
    precision_recall_until(&AtomicBool::new(false), real, fake, k)
}

/// Computes [`precision_recall`] until `interrupted` is set. The flag is read before each block of distances.
///
/// # Errors
///
/// As [`manifolds`]; [`MetricsError::Interrupted`].
pub fn precision_recall_until(
    interrupted: &AtomicBool,
    real: ArrayView2<'_, f32>,
    fake: ArrayView2<'_, f32>,
    k: usize,
) -> Result<PrecisionRecall, MetricsError> {
    Ok(manifolds_until(interrupted, real, fake, k)?.scores())
}

/// Computes the balls of both sets and the samples that they contain.
///
/// # Errors
///
/// [`MetricsError::Shape`] for different numbers of features, [`MetricsError::TooFew`] for a set of `k`
/// samples or fewer, [`MetricsError::OutOfRange`] for `k = 0`, [`MetricsError::NonFinite`].
pub fn manifolds(
    real: ArrayView2<'_, f32>,
    fake: ArrayView2<'_, f32>,
    k: usize,
) -> Result<Manifolds, MetricsError> {
    manifolds_until(&AtomicBool::new(false), real, fake, k)
}

fn manifolds_until(
    interrupted: &AtomicBool,
    real: ArrayView2<'_, f32>,
    fake: ArrayView2<'_, f32>,
    k: usize,
) -> Result<Manifolds, MetricsError> {
    if k == 0 {
        return Err(MetricsError::OutOfRange {
            what: "the number of neighbours",
            found: 0.0,
            allowed: "1 or more",
        });
    }
    if real.ncols() != fake.ncols() {
        return Err(MetricsError::Shape {
            what: "a sample of the second set",
            found: vec![fake.ncols()],
            expected: vec![real.ncols()],
        });
    }
    for (what, set) in [
        ("the set of real features", real.view()),
        ("the set of fake features", fake.view()),
    ] {
        check_finite(set)?;
        if set.nrows() <= k {
            return Err(MetricsError::TooFew {
                what,
                unit: "samples",
                found: set.nrows(),
                needed: k + 1,
            });
        }
    }
    // Centring the features improves the precision of the products and does not change the distances.
    let centre = feature_means(real);
    let [real, fake] = [real.view(), fake.view()].map(|features| Set::new(features, &centre));
    let (real_radii, fake_radii) = (real.radii(k, interrupted)?, fake.radii(k, interrupted)?);
    let (fake_in_real, covered) = fake.count_balls(&real, &real_radii, interrupted)?;
    let (real_in_fake, _) = real.count_balls(&fake, &fake_radii, interrupted)?;
    let square_roots = |squares: Vec<f64>| squares.into_iter().map(f64::sqrt).collect();
    Ok(Manifolds {
        real_radii: square_roots(real_radii),
        fake_radii: square_roots(fake_radii),
        fake_in_real,
        real_in_fake,
        covered,
        k,
    })
}

impl Manifolds {
    /// Computes the scores.
    pub fn scores(&self) -> PrecisionRecall {
        let fraction_inside = |counts: &[usize]| {
            counts.iter().filter(|&&count| count > 0).count() as f64 / counts.len() as f64
        };
        let balls: usize = self.fake_in_real.iter().sum();
        let covered = self.covered.iter().filter(|&&covered| covered).count();
        PrecisionRecall {
            precision: fraction_inside(&self.fake_in_real),
            recall: fraction_inside(&self.real_in_fake),
            density: balls as f64 / (self.k * self.fake_in_real.len()) as f64,
            coverage: covered as f64 / self.covered.len() as f64,
        }
    }
}

/// Features, the centre that is subtracted from them, and their squared distances from it.
struct Set<'a> {
    features: ArrayView2<'a, f32>,
    centre: &'a [f64],
    squares: Vec<f64>,
}

impl<'a> Set<'a> {
    fn new(features: ArrayView2<'a, f32>, centre: &'a [f64]) -> Self {
        let mut set = Self {
            features,
            centre,
            squares: Vec::new(),
        };
        let square = |i: usize| {
            let row = set.features.row(i);
            let terms = row.iter().zip(centre);
            terms.map(|(&x, c)| (f64::from(x) - c).powi(2)).sum::<f64>()
        };
        set.squares = (0..features.nrows()).into_par_iter().map(square).collect();
        set
    }

    fn len(&self) -> usize {
        self.squares.len()
    }

    /// Iterates over the first index of each block of samples.
    fn blocks(&self) -> impl Iterator<Item = usize> {
        (0..self.len()).step_by(BLOCK)
    }

    /// Returns the centred samples `[D, B]` of the block at `start`.
    fn block(&self, start: usize) -> Mat<f64> {
        let end = (start + BLOCK).min(self.len());
        let rows = self.features.slice(s![start..end, ..]);
        Mat::from_fn(rows.ncols(), rows.nrows(), |i, j| {
            f64::from(rows[(j, i)]) - self.centre[i]
        })
    }

    /// Computes the squared distance of sample `i` to sample `j` of `other` from the differences.
    fn exact_square(&self, i: usize, other: &Self, j: usize) -> f64 {
        let (own, other) = (self.features.row(i), other.features.row(j));
        let terms = own.iter().zip(other);
        terms
            .map(|(&x, &y)| (f64::from(x) - f64::from(y)).powi(2))
            .sum()
    }

    /// Bound of the error of the squared distance of sample `i` to sample `j` of `other`.
    fn error_bound(&self, i: usize, other: &Self, j: usize) -> f64 {
        ROUNDING_ERROR * (self.squares[i] + other.squares[j])
    }

    /// Computes the squared distances `[N]` of all samples to their `k`-th nearest other sample.
    fn radii(&self, k: usize, interrupted: &AtomicBool) -> Result<Vec<f64>, MetricsError> {
        let starts: Vec<usize> = self.blocks().collect();
        let radii = starts.par_iter().map(|&start| {
            let own = self.block(start);
            // For each sample, the nearest others so far, in ascending order of distance.
            let mut nearest = vec![Vec::with_capacity(k + 1); own.ncols()];
            for other_start in self.blocks() {
                check_interrupted(interrupted)?;
                let products = sequential_product(self.block(other_start).as_ref(), own.as_ref());
                for (column, nearest) in nearest.iter_mut().enumerate() {
                    let i = start + column;
                    for row in 0..products.nrows() {
                        let j = other_start + row;
                        if i == j {
                            continue;
                        }
                        let square =
                            self.squares[i] + self.squares[j] - 2.0 * products[(row, column)];
                        let may_be_nearest = nearest.len() < k
                            || nearest.last().is_some_and(|&(_, furthest)| {
                                square < furthest + self.error_bound(i, self, j)
                            });
                        if may_be_nearest {
                            insert(nearest, j, self.exact_square(i, self, j), k);
                        }
                    }
                }
            }
            let radii = nearest
                .into_iter()
                .map(|nearest| nearest.last().map_or(0.0, |&(_, square)| square));
            Ok(radii.collect::<Vec<f64>>())
        });
        Ok(radii.collect::<Result<Vec<_>, MetricsError>>()?.concat())
    }

    /// Returns the number of balls of `other` that contain each sample, and whether each of those balls contains
    /// a sample. `radii` are the squared radii of the balls.
    fn count_balls(
        &self,
        other: &Self,
        radii: &[f64],
        interrupted: &AtomicBool,
    ) -> Result<(Vec<usize>, Vec<bool>), MetricsError> {
        let starts: Vec<usize> = self.blocks().collect();
        let parts: Vec<(Vec<usize>, Vec<bool>)> = starts
            .par_iter()
            .map(|&start| {
                let own = self.block(start);
                let mut counts = vec![0; own.ncols()];
                let mut hit = vec![false; other.len()];
                for other_start in other.blocks() {
                    check_interrupted(interrupted)?;
                    let products =
                        sequential_product(other.block(other_start).as_ref(), own.as_ref());
                    for (column, count) in counts.iter_mut().enumerate() {
                        let i = start + column;
                        for row in 0..products.nrows() {
                            let j = other_start + row;
                            let mut square =
                                self.squares[i] + other.squares[j] - 2.0 * products[(row, column)];
                            if (square - radii[j]).abs() <= self.error_bound(i, other, j) {
                                square = self.exact_square(i, other, j);
                            }
                            if square <= radii[j] {
                                *count += 1;
                                hit[j] = true;
                            }
                        }
                    }
                }
                Ok((counts, hit))
            })
            .collect::<Result<_, MetricsError>>()?;
        let mut counts = Vec::with_capacity(self.len());
        let mut hit = vec![false; other.len()];
        for (part, part_hit) in parts {
            counts.extend(part);
            for (hit, part) in hit.iter_mut().zip(part_hit) {
                *hit |= part;
            }
        }
        Ok((counts, hit))
    }
}

/// Inserts a neighbour and keeps the `k` nearest in ascending order of distance.
fn insert(nearest: &mut Vec<(usize, f64)>, j: usize, square: f64, k: usize) {
    let position = nearest.partition_point(|&(_, other)| other <= square);
    nearest.insert(position, (j, square));
    nearest.truncate(k);
}
