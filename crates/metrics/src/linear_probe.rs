//! Linear probing: trains and scores a linear classifier on frozen features.
//!
//! The classifier is softmax regression, with the objective of scikit-learn's `LogisticRegression` divided
//! by `C N`:
//!
//! ```text
//! mean_n -log softmax(W x_n + b)[y_n]  +  weight_decay / 2 |W|^2
//! ```
//!
//! so `weight_decay = 1 / (C N)`. The objective is convex. [`linear_probe`] minimises it with each of several
//! learning rates and keeps the weights with the lowest objective.

use std::sync::atomic::AtomicBool;

use faer::{Mat, Scale};
use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis, s};
use rayon::prelude::*;

use crate::MetricsError;
use crate::error::check_interrupted;
use crate::linalg::sequential_product;
use crate::quality::check_finite;

/// Samples per task; a fixed number, so that sums do not depend on the number of threads.
const BLOCK: usize = 256;

/// Number of blocks whose sums are in memory at the same time.
const GROUP: usize = 16;

/// Options for training a linear probe.
#[derive(Debug, Clone, PartialEq)]
pub struct ProbeOptions {
    /// Learning rates to try, in multiples of the inverse of an upper bound of the objective's largest
    /// curvature. Rates up to 1 cannot diverge; larger rates are faster if the bound is loose. A rate
    /// that diverges is skipped.
    pub rates: Vec<f64>,
    /// `weight_decay` in the objective; applies to the weights, not to the bias.
    pub weight_decay: f64,
    /// Maximum number of steps for each rate; each step uses all samples.
    pub steps: usize,
    /// Training with a rate stops when no derivative of the objective exceeds this value.
    pub tolerance: f64,
}

impl Default for ProbeOptions {
    /// For standardised features: rates 1, 4 and 16, a negligible weight decay, 500 steps.
    fn default() -> Self {
        Self {
            rates: vec![1.0, 4.0, 16.0],
            weight_decay: 1e-4,
            steps: 500,
            tolerance: 1e-6,
        }
    }
}

/// A linear classifier.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearProbe {
    /// `W` `[K, D]`; its columns sum to 0.
    pub weight: Array2<f64>,
    /// `b` `[K]`; it sums to 0.
    pub bias: Array1<f64>,
    /// Objective on the training samples.
    pub objective: f64,
    /// Learning rate with the lowest objective.
    pub rate: f64,
    /// Number of steps with this rate.
    pub steps: usize,
    /// Whether training stopped within the tolerance.
    pub converged: bool,
}

/// Trains a probe on features `[N, D]` with labels `[N]` in `0..classes`.
///
/// Uses Nesterov's accelerated gradient method, starting from zero weights, with all samples in each step,
/// and restarts when the objective increases. The result has the same bits for any number of threads.
///
/// # Errors
///
/// [`MetricsError::Shape`] for another number of labels, [`MetricsError::OutOfRange`] for a label outside
/// of the classes, fewer than 2 classes, or options that are not positive numbers (a weight decay of 0 is
/// allowed), [`MetricsError::TooFew`] without samples or features, [`MetricsError::NonFinite`],
/// [`MetricsError::Diverged`] if every rate diverges.
pub fn linear_probe(
    features: ArrayView2<'_, f32>,
    labels: ArrayView1<'_, i64>,
    classes: usize,
    options: &ProbeOptions,
) -> Result<LinearProbe, MetricsError> {
    linear_probe_until(&AtomicBool::new(false), features, labels, classes, options)
}

/// Like [`linear_probe()`], but stops when `interrupted` is set, which is checked in each step.
///
/// # Errors
///
/// Those of [`linear_probe()`], and [`MetricsError::Interrupted`].
pub fn linear_probe_until(
    interrupted: &AtomicBool,
    features: ArrayView2<'_, f32>,
    labels: ArrayView1<'_, i64>,
    classes: usize,
    options: &ProbeOptions,
) -> Result<LinearProbe, MetricsError> {
    check_options(options)?;
    let problem = Problem::new(features, labels, classes, options.weight_decay)?;
    let step = 1.0 / problem.curvature();
    let mut best: Option<LinearProbe> = None;
    for &rate in &options.rates {
        let Some(probe) = problem.descend(interrupted, rate * step, options)? else {
            continue;
        };
        if best
            .as_ref()
            .is_none_or(|best| probe.objective < best.objective)
        {
            best = Some(LinearProbe { rate, ..probe });
        }
    }
    best.ok_or_else(|| MetricsError::Diverged {
        what: "the linear probe",
        rates: options.rates.clone(),
    })
}

