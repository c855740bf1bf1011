//! Trains one model, step by step.

mod figures;
mod sampling;
mod state;
#[cfg(test)]
mod tests;

use data::{Cursor, seed};
use tch::{Kind, Tensor};
use torch_ext::distributed::ProcessGroup;
use torch_ext::readback::Readback;
use torch_ext::{Generator, Params, TorchError};

use crate::adamw::{AdamW, trained_bytes};
use crate::aligner::Aligner;
use crate::average::Average;
use crate::data_parallel::{DataParallel, Network, rows, share_state};
use crate::passes::Passes;
use crate::repa_e::Joint;
use crate::step_graph::StepGraph;
use crate::task::Task;
use crate::weights::{Weights, alignment_loss};
use crate::{Config, DeviceBatch, Inputs, Objective, StepMetrics, TrainError};
use figures::PendingFigures;

/// Trains one model, one step at a time, on a batch and the encoders' tokens for it.
///
/// A step's figures are copied from the device after the step, and read after the next step has been queued. So the
/// host waits only for the previous step, and the device never waits. [`Trainer::finish_step`] reads them at once.
#[derive(Debug)]
pub struct Trainer {
    config: Config,
    inputs: Inputs,
    task: Task,
    weights: Weights,
    average: Params,
    second_average: Option<Params>,
    /// Both averages, for the optimiser, which updates them.
    averages: Vec<Average>,
    adamw: AdamW,
    aligner: Aligner,
    generator: Generator,
    step: u64,
    cursor: Cursor,
    pending: Option<PendingFigures>,
    /// [`Readback::begin`]; a test replaces it to count the calls.
    read_back: fn(&Tensor) -> Result<Readback, TorchError>,
    /// `Some` after the first step, with `train.cuda_graphs` on a GPU.
    graph: Option<StepGraph>,
    /// The processes that share a batch with this one.
    parallel: Option<DataParallel>,
    /// The step after which all of them stop.
    stop_after: Option<u64>,
}

impl Trainer {
    /// Builds the model with weights drawn from the configuration's seed.
    ///
    /// # Errors
    /// A setting is out of range; the model is unknown; an encoder's token grid does not fit the model's.
    pub fn new(config: &Config, inputs: Inputs) -> Result<Self, TrainError> {
        Self::with_copies(config, inputs, dtype_of_copies(config))
    }

    /// Like [`Trainer::new`], with copies of the weights in the dtype `copies`, or without copies.
    fn with_copies(
        config: &Config,
        inputs: Inputs,
        copies: Option<Kind>,
    ) -> Result<Self, TrainError> {
        config.validate()?;
        config.apply_numerics(inputs.device)?;
        if config.train.cuda_graphs && !inputs.device.is_cuda() {
            tracing::warn!("train.cuda_graphs has no effect on {:?}", inputs.device);
        }
        let (task, weights, average) = Task::new(config, &inputs)?;
        let average = average.params;
        let second_average = match config.train.second_ema_decay {
            Some(_) => Some(Task::further_average(config, &inputs, &weights)?),
            None => None,
        };
        if let Some(kind) = copies {
            weights.params.keep_copies(kind)?;
        }
        let train = &config.train;
        let averages = [
            Some((&average, train.ema_decay)),
            second_average.as_ref().zip(train.second_ema_decay),
        ];
        let averages = averages.into_iter().flatten();
        Ok(Self {
            averages: averages
                .map(|(target, decay)| Average::new(target, &weights.params, decay))
                .collect(),
            adamw: AdamW::new(&weights.params, &config.optimizer, config.learning_rate())?,
            aligner: Aligner::new(
                alignment_loss(config, &inputs)?,
                &inputs.encoders,
                task.denoiser().dimensions().token_grid,
            ),
            generator: Generator::new(
                inputs.device,
                seed::derive(config.train.seed, "training", &[]),
            )?,
            step: 0,
            cursor: Cursor::default(),
            pending: None,
            read_back: Readback::begin,
            graph: None,
            parallel: None,
            stop_after: None,
            config: config.clone(),
            task,
            inputs,
            weights,
            average,
            second_average,
        })
    }

    /// Shares every batch with the other processes of `group`, all of which must call this on a trainer with the same
    /// configuration and inputs. They take over the state of rank 0: weights, optimiser, step and position. Each then
    /// passes its own [`rows`](crate::rows) of the batch to [`step`](Self::step), and tokens for them. Losses, gradients and weights are
    /// those of one process with the whole batch, up to rounding, and equal to the bit in all processes; so is every
    /// checkpoint, which any number of processes can resume.
    ///
    /// A CUDA graph is not recorded then.
    ///
    /// # Errors
    /// [`TrainError::Processes`]; another process does not answer.
    pub fn distribute(&mut self, group: ProcessGroup) -> Result<(), TrainError> {
        let world = group.world();
        rows(&self.config.train, world)?;
        let mut state = self.checkpoint()?;
        share_state(&mut state, &group, self.inputs.device)?;
        self.resume(&state)?;
        self.generator.slice_batches(world.rank, world.size);
        let mut networks = vec![(Network::Denoiser, self.weights.params.leaves())];
        networks.extend(self.task.joint().into_iter().flat_map(Joint::leaves));
        let dtype = self.config.train.reduce_dtype;
        self.parallel = Some(DataParallel::new(group, networks, dtype));
        Ok(())
    }

    /// Asks all processes that share the batches to stop at the same step, [`stop_after`](Self::stop_after). Without
    /// others, this does nothing.
    pub fn ask_to_stop(&mut self) {
        if let Some(parallel) = &mut self.parallel {
            parallel.ask_to_stop();
        }
    }

