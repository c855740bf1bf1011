use tch::{Device, Kind, Tensor};
use torch_ext::{Params, optim};

use crate::learning_rate::LearningRate;
use crate::{OptimizerConfig, TrainError};

/// AdamW over the trainable weights of a [`Params`] set.
#[derive(Debug)]
pub(crate) struct AdamW {
    names: Vec<String>,
    params: Vec<Tensor>,
    exp_avgs: Vec<Tensor>,
    exp_avg_sqs: Vec<Tensor>,
    config: OptimizerConfig,
    rate: LearningRate,
}

impl AdamW {
    pub(crate) fn new(
        params: &Params,
        config: &OptimizerConfig,
        rate: LearningRate,
    ) -> Result<Self, TrainError> {
        let mut adamw = Self {
            names: Vec::new(),
            params: Vec::new(),
            exp_avgs: Vec::new(),
            exp_avg_sqs: Vec::new(),
            config: config.clone(),
            rate,
        };
        for param in params.entries().iter().filter(|param| param.trainable) {
            adamw.names.push(param.name.clone());
            adamw.params.push(param.tensor.shallow_clone());
            adamw.exp_avgs.push(param.tensor.detach().f_zeros_like()?);
            adamw
                .exp_avg_sqs
                .push(param.tensor.detach().f_zeros_like()?);
        }
        Ok(adamw)
    }

    /// Learning rate of step number `step`, counted from 1.
    pub(crate) fn lr(&self, step: u64) -> f64 {
        self.rate.at(step)
    }

    /// Clips the gradients, updates the weights and drops the gradients. Returns the norm of the
    /// gradient before clipping, on the device.
    pub(crate) fn step(&self, step: u64) -> Result<Tensor, TrainError> {
        let grads: Vec<Tensor> = self.params.iter().map(Tensor::grad).collect();
        // A weight that the loss does not reach has no gradient; PyTorch's AdamW passes it over.
        let reached: Vec<usize> = (0..grads.len()).filter(|&i| grads[i].defined()).collect();
        let pick = |list: &[Tensor]| -> Vec<Tensor> {
            reached.iter().map(|&i| list[i].shallow_clone()).collect()
        };
        let (params, grads) = (pick(&self.params), pick(&grads));
        let norm = optim::grad_norm(&grads)?;
        optim::clip_grads_(&grads, &norm, self.config.max_grad_norm)?;
        let device = params.first().map_or(Device::Cpu, Tensor::device);
        let count = Tensor::f_full([], step as f64, (Kind::Float, device))?;
        let counts: Vec<Tensor> = params.iter().map(|_| count.shallow_clone()).collect();
        optim::fused_adamw_(
            &params,
            &grads,
            &pick(&self.exp_avgs),
            &pick(&self.exp_avg_sqs),
            &counts,
            &optim::AdamW {
                lr: self.lr(step),
                betas: self.config.betas,
                weight_decay: self.config.weight_decay,
                eps: self.config.eps,
            },
        )?;
        optim::clear_grads(&self.params)?;
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

/// Bytes of weights that are trained, with their gradients and the two moments.
pub(crate) fn trained_bytes(params: &Params) -> u64 {
    4 * params.bytes()
}
