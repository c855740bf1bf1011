//! The check of guidance.

use crate::config::invalid::InvalidConfig;
use crate::config::objective::Objective;
use crate::config::root::Config;

impl Config {
    /// Checks that guidance has the null class that it needs. Only label dropout trains the null class, whether or
    /// not the network has an embedding for it.
    pub(crate) fn check_guidance(&self) -> Result<(), InvalidConfig> {
        let sampler = &self.sample.sampler;
        if matches!(self.objective, Objective::Meanflow(_))
            && (sampler.guidance_low, sampler.guidance_high) != (0.0, 1.0)
        {
            return Err(InvalidConfig {
                key: "sample.sampler.guidance_low",
                reason: format!(
                    "and guidance_high are {} and {}, but MeanFlow's sampler applies guidance at all times: \
                     they must be 0 and 1",
                    sampler.guidance_low, sampler.guidance_high
                ),
            });
        }
        if self.model.label_dropout > 0.0 {
            return Ok(());
        }
        let without = |setting: String, instead: &str| InvalidConfig {
            key: "model.label_dropout",
            reason: format!(
                "is 0, but {setting}: guidance needs the null class, which only label dropout trains; set {instead}, \
                 or train with label dropout (0.1 in the paper)"
            ),
        };
        if sampler.cfg_scale > 1.0 {
            return Err(without(
                format!("sample.sampler.cfg_scale is {}", sampler.cfg_scale),
                "sample.sampler.cfg_scale = 1",
            ));
        }
        match &self.objective {
            Objective::Meanflow(meanflow) if meanflow.trains_with_guidance() => Err(without(
                format!(
                    "objective.cfg_omega is {} and objective.cfg_kappa is {}",
                    meanflow.cfg_omega, meanflow.cfg_kappa
                ),
                "objective.cfg_omega = 1 and objective.cfg_kappa = 0",
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use diffusion::samplers::Method;

    use super::*;
    use crate::{Autoencoder, KlSettings};

    fn refused(change: impl FnOnce(&mut Config)) -> Option<String> {
        let mut config = Config::default();
        change(&mut config);
        config.validate().err().map(|error| error.to_string())
    }

    #[test]
    fn guidance_without_label_dropout_is_refused_for_every_objective() {
        let variant = |objective: &Objective| {
            let mut config = Config {
                objective: objective.clone(),
                ..Config::default()
            };
            config.sample.sampler.method = Method::Euler;
            match objective {
                Objective::XPrediction(_) => config.model.name = "JiT-B/16".to_owned(),
                Objective::RepaE(_) => {
                    config.model.autoencoder = Autoencoder::Kl(KlSettings {
                        train: true,
                        ..KlSettings::default()
                    });
                }
                _ => {}
            }
            config
        };
        let joint = crate::JointTraining {
            lpips: "lpips.safetensors".into(),
            ..Default::default()
        };
        for objective in [
            Objective::default(),
            Objective::XPrediction(Default::default()),
            Objective::Meanflow(Default::default()),
            Objective::RepaE(Box::new(joint)),
        ] {
            let mut config = variant(&objective);
            config.sample.sampler.cfg_scale = 1.5;
            assert_eq!(config.validate(), Ok(()), "{}", objective.name());
            config.model.label_dropout = 0.0;
            // Also for a run that draws no samples itself, since its checkpoints will be sampled from.
            for count in [0, 8] {
                (config.sample.count, config.sample.grid) = (count, 0);
                let error = config.validate().unwrap_err().to_string();
                for words in [
                    "`model.label_dropout` is 0",
                    "sample.sampler.cfg_scale is 1.5",
                ] {
                    assert!(error.contains(words), "{}: {error}", objective.name());
                }
            }
            config.sample.sampler.cfg_scale = 1.0;
            assert_eq!(config.validate(), Ok(()), "{}", objective.name());
        }
    }

    #[test]
    fn guidance_in_training_without_label_dropout_is_refused() {
        let guided = |omega, kappa, label_dropout| {
            refused(|config| {
                config.objective = Objective::Meanflow(diffusion::objective::meanflow::MeanFlow {
                    cfg_omega: omega,
                    cfg_kappa: kappa,
                    ..Default::default()
                });
                config.sample.sampler.method = Method::Euler;
                config.model.label_dropout = label_dropout;
            })
        };
        assert_eq!(guided(0.2, 0.92, 0.1), None);
        assert_eq!(guided(1.0, 0.0, 0.0), None);
        for (omega, kappa) in [(0.2, 0.92), (1.0, 0.5), (2.0, 0.0)] {
            let error = guided(omega, kappa, 0.0).unwrap();
            for words in ["`model.label_dropout` is 0", "objective.cfg_omega"] {
                assert!(error.contains(words), "{error}");
            }
        }
    }

    #[test]
    fn a_guidance_interval_is_refused_for_meanflow() {
        let error = refused(|config| {
            config.objective = Objective::Meanflow(Default::default());
            config.sample.sampler.method = Method::Euler;
            config.sample.sampler.guidance_high = 0.7;
        });
        let error = error.unwrap();
        assert!(
            error.starts_with("`sample.sampler.guidance_low`"),
            "{error}"
        );
        assert!(
            error.contains("0.7") && error.contains("MeanFlow"),
            "{error}"
        );
    }
}
