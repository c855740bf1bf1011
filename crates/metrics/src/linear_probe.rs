//! Linear probing: how well a linear classifier on frozen features does.
//!
//! The classifier is softmax regression, with the objective of scikit-learn's `LogisticRegression` divided
//! by `C N`:
//!
//! ```text
//! mean_n -log softmax(W x_n + b)[y_n]  +  weight_decay / 2 |W|^2
//! ```
//!
//! so `weight_decay = 1 / (C N)`. It is convex: [`linear_probe`] descends it with each learning rate of a
//! grid and keeps the weights that came lowest.

use std::sync::atomic::AtomicBool;

use faer::{Mat, Scale};
use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis, s};
use rayon::prelude::*;

use crate::MetricsError;
use crate::error::check_interrupted;
use crate::linalg::sequential_product;
use crate::quality::check_finite;

/// Samples that a task takes, so that sums do not depend on the number of threads.
const BLOCK: usize = 256;

/// Blocks whose sums are in memory at once.
const GROUP: usize = 16;

/// How a linear probe is trained.
#[derive(Debug, Clone, PartialEq)]
pub struct ProbeOptions {
    /// Learning rates to try, in multiples of the inverse of the objective's largest curvature, of which
    /// an upper bound is computed. Up to 1 the descent cannot diverge; more is faster where the bound is
    /// loose. A rate that diverges is given up.
    pub rates: Vec<f64>,
    /// `weight_decay` in the objective; of the weights, not of the bias.
    pub weight_decay: f64,
    /// Most steps of each rate, each over all samples.
    pub steps: usize,
    /// A rate is done when no derivative of the objective is above this.
    pub tolerance: f64,
}

impl Default for ProbeOptions {
    /// For standardised features: rates 1, 4, 16, no weight decay to speak of, 500 steps.
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
    /// The objective on the training samples.
    pub objective: f64,
    /// The learning rate of the grid that came lowest.
    pub rate: f64,
    /// Its steps.
    pub steps: usize,
    /// Whether it stopped within the tolerance.
    pub converged: bool,
}

/// Trains a probe on features `[N, D]` with labels `[N]` in `0..classes`.
///
/// Nesterov's accelerated gradient with restarts where the objective rises, from zero weights, over all
/// samples at each step; the same bits for any number of threads.
///
/// # Errors
///
/// [`MetricsError::Shape`] for another number of labels, [`MetricsError::OutOfRange`] for a label outside
/// the classes, fewer than 2 classes, or options that are no positive numbers,
/// [`MetricsError::TooFew`] without samples or features, [`MetricsError::NonFinite`],
/// [`MetricsError::Diverged`] if every rate does.
pub fn linear_probe(
    features: ArrayView2<'_, f32>,
    labels: ArrayView1<'_, i64>,
    classes: usize,
    options: &ProbeOptions,
) -> Result<LinearProbe, MetricsError> {
    linear_probe_until(&AtomicBool::new(false), features, labels, classes, options)
}

