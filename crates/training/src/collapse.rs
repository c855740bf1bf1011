//! Figures of a run that leave their own history: a training that has died without a NaN.
//!
//! Each figure is compared with its own values of the last [`WINDOW`] steps, by magnitude and in logarithms,
//! since figures differ by their factors. A value is outside where it exceeds the median by more than a
//! factor that grows with the spread (the median absolute deviation), where it exceeds the lowest median so
//! far by [`FAR`], or where the norm of a gradient falls below the median by [`VANISHED`]. Values outside do
//! not enter the history. A figure that is exactly zero for [`DEAD`] steps, and is not zero by its settings,
//! has died too.
//!
//! What is found depends on the figures alone, and its state goes into checkpoints: a resumed run finds what
//! an uninterrupted one does.

use std::collections::BTreeMap;
use std::fmt;

use tch::Tensor;

use crate::{StepMetrics, TrainError};

/// Values that a figure's history holds.
const WINDOW: usize = 64;
/// Values from which on their spread says something.
const SETTLED: usize = 16;
/// Spreads between the median and a value outside.
const SPREADS: f64 = 6.0;
/// The median absolute deviation of a normal distribution is so much of its standard deviation.
const NORMAL: f64 = 1.4826;
/// Factor over the lowest median, whatever the spread.
const FAR: f64 = 100.0;
/// Share of the median below which a gradient has vanished.
const VANISHED: f64 = 1e-4;
/// Steps at exactly zero.
const DEAD: u32 = 10;
/// Values outside, less those that are not, from which on it is a collapse and not a spike.
const LASTING: u32 = 5;

/// How a figure is judged.
struct Rule {
    /// Magnitudes below this are as good as this: they say nothing.
    floor: f64,
    /// Factor over the median that no figure of its kind exceeds by chance.
    factor: f64,
    /// Whether a fall counts.
    may_vanish: bool,
    /// Whether it may be zero from the start, by the settings of the run.
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
        // Sums of signed terms.
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
        // Logits, which move by some units in a sound training.
        "gan_loss" | "logits_real" | "logits_fake" => Rule { floor: 5.0, ..loss },
        "grad_norm" => Rule {
            may_be_off: false,
            ..norm
        },
        "autoencoder_grad_norm" | "discriminator_grad_norm" => norm,
        // The learning rate, the speed, and what is measured of samples.
        _ => return None,
    })
}

/// A figure outside of its history.
#[derive(Debug, Clone, PartialEq)]
pub struct Collapse {
    /// Its name in `metrics.jsonl`.
    pub figure: String,
    /// Its value.
    pub value: f64,
    /// The step of the value.
    pub step: u64,
    /// The first step of those outside.
    pub since: u64,
    /// Its usual magnitude; `None` for a figure that is zero.
    pub usual: Option<f64>,
}

impl fmt::Display for Collapse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            figure,
            value,
            step,
            since,
            usual,
        } = self;
        match usual {
            Some(usual) => write!(
                f,
                "{figure} is {value:.4e} at step {step}, about {usual:.4e} is usual"
            )?,
            None => write!(f, "{figure} is zero at step {step}")?,
        }
        if since < step {
            write!(f, " (since step {since})")?;
        }
        Ok(())
    }
}

/// The history of each figure.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CollapseWatch {
    histories: BTreeMap<String, History>,
}

#[derive(Debug, Clone, Default, PartialEq)]
struct History {
    /// Logarithms of magnitudes, the oldest first.
    values: Vec<f64>,
    /// The lowest median so far, a logarithm.
    lowest: Option<f64>,
    /// Steps at zero until now.
    zeros: u32,
    /// Values outside, less those inside since.
    outside: u32,
    /// The first step of those outside.
    since: Option<u64>,
    /// The last value, and its step.
    last: (f64, u64),
}

impl CollapseWatch {
    /// Takes the figures of a step. Returns those that have left their history with this step, the ones that
    /// were outside before not again.
    pub fn observe(&mut self, metrics: &StepMetrics) -> Vec<Collapse> {
        let mut begun = Vec::new();
        for (figure, value) in metrics.figures() {
            let Some(rule) = rule(figure) else { continue };
            let history = self.histories.entry(figure.to_owned()).or_default();
            let before = history.since;
            history.push(&rule, value, metrics.step);
            if before.is_none() {
                begun.extend(history.found(&rule, figure));
            }
        }
        begun
    }

    /// The figure that has been outside for longest, of those that stay outside, if any does: a collapse, not
    /// a spike.
    pub fn lasting(&self) -> Option<Collapse> {
        let lasting = self.histories.iter();
        let lasting = lasting.filter(|(_, history)| history.outside >= LASTING);
        let found = lasting.filter_map(|(figure, history)| history.found(&rule(figure)?, figure));
        found.min_by_key(|collapse| collapse.since)
    }

    /// The first step at which a figure left its history and has not come back; checkpoints before it are of a
    /// sound run.
    pub fn since(&self) -> Option<u64> {
        self.histories
            .values()
            .filter_map(|history| history.since)
            .min()
    }

    /// The state, to be restored with [`CollapseWatch::restore`].
    ///
    /// # Errors
    /// libtorch refused.
    pub(crate) fn state(&self) -> Result<Vec<(String, Tensor)>, TrainError> {
        let tensors = self.histories.iter().map(|(figure, history)| {
            let numbers = history.numbers();
            Ok((figure.clone(), Tensor::f_from_slice(&numbers)?))
        });
        tensors.collect()
    }

