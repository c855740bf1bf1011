//! Detects a training that has collapsed without a NaN: its figures leave the range of their own history.
//!
//! Each figure is compared with its own values of the last [`WINDOW`] steps, by the logarithm of its
//! magnitude. A value is outside its history in three cases: it exceeds the median by a factor that grows
//! with the spread (the median absolute deviation); it exceeds the lowest median so far by the factor
//! [`FAR_FACTOR`]; or a gradient norm falls below [`VANISHED_SHARE`] of the median. Values outside are not
//! added to the history. A figure that is exactly zero for [`DEAD_STEPS`] steps, and not because of the
//! run's settings, counts as outside too.
//!
//! The result depends only on the figures, and the state is saved in checkpoints, so a resumed run finds the
//! same collapses as an uninterrupted one.

use std::collections::BTreeMap;

use tch::Tensor;

use crate::{Collapse, StepMetrics, TrainError};

/// Number of values in a figure's history.
const WINDOW: usize = 64;
/// Smallest number of values whose spread is meaningful.
const MIN_FOR_SPREAD: usize = 16;
/// Distance from the median, in spreads, beyond which a value is outside.
const SPREADS: f64 = 6.0;
/// Standard deviation of a normal distribution, in units of its median absolute deviation.
const STD_PER_MAD: f64 = 1.4826;
/// Factor over the lowest median beyond which a value is outside, whatever the spread.
const FAR_FACTOR: f64 = 100.0;
/// Share of the median below which a gradient has vanished.
const VANISHED_SHARE: f64 = 1e-4;
/// Number of consecutive steps at exactly zero after which a figure counts as outside.
const DEAD_STEPS: u32 = 10;
/// Number of values outside, minus the later values inside, from which on a figure has collapsed and is not
/// just a spike.
const COLLAPSE_COUNT: u32 = 5;

/// The limits for one kind of figure.
struct Rule {
    /// Magnitudes below this are treated as equal to it.
    floor: f64,
    /// Factor over the median that a figure of this kind does not exceed by chance.
    factor: f64,
    /// Whether a fall to nearly zero counts as outside.
    may_vanish: bool,
    /// Whether the run's settings may keep the figure at zero from the start.
    may_be_off: bool,
}

fn rule(figure: &str) -> Option<Rule> {
    let loss = Rule {
        floor: 0.1,
        factor: 10.0,
        may_vanish: false,
        may_be_off: true,
    };
    let norm = Rule {
        floor: 1.0,
        factor: 30.0,
        may_vanish: true,
        ..loss
    };
    Some(match figure {
        "denoising_loss" => Rule {
            may_be_off: false,
            ..loss
        },
        // These losses are sums of signed terms.
        "loss" => Rule {
            floor: 1.0,
            may_be_off: false,
            ..loss
        },
        "alignment_loss"
        | "autoencoder_loss"
        | "autoencoder_alignment_loss"
        | "discriminator_loss" => Rule { floor: 1.0, ..loss },
        "reconstruction_loss" | "perceptual_loss" | "kl_loss" => loss,
        // Logits, which move by several units in a healthy training.
        "gan_loss" | "logits_real" | "logits_fake" => Rule { floor: 5.0, ..loss },
        "grad_norm" => Rule {
            may_be_off: false,
            ..norm
        },
        "autoencoder_grad_norm" | "discriminator_grad_norm" => norm,
        // Learning rate, speed and sample quality are not watched.
        _ => return None,
    })
}

/// Watches the figures of a run for a collapse.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CollapseWatch {
    histories: BTreeMap<String, History>,
}

#[derive(Debug, Clone, Default, PartialEq)]
struct History {
    /// Logarithms of magnitudes, oldest first.
    values: Vec<f64>,
    /// The lowest median so far, as a logarithm.
    lowest: Option<f64>,
    /// Number of consecutive steps at zero up to now.
    zeros: u32,
    /// Number of values outside, minus the later values inside.
    outside: u32,
    /// The first step at which the figure was outside.
    since: Option<u64>,
    /// The last value, and its step.
    last: (f64, u64),
}

impl CollapseWatch {
    /// Records the figures of a step. Returns the figures that leave their history at this step, without those
    /// that were already outside.
    pub fn observe(&mut self, metrics: &StepMetrics) -> Vec<Collapse> {
        let mut newly_outside = Vec::new();
        for (figure, value) in metrics.figures.iter() {
            let figure = figure.name();
            let Some(rule) = rule(figure) else { continue };
            let history = self.histories.entry(figure.to_owned()).or_default();
            let was_inside = history.since.is_none();
            history.push(&rule, value, metrics.step);
            if was_inside {
                newly_outside.extend(history.collapse(&rule, figure));
            }
        }
        newly_outside
    }

