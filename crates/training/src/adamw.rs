//! The optimiser of a run: AdamW with gradient clipping and moving averages.

use ops::{Operands, PointerTable, Update};
use tch::Tensor;
use torch_ext::{Params, optim};

use crate::average::Average;
use crate::learning_rate::LearningRate;
use crate::{OptimizerConfig, TrainError};

/// AdamW for the trainable weights of a [`Params`] set, with gradient clipping and moving averages of the
/// weights.
#[derive(Debug)]
pub struct AdamW {
    names: Vec<String>,
    params: Vec<Tensor>,
    /// The tensors that receive gradients: the weights, or their bfloat16 copies.
    leaves: Vec<Tensor>,
    exp_avgs: Vec<Tensor>,
    exp_avg_sqs: Vec<Tensor>,
    config: OptimizerConfig,
    rate: LearningRate,
    table: PointerTable,
}

impl AdamW {
    /// Creates zero moments for the weights of `params`. If the weights have copies
    /// ([`Params::keep_copies`]), these must already exist.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn new(
        params: &Params,
        config: &OptimizerConfig,
        rate: LearningRate,
    ) -> Result<Self, TrainError> {
        let mut adamw = Self {
            names: Vec::new(),
            params: Vec::new(),
            leaves: Vec::new(),
            exp_avgs: Vec::new(),
            exp_avg_sqs: Vec::new(),
            config: config.clone(),
            rate,
            table: PointerTable::default(),
        };
        for param in params.entries().iter().filter(|param| param.trainable) {
            adamw.names.push(param.name.clone());
            adamw.params.push(param.tensor.shallow_clone());
            adamw.leaves.push(param.leaf().shallow_clone());
            adamw.exp_avgs.push(param.tensor.detach().f_zeros_like()?);
            adamw
                .exp_avg_sqs
                .push(param.tensor.detach().f_zeros_like()?);
        }
        Ok(adamw)
    }

    /// Returns the learning rate of step `step`, counted from 1.
    pub fn lr(&self, step: u64) -> f64 {
        self.rate.at_step(step)
    }

    /// Updates the weights with the clipped gradients, updates their moving averages, and clears the
    /// gradients. Returns the gradient norm before clipping, a float32 scalar on the device. `step` is
    /// counted from 1.
    ///
    /// # Errors
    /// An average has another number of weights; the device is out of memory.
    pub fn step(&self, step: u64, averages: &[Average]) -> Result<Tensor, TrainError> {
        for average in averages {
            average.check_len(self.params.len())?;
        }
        let grads: Vec<Tensor> = self.leaves.iter().map(Tensor::grad).collect();
        // A weight that the loss does not depend on has no gradient. Like PyTorch's AdamW, this skips it.
        let (reached, unreached): (Vec<usize>, Vec<usize>) =
            (0..grads.len()).partition(|&i| grads[i].defined());
        let norm = self.update(step, &reached, &grads, averages)?;
        for average in averages {
            average.follow(&self.params, &unreached)?;
        }
        optim::clear_grads(&self.leaves)?;
        Ok(norm)
    }

    fn settings(&self, step: u64) -> optim::AdamW {
        optim::AdamW {
            lr: self.lr(step),
            betas: self.config.betas,
            weight_decay: self.config.weight_decay,
            eps: self.config.eps,
        }
    }

    /// Updates the weights `reached`, their moments, averages and copies. Returns the gradient norm.
    fn update(
        &self,
        step: u64,
        reached: &[usize],
        grads: &[Tensor],
        averages: &[Average],
    ) -> Result<Tensor, TrainError> {
        let operands: Vec<Operands<'_>> = reached
            .iter()
            .map(|&i| Operands {
                gradient: grads[i].shallow_clone(),
                weight: &self.params[i],
                exp_avg: &self.exp_avgs[i],
                exp_avg_sq: &self.exp_avg_sqs[i],
                averages: averages.iter().map(|average| average.weight(i)).collect(),
                copy: self.copy(i),
            })
            .collect();
        let decays: Vec<f64> = averages.iter().map(Average::decay).collect();
        let update = Update {
            settings: self.settings(step),
            step,
            max_norm: self.config.max_grad_norm,
            decays: &decays,
        };
        Ok(ops::update_weights(&operands, &update, &self.table)?)
    }

    /// Returns the copy of weight `i` that the model computes with, or `None` if it uses the weight itself.
    fn copy(&self, i: usize) -> Option<&Tensor> {
        let (leaf, param) = (&self.leaves[i], &self.params[i]);
        (leaf.kind() != param.kind()).then_some(leaf)
    }

    /// Returns the moments, named `exp_avg.NAME` and `exp_avg_sq.NAME`.
    pub(crate) fn state(&self) -> Vec<(String, Tensor)> {
        let first = self.names.iter().zip(&self.exp_avgs);
        let second = self.names.iter().zip(&self.exp_avg_sqs);
        first
            .map(|(name, tensor)| (format!("exp_avg.{name}"), tensor.shallow_clone()))
            .chain(
                second.map(|(name, tensor)| (format!("exp_avg_sq.{name}"), tensor.shallow_clone())),
            )
            .collect()
    }

    /// Loads saved moments. `Err` holds the reason if they do not fit.
    pub(crate) fn load(&self, saved: &[(String, Tensor)]) -> Result<(), String> {
        let expected = self.state();
        if expected.len() != saved.len() {
            return Err(format!(
                "the optimiser has {} moments, the checkpoint {}",
                expected.len(),
                saved.len()
            ));
        }
        let (mut targets, mut sources) = (Vec::new(), Vec::new());
        for (name, target) in expected {
            let source = saved
                .iter()
                .find(|(saved, _)| *saved == name)
                .map(|(_, t)| t);
            match source {
                Some(source) if source.size() == target.size() => {
                    targets.push(target);
                    sources.push(source.shallow_clone());
                }
                Some(source) => {
                    return Err(format!(
                        "`{name}` has shape {:?} instead of {:?}",
                        source.size(),
                        target.size()
                    ));
                }
                None => return Err(format!("the optimiser's `{name}` is missing")),
            }
        }
        optim::copy_(&targets, &sources).map_err(|error| error.to_string())
    }
}

/// Returns the bytes of trained weights, their gradients and their two moments. Bfloat16 copies do not
/// change the sum: the gradient is then bfloat16 too, which saves what the copy takes.
pub(crate) fn trained_bytes(params: &Params) -> u64 {
    4 * params.bytes()
}