/// As [`linear_probe`], until `interrupted` is set, which is looked at in each step.
///
/// # Errors
///
/// As [`linear_probe`]; [`MetricsError::Interrupted`].
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
    /// Logits `W x + b` `[N, K]` of features `[N, D]`.
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

    /// Accuracy and cross-entropy on features `[N, D]` with labels `[N]`.
    ///
    /// # Errors
    ///
    /// [`MetricsError::Shape`], [`MetricsError::TooFew`] without samples, [`MetricsError::OutOfRange`] for
    /// a label outside the classes.
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
            // Of classes that tie, the first is predicted.
            let better = |(class, &logit): (usize, &f64)| {
                logit > logits[label] || (logit == logits[label] && class < label)
            };
            ranks.push(
                logits
                    .iter()
                    .enumerate()
                    .filter(|&entry| better(entry))
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

/// How well a probe did on some samples.
#[derive(Debug, Clone, PartialEq)]
pub struct ProbeScore {
    /// Mean cross-entropy, without weight decay.
    pub cross_entropy: f64,
    /// How many classes have a larger logit than the right one, for each sample.
    pub ranks: Vec<usize>,
}

impl ProbeScore {
    /// Share of samples whose class is predicted, 0 to 1.
    pub fn accuracy(&self) -> f64 {
        self.top(1)
    }

    /// Share of samples whose class is among the `count` with the largest logits.
    pub fn top(&self, count: usize) -> f64 {
        let right = self.ranks.iter().filter(|&&rank| rank < count).count();
        right as f64 / self.ranks.len() as f64
    }
}

/// The objective; parameters are `[D + 1, K]`, the bias in the last row.
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

    /// Features and bias, `D + 1`.
    fn rows(&self) -> usize {
        self.features.ncols() + 1
    }

    /// Sums what `task` makes of each block of samples: features with a row of ones below `[D + 1, B]`, and
    /// labels `[B]`. Adds in order, whatever the threads.
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
            for (number, part) in parts {
                total.0 += number;
                total.1 += part;
            }
        }
        total
    }

    /// An upper bound of the largest curvature: half of the largest eigenvalue of `mean x x^T` (Bohning
    /// 1992), by power iteration with some room, plus the weight decay.
    fn curvature(&self) -> f64 {
        let size = self.rows();
        let mut direction = Mat::from_fn(size, 1, |_, _| 1.0 / (size as f64).sqrt());
        let mut largest = 0.0;
        for _ in 0..20 {
            let (_, next) = self.sum(1, |block, _| {
                let along = sequential_product(block.as_ref(), direction.as_ref());
                (0.0, sequential_product(block.transpose(), along.as_ref()))
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

    /// The objective and its gradient at parameters `[D + 1, K]`.
    fn evaluate(&self, parameters: &Mat<f64>) -> (f64, Mat<f64>) {
        let (mut loss, mut gradient) = self.sum(self.classes, |block, labels| {
            // [K, B], turned into the derivative by the logits in place.
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

    /// `None` if the objective runs away.
    fn descend(
        &self,
        interrupted: &AtomicBool,
        step: f64,
        options: &ProbeOptions,
    ) -> Result<Option<LinearProbe>, MetricsError> {
        let mut point = Mat::zeros(self.rows(), self.classes);
        let (start, mut gradient) = self.evaluate(&point);
        let mut ahead = point.clone();
        let mut before = start;
        let mut momentum = 1.0_f64;
        let mut steps = 0;
        let largest = |gradient: &Mat<f64>| gradient.norm_max();
        while steps < options.steps && largest(&gradient) > options.tolerance {
            check_interrupted(interrupted)?;
            steps += 1;
            let next = &ahead - &gradient * Scale(step);
            let (value, _) = self.evaluate(&next);
            if !value.is_finite() {
                return Ok(None);
            }
            if value > before && momentum > 1.0 {
                // The momentum carries uphill: begin anew from where it was lowest.
                momentum = 1.0;
                ahead = point.clone();
                gradient = self.evaluate(&point).1;
                continue;
            }
            if value > before + 1e-12 * before.abs() {
                // A plain step rises: the rate is above what the curvature allows.
                return Ok(None);
            }
            let grown = 0.5 * (1.0 + (1.0 + 4.0 * momentum * momentum).sqrt());
            let carry = (momentum - 1.0) / grown;
            ahead = &next + (&next - &point) * Scale(carry);
            (point, momentum, before) = (next, grown, value);
            gradient = self.evaluate(&ahead).1;
        }
        if largest(&gradient) <= options.tolerance {
            // The gradient is that of the point ahead.
            point = ahead;
        }
        let (objective, gradient) = self.evaluate(&point);
        let (mut weight, mut bias) = (
            Array2::from_shape_fn((self.classes, self.features.ncols()), |(class, i)| {
                point[(i, class)]
            }),
            Array1::from_shape_fn(self.classes, |class| point[(self.features.ncols(), class)]),
        );
        // A shift of all classes changes nothing; from zero weights the steps make none, up to rounding.
        let (Some(weights), Some(biases)) = (weight.mean_axis(Axis(0)), bias.mean()) else {
            return Ok(None);
        };
        weight -= &weights;
        bias -= biases;
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

/// `-log softmax(logits)[label]`; the logits become its derivative.
fn cross_entropy_in_place(logits: &mut [f64], label: usize) -> f64 {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let right = logits[label] - largest;
    let mut sum = 0.0;
    for logit in logits.iter_mut() {
        *logit = (*logit - largest).exp();
        sum += *logit;
    }
    for logit in logits.iter_mut() {
        *logit /= sum;
    }
    logits[label] -= 1.0;
    sum.ln() - right
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
