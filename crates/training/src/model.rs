//! The trained model: a denoiser of one of the families, and the heads on its hidden tokens.

use alignment::Head;
use data::seed;
use diffusion::meanflow::MeanFlowSit;
use diffusion::repa_e::LatentNorm;
use diffusion::{Denoiser, Jit, JitConfig, Sit, SitConfig};
use tch::Tensor;
use torch_ext::{Params, Scope};

use crate::{Config, Inputs, Objective, TrainError};

/// A denoiser. Its family is determined by the model's name and the objective.
#[derive(Debug)]
pub(crate) enum Network {
    Sit(Sit),
    Jit(Jit),
    MeanFlow(MeanFlowSit),
}

impl Network {
    /// Builds the network of `config` for `num_classes` classes.
    fn new(scope: &Scope, config: &Config, num_classes: i64) -> Result<Self, TrainError> {
        let model = &config.model;
        let side = i64::from(config.data.resolution);
        let [in_channels, input_size, _] = model.autoencoder.latent_shape(side)?;
        if let Objective::XPrediction(_) = config.objective {
            let named = JitConfig::named(&model.name)?;
            let jit = JitConfig {
                input_size,
                in_channels,
                num_classes,
                attn_dropout: model.attn_dropout,
                proj_dropout: model.proj_dropout,
                alignment_depth: model.alignment_depth.unwrap_or(named.alignment_depth),
                ..named
            };
            return Ok(Self::Jit(Jit::new(scope, &jit)?));
        }
        let named = SitConfig::named(&model.name)?;
        let sit = SitConfig {
            input_size,
            in_channels,
            num_classes,
            class_dropout: model.label_dropout,
            qk_norm: model.qk_norm,
            alignment_depth: model.alignment_depth.unwrap_or(named.alignment_depth),
            // Upstream's REPA-E trains the position embedding, apparently by mistake.
            train_pos_embed: matches!(config.objective, Objective::RepaE(_)),
            ..named
        };
        Ok(match &config.objective {
            Objective::Meanflow(_) => Self::MeanFlow(MeanFlowSit::new(scope, &sit)?),
            _ => Self::Sit(Sit::new(scope, &sit)?),
        })
    }

    /// Returns the network as a [`Denoiser`], for samplers and heads.
    pub(crate) fn denoiser(&self) -> &dyn Denoiser {
        match self {
            Self::Sit(network) => network,
            Self::Jit(network) => network,
            Self::MeanFlow(network) => network,
        }
    }

    /// Returns the family's name, for error messages.
    pub(crate) fn family(&self) -> &'static str {
        match self {
            Self::Sit(_) => "SiT",
            Self::Jit(_) => "JiT",
            Self::MeanFlow(_) => "SiT with two times",
        }
    }
}

/// Returns the number of classes of the network that `weights` belong to, without the null class.
pub(crate) fn num_classes(
    config: &Config,
    weights: &[(String, Tensor)],
) -> Result<i64, TrainError> {
    const TABLE: &str = "y_embedder.embedding_table.weight";
    let rows = weights
        .iter()
        .find(|(name, _)| name == TABLE)
        .and_then(|(_, tensor)| tensor.size().first().copied())
        .ok_or(TrainError::NoWeight(TABLE))?;
    // JiT always has an embedding for the null class.
    let null =
        matches!(config.objective, Objective::XPrediction(_)) || config.model.label_dropout > 0.0;
    Ok(rows - i64::from(null))
}

/// Denoiser and heads, which share one set of weights.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) params: Params,
    pub(crate) network: Network,
    pub(crate) heads: Vec<Head>,
    /// REPA-E's normalisation of latents, which are the network's input.
    pub(crate) latent_norm: Option<LatentNorm>,
}

impl Model {
    pub(crate) fn new(config: &Config, inputs: &Inputs) -> Result<Self, TrainError> {
        let params = Params::new(
            inputs.device,
            seed::derive(config.train.seed, "weights", &[]),
        )?;
        let network = Network::new(&params.root(), config, inputs.num_classes)?;
        let (rows, columns) = network.denoiser().token_grid();
        for encoder in &inputs.encoders {
            let pools = config.alignment.pool_tokens
                && encoder.grid.0 % rows == 0
                && encoder.grid.1 % columns == 0;
            if encoder.grid != (rows, columns) && !pools {
                return Err(TrainError::TokenGrid {
                    encoder: encoder.name.clone(),
                    found: encoder.grid,
                    model: config.model.name.clone(),
                    expected: (rows, columns),
                });
            }
        }
        let widths: Vec<i64> = inputs
            .encoders
            .iter()
            .map(|encoder| encoder.width)
            .collect();
        let heads = Head::projectors(
            &params.root(),
            &config.alignment.head,
            network.denoiser().hidden_width(),
            &widths,
        )?;
        let latent_norm = match &config.objective {
            Objective::RepaE(joint) => {
                let [channels, ..] = network.denoiser().image_shape();
                let momentum = joint.latent_norm_momentum;
                Some(LatentNorm::new(&params.root(), channels, momentum)?)
            }
            _ => None,
        };
        Ok(Self {
            params,
            network,
            heads,
            latent_norm,
        })
    }

    /// Creates a model for the moving average. It starts with this model's weights and is not trained.
    pub(crate) fn averaged(&self, config: &Config, inputs: &Inputs) -> Result<Self, TrainError> {
        let average = Self::new(config, inputs)?;
        for param in average.params.entries().iter() {
            let _frozen = param.tensor.f_set_requires_grad(false)?;
        }
        average.params.load(&self.params.state_dict())?;
        Ok(average)
    }
}
