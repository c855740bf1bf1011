//! Improved precision and recall, density and coverage: which samples lie in the other set's balls.

use std::sync::atomic::AtomicBool;

use faer::Mat;
use ndarray::{ArrayView2, s};
use rayon::prelude::*;

use super::moments::{check_finite, feature_means};
use crate::MetricsError;
use crate::error::check_interrupted;
use crate::linalg::sequential_product;

/// Samples of a block of the matrix of distances: what a task holds is `2 BLOCK D + BLOCK^2` numbers.
const BLOCK: usize = 256;

/// Squared distances by `|a|^2 - 2 a.b + |b|^2` are off by about 1e-16 of the squares, times the number of
/// additions. Where that could change a decision, the distance is computed from the differences.
const DOUBT: f64 = 1e-12;

/// How much of one set lies where the other has samples.
#[derive(Debug, Clone, PartialEq)]
pub struct PrecisionRecall {
    /// Share of fake samples within the radius of some real one.
    pub precision: f64,
    /// Share of real samples within the radius of some fake one.
    pub recall: f64,
    /// Mean over fake samples of the number of real radii they lie within, over `k` (Naeem et al. 2020).
    pub density: f64,
    /// Share of real samples with a fake one within their radius.
    pub coverage: f64,
}

/// [`PrecisionRecall`] with what it is made of.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifolds {
    /// Distance of each real sample to its `k`-th nearest other real sample, `[N_r]`.
    pub real_radii: Vec<f64>,
    /// The same of fake samples, `[N_f]`.
    pub fake_radii: Vec<f64>,
    /// In how many real balls each fake sample lies, `[N_f]`.
    pub fake_in_real: Vec<usize>,
    /// In how many fake balls each real sample lies, `[N_r]`.
    pub real_in_fake: Vec<usize>,
    /// Whether each real sample's ball holds a fake sample, `[N_r]`.
    pub covered: Vec<bool>,
    k: usize,
}

/// Improved precision and recall (Kynkaanniemi et al. 2019, arXiv 1904.06991) of features `[N, D]`, with
/// balls that reach to the `k`-th nearest neighbour in a sample's own set; 3 is usual.
///
/// A sample on the surface of a ball is inside. Distances are float64, block by block: the time is that of
/// three products `[N, D] x [D, N]`, the memory `O(N)` beside the features and a few MiB a thread.
///
/// # Errors
///
/// As [`manifolds`].
pub fn precision_recall(
    real: ArrayView2<'_, f32>,
    fake: ArrayView2<'_, f32>,
    k: usize,
) -> Result<PrecisionRecall, MetricsError> {
    precision_recall_until(&AtomicBool::new(false), real, fake, k)
}

/// As [`precision_recall`], until `interrupted` is set, which is read before each block of distances.
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

/// The balls of both sets, and which samples lie in them.
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
        ("the set of real features", real),
        ("the set of fake features", fake),
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
    // Products of centred features lose fewer digits; distances do not change.
    let centre = feature_means(real);
    let (real, fake) = (Set::new(real, &centre), Set::new(fake, &centre));
    let (real_radii, fake_radii) = (real.radii(k, interrupted)?, fake.radii(k, interrupted)?);
    let (fake_in_real, covered) = fake.count_balls(&real, &real_radii, interrupted)?;
    let (real_in_fake, _) = real.count_balls(&fake, &fake_radii, interrupted)?;
    let root = |squares: Vec<f64>| squares.into_iter().map(f64::sqrt).collect();
    Ok(Manifolds {
        real_radii: root(real_radii),
        fake_radii: root(fake_radii),
        fake_in_real,
        real_in_fake,
        covered,
        k,
    })
}

impl Manifolds {
    /// The shares.
    pub fn scores(&self) -> PrecisionRecall {
        let inside = |counts: &[usize]| {
            counts.iter().filter(|&&count| count > 0).count() as f64 / counts.len() as f64
        };
        let balls: usize = self.fake_in_real.iter().sum();
        let covered = self.covered.iter().filter(|&&covered| covered).count();
        PrecisionRecall {
            precision: inside(&self.fake_in_real),
            recall: inside(&self.real_in_fake),
            density: balls as f64 / (self.k * self.fake_in_real.len()) as f64,
            coverage: covered as f64 / self.covered.len() as f64,
        }
    }
}

/// Features, their centre, and their squared lengths from it.
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

    /// Where each block of samples starts.
    fn blocks(&self) -> impl Iterator<Item = usize> {
        (0..self.len()).step_by(BLOCK)
    }

    /// The samples of the block from `start`, centred, `[D, B]`.
    fn block(&self, start: usize) -> Mat<f64> {
        let end = (start + BLOCK).min(self.len());
        let rows = self.features.slice(s![start..end, ..]);
        Mat::from_fn(rows.ncols(), rows.nrows(), |i, j| {
            f64::from(rows[(j, i)]) - self.centre[i]
        })
    }

    /// Squared distance of sample `i` to sample `j` of `other`, from the differences.
    fn exact(&self, i: usize, other: &Self, j: usize) -> f64 {
        let (own, other) = (self.features.row(i), other.features.row(j));
        let terms = own.iter().zip(other);
        terms
            .map(|(&x, &y)| (f64::from(x) - f64::from(y)).powi(2))
            .sum()
    }

    /// How far off the squared distances of sample `i` to sample `j` of `other` may be.
    fn doubt(&self, i: usize, other: &Self, j: usize) -> f64 {
        DOUBT * (self.squares[i] + other.squares[j])
    }

    /// Squared distance of every sample to its `k`-th nearest other sample, `[N]`.
    fn radii(&self, k: usize, interrupted: &AtomicBool) -> Result<Vec<f64>, MetricsError> {
        let starts: Vec<usize> = self.blocks().collect();
        let radii = starts.par_iter().map(|&start| {
            let own = self.block(start);
            // Of each sample the nearest others so far, in ascending order.
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
                        let within = nearest.len() < k
                            || nearest.last().is_some_and(|&(_, furthest)| {
                                square < furthest + self.doubt(i, self, j)
                            });
                        if within {
                            insert(nearest, j, self.exact(i, self, j), k);
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

    /// In how many balls of `other`, whose squared radii are given, each sample lies, and whether each of
    /// those balls holds a sample.
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
                            if (square - radii[j]).abs() <= self.doubt(i, other, j) {
                                square = self.exact(i, other, j);
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

/// Keeps the `k` nearest in ascending order.
fn insert(nearest: &mut Vec<(usize, f64)>, j: usize, square: f64, k: usize) {
    let place = nearest.partition_point(|&(_, other)| other <= square);
    nearest.insert(place, (j, square));
    nearest.truncate(k);
}