    /// Returns the figure that has been outside for the longest time, among those that have collapsed and do
    /// not just have a spike. `None` if no figure has collapsed.
    pub fn lasting(&self) -> Option<Collapse> {
        let histories = self.histories.iter();
        let lasting = histories.filter(|(_, history)| history.outside >= COLLAPSE_COUNT);
        let collapses =
            lasting.filter_map(|(figure, history)| history.collapse(&rule(figure)?, figure));
        collapses.min_by_key(|collapse| collapse.since)
    }

    /// Returns the first step at which a figure left its history without a return. Checkpoints of earlier
    /// steps are good.
    pub fn since(&self) -> Option<u64> {
        self.histories
            .values()
            .filter_map(|history| history.since)
            .min()
    }

    /// Returns the state, from which [`CollapseWatch::restore`] restores the watch.
    ///
    /// # Errors
    /// A libtorch operation failed.
    pub(crate) fn state(&self) -> Result<Vec<(String, Tensor)>, TrainError> {
        let tensors = self.histories.iter().map(|(figure, history)| {
            let numbers = history.numbers();
            Ok((figure.clone(), Tensor::f_from_slice(&numbers)?))
        });
        tensors.collect()
    }

    /// Restores a watch from its `state`. Entries with another layout are ignored.
    ///
    /// # Errors
    /// A libtorch operation failed.
    pub(crate) fn restore(state: &[(String, Tensor)]) -> Result<Self, TrainError> {
        let mut histories = BTreeMap::new();
        for (figure, tensor) in state {
            let numbers = Vec::<f64>::try_from(tensor.f_to_kind(tch::Kind::Double)?)?;
            if let Some(history) = History::from_numbers(&numbers) {
                histories.insert(figure.clone(), history);
            }
        }
        Ok(Self { histories })
    }
}

impl History {
    fn push(&mut self, rule: &Rule, value: f64, step: u64) {
        self.last = (value, step);
        let magnitude = value.abs();
        if magnitude == 0.0 {
            self.zeros = self.zeros.saturating_add(1);
            let was_on = !self.values.is_empty() || !rule.may_be_off;
            if was_on && self.zeros >= DEAD_STEPS {
                self.outside = self.outside.max(COLLAPSE_COUNT);
                self.since
                    .get_or_insert((step + 1).saturating_sub(u64::from(self.zeros)));
            }
            return;
        }
        self.zeros = 0;
        if self.is_outside(rule, magnitude.ln()) {
            self.outside = self.outside.saturating_add(1);
            self.since.get_or_insert(step);
            return;
        }
        // The count is limited, so that the end of a long collapse is detected as soon as that of a short one.
        self.outside = self.outside.min(COLLAPSE_COUNT).saturating_sub(1);
        if self.outside == 0 {
            self.since = None;
        }
        self.values.push(magnitude.ln());
        if self.values.len() > WINDOW {
            self.values.remove(0);
        }
        let floored = self.median(rule.floor.ln());
        self.lowest = match (self.lowest, floored) {
            (Some(lowest), Some(median)) => Some(lowest.min(median)),
            (lowest, median) => lowest.or(median),
        };
    }

    fn is_outside(&self, rule: &Rule, value: f64) -> bool {
        let floor = rule.floor.ln();
        let (Some(median), Some(lowest)) = (self.median(floor), self.lowest) else {
            return false;
        };
        let level = value.max(floor);
        if level > lowest + FAR_FACTOR.ln() {
            return true;
        }
        if self.values.len() < MIN_FOR_SPREAD {
            return false;
        }
        let distances = self
            .values
            .iter()
            .map(|value| (value.max(floor) - median).abs());
        let spread = STD_PER_MAD * median_of(distances.collect()).unwrap_or(0.0);
        if level > median + rule.factor.ln().max(SPREADS * spread) {
            return true;
        }
        let unfloored = self.median(f64::NEG_INFINITY);
        rule.may_vanish && unfloored.is_some_and(|median| value < median + VANISHED_SHARE.ln())
    }

    /// Returns the median of the values, each raised to at least `floor`.
    fn median(&self, floor: f64) -> Option<f64> {
        median_of(self.values.iter().map(|value| value.max(floor)).collect())
    }

    /// Returns the last value as a [`Collapse`], if the figure is outside since it or an earlier step.
    fn collapse(&self, rule: &Rule, figure: &str) -> Option<Collapse> {
        let (value, step) = self.last;
        let floor = match value.abs() < rule.floor {
            true => f64::NEG_INFINITY,
            false => rule.floor.ln(),
        };
        Some(Collapse {
            figure: figure.to_owned(),
            value,
            step,
            since: self.since?,
            usual: self.median(floor).filter(|_| value != 0.0).map(f64::exp),
        })
    }

