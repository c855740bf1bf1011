//! The Inception score.

use ndarray::{ArrayView1, ArrayView2, Axis};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::mean_and_deviation;
use crate::MetricsError;

/// Division of the samples into parts, each with a score of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Splits {
    /// Number of parts; part `i` starts at `floor(i N / splits)` (torch-fidelity: 10, after a shuffle).
    Count(usize),
    /// Number of consecutive samples per part; the last part may be shorter (ADM's evaluator: 5000).
    Size(usize),
}

impl Splits {
    /// The division that ADM's evaluator uses, and upstream with it.
    pub const ADM: Self = Self::Size(5000);
}

/// Mean and standard deviation of the Inception score over parts of the samples.
#[derive(Debug, Clone, PartialEq)]
pub struct InceptionScore {
    /// Mean of the parts' scores, between 1 and the number of classes.
    pub mean: f64,
    /// Population standard deviation of the parts' scores.
    pub deviation: f64,
    /// The score of each part.
    pub parts: Vec<f64>,
    /// Score of the same samples in a random order; `None` for a single part, whose score does not depend on
    /// the order.
    pub shuffled: Option<Shuffled>,
}

/// The Inception score of samples in a random order.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shuffled {
    /// Mean over parts.
    pub mean: f64,
    /// Standard error of the mean of one random order.
    pub error: f64,
}

impl InceptionScore {
    /// Whether the order of the samples makes the score too low, by more than 5 % and by more than 5 standard
    /// errors. This happens for samples sorted by class, because each part then contains few classes.
    pub fn is_biased_by_order(&self) -> bool {
        self.shuffled.is_some_and(|shuffled| {
            let bias = shuffled.mean - self.mean;
            bias > 0.05 * shuffled.mean && bias > 5.0 * shuffled.error
        })
    }
}

/// Computes the Inception score of logits `[N, C]` (Salimans et al. 2016, arXiv 1606.03498): for each part
/// `exp(mean_n KL(p_n | mean_n p_n))` with `p = softmax(logits)` in float64.
///
/// Rows are used in their order. The caller can shuffle them before; [`shuffled`](InceptionScore::shuffled)
/// is an estimate of the score after that.
///
/// # Errors
///
/// Those of the methods of [`InceptionScores`].
pub fn inception_score(
    logits: ArrayView2<'_, f32>,
    splits: Splits,
) -> Result<InceptionScore, MetricsError> {
    let total = logits.nrows();
    let mut scores = InceptionScores::new(logits.ncols(), splits, total)?;
    scores.push(logits)?;
    scores.finish()
}

/// Computes the [`inception_score`] from batches of logits; stores `C` values for each part.
///
/// The bits of the score do not depend on the division into batches.
#[derive(Debug, Clone)]
pub struct InceptionScores {
    ends: Vec<usize>,
    seen: usize,
    parts: Vec<f64>,
    part: Part,
    shuffles: Vec<Shuffle>,
}

/// The parts of the samples in one random order.
#[derive(Debug, Clone)]
struct Shuffle {
    /// Index of the part of each sample.
    part_of: Vec<u32>,
    parts: Vec<Part>,
}

/// Minimum number of parts in random order, enough to estimate the random variation of their scores.
const MIN_RANDOM_PARTS: usize = 16;

/// Sums over the samples of one part.
#[derive(Debug, Clone)]
struct Part {
    count: usize,
    /// `sum_n p_nc` `[C]`.
    probabilities: Vec<f64>,
    /// `sum_n sum_c p_nc log p_nc`.
    negative_entropy: f64,
}

impl InceptionScores {
    /// Creates an empty accumulator for `total` samples with `classes` logits each.
    ///
    /// # Errors
    ///
    /// [`MetricsError::TooFew`] without classes, or with fewer samples than parts;
    /// [`MetricsError::OutOfRange`] for zero parts or zero samples per part.
    pub fn new(classes: usize, splits: Splits, total: usize) -> Result<Self, MetricsError> {
        let too_few = |unit, found, needed| MetricsError::TooFew {
            what: "the Inception score's input",
            unit,
            found,
            needed,
        };
        if classes == 0 {
            return Err(too_few("classes", 0, 1));
        }
        let ends: Vec<usize> = match splits {
            Splits::Count(0) | Splits::Size(0) => {
                return Err(MetricsError::OutOfRange {
                    what: "the number or size of the Inception score's splits",
                    found: 0.0,
                    allowed: "1 or more",
                });
            }
            Splits::Count(count) => (1..=count).map(|i| i * total / count).collect(),
            Splits::Size(size) => (1..=total.div_ceil(size))
                .map(|i| (i * size).min(total))
                .collect(),
        };
        let needed = ends.len().max(1);
        if total < needed {
            return Err(too_few("samples", total, needed));
        }
        let orders = match ends.len() {
            0 | 1 => 0,
            parts => MIN_RANDOM_PARTS.div_ceil(parts),
        };
        let shuffles = (0..orders as u64).map(|seed| Shuffle::new(seed, &ends, classes));
        Ok(Self {
            shuffles: shuffles.collect(),
            ends,
            seen: 0,
            parts: Vec::new(),
            part: Part::new(classes),
        })
    }

