//! The learning rate as a function of the step.

use std::f64::consts::PI;

use crate::{Config, Schedule};

/// Linear warm-up, then a [`Schedule`].
///
/// ```
/// let mut config = training::Config::default();
/// config.optimizer.blr = Some(5e-5);
/// config.optimizer.warmup_steps = 10;
/// config.train.batch_size = 1024;
/// let rate = config.learning_rate();
/// assert_eq!(rate.at_step(5), 1e-4);
/// assert_eq!(rate.at_step(10), 2e-4);
/// assert_eq!(rate.at_step(1000), 2e-4);
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LearningRate {
    peak: f64,
    min: f64,
    warmup: u64,
    steps: u64,
    schedule: Schedule,
}

impl LearningRate {
    pub(crate) fn new(config: &Config) -> Self {
        let optimizer = &config.optimizer;
        let scaled = optimizer
            .blr
            .map(|blr| blr * config.train.batch_size as f64 / 256.0);
        Self {
            peak: scaled.unwrap_or(optimizer.lr),
            min: optimizer.min_lr,
            warmup: optimizer.warmup_steps,
            steps: config.train.steps,
            schedule: optimizer.schedule,
        }
    }

    /// Returns the same schedule with another rate after the warm-up.
    pub(crate) fn with_peak(self, peak: f64) -> Self {
        Self { peak, ..self }
    }

    /// Returns the rate of optimiser step `step`, counted from 1.
    pub fn at_step(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.peak * step as f64 / self.warmup as f64;
        }
        match self.schedule {
            Schedule::Constant => self.peak,
            Schedule::Cosine => {
                let past = (step - self.warmup) as f64;
                let whole = self.steps.saturating_sub(self.warmup).max(1) as f64;
                let share = (past / whole).min(1.0);
                self.min + (self.peak - self.min) * 0.5 * (1.0 + (PI * share).cos())
            }
        }
    }
}

impl Config {
    /// Returns the learning rate as a function of the step.
    pub fn learning_rate(&self) -> LearningRate {
        LearningRate::new(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(schedule: Schedule) -> LearningRate {
        LearningRate {
            peak: 2.0,
            min: 0.5,
            warmup: 4,
            steps: 104,
            schedule,
        }
    }

    #[test]
    fn a_constant_rate_rises_linearly_and_stays() {
        let rate = rate(Schedule::Constant);
        let found: Vec<f64> = [1, 2, 3, 4, 5, 10_000]
            .map(|step| rate.at_step(step))
            .to_vec();
        assert_eq!(found, [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]);
    }

    #[test]
    fn a_cosine_ends_at_the_minimum_rate_and_stays_there() {
        let rate = rate(Schedule::Cosine);
        assert_eq!((rate.at_step(2), rate.at_step(4)), (1.0, 2.0));
        assert!((rate.at_step(54) - 1.25).abs() < 1e-12);
        assert!((rate.at_step(29) - (0.5 + 1.5 * 0.5 * (1.0 + 0.5_f64.sqrt()))).abs() < 1e-12);
        assert_eq!((rate.at_step(104), rate.at_step(200)), (0.5, 0.5));
    }

    #[test]
    fn a_run_that_ends_with_its_warm_up_does_not_divide_by_zero() {
        let rate = LearningRate {
            steps: 4,
            ..rate(Schedule::Cosine)
        };
        assert_eq!(rate.at_step(4), 2.0);
        assert!(rate.at_step(5).is_finite());
    }
}
