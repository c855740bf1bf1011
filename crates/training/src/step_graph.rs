//! A CUDA graph of a step's forward and backward pass, recorded once and replayed.

use tch::{Device, Tensor};
use torch_ext::cuda::{Graph, set_grads};
use torch_ext::optim;

use crate::TrainError;

/// The recorded passes for batches of one shape. A batch's tensors are copied into the tensors that the recorded
/// kernels read. The kernels read the weights in place.
#[derive(Debug)]
pub(crate) struct StepGraph {
    inputs: [Tensor; 4],
    tokens: Vec<Tensor>,
    weights: Vec<Tensor>,
    /// Gradients of `weights`; undefined for a weight that the loss does not depend on.
    grads: Vec<Tensor>,
    figures: Tensor,
    graph: Graph,
}

impl StepGraph {
    /// Records `passes`, which takes `inputs` and `tokens`, writes the gradients of `weights` and returns figures. It is
    /// first run a few times without recording, and must have no effect besides the gradients.
    ///
    /// # Errors
    /// Those of `passes`, or `passes` contains an operation that cannot be recorded.
    pub(crate) fn capture(
        device: Device,
        inputs: &[Tensor; 4],
        tokens: &[Tensor],
        weights: Vec<Tensor>,
        mut passes: impl FnMut(&[Tensor; 4], &[Tensor]) -> Result<Tensor, TrainError>,
    ) -> Result<Self, TrainError> {
        let [noisy, t, target, labels] = inputs;
        let graph_inputs = [
            noisy.f_empty_like()?,
            t.f_empty_like()?,
            target.f_empty_like()?,
            labels.f_empty_like()?,
        ];
        let graph_tokens = tokens
            .iter()
            .map(Tensor::f_empty_like)
            .collect::<Result<Vec<_>, _>>()?;
        optim::copy_(&graph_inputs, inputs)?;
        optim::copy_(&graph_tokens, tokens)?;
        let captured = Graph::capture(device, || {
            // Without existing gradients, the backward pass allocates them in the graph's memory instead
            // of adding to them.
            optim::clear_grads(&weights)?;
            passes(&graph_inputs, &graph_tokens)
        });
        let grads = weights.iter().map(Tensor::grad).collect();
        // After a failed capture the gradients have no valid values.
        optim::clear_grads(&weights)?;
        let (graph, figures) = captured?;
        Ok(Self {
            inputs: graph_inputs,
            tokens: graph_tokens,
            weights,
            grads,
            figures,
            graph,
        })
    }

    /// The bytes of the recorded kernels' inputs, and of the memory that they use.
    pub(crate) fn bytes(&self) -> u64 {
        let inputs = self.inputs.iter().chain(&self.tokens);
        let of = |tensor: &Tensor| (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64;
        self.graph.pool_bytes() + inputs.map(of).sum::<u64>()
    }

    /// Whether the graph was recorded for inputs and tokens of these shapes and dtypes.
    pub(crate) fn fits(&self, inputs: &[Tensor; 4], tokens: &[Tensor]) -> bool {
        let is_same = |(recorded, new): (&Tensor, &Tensor)| {
            recorded.size() == new.size() && recorded.kind() == new.kind()
        };
        self.tokens.len() == tokens.len()
            && self.inputs.iter().zip(inputs).all(is_same)
            && self.tokens.iter().zip(tokens).all(is_same)
    }

    /// Replays the passes on `inputs` and `tokens`, sets the gradients of the weights, and returns the figures. These are
    /// valid until the next replay.
    pub(crate) fn replay(
        &self,
        inputs: &[Tensor; 4],
        tokens: &[Tensor],
    ) -> Result<Tensor, TrainError> {
        optim::copy_(&self.inputs, inputs)?;
        optim::copy_(&self.tokens, tokens)?;
        self.graph.replay()?;
        set_grads(&self.weights, &self.grads)?;
        Ok(self.figures.shallow_clone())
    }
}