    /// Adds the logits `[N, C]` of the next samples.
    ///
    /// # Errors
    ///
    /// [`MetricsError::Shape`] for another number of classes or for more samples than declared,
    /// [`MetricsError::NonFinite`]; the state is then unchanged.
    pub fn push(&mut self, logits: ArrayView2<'_, f32>) -> Result<(), MetricsError> {
        let (count, classes) = logits.dim();
        let remaining = self.total() - self.seen;
        if classes != self.part.probabilities.len() || count > remaining {
            return Err(MetricsError::Shape {
                what: "the batch of logits",
                found: vec![count, classes],
                expected: vec![count.min(remaining), self.part.probabilities.len()],
            });
        }
        super::moments::check_finite(logits)?;
        let softmax: Vec<(Vec<f64>, f64)> = logits
            .axis_iter(Axis(0))
            .into_par_iter()
            .map(softmax)
            .collect();
        for (probabilities, negative_entropy) in softmax {
            self.part.add(&probabilities, negative_entropy);
            for shuffle in &mut self.shuffles {
                shuffle.add(self.seen, &probabilities, negative_entropy);
            }
            self.seen += 1;
            if self.ends.get(self.parts.len()) == Some(&self.seen) {
                self.parts.push(self.part.take_score());
            }
        }
        Ok(())
    }

    /// Returns the score of all samples.
    ///
    /// # Errors
    ///
    /// [`MetricsError::TooFew`] if not all samples were pushed.
    pub fn finish(self) -> Result<InceptionScore, MetricsError> {
        if self.seen < self.total() {
            return Err(MetricsError::TooFew {
                what: "the Inception score's input",
                unit: "samples",
                found: self.seen,
                needed: self.total(),
            });
        }
        let (mean, deviation) = mean_and_deviation(&self.parts);
        let parts = self.shuffles.into_iter().flat_map(|shuffle| shuffle.parts);
        let random: Vec<f64> = parts.map(|mut part| part.take_score()).collect();
        let shuffled = (!random.is_empty()).then(|| {
            let (mean, deviation) = mean_and_deviation(&random);
            Shuffled {
                mean,
                error: deviation / (self.parts.len() as f64).sqrt(),
            }
        });
        Ok(InceptionScore {
            mean,
            deviation,
            parts: self.parts,
            shuffled,
        })
    }

    fn total(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }
}

impl Shuffle {
    fn new(seed: u64, ends: &[usize], classes: usize) -> Self {
        let mut part_of = Vec::with_capacity(ends.last().copied().unwrap_or(0));
        for (part, &end) in (0..).zip(ends) {
            part_of.resize(end, part);
        }
        part_of.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
        Self {
            part_of,
            parts: vec![Part::new(classes); ends.len()],
        }
    }

    fn add(&mut self, sample: usize, probabilities: &[f64], negative_entropy: f64) {
        let part = self.part_of.get(sample).map(|&part| part as usize);
        if let Some(part) = part.and_then(|part| self.parts.get_mut(part)) {
            part.add(probabilities, negative_entropy);
        }
    }
}

impl Part {
    fn new(classes: usize) -> Self {
        Self {
            count: 0,
            probabilities: vec![0.0; classes],
            negative_entropy: 0.0,
        }
    }

    fn add(&mut self, probabilities: &[f64], negative_entropy: f64) {
        self.count += 1;
        self.negative_entropy += negative_entropy;
        for (sum, p) in self.probabilities.iter_mut().zip(probabilities) {
            *sum += p;
        }
    }

    /// Returns the score of the samples so far and resets the part.
    fn take_score(&mut self) -> f64 {
        let classes = self.probabilities.len();
        let part = std::mem::replace(self, Self::new(classes));
        let count = part.count as f64;
        // mean_n sum_c p log q = sum_c q log q for the mean q.
        let negative_entropy_of_mean: f64 = part
            .probabilities
            .iter()
            .map(|sum| sum / count)
            .filter(|&q| q > 0.0)
            .map(|q| q * q.ln())
            .sum();
        (part.negative_entropy / count - negative_entropy_of_mean).exp()
    }
}

/// Returns the probabilities `p` and `sum_c p_c log p_c`.
fn softmax(logits: ArrayView1<'_, f32>) -> (Vec<f64>, f64) {
    let largest = logits
        .iter()
        .fold(f64::NEG_INFINITY, |largest, &x| largest.max(f64::from(x)));
    let mut values: Vec<f64> = logits.iter().map(|&x| f64::from(x) - largest).collect();
    let log_sum = values.iter().map(|x| x.exp()).sum::<f64>().ln();
    let mut negative_entropy = 0.0;
    for value in &mut values {
        let log_p = *value - log_sum;
        *value = log_p.exp();
        negative_entropy += *value * log_p;
    }
    (values, negative_entropy)
}