    /// Returns the step after which the processes stop that share the batches, once one of them has asked for it. All know
    /// it before they begin the step after that.
    pub fn stop_after(&self) -> Option<u64> {
        self.stop_after
    }

    /// Returns the number of optimiser steps done.
    pub fn steps_done(&self) -> u64 {
        self.step
    }

    /// Returns the bytes of weights, averages, gradients, optimiser state and a recorded step after the first step. A
    /// step needs more memory only temporarily.
    pub fn state_bytes(&self) -> u64 {
        let second = self.second_average.as_ref().map_or(0, Params::bytes);
        let joint = self.task.joint().map_or(0, Joint::state_bytes);
        let graph = self.graph.as_ref().map_or(0, StepGraph::bytes);
        trained_bytes(&self.weights.params) + self.average.bytes() + second + joint + graph
    }

    /// Returns the position of the data stream after the last batch.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// Returns the configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Returns the inputs that the trainer was built for.
    pub fn inputs(&self) -> &Inputs {
        &self.inputs
    }

    /// Returns the trained weights.
    pub fn params(&self) -> &Params {
        &self.weights.params
    }

    /// Returns the moving average of the weights.
    pub fn average(&self) -> &Params {
        &self.average
    }

    /// Returns the hash of the checkpoints that belong to this run.
    pub fn hash(&self) -> String {
        self.config.training_hash(&self.inputs.identity)
    }

    /// Runs one optimiser step. `tokens` holds each encoder's patch tokens of the batch, `[B, T, D]`,
    /// before spatial normalisation. Returns the figures of the previous step.
    ///
    /// # Errors
    /// The loss or gradient of the previous step is not finite; shapes do not fit; the device is out of
    /// memory.
    pub fn step(
        &mut self,
        batch: &DeviceBatch,
        tokens: &[Tensor],
    ) -> Result<Option<StepMetrics>, TrainError> {
        if tokens.len() != self.inputs.encoders.len() {
            return Err(TrainError::EncoderCount {
                found: tokens.len(),
                expected: self.inputs.encoders.len(),
            });
        }
        // These settings hold for the whole process, and another trainer may have run the previous step.
        self.config.apply_numerics(self.inputs.device)?;
        ops::composed_if(!self.config.train.fused, || self.run_step(batch, tokens))
    }

    /// Runs [`step`](Self::step) on valid tokens, with kernels or compositions as the caller has chosen.
    fn run_step(
        &mut self,
        batch: &DeviceBatch,
        tokens: &[Tensor],
    ) -> Result<Option<StepMetrics>, TrainError> {
        let step = self.step + 1;
        let passes = Passes {
            config: &self.config,
            device: self.inputs.device,
            weights: &self.weights,
            aligner: &self.aligner,
        };
        let generator = &mut self.generator;
        let (figures, autoencoder_figures) = match &self.task {
            Task::Frozen(task) => {
                let parallel = self.parallel.as_mut();
                let graph = &mut self.graph;
                let figures = passes.backward(task, batch, tokens, generator, graph, parallel)?;
                (figures, None)
            }
            Task::Joint(task) => {
                let parallel = self.parallel.as_mut();
                let figures = passes.joint_step(task, batch, tokens, step, generator, parallel)?;
                (figures.denoiser, Some(figures.autoencoder))
            }
        };
        let (figures, asks_to_stop) = match &self.parallel {
            Some(parallel) => {
                let mean = parallel.mean(&figures)?;
                let count = figures.size1()?;
                (
                    mean.f_narrow(0, 0, count)?,
                    Some(mean.f_narrow(0, count, 1)?),
                )
            }
            None => (figures, None),
        };
        let norm = self.adamw.step(step, &self.averages)?;
        for average in &self.averages {
            average.follow_statistics()?;
        }
        let mut figures = vec![figures, norm.f_reshape([1])?];
        figures.extend(autoencoder_figures);
        let is_shared = asks_to_stop.is_some();
        figures.extend(asks_to_stop);
        let previous = self.finish_step()?;
        self.step = step;
        self.cursor = batch.cursor;
        self.pending = Some(PendingFigures {
            step,
            lr: self.adamw.lr(step),
            samples: batch.ids.clone(),
            corrupt_skipped: batch.cursor.skipped,
            is_shared,
            copy: (self.read_back)(&Tensor::f_cat(&figures, 0)?)?,
        });
        Ok(previous)
    }

    /// Waits for the last step and returns its figures. Returns `None` if they have already been returned.
    ///
    /// # Errors
    /// The loss or the gradient is not finite.
    pub fn finish_step(&mut self) -> Result<Option<StepMetrics>, TrainError> {
        let aligned = !self.weights.heads.depths().is_empty();
        let Some(pending) = self.pending.take() else {
            return Ok(None);
        };
        let (metrics, asked_to_stop) = pending.read(aligned)?;
        if asked_to_stop {
            // The processes read the figures of a step before or after the end of the next one.
            self.stop_after = self.stop_after.or(Some(metrics.step + 1));
        }
        Ok(Some(metrics))
    }
}

/// Returns the dtype in which the model keeps copies of its weights for matrix products, or `None` for no
/// copies. The fused update writes the copies. The results equal those of autocast, which would cast each
/// weight in each step, and its gradient back.
fn dtype_of_copies(config: &Config) -> Option<Kind> {
    let one_pass = match config.objective {
        Objective::Velocity(_) | Objective::XPrediction(_) | Objective::Meanflow(_) => {
            config.train.accumulation == 1
        }
        // Its step has several passes.
        Objective::RepaE(_) => false,
    };
    // A copy's gradient has the copy's dtype. Several backward passes would add gradients in that dtype;
    // autocast widens them before the addition.
    let kind = config.train.precision.autocast();
    kind.filter(|_| one_pass && config.train.fused)
}
