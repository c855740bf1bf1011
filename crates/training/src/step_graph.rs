//! The forward and backward pass of a step, recorded once and replayed.

use tch::{Device, Tensor};
use torch_ext::cuda::{Graph, set_grads};
use torch_ext::optim;

use crate::TrainError;

/// The passes over batches of one shape. What a batch brings is copied to where the recorded kernels read it;
/// the weights they read where they are.
#[derive(Debug)]
pub(crate) struct StepGraph {
    inputs: Vec<Tensor>,
    weights: Vec<Tensor>,
    /// Of `weights`; undefined where the loss does not reach one.
    grads: Vec<Tensor>,
    figures: Tensor,
    graph: Graph,
}

impl StepGraph {
    /// Records `passes`, which is given `inputs`, writes the gradients of `weights` and returns figures. It
    /// is run on them a few times before, and must leave nothing behind but gradients.
    ///
    /// # Errors
    /// Those of `passes`; it does what cannot be recorded.
    pub(crate) fn capture(
        device: Device,
        inputs: &[Tensor],
        weights: Vec<Tensor>,
        mut passes: impl FnMut(&[Tensor]) -> Result<Tensor, TrainError>,
    ) -> Result<Self, TrainError> {
        let own = inputs
            .iter()
            .map(Tensor::f_empty_like)
            .collect::<Result<Vec<_>, _>>()?;
        optim::copy_(&own, inputs)?;
        let captured = Graph::capture(device, || {
            // A backward pass that finds no gradient writes one, in the graph's memory, instead of adding.
            optim::clear_grads(&weights)?;
            passes(&own)
        });
        let grads = weights.iter().map(Tensor::grad).collect();
        // Those of a capture that failed hold nothing.
        optim::clear_grads(&weights)?;
        let (graph, figures) = captured?;
        Ok(Self {
            inputs: own,
            weights,
            grads,
            figures,
            graph,
        })
    }

    /// Whether it was recorded for such inputs.
    pub(crate) fn takes(&self, inputs: &[Tensor]) -> bool {
        let same = |(own, given): (&Tensor, &Tensor)| {
            own.size() == given.size() && own.kind() == given.kind()
        };
        self.inputs.len() == inputs.len() && self.inputs.iter().zip(inputs).all(same)
    }

    /// Runs the passes over `inputs`: leaves the gradients in the weights, and returns the figures, which
    /// hold until the next replay.
    pub(crate) fn replay(&self, inputs: &[Tensor]) -> Result<Tensor, TrainError> {
        optim::copy_(&self.inputs, inputs)?;
        self.graph.replay()?;
        set_grads(&self.weights, &self.grads)?;
        Ok(self.figures.shallow_clone())
    }
}
