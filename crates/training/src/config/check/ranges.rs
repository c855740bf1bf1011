//! The checks of single numbers.

use crate::config::invalid::InvalidConfig;
use crate::config::root::Config;

impl Config {
    /// Checks the ranges of numbers, in all sections.
    pub(super) fn check_ranges(&self) -> Result<(), InvalidConfig> {
        let positive = [
            ("data.resolution", u64::from(self.data.resolution)),
            ("data.prefetch", self.data.prefetch as u64),
            ("train.steps", self.train.steps),
            ("train.batch_size", self.train.batch_size as u64),
            ("train.accumulation", self.train.accumulation as u64),
            ("train.log_every", self.train.log_every),
            ("train.checkpoint_every", self.train.checkpoint_every),
            ("train.keep_checkpoints", self.train.keep_checkpoints as u64),
            ("sample.batch_size", self.sample.batch_size as u64),
            (
                "sample.sampler.num_steps",
                self.sample.sampler.num_steps as u64,
            ),
        ];
        for (key, value) in positive {
            if value == 0 {
                return Err(InvalidConfig::new(key, value, "at least 1"));
            }
        }
        let ranges = [
            (
                "data.max_corrupt_share",
                self.data.max_corrupt_share,
                0.0,
                1.0,
            ),
            ("model.label_dropout", self.model.label_dropout, 0.0, 1.0),
            ("train.ema_decay", self.train.ema_decay, 0.0, 1.0),
            (
                "train.second_ema_decay",
                self.train.second_ema_decay.unwrap_or(0.0),
                0.0,
                1.0,
            ),
            (
                "optimizer.blr",
                self.optimizer.blr.unwrap_or(0.0),
                0.0,
                f64::MAX,
            ),
            ("optimizer.min_lr", self.optimizer.min_lr, 0.0, f64::MAX),
            ("optimizer.lr", self.optimizer.lr, 0.0, f64::MAX),
            (
                "optimizer.weight_decay",
                self.optimizer.weight_decay,
                0.0,
                f64::MAX,
            ),
            (
                "optimizer.max_grad_norm",
                self.optimizer.max_grad_norm,
                f64::MIN_POSITIVE,
                f64::MAX,
            ),
        ];
        for (key, value, low, high) in ranges {
            if !(low..=high).contains(&value) {
                let allowed = if high == f64::MAX {
                    "a finite number, not negative".to_owned()
                } else {
                    format!("{low} to {high}")
                };
                return Err(InvalidConfig::new(key, value, allowed));
            }
        }
        // With other values the first update divides by 0.
        let (beta1, beta2) = self.optimizer.betas;
        for (key, beta) in [("optimizer.betas[0]", beta1), ("optimizer.betas[1]", beta2)] {
            if !(0.0..1.0).contains(&(beta as f32)) {
                return Err(InvalidConfig::new(key, beta, "at least 0 and below 1"));
            }
        }
        let eps = self.optimizer.eps;
        if !(f64::from(f32::MIN_POSITIVE)..=f64::from(f32::MAX)).contains(&eps) {
            let allowed = "positive in float32, 1e-8 for example";
            return Err(InvalidConfig::new("optimizer.eps", eps, allowed));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn optimizer_settings_that_divide_by_zero_are_refused() {
        let refused = |betas, eps| {
            let mut config = Config::default();
            config.optimizer.betas = betas;
            config.optimizer.eps = eps;
            config.validate().err().map(|error| error.to_string())
        };
        assert_eq!(refused((0.0, 0.999), 1e-8), None);
        for (betas, eps, key) in [
            ((1.0, 0.999), 1e-8, "optimizer.betas[0]"),
            // In float32 this rounds to 1.
            ((0.9, 1.0 - 1e-9), 1e-8, "optimizer.betas[1]"),
            ((0.9, -0.1), 1e-8, "optimizer.betas[1]"),
            ((0.9, 0.999), 0.0, "optimizer.eps"),
            ((0.9, 0.999), 1e-50, "optimizer.eps"),
            ((0.9, 0.999), f64::NAN, "optimizer.eps"),
        ] {
            let error = refused(betas, eps).unwrap();
            assert!(error.contains(key), "{error}");
        }
    }
}