impl LinearProbe {
    /// Computes the logits `W x + b` `[N, K]` of features `[N, D]`.
    ///
    /// # Errors
    ///
    /// [`MetricsError::Shape`] for another number of features.
    pub fn logits(&self, features: ArrayView2<'_, f32>) -> Result<Array2<f64>, MetricsError> {
        if features.ncols() != self.weight.ncols() {
            return Err(MetricsError::Shape {
                what: "the features of the linear probe",
                found: features.shape().to_vec(),
                expected: vec![features.nrows(), self.weight.ncols()],
            });
        }
        let mut logits = Array2::zeros((features.nrows(), self.weight.nrows()));
        logits
            .axis_chunks_iter_mut(Axis(0), BLOCK)
            .into_par_iter()
            .zip(features.axis_chunks_iter(Axis(0), BLOCK))
            .for_each(|(mut logits, features)| {
                logits.assign(&(features.mapv(f64::from).dot(&self.weight.t()) + &self.bias));
            });
        Ok(logits)
    }

    /// Computes the accuracy and cross-entropy on features `[N, D]` with labels `[N]`.
    ///
    /// # Errors
    ///
    /// [`MetricsError::Shape`], [`MetricsError::TooFew`] without samples, [`MetricsError::OutOfRange`] for
    /// a label outside of the classes.
    pub fn score(
        &self,
        features: ArrayView2<'_, f32>,
        labels: ArrayView1<'_, i64>,
    ) -> Result<ProbeScore, MetricsError> {
        let classes = self.weight.nrows();
        let labels = check_labels(features, labels, classes)?;
        let logits = self.logits(features)?;
        let mut ranks = Vec::with_capacity(labels.len());
        let mut cross_entropy = 0.0;
        for (logits, &label) in logits.outer_iter().zip(&labels) {
            // Of classes with equal logits, the first is predicted.
            let ranks_higher = |(class, &logit): (usize, &f64)| {
                logit > logits[label] || (logit == logits[label] && class < label)
            };
            ranks.push(
                logits
                    .iter()
                    .enumerate()
                    .filter(|&entry| ranks_higher(entry))
                    .count(),
            );
            cross_entropy += log_sum_exp(logits) - logits[label];
        }
        Ok(ProbeScore {
            cross_entropy: cross_entropy / labels.len() as f64,
            ranks,
        })
    }
}

/// Scores of a probe on some samples.
#[derive(Debug, Clone, PartialEq)]
pub struct ProbeScore {
    /// Mean cross-entropy, without weight decay.
    pub cross_entropy: f64,
    /// For each sample, the number of classes that rank above the correct one.
    pub ranks: Vec<usize>,
}

impl ProbeScore {
    /// Fraction of samples whose class is predicted correctly, 0 to 1.
    pub fn accuracy(&self) -> f64 {
        self.top(1)
    }

    /// Top-`count` accuracy: fraction of samples whose class is among the `count` classes with the largest
    /// logits, 0 to 1.
    pub fn top(&self, count: usize) -> f64 {
        let correct = self.ranks.iter().filter(|&&rank| rank < count).count();
        correct as f64 / self.ranks.len() as f64
    }
}

/// The objective as a function of parameters `[D + 1, K]`, whose last row is the bias.
struct Problem<'a> {
    features: ArrayView2<'a, f32>,
    labels: Vec<usize>,
    classes: usize,
    weight_decay: f64,
}

impl<'a> Problem<'a> {
    fn new(
        features: ArrayView2<'a, f32>,
        labels: ArrayView1<'_, i64>,
        classes: usize,
        weight_decay: f64,
    ) -> Result<Self, MetricsError> {
        if classes < 2 {
            return Err(MetricsError::OutOfRange {
                what: "the number of classes",
                found: classes as f64,
                allowed: "2 or more",
            });
        }
        let labels = check_labels(features, labels, classes)?;
        check_finite(features)?;
        Ok(Self {
            features,
            labels,
            classes,
            weight_decay,
        })
    }

