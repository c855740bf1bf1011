use tch::{Device, Kind, Tensor};
use torch_ext::{Params, optim};

use crate::average::Average;
use crate::fused_update::{self, Operands, PointerTable, Update};
use crate::learning_rate::LearningRate;
use crate::{OptimizerConfig, TrainError};

/// AdamW over the trainable weights of a [`Params`] set, with clipping and the moving averages of the weights.
#[derive(Debug)]
pub struct AdamW {
    names: Vec<String>,
    params: Vec<Tensor>,
    /// Where gradients arrive: the weights, or their copies in bfloat16.
    leaves: Vec<Tensor>,
    exp_avgs: Vec<Tensor>,
    exp_avg_sqs: Vec<Tensor>,
    config: OptimizerConfig,
    rate: LearningRate,
    /// In one sweep where there is one, instead of composed.
    fused: bool,
    table: PointerTable,
}

impl AdamW {
    /// Moments of zero for the weights of `params`, whose copies exist already if they are to
    /// ([`Params::keep_copies`]). `fused` is `train.fused`.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(
        params: &Params,
        config: &OptimizerConfig,
        rate: LearningRate,
        fused: bool,
    ) -> Result<Self, TrainError> {
        let mut adamw = Self {
            names: Vec::new(),
            params: Vec::new(),
            leaves: Vec::new(),
            exp_avgs: Vec::new(),
            exp_avg_sqs: Vec::new(),
            config: config.clone(),
            rate,
            fused,
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

    /// Learning rate of step number `step`, counted from 1.
    pub fn lr(&self, step: u64) -> f64 {
        self.rate.at(step)
    }

    /// Updates the weights with clipped gradients, and their moving averages with them, and drops the
    /// gradients. Returns the norm of the gradient before clipping, a float32 scalar on the device. `step`
    /// is counted from 1.
    ///
    /// # Errors
    /// The averages are of other weights; out of memory.
    pub fn step(&self, step: u64, averages: &[Average]) -> Result<Tensor, TrainError> {
        for average in averages {
            average.check_len(self.params.len())?;
        }
        let grads: Vec<Tensor> = self.leaves.iter().map(Tensor::grad).collect();
        // A weight that the loss does not reach has no gradient; PyTorch's AdamW passes it over.
        let (reached, unreached): (Vec<usize>, Vec<usize>) =
            (0..grads.len()).partition(|&i| grads[i].defined());
        let norm = match self.fused_step(step, &reached, &grads, averages)? {
            Some(norm) => norm,
            None => self.composed_step(step, &reached, &grads, averages)?,
        };
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

    /// `None` where it is not wanted or there is none; nothing is changed then.
    fn fused_step(
        &self,
        step: u64,
        reached: &[usize],
        grads: &[Tensor],
        averages: &[Average],
    ) -> Result<Option<Tensor>, TrainError> {
        if !self.fused {
            return Ok(None);
        }
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
        Ok(fused_update::sweep(&operands, &update, &self.table)?)
    }

    /// The copy of weight `i` that the model computes with, if it is not the weight itself.
    fn copy(&self, i: usize) -> Option<&Tensor> {
        let (leaf, param) = (&self.leaves[i], &self.params[i]);
        (leaf.kind() != param.kind()).then_some(leaf)
    }

    /// By libtorch's operations, each a pass over all weights.
    fn composed_step(
        &self,
        step: u64,
        reached: &[usize],
        grads: &[Tensor],
        averages: &[Average],
    ) -> Result<Tensor, TrainError> {
        let pick = |list: &[Tensor]| -> Vec<Tensor> {
            reached.iter().map(|&i| list[i].shallow_clone()).collect()
        };
        let params = pick(&self.params);
        let device = params.first().map_or(Device::Cpu, Tensor::device);
        if params.is_empty() {
            return Ok(Tensor::f_zeros([], (Kind::Float, device))?);
        }
        let grads = reached
            .iter()
            .map(|&i| grads[i].f_to_kind(self.params[i].kind()))
            .collect::<Result<Vec<_>, _>>()?;
        let norm = optim::grad_norm(&grads)?;
        optim::clip_grads_(&grads, &norm, self.config.max_grad_norm)?;
        let count = Tensor::f_full([], step as f64, (Kind::Float, device))?;
        let counts: Vec<Tensor> = params.iter().map(|_| count.shallow_clone()).collect();
        optim::fused_adamw_(
            &params,
            &grads,
            &pick(&self.exp_avgs),
            &pick(&self.exp_avg_sqs),
            &counts,
            &self.settings(step),
        )?;
        for average in averages {
            average.follow(&self.params, reached)?;
        }
        let copied = reached.iter().filter_map(|&i| {
            let copy = self.copy(i)?;
            Some((copy.shallow_clone(), self.params[i].shallow_clone()))
        });
        let (copies, masters): (Vec<_>, Vec<_>) = copied.unzip();
        optim::copy_(&copies, &masters)?;
        Ok(norm)
    }

    /// The moments, as `exp_avg.NAME` and `exp_avg_sq.NAME`.
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

    /// Copies saved moments in; `Err` says what does not fit.
    pub(crate) fn load(&self, saved: &[(String, Tensor)]) -> Result<(), String> {
        let own = self.state();
        if own.len() != saved.len() {
            return Err(format!(
                "the optimiser has {} moments, the checkpoint {}",
                own.len(),
                saved.len()
            ));
        }
        let (mut targets, mut sources) = (Vec::new(), Vec::new());
        for (name, target) in own {
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

/// Bytes of weights that are trained, with their gradients and the two moments. A copy in bfloat16 takes what its
/// gradient in bfloat16 saves.
pub(crate) fn trained_bytes(params: &Params) -> u64 {
    4 * params.bytes()
}
