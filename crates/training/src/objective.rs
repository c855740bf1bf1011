//! The forward pass of each objective.

use alignment::Head;
use diffusion::objective::{meanflow, velocity, x_prediction};
use diffusion::{Denoiser, Mode};
use tch::{Device, Kind, Tensor};
use torch_ext::{Generator, autocast};

use crate::model::{Model, Network};
use crate::{Objective, TrainError};

/// A noised batch: the network's inputs and the target, with all random numbers of the step drawn.
pub(crate) enum NoisyInputs {
    /// The noised batch, and the network's labels after label dropout, `[B]`.
    Velocity(velocity::NoisyBatch, Tensor),
    XPrediction(x_prediction::NoisyBatch),
    Meanflow(meanflow::NoisyBatch),
}

impl NoisyInputs {
    /// Returns the tensors, for [`NoisyInputs::with_tensors`]. `None` for objectives that do not support it.
    pub(crate) fn tensors(&self) -> Option<Vec<Tensor>> {
        let tensors = match self {
            Self::Velocity(velocity::NoisyBatch { x, t, target }, labels) => [x, t, target, labels],
            Self::XPrediction(x_prediction::NoisyBatch {
                z,
                t,
                labels,
                target,
            }) => [z, t, target, labels],
            Self::Meanflow(_) => return None,
        };
        Some(tensors.map(Tensor::shallow_clone).into())
    }

    /// Returns inputs of the same kind with other tensors. `tensors` begins with those that
    /// [`NoisyInputs::tensors`] lists; the remaining ones are returned too.
    pub(crate) fn with_tensors<'a>(&self, tensors: &'a [Tensor]) -> Option<(Self, &'a [Tensor])> {
        let ([noisy, t, target, labels], rest) = tensors.split_first_chunk::<4>()?;
        let [noisy, t, target, labels] =
            [noisy, t, target, labels].map(|tensor| tensor.shallow_clone());
        let inputs = match self {
            Self::Velocity(..) => {
                let x = noisy;
                Self::Velocity(velocity::NoisyBatch { x, t, target }, labels)
            }
            Self::XPrediction(_) => Self::XPrediction(x_prediction::NoisyBatch {
                z: noisy,
                t,
                labels,
                target,
            }),
            Self::Meanflow(_) => return None,
        };
        Some((inputs, rest))
    }
}

/// The result of a forward pass, for the backward pass and the alignment loss.
pub(crate) struct ForwardOutput {
    /// The objective's loss, a scalar.
    pub(crate) loss: Tensor,
    /// The mean squared error, a scalar without gradient. It is logged as the denoising loss.
    pub(crate) error: Tensor,
    /// The hidden tokens projected by each head, `[B, T, D]`.
    pub(crate) projected: Vec<Tensor>,
}

impl Objective {
    /// Draws times and noise for images or latents `x0`, and which of `labels` are dropped. These are all
    /// random numbers of a forward pass except those of dropout.
    pub(crate) fn draw(
        &self,
        model: &Model,
        x0: &Tensor,
        labels: &Tensor,
        generator: &mut Generator,
    ) -> Result<NoisyInputs, TrainError> {
        Ok(match (self, &model.network) {
            (Self::Velocity(objective), Network::Sit(sit)) => {
                let noisy = objective.draw(x0, generator)?;
                let labels = sit.drop_labels(labels, Mode::Train(generator))?;
                NoisyInputs::Velocity(noisy, labels)
            }
            (Self::XPrediction(objective), Network::Jit(jit)) => NoisyInputs::XPrediction(
                objective.draw(x0, labels, jit.num_classes(), generator)?,
            ),
            (Self::Meanflow(objective), Network::MeanFlow(network)) => {
                NoisyInputs::Meanflow(objective.draw(network, x0, labels, generator)?)
            }
            (_, network) => return Err(self.mismatch(network)),
        })
    }

    /// Runs the network and the heads on `inputs`, and computes the loss. `generator` is for dropout.
    pub(crate) fn compute(
        &self,
        model: &Model,
        inputs: NoisyInputs,
        generator: &mut Generator,
        (device, precision): (Device, Option<Kind>),
    ) -> Result<ForwardOutput, TrainError> {
        // Losses are computed outside autocast, on float32 outputs, as upstream does.
        match (self, &model.network, inputs) {
            (
                Self::Velocity(objective),
                Network::Sit(sit),
                NoisyInputs::Velocity(noisy, labels),
            ) => {
                let (prediction, projected) = autocast::run(device, precision, || {
                    let output = sit.forward(&noisy.x, &noisy.t, &labels, Mode::Eval)?;
                    let projected = project(&model.heads, &output.hidden)?;
                    Ok::<_, TrainError>((output.prediction, projected))
                })??;
                ForwardOutput::from_error(&objective.loss(&prediction, &noisy)?, projected)
            }
            (Self::XPrediction(objective), Network::Jit(jit), NoisyInputs::XPrediction(noisy)) => {
                let (prediction, projected) = autocast::run(device, precision, || {
                    let mode = Mode::Train(generator);
                    let output = jit.forward(&noisy.z, &noisy.t, &noisy.labels, mode)?;
                    let projected = project(&model.heads, &output.hidden)?;
                    Ok::<_, TrainError>((output.prediction, projected))
                })??;
                ForwardOutput::from_error(&objective.loss(&prediction, &noisy)?, projected)
            }
            (
                Self::Meanflow(objective),
                Network::MeanFlow(network),
                NoisyInputs::Meanflow(noisy),
            ) => {
                let noisy = autocast::run(device, precision, || objective.guide(network, noisy))??;
                let (output, projected) = autocast::run(device, precision, || {
                    let output = objective.forward(network, &noisy)?;
                    let projected = project(&model.heads, &output.hidden)?;
                    Ok::<_, TrainError>((output, projected))
                })??;
                let loss = objective.loss(&output, &noisy)?;
                let elements = noisy.z.numel() as f64 / noisy.t.size1()? as f64;
                let error = loss.squared_error.f_div_scalar(elements)?;
                Ok(ForwardOutput {
                    loss: loss.value.f_mean(Kind::Float)?,
                    error: error.f_mean(Kind::Float)?,
                    projected,
                })
            }
            (_, network, _) => Err(self.mismatch(network)),
        }
    }

    /// Returns the error for a network of another objective. It cannot occur with a validated configuration.
    /// REPA-E does not get here, since it has its own passes.
    fn mismatch(&self, network: &Network) -> TrainError {
        TrainError::Objective {
            objective: self.name(),
            network: network.family(),
        }
    }
}

impl ForwardOutput {
    /// Creates the output for a loss that is the squared error of each sample, `[B]`.
    fn from_error(error: &Tensor, projected: Vec<Tensor>) -> Result<Self, TrainError> {
        let loss = error.f_mean(Kind::Float)?;
        Ok(Self {
            error: loss.detach(),
            loss,
            projected,
        })
    }
}

/// Projects the hidden tokens with each head.
pub(crate) fn project(heads: &[Head], hidden: &Tensor) -> Result<Vec<Tensor>, TrainError> {
    heads.iter().map(|head| Ok(head.forward(hidden)?)).collect()
}
