//! The Inception score.

use ndarray::{ArrayView1, ArrayView2, Axis};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::mean_and_deviation;
use crate::MetricsError;

/// Into which parts the samples are cut; each has a score.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Splits {
    /// So many parts, part `i` from `floor(i N / splits)` (torch-fidelity: 10, after a shuffle).
    Count(usize),
    /// Parts of so many samples in order, the last one shorter (the evaluator of ADM: 5000).
    Size(usize),
}

impl Splits {
    /// What the evaluator of ADM uses, and with it upstream.
    pub const ADM: Self = Self::Size(5000);
}

/// Mean and deviation over parts of the samples.
#[derive(Debug, Clone, PartialEq)]
pub struct InceptionScore {
    /// Mean of the parts' scores, from 1 to the number of classes.
    pub mean: f64,
    /// Population standard deviation of the parts' scores.
    pub deviation: f64,
    /// The score of each part.
    pub parts: Vec<f64>,
    /// What the same samples give in a random order; `None` for one part, whose score no order changes.
    pub shuffled: Option<Shuffled>,
}

/// The Inception score of samples in a random order.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shuffled {
    /// Mean over parts.
    pub mean: f64,
    /// How far the mean of one random order is from that: its standard error.
    pub error: f64,
}

impl InceptionScore {
    /// Whether the samples are in an order that makes the score too low, as samples sorted by class are: each
    /// part then has few of the classes. Too low by more than 5 % and by more than 5 standard errors.
    pub fn is_of_sorted_samples(&self) -> bool {
        self.shuffled.is_some_and(|shuffled| {
            let missing = shuffled.mean - self.mean;
            missing > 0.05 * shuffled.mean && missing > 5.0 * shuffled.error
        })
    }
}

/// Inception score of logits `[N, C]` (Salimans et al. 2016, arXiv 1606.03498): for each part
/// `exp(mean_n KL(p_n | mean_n p_n))` with `p = softmax(logits)` in float64.
///
/// Rows are taken in their order: whoever wants them shuffled shuffles them before. What that would give is
/// [`shuffled`](InceptionScore::shuffled).
///
/// # Errors
///
/// As [`InceptionScores`].
pub fn inception_score(
    logits: ArrayView2<'_, f32>,
    splits: Splits,
) -> Result<InceptionScore, MetricsError> {
    let total = logits.nrows();
    let mut scores = InceptionScores::new(logits.ncols(), splits, total)?;
    scores.push(logits)?;
    scores.finish()
}

/// The [`inception_score`] of logits that come batch by batch; keeps `C` numbers for each part.
///
/// The bits of the score do not depend on how the samples were cut into batches.
#[derive(Debug, Clone)]
pub struct InceptionScores {
    ends: Vec<usize>,
    seen: usize,
    parts: Vec<f64>,
    part: Part,
    shuffles: Vec<Shuffle>,
}

/// Parts of samples in a random order.
#[derive(Debug, Clone)]
struct Shuffle {
    /// The part of each sample.
    part_of: Vec<u32>,
    parts: Vec<Part>,
}

/// Parts of samples in random order: as many as tell how much their scores differ by chance.
const RANDOM_PARTS: usize = 16;

/// Sums over the samples of a part.
#[derive(Debug, Clone)]
struct Part {
    count: usize,
    /// `sum_n p_nc` `[C]`.
    probabilities: Vec<f64>,
    /// `sum_n sum_c p_nc log p_nc`.
    negative_entropy: f64,
}

impl InceptionScores {
    /// Nothing yet, of `total` samples with `classes` logits each.
    ///
    /// # Errors
    ///
    /// [`MetricsError::TooFew`] without classes, or with fewer samples than parts;
    /// [`MetricsError::OutOfRange`] for no part or parts of no sample.
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
            parts => RANDOM_PARTS.div_ceil(parts),
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
    /// [`MetricsError::Shape`] for another number of classes or for more samples than were said,
    /// [`MetricsError::NonFinite`]; the state then remains as it was.
    pub fn push(&mut self, logits: ArrayView2<'_, f32>) -> Result<(), MetricsError> {
        let (count, classes) = logits.dim();
        let left = self.total() - self.seen;
        if classes != self.part.probabilities.len() || count > left {
            return Err(MetricsError::Shape {
                what: "the batch of logits",
                found: vec![count, classes],
                expected: vec![count.min(left), self.part.probabilities.len()],
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

    /// The score of all samples.
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

    /// The score of the samples so far, and a fresh start.
    fn take_score(&mut self) -> f64 {
        let classes = self.probabilities.len();
        let part = std::mem::replace(self, Self::new(classes));
        let count = part.count as f64;
        // mean_n sum_c p log q is sum_c q log q, q the mean.
        let of_mean: f64 = part
            .probabilities
            .iter()
            .map(|sum| sum / count)
            .filter(|&q| q > 0.0)
            .map(|q| q * q.ln())
            .sum();
        (part.negative_entropy / count - of_mean).exp()
    }
}

/// Probabilities, and `sum_c p log p`.
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
