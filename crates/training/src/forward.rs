//! The forward pass of each objective.

use alignment::Heads;
use diffusion::models::meanflow::MeanFlowSit;
use diffusion::objective::meanflow::{self, MeanFlow};
use diffusion::objective::velocity::{self, Velocity};
use diffusion::objective::x_prediction::{self, XPrediction};
use diffusion::{Denoiser, Jit, Mode, Sit};
use tch::{Device, Kind, Tensor};
use torch_ext::{Generator, autocast};

use crate::TrainError;

/// A noisy batch, with the network and the objective that it was drawn for.
pub(crate) enum Drawn<'a> {
    /// The last tensor holds the network's labels after label dropout, `[B]`.
    Velocity((&'a Velocity, &'a Sit), velocity::NoisyBatch, Tensor),
    XPrediction((&'a XPrediction, &'a Jit), x_prediction::NoisyBatch),
    MeanFlow((&'a MeanFlow, &'a MeanFlowSit), meanflow::NoisyBatch),
}

/// A forward pass that can be recorded, since it is a single pass that draws no random numbers.
#[derive(Clone, Copy)]
pub(crate) enum Recordable<'a> {
    Velocity(&'a Velocity, &'a Sit),
    XPrediction(&'a XPrediction, &'a Jit),
}

impl<'a> Recordable<'a> {
    /// Returns the batch with other tensors, in the order of [`Drawn::recordable`].
    pub(crate) fn batch(self, tensors: &[Tensor; 4]) -> Drawn<'a> {
        let [noisy, t, target, labels] = tensors.each_ref().map(Tensor::shallow_clone);
        match self {
            Self::Velocity(objective, sit) => {
                let x = noisy;
                let noisy = velocity::NoisyBatch { x, t, target };
                Drawn::Velocity((objective, sit), noisy, labels)
            }
            Self::XPrediction(objective, jit) => {
                let noisy = x_prediction::NoisyBatch {
                    z: noisy,
                    t,
                    labels,
                    target,
                };
                Drawn::XPrediction((objective, jit), noisy)
            }
        }
    }
}

/// The result of a forward pass, for the backward pass and the alignment loss.
pub(crate) struct ForwardOutput {
    /// The objective's loss, a scalar.
    pub(crate) loss: Tensor,
    /// The mean squared error, a scalar without gradient. It is logged as the denoising loss.
    pub(crate) error: Tensor,
    /// The hidden tokens that are aligned.
    pub(crate) hidden: Hidden,
}

/// Hidden tokens for the alignment loss.
pub(crate) struct Hidden {
    /// The tokens of each depth, `[B, T, D]`.
    pub(crate) tokens: Vec<Tensor>,
    /// The tokens that each head has projected, `[B, T, D]`.
    pub(crate) projected: Vec<Tensor>,
}

impl Hidden {
    /// Projects the tokens of each depth. It should run under the denoiser's autocast.
    pub(crate) fn project(heads: &Heads, tokens: Vec<Tensor>) -> Result<Self, TrainError> {
        Ok(Self {
            projected: heads.project(&tokens)?,
            tokens,
        })
    }
}

impl<'a> Drawn<'a> {
    /// Returns the pass and its tensors, if it can be recorded.
    pub(crate) fn recordable(&self) -> Option<(Recordable<'a>, [Tensor; 4])> {
        let (pass, tensors) = match self {
            Self::Velocity((objective, sit), noisy, labels) => {
                let velocity::NoisyBatch { x, t, target } = noisy;
                (Recordable::Velocity(objective, sit), [x, t, target, labels])
            }
            Self::XPrediction((objective, jit), noisy) => {
                let x_prediction::NoisyBatch {
                    z,
                    t,
                    labels,
                    target,
                } = noisy;
                (
                    Recordable::XPrediction(objective, jit),
                    [z, t, target, labels],
                )
            }
            Self::MeanFlow(..) => return None,
        };
        Some((pass, tensors.map(Tensor::shallow_clone)))
    }

    /// Runs the network and `heads`, and computes the loss. `generator` is for dropout.
    pub(crate) fn compute(
        self,
        heads: &Heads,
        generator: &mut Generator,
        (device, precision): (Device, Option<Kind>),
    ) -> Result<ForwardOutput, TrainError> {
        let depths = heads.depths();
        // Losses are computed outside autocast, on float32 outputs, as upstream does.
        match self {
            Self::Velocity((objective, sit), noisy, labels) => {
                let (prediction, hidden) = autocast::run(device, precision, || {
                    let output = sit.forward(&noisy.x, &noisy.t, &labels, depths, Mode::Eval)?;
                    let hidden = Hidden::project(heads, output.hidden)?;
                    Ok::<_, TrainError>((output.prediction, hidden))
                })??;
                ForwardOutput::from_error(&objective.loss(&prediction, &noisy)?, hidden)
            }
            Self::XPrediction((objective, jit), noisy) => {
                let (prediction, hidden) = autocast::run(device, precision, || {
                    let (z, t, labels) = (&noisy.z, &noisy.t, &noisy.labels);
                    let output = jit.forward(z, t, labels, depths, Mode::Train(generator))?;
                    let hidden = Hidden::project(heads, output.hidden)?;
                    Ok::<_, TrainError>((output.prediction, hidden))
                })??;
                ForwardOutput::from_error(&objective.loss(&prediction, &noisy)?, hidden)
            }
            Self::MeanFlow((objective, network), noisy) => {
                let noisy = autocast::run(device, precision, || objective.guide(network, noisy))??;
                let (output, hidden) = autocast::run(device, precision, || {
                    let mut output = objective.forward(network, &noisy, depths)?;
                    let tokens = std::mem::take(&mut output.hidden);
                    let hidden = Hidden::project(heads, tokens)?;
                    Ok::<_, TrainError>((output, hidden))
                })??;
                let loss = objective.loss(&output, &noisy)?;
                let elements = noisy.z.numel() as f64 / noisy.t.size1()? as f64;
                let error = loss.squared_error.f_div_scalar(elements)?;
                Ok(ForwardOutput {
                    loss: loss.value.f_mean(Kind::Float)?,
                    error: error.f_mean(Kind::Float)?,
                    hidden,
                })
            }
        }
    }
}

impl ForwardOutput {
    /// Creates the output for a loss that is the squared error of each sample, `[B]`.
    fn from_error(error: &Tensor, hidden: Hidden) -> Result<Self, TrainError> {
        let loss = error.f_mean(Kind::Float)?;
        Ok(Self {
            error: loss.detach(),
            loss,
            hidden,
        })
    }
}