    /// Number of rows of the parameters, `D + 1`.
    fn rows(&self) -> usize {
        self.features.ncols() + 1
    }

    /// Sums the results of `task` over all blocks of samples. Its arguments are the features with a last row of
    /// ones `[D + 1, B]`, and the labels `[B]`. The order of the sum does not depend on the number of threads.
    fn sum(
        &self,
        columns: usize,
        task: impl Fn(Mat<f64>, &[usize]) -> (f64, Mat<f64>) + Sync,
    ) -> (f64, Mat<f64>) {
        let dimension = self.features.ncols();
        let mut total = (0.0, Mat::zeros(self.rows(), columns));
        let starts: Vec<usize> = (0..self.labels.len()).step_by(BLOCK).collect();
        for group in starts.chunks(GROUP) {
            let parts: Vec<_> = group
                .par_iter()
                .map(|&start| {
                    let end = (start + BLOCK).min(self.labels.len());
                    let rows = self.features.slice(s![start..end, ..]);
                    let block =
                        Mat::from_fn(dimension + 1, end - start, |i, j| match i < dimension {
                            true => f64::from(rows[(j, i)]),
                            false => 1.0,
                        });
                    task(block, &self.labels[start..end])
                })
                .collect();
            for (value, matrix) in parts {
                total.0 += value;
                total.1 += matrix;
            }
        }
        total
    }

    /// Computes an upper bound of the largest curvature: half of the largest eigenvalue of `mean x x^T` (Bohning
    /// 1992), by power iteration with a margin of 10 %, plus the weight decay.
    fn curvature(&self) -> f64 {
        let size = self.rows();
        let mut direction = Mat::from_fn(size, 1, |_, _| 1.0 / (size as f64).sqrt());
        let mut largest = 0.0;
        for _ in 0..20 {
            let (_, next) = self.sum(1, |block, _| {
                let projections = sequential_product(block.as_ref(), direction.as_ref());
                (
                    0.0,
                    sequential_product(block.transpose(), projections.as_ref()),
                )
            });
            let length = next.norm_l2();
            largest = length / self.labels.len() as f64;
            if length == 0.0 {
                break;
            }
            direction = next * Scale(1.0 / length);
        }
        0.5 * largest * 1.1 + self.weight_decay
    }

    /// Computes the objective and its gradient at `parameters` `[D + 1, K]`.
    fn evaluate(&self, parameters: &Mat<f64>) -> (f64, Mat<f64>) {
        let (mut loss, mut gradient) = self.sum(self.classes, |block, labels| {
            // [K, B], overwritten with the derivative with respect to the logits.
            let mut logits = sequential_product(parameters.as_ref(), block.as_ref());
            let mut loss = 0.0;
            for (column, &label) in labels.iter().enumerate() {
                loss += cross_entropy_in_place(logits.col_as_slice_mut(column), label);
            }
            (
                loss,
                sequential_product(block.transpose(), logits.transpose()),
            )
        });
        let count = self.labels.len() as f64;
        loss /= count;
        let bias = self.rows() - 1;
        for class in 0..self.classes {
            for i in 0..bias {
                let weight = parameters[(i, class)];
                loss += 0.5 * self.weight_decay * weight * weight;
                gradient[(i, class)] = gradient[(i, class)] / count + self.weight_decay * weight;
            }
            gradient[(bias, class)] /= count;
        }
        (loss, gradient)
    }

