//! `[objective]`: the training objective.

use diffusion::DiffusionError;
use diffusion::objective::meanflow::MeanFlow;
use diffusion::objective::velocity::Velocity;
use diffusion::objective::x_prediction::XPrediction;
use serde::{Deserialize, Deserializer, Serialize};

use super::joint_training::JointTraining;

/// `[objective]`: the training objective. `kind` selects it: `velocity` (the default), `x-prediction`,
/// `meanflow` or `repa-e`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Objective {
    /// SiT: the network predicts the velocity of the interpolant between image and noise.
    Velocity(Velocity),
    /// JiT: the network predicts the image; the loss compares velocities.
    XPrediction(XPrediction),
    /// MeanFlow: the network predicts the average velocity between two times, for sampling in one step.
    Meanflow(MeanFlow),
    /// REPA-E: SiT's objective on the latents of an autoencoder that is trained jointly.
    RepaE(Box<JointTraining>),
}

impl Default for Objective {
    fn default() -> Self {
        Self::Velocity(Velocity::default())
    }
}

impl<'de> Deserialize<'de> for Objective {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// [`Objective`] with a required kind.
        #[derive(Deserialize)]
        #[serde(tag = "kind", rename_all = "kebab-case")]
        enum Tagged {
            Velocity(Velocity),
            XPrediction(XPrediction),
            Meanflow(MeanFlow),
            RepaE(Box<JointTraining>),
        }
        let mut settings = serde_json::Map::deserialize(deserializer)?;
        let has_kind = settings.contains_key("kind");
        settings.entry("kind").or_insert_with(|| "velocity".into());
        let tagged = serde_json::from_value(settings.into()).map_err(|error| {
            serde::de::Error::custom(match has_kind {
                true => error.to_string(),
                false => format!("{error} (the default of `kind` is velocity)"),
            })
        })?;
        Ok(match tagged {
            Tagged::Velocity(objective) => Self::Velocity(objective),
            Tagged::XPrediction(objective) => Self::XPrediction(objective),
            Tagged::Meanflow(objective) => Self::Meanflow(objective),
            Tagged::RepaE(objective) => Self::RepaE(objective),
        })
    }
}

impl Objective {
    /// Returns the objective's name in configurations.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Velocity(_) => "velocity",
            Self::XPrediction(_) => "x-prediction",
            Self::Meanflow(_) => "meanflow",
            Self::RepaE(_) => "repa-e",
        }
    }

    /// Checks the objective's settings.
    ///
    /// # Errors
    /// Names the first setting with an invalid value.
    pub fn validate(&self) -> Result<(), DiffusionError> {
        match self {
            Self::Velocity(_) => Ok(()),
            Self::XPrediction(objective) => objective.validate(),
            Self::Meanflow(objective) => objective.validate(),
            Self::RepaE(objective) => objective.validate(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Objective, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn the_default_kind_is_velocity() {
        assert_eq!(parsed("").unwrap(), Objective::default());
        assert_eq!(parsed("path = 'linear'").unwrap(), Objective::default());
        let found = parsed("kind = 'x-prediction'\nnoise_scale = 2.0").unwrap();
        assert!(matches!(found, Objective::XPrediction(x) if x.noise_scale == 2.0));
        let found = parsed("kind = 'meanflow'\ncfg_omega = 0.2").unwrap();
        assert!(matches!(found, Objective::Meanflow(m) if m.cfg_omega == 0.2));
    }

    #[test]
    fn keys_of_another_kind_are_refused() {
        let error = parsed("cfg_omega = 0.2").unwrap_err();
        assert!(
            error.contains("cfg_omega") && error.contains("`kind` is velocity"),
            "{error}"
        );
        let error = parsed("kind = 'x-prediction'\npath = 'linear'").unwrap_err();
        assert!(
            error.contains("path") && error.contains("noise_scale"),
            "{error}"
        );
        let error = parsed("kind = 'diffusion'").unwrap_err();
        assert!(
            error.contains("diffusion") && error.contains("meanflow"),
            "{error}"
        );
    }

    #[test]
    fn a_written_objective_is_read_back() {
        for objective in [
            Objective::default(),
            Objective::XPrediction(XPrediction::default()),
            Objective::Meanflow(MeanFlow::default()),
        ] {
            let text = toml::to_string(&objective).unwrap();
            assert_eq!(parsed(&text).unwrap(), objective, "{text}");
        }
    }
}