    /// As it was when `state` was taken; what is not of this version is left out.
    ///
    /// # Errors
    /// libtorch refused.
    pub(crate) fn restore(state: &[(String, Tensor)]) -> Result<Self, TrainError> {
        let mut histories = BTreeMap::new();
        for (figure, tensor) in state {
            let numbers = Vec::<f64>::try_from(tensor.f_to_kind(tch::Kind::Double)?)?;
            if let Some(history) = History::of_numbers(&numbers) {
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
            if was_on && self.zeros >= DEAD {
                self.outside = self.outside.max(LASTING);
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
        // A long collapse is over as soon as a short one.
        self.outside = self.outside.min(LASTING).saturating_sub(1);
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
        if level > lowest + FAR.ln() {
            return true;
        }
        if self.values.len() < SETTLED {
            return false;
        }
        let distances = self
            .values
            .iter()
            .map(|value| (value.max(floor) - median).abs());
        let spread = NORMAL * middle(distances.collect()).unwrap_or(0.0);
        if level > median + rule.factor.ln().max(SPREADS * spread) {
            return true;
        }
        let plain = self.median(f64::NEG_INFINITY);
        rule.may_vanish && plain.is_some_and(|plain| value < plain + VANISHED.ln())
    }

    /// The median of the values, none below `floor`.
    fn median(&self, floor: f64) -> Option<f64> {
        middle(self.values.iter().map(|value| value.max(floor)).collect())
    }

    /// The last value, if it or one shortly before it is outside.
    fn found(&self, rule: &Rule, figure: &str) -> Option<Collapse> {
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

    fn of_numbers(numbers: &[f64]) -> Option<Self> {
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

fn middle(mut values: Vec<f64>) -> Option<f64> {
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
    use crate::{AutoencoderMetrics, Quality};

    fn metrics(step: u64, denoising_loss: f64, grad_norm: f64) -> StepMetrics {
        StepMetrics {
            step,
            loss: 1.0,
            denoising_loss,
            alignment_loss: None,
            grad_norm,
            lr: 1e-4,
            autoencoder: None,
            quality: Quality::default(),
            corrupt_skipped: 0,
            steps_per_s: Some(step as f64),
        }
    }

    /// Numbers between 0 and 1 that look random.
    fn noise(step: u64) -> f64 {
        data::seed::derive(0, "noise", &[step]) as f64 / u64::MAX as f64
    }

    /// Steps, from 1, at which something was found.
    fn found(watch: &mut CollapseWatch, steps: &[StepMetrics]) -> Vec<Collapse> {
        steps.iter().flat_map(|step| watch.observe(step)).collect()
    }

    #[test]
    fn a_sound_training_is_left_alone() {
        // A loss that falls, gradients that rise from almost nothing, with spikes of an order.
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
    fn a_loss_that_is_heavy_tailed_has_wide_bounds() {
        // MeanFlow's raw error: a few times its median, now and then twenty times.
        let steps: Vec<StepMetrics> = (1..500)
            .map(|step| metrics(step, (3.0 * (noise(step) - 0.5)).exp(), 1.0))
            .collect();
        assert_eq!(found(&mut CollapseWatch::default(), &steps), []);
    }

    #[test]
    fn figures_far_outside_are_found_with_their_step_once() {
        // As seen: a gradient norm of 2,100 with SiT; a raw error of 2e7 with MeanFlow, whose loss stays at 1.
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
    fn a_spike_is_no_collapse_and_is_forgotten() {
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
        // Another one is news again.
        assert_eq!(watch.observe(&metrics(60, 0.8, 1e4)).len(), 1);
    }

    #[test]
    fn a_slow_rise_does_not_take_its_history_along() {
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
        // From the first step on.
        let mut watch = CollapseWatch::default();
        let steps: Vec<_> = (1..=20).map(|step| metrics(step, 0.8, 0.0)).collect();
        assert_eq!(found(&mut watch, &steps)[0].since, 1);
    }

    #[test]
    fn what_the_settings_switch_off_may_be_zero_but_not_a_discriminator_that_was_on() {
        let of = |step: u64, discriminator_loss: f64, kl_loss: f64| {
            let mut figures = [0.5; 11];
            (figures[2], figures[3], figures[6]) = (0.0, kl_loss, discriminator_loss);
            let autoencoder = Some(AutoencoderMetrics::new(figures));
            StepMetrics {
                autoencoder,
                ..metrics(step, 0.8, 1.0)
            }
        };
        let mut watch = CollapseWatch::default();
        // No perceptual loss, and a discriminator that starts late.
        let early: Vec<_> = (1..=50).map(|step| of(step, 0.0, 1e-4)).collect();
        let sound: Vec<_> = (51..=100).map(|step| of(step, 1.0, 1e-4)).collect();
        assert_eq!(found(&mut watch, &early), []);
        assert_eq!(found(&mut watch, &sound), []);
        let mut dead = watch.clone();
        let steps: Vec<_> = (101..=120).map(|step| of(step, 0.0, 1e-4)).collect();
        let all = found(&mut dead, &steps);
        assert_eq!(
            (&*all[0].figure, all[0].usual),
            ("discriminator_loss", None)
        );
        assert!(all[0].to_string().contains("is zero"), "{}", all[0]);
        // As seen: an autoencoder's divergence of 2e5.
        let all = watch.observe(&of(101, 1.0, 2e5));
        assert_eq!(all[0].figure, "kl_loss");
    }

    #[test]
    fn a_restored_watch_goes_on_as_if_nothing_had_been() {
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