    /// Minimises the objective with the learning rate `step`; `None` if it diverges.
    fn descend(
        &self,
        interrupted: &AtomicBool,
        step: f64,
        options: &ProbeOptions,
    ) -> Result<Option<LinearProbe>, MetricsError> {
        let mut point = Mat::zeros(self.rows(), self.classes);
        let (mut previous, mut gradient) = self.evaluate(&point);
        // The extrapolated point, at which the gradient is evaluated.
        let mut lookahead = point.clone();
        let mut momentum = 1.0_f64;
        let mut steps = 0;
        let largest = |gradient: &Mat<f64>| gradient.norm_max();
        while steps < options.steps && largest(&gradient) > options.tolerance {
            check_interrupted(interrupted)?;
            steps += 1;
            let next = &lookahead - &gradient * Scale(step);
            let (value, _) = self.evaluate(&next);
            if !value.is_finite() {
                return Ok(None);
            }
            if value > previous && momentum > 1.0 {
                // The momentum increases the objective: restart from the best point.
                momentum = 1.0;
                lookahead = point.clone();
                gradient = self.evaluate(&point).1;
                continue;
            }
            if value > previous + 1e-12 * previous.abs() {
                // A step without momentum increases the objective: the rate is too large for the curvature.
                return Ok(None);
            }
            let next_momentum = 0.5 * (1.0 + (1.0 + 4.0 * momentum * momentum).sqrt());
            let extrapolation = (momentum - 1.0) / next_momentum;
            lookahead = &next + (&next - &point) * Scale(extrapolation);
            (point, momentum, previous) = (next, next_momentum, value);
            gradient = self.evaluate(&lookahead).1;
        }
        if largest(&gradient) <= options.tolerance {
            // The gradient belongs to the extrapolated point.
            point = lookahead;
        }
        let (objective, gradient) = self.evaluate(&point);
        let (mut weight, mut bias) = (
            Array2::from_shape_fn((self.classes, self.features.ncols()), |(class, i)| {
                point[(i, class)]
            }),
            Array1::from_shape_fn(self.classes, |class| point[(self.features.ncols(), class)]),
        );
        // Equal shifts of all classes have no effect. Starting from zero weights, only rounding causes them.
        let (Some(mean_weight), Some(mean_bias)) = (weight.mean_axis(Axis(0)), bias.mean()) else {
            return Ok(None);
        };
        weight -= &mean_weight;
        bias -= mean_bias;
        Ok(Some(LinearProbe {
            weight,
            bias,
            objective,
            rate: step,
            steps,
            converged: largest(&gradient) <= options.tolerance,
        }))
    }
}

/// Returns `-log softmax(logits)[label]` and replaces the logits by its derivative.
fn cross_entropy_in_place(logits: &mut [f64], label: usize) -> f64 {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let correct = logits[label] - largest;
    let mut sum = 0.0;
    for logit in logits.iter_mut() {
        *logit = (*logit - largest).exp();
        sum += *logit;
    }
    for logit in logits.iter_mut() {
        *logit /= sum;
    }
    logits[label] -= 1.0;
    sum.ln() - correct
}

fn log_sum_exp(logits: ArrayView1<'_, f64>) -> f64 {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    largest + logits.iter().map(|x| (x - largest).exp()).sum::<f64>().ln()
}

fn check_labels(
    features: ArrayView2<'_, f32>,
    labels: ArrayView1<'_, i64>,
    classes: usize,
) -> Result<Vec<usize>, MetricsError> {
    if labels.len() != features.nrows() {
        return Err(MetricsError::Shape {
            what: "the labels of the linear probe",
            found: vec![labels.len()],
            expected: vec![features.nrows()],
        });
    }
    for (unit, found) in [
        ("samples", features.nrows()),
        ("features", features.ncols()),
    ] {
        if found == 0 {
            return Err(MetricsError::TooFew {
                what: "the input of the linear probe",
                unit,
                found,
                needed: 1,
            });
        }
    }
    labels
        .iter()
        .map(|&label| match usize::try_from(label) {
            Ok(class) if class < classes => Ok(class),
            _ => Err(MetricsError::OutOfRange {
                what: "a label of the linear probe",
                found: label as f64,
                allowed: "at least 0 and below the number of classes",
            }),
        })
        .collect()
}

fn check_options(options: &ProbeOptions) -> Result<(), MetricsError> {
    let positive = |what, found: f64| match found > 0.0 && found.is_finite() {
        true => Ok(()),
        false => Err(MetricsError::OutOfRange {
            what,
            found,
            allowed: "a positive number",
        }),
    };
    positive("the number of learning rates", options.rates.len() as f64)?;
    for &rate in &options.rates {
        positive("a learning rate of the linear probe", rate)?;
    }
    positive("the linear probe's tolerance", options.tolerance)?;
    match options.weight_decay >= 0.0 && options.weight_decay.is_finite() {
        true => Ok(()),
        false => Err(MetricsError::OutOfRange {
            what: "the linear probe's weight decay",
            found: options.weight_decay,
            allowed: "0 or a positive number",
        }),
    }
}