    fn numbers(&self) -> Vec<f64> {
        let (value, step) = self.last;
        // Steps are far below 2^53.
        let head = [
            f64::from(self.zeros),
            f64::from(self.outside),
            self.since.map_or(-1.0, |step| step as f64),
            self.lowest.unwrap_or(f64::NAN),
            value,
            step as f64,
        ];
        [head.as_slice(), &self.values].concat()
    }

    fn from_numbers(numbers: &[f64]) -> Option<Self> {
        let (&[zeros, outside, since, lowest, value, step], values) =
            numbers.split_first_chunk::<6>()?;
        Some(Self {
            values: values.to_vec(),
            lowest: (!lowest.is_nan()).then_some(lowest),
            zeros: zeros as u32,
            outside: outside as u32,
            since: (since >= 0.0).then_some(since as u64),
            last: (value, step as u64),
        })
    }
}

fn median_of(mut values: Vec<f64>) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    let half = values.len() / 2;
    let upper = *values.get(half)?;
    match values.len() % 2 {
        1 => Some(upper),
        _ => Some(0.5 * (upper + values.get(half.wrapping_sub(1))?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::metrics::figures::{Figure, Figures, Kind};

    fn metrics(step: u64, denoising_loss: f64, grad_norm: f64) -> StepMetrics {
        StepMetrics {
            step,
            figures: Figures::from([
                (Figure::Loss, 1.0),
                (Figure::DenoisingLoss, denoising_loss),
                (Figure::GradNorm, grad_norm),
                (Figure::LearningRate, 1e-4),
                (Figure::StepsPerSecond, step as f64),
            ]),
        }
    }

    /// A pseudo-random number between 0 and 1.
    fn noise(step: u64) -> f64 {
        data::seed::derive(0, "noise", &[step]) as f64 / u64::MAX as f64
    }

    /// Observes `steps` and returns all figures that left their history.
    fn found(watch: &mut CollapseWatch, steps: &[StepMetrics]) -> Vec<Collapse> {
        steps.iter().flat_map(|step| watch.observe(step)).collect()
    }

    #[test]
    fn a_healthy_training_has_no_collapse() {
        // The loss falls; the gradient norm rises from almost zero, with spikes of almost a factor of 10.
        let steps: Vec<StepMetrics> = (1..3000)
            .map(|step| {
                let loss = 2.0 / (1.0 + step as f64 / 50.0) + 0.3 + 0.2 * noise(step);
                let rise = 0.02 + 2.0 * (1.0 - (-(step as f64) / 30.0).exp());
                let spike = if step % 97 == 0 { 8.0 } else { 1.0 };
                metrics(step, loss, rise * spike * (0.5 + noise(step + 9999)))
            })
            .collect();
        let mut watch = CollapseWatch::default();
        assert_eq!(found(&mut watch, &steps), []);
        assert_eq!(watch.since(), None);
    }

    #[test]
    fn a_heavy_tailed_loss_has_wide_bounds() {
        // Like MeanFlow's raw error, which varies by large factors.
        let steps: Vec<StepMetrics> = (1..500)
            .map(|step| metrics(step, (3.0 * (noise(step) - 0.5)).exp(), 1.0))
            .collect();
        assert_eq!(found(&mut CollapseWatch::default(), &steps), []);
    }

    #[test]
    fn figures_far_outside_are_reported_once_with_their_step() {
        // Values of real runs: a gradient norm of 2,100 with SiT; a raw error of 2e7 with MeanFlow, whose
        // loss stays at 1.
        for (loss, norm, figure) in [(0.8, 2100.0, "grad_norm"), (2e7, 1.0, "denoising_loss")] {
            for healthy in [1, 5, 40, 300] {
                let mut watch = CollapseWatch::default();
                let before: Vec<_> = (1..=healthy)
                    .map(|step| metrics(step, 0.8 + 0.1 * noise(step), 1.0))
                    .collect();
                assert_eq!(found(&mut watch, &before), []);

                let after: Vec<_> = (healthy + 1..=healthy + 30)
                    .map(|step| metrics(step, loss, norm))
                    .collect();
                let all = found(&mut watch, &after);
                assert_eq!(all.len(), 1, "{all:?}");
                assert_eq!((&*all[0].figure, all[0].since), (figure, healthy + 1));
                assert!(all[0].usual.unwrap() < 2.0, "{all:?}");
                assert_eq!(watch.since(), Some(healthy + 1));
                let lasting = watch.lasting().unwrap();
                assert_eq!((&*lasting.figure, lasting.since), (figure, healthy + 1));
                let text = lasting.to_string();
                assert!(
                    text.contains(figure) && text.contains(&format!("since step {}", healthy + 1)),
                    "{text}"
                );
            }
        }
    }

    #[test]
    fn a_spike_is_not_a_collapse_and_is_forgotten() {
        let mut watch = CollapseWatch::default();
        let steps = |range: std::ops::Range<u64>| {
            range
                .map(|step| metrics(step, 0.8, 1.0))
                .collect::<Vec<_>>()
        };
        assert_eq!(found(&mut watch, &steps(1..50)), []);
        let spike = metrics(50, 0.8, 1e4);
        assert_eq!(watch.observe(&spike).len(), 1);
        assert_eq!(watch.lasting(), None);
        assert_eq!(found(&mut watch, &steps(51..60)), []);
        assert_eq!(watch.since(), None);
        // A second spike is reported again.
        assert_eq!(watch.observe(&metrics(60, 0.8, 1e4)).len(), 1);
    }

    #[test]
    fn a_slow_rise_is_found() {
        let mut watch = CollapseWatch::default();
        let steps: Vec<_> = (1..4000)
            .map(|step| metrics(step, 0.8, (step as f64 / 300.0).exp()))
            .collect();
        let all = found(&mut watch, &steps);
        assert_eq!(all.len(), 1, "{all:?}");
        assert!(watch.lasting().is_some());
    }

    #[test]
    fn a_gradient_that_vanishes_or_is_zero_is_found() {
        for (norm, from) in [(1e-7, 31), (0.0, 31)] {
            let mut watch = CollapseWatch::default();
            let steps: Vec<_> = (1..=60)
                .map(|step| metrics(step, 0.8, if step > 30 { norm } else { 1.0 }))
                .collect();
            let all = found(&mut watch, &steps);
            assert_eq!(all.len(), 1, "{all:?}");
            assert_eq!((&*all[0].figure, all[0].since), ("grad_norm", from));
            assert!(watch.lasting().is_some());
        }
        // A gradient that is zero from the first step on.
        let mut watch = CollapseWatch::default();
        let steps: Vec<_> = (1..=20).map(|step| metrics(step, 0.8, 0.0)).collect();
        assert_eq!(found(&mut watch, &steps)[0].since, 1);
    }

    #[test]
    fn disabled_losses_may_be_zero_but_a_discriminator_may_not_become_zero() {
        let autoencoder_metrics = |step: u64, discriminator_loss: f64, kl_loss: f64| {
            let mut line = metrics(step, 0.8, 1.0);
            let autoencoder = Figure::of_kind(Kind::Autoencoder).map(|figure| (figure, 0.5));
            line.figures.extend(autoencoder);
            line.figures.extend([
                (Figure::PerceptualLoss, 0.0),
                (Figure::KlLoss, kl_loss),
                (Figure::DiscriminatorLoss, discriminator_loss),
            ]);
            line
        };
        let mut watch = CollapseWatch::default();
        // The perceptual loss is disabled, and the discriminator starts late.
        let early: Vec<_> = (1..=50)
            .map(|step| autoencoder_metrics(step, 0.0, 1e-4))
            .collect();
        let healthy: Vec<_> = (51..=100)
            .map(|step| autoencoder_metrics(step, 1.0, 1e-4))
            .collect();
        assert_eq!(found(&mut watch, &early), []);
        assert_eq!(found(&mut watch, &healthy), []);
        let mut dead = watch.clone();
        let steps: Vec<_> = (101..=120)
            .map(|step| autoencoder_metrics(step, 0.0, 1e-4))
            .collect();
        let all = found(&mut dead, &steps);
        assert_eq!(
            (&*all[0].figure, all[0].usual),
            ("discriminator_loss", None)
        );
        assert!(all[0].to_string().contains("is zero"), "{}", all[0]);
        // A value of a real run: a KL divergence of 2e5.
        let all = watch.observe(&autoencoder_metrics(101, 1.0, 2e5));
        assert_eq!(all[0].figure, "kl_loss");
    }

    #[test]
    fn a_restored_watch_continues_like_an_uninterrupted_one() {
        let figures = |step: u64| {
            let collapsed = step > 70;
            metrics(
                step,
                0.8 + noise(step),
                if collapsed { 1e5 } else { 0.5 + noise(step) },
            )
        };
        for stop in [0, 1, 10, 69, 72, 90] {
            let mut whole = CollapseWatch::default();
            let mut first = CollapseWatch::default();
            let (mut all, mut parts) = (Vec::new(), Vec::new());
            for step in 1..=100 {
                all.extend(whole.observe(&figures(step)));
                parts.extend(first.observe(&figures(step)));
                if step == stop {
                    first = CollapseWatch::restore(&first.state().unwrap()).unwrap();
                }
            }
            assert_eq!(first, whole, "{stop}");
            assert_eq!(parts, all);
            assert_eq!(all.len(), 1);
        }
    }
}
