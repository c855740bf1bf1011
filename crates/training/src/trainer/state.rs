//! Checkpoints of a trainer, and weights to start from.

use std::collections::BTreeMap;

use tch::Tensor;
use torch_ext::{Mismatch, Params};

use super::Trainer;
use crate::repa_e::Joint;
use crate::{Checkpoint, TrainError};

impl Trainer {
    /// Returns everything that is needed to resume. The last step's figures must have been read.
    ///
    /// # Errors
    /// A libtorch operation failed.
    pub fn checkpoint(&self) -> Result<Checkpoint, TrainError> {
        Ok(Checkpoint {
            step: self.step,
            cursor: self.cursor,
            config_hash: self.hash(),
            model: self.weights.params.state_dict(),
            ema: self.average.state_dict(),
            second_ema: self.second_average.as_ref().map(Params::state_dict),
            optimizer: self.adamw.state(),
            random: vec![("training".to_owned(), self.generator.state()?)],
            others: self.task.joint().map_or_else(BTreeMap::new, Joint::state),
        })
    }

    /// Resumes from a checkpoint.
    ///
    /// # Errors
    /// The checkpoint is of another model, or of another kind of device.
    pub fn resume(&mut self, checkpoint: &Checkpoint) -> Result<(), TrainError> {
        let step = checkpoint.step;
        let state = checkpoint
            .random
            .iter()
            .find(|(name, _)| name == "training");
        let (_, state) = state.ok_or_else(|| TrainError::Resume {
            step,
            reason: "it has no state of the generator `training`".to_owned(),
        })?;
        if state.size() != self.generator.state()?.size() {
            let device = if self.inputs.device.is_cuda() {
                "a GPU"
            } else {
                "a CPU"
            };
            let reason = format!(
                "its random generator is of another kind of device than {device}: resume on the kind of \
                 device that saved it, or start a new run from its weights (train --init)"
            );
            return Err(TrainError::Resume { step, reason });
        }
        self.weights.params.load(&checkpoint.model)?;
        self.average.load(&checkpoint.ema)?;
        match (&self.second_average, &checkpoint.second_ema) {
            (Some(average), Some(saved)) => average.load(saved)?,
            (None, None) => {}
            (average, _) => {
                let reason = match average {
                    Some(_) => "it has no second moving average",
                    None => "it has a second moving average, and train.second_ema_decay is not set",
                };
                return Err(TrainError::Resume {
                    step,
                    reason: reason.to_owned(),
                });
            }
        }
        self.adamw
            .load(&checkpoint.optimizer)
            .map_err(|reason| TrainError::Resume { step, reason })?;
        if let Some(joint) = self.task.joint() {
            joint
                .load(&checkpoint.others)
                .map_err(|reason| TrainError::Resume { step, reason })?;
        }
        self.generator.set_state(state)?;
        self.step = step;
        self.cursor = checkpoint.cursor;
        self.pending = None;
        Ok(())
    }

    /// Replaces the model's random initial weights by `weights`; the averages start from them too. If
    /// `partial` is true, weights without a counterpart keep their random values, and the unmatched
    /// names of both sides are returned.
    ///
    /// # Errors
    /// Names or shapes differ, and `partial` is false.
    pub fn initialise(
        &mut self,
        weights: &[(String, Tensor)],
        partial: bool,
    ) -> Result<Mismatch, TrainError> {
        let mismatch = match partial {
            true => self.weights.params.load_partial(weights)?,
            false => {
                self.weights.params.load(weights)?;
                Mismatch::default()
            }
        };
        let start = self.weights.params.state_dict();
        self.average.load(&start)?;
        if let Some(second) = &self.second_average {
            second.load(&start)?;
        }
        Ok(mismatch)
    }
}
