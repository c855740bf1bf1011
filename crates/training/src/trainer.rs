//! Trains one model, step by step.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use data::{Cursor, seed};
use diffusion::Denoiser as _;
use metrics::figures::{Figure, Figures};
use tch::{Kind, Tensor};
use torch_ext::readback::Readback;
use torch_ext::{Generator, Mismatch, Params, TorchError};

use crate::adamw::{AdamW, trained_bytes};
use crate::aligner::Aligner;
use crate::average::Average;
use crate::denoising::sample_velocity;
use crate::passes::Passes;
use crate::repa_e::Joint;
use crate::sampling::{self, StepNoise, check_interrupted, draw_samples};
use crate::step_graph::StepGraph;
use crate::task::{Task, Weights, alignment_loss};
use crate::{
    Checkpoint, Config, DeviceBatch, Inputs, LastGoodCheckpoint, Objective, StepMetrics, TrainError,
};

/// The figures of a step while they are copied from the device.
#[derive(Debug)]
struct Pending {
    step: u64,
    lr: f64,
    samples: Vec<u64>,
    corrupt_skipped: u64,
    /// Total, denoising and alignment loss and gradient norm, `[4]`; followed by the figures of a
    /// trained autoencoder. The copy is queued before the next step's work.
    figures: Readback,
}

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
    pending: Option<Pending>,
    /// [`Readback::begin`]; a test replaces it to count the calls.
    read_back: fn(&Tensor) -> Result<Readback, TorchError>,
    /// `Some` after the first step, with `train.cuda_graphs` on a GPU.
    graph: Option<StepGraph>,
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
            config: config.clone(),
            task,
            inputs,
            weights,
            average,
            second_average,
        })
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
                let figures = passes.backward(task, batch, tokens, generator, &mut self.graph)?;
                (figures, None)
            }
            Task::Joint(task) => {
                let figures = passes.joint_step(task, batch, tokens, step, generator)?;
                (figures.denoiser, Some(figures.autoencoder))
            }
        };
        let norm = self.adamw.step(step, &self.averages)?;
        for average in &self.averages {
            average.follow_statistics()?;
        }
        let mut figures = vec![figures, norm.f_reshape([1])?];
        figures.extend(autoencoder_figures);
        let previous = self.finish_step()?;
        self.step = step;
        self.cursor = batch.cursor;
        self.pending = Some(Pending {
            step,
            lr: self.adamw.lr(step),
            samples: batch.ids.clone(),
            corrupt_skipped: batch.cursor.skipped,
            figures: (self.read_back)(&Tensor::f_cat(&figures, 0)?)?,
        });
        Ok(previous)
    }

    /// Waits for the last step and returns its figures. Returns `None` if they have already been returned.
    ///
    /// # Errors
    /// The loss or the gradient is not finite.
    pub fn finish_step(&mut self) -> Result<Option<StepMetrics>, TrainError> {
        let Some(pending) = self.pending.take() else {
            return Ok(None);
        };
        let figures = Vec::<f32>::try_from(pending.figures.wait()?.f_to_kind(Kind::Float)?)?;
        let &[loss, denoising, alignment, norm, ref autoencoder @ ..] = figures.as_slice() else {
            return Ok(None);
        };
        let aligned = !self.weights.heads.depths().is_empty();
        let [loss, denoising, alignment, norm] = [loss, denoising, alignment, norm].map(f64::from);
        let autoencoder: Figures = Figure::of_kind(metrics::figures::Kind::Autoencoder)
            .zip(autoencoder.iter().copied().map(f64::from))
            .collect();
        let autoencoder_figures = [
            ("the autoencoder's loss", Figure::AutoencoderLoss),
            ("the discriminator's loss", Figure::DiscriminatorLoss),
            (
                "the norm of the autoencoder's gradient",
                Figure::AutoencoderGradNorm,
            ),
            (
                "the norm of the discriminator's gradient",
                Figure::DiscriminatorGradNorm,
            ),
        ];
        let autoencoder_figures = autoencoder_figures
            .into_iter()
            .filter_map(|(what, figure)| Some((what, autoencoder.get(figure)?)));
        let denoiser_figures = [
            ("the denoising loss", denoising),
            ("the alignment loss", alignment),
            ("the loss", loss),
            ("the norm of the gradient", norm),
        ];
        for (what, value) in denoiser_figures.into_iter().chain(autoencoder_figures) {
            if !value.is_finite() {
                return Err(TrainError::NotFinite {
                    what,
                    value,
                    step: pending.step,
                    samples: pending.samples,
                    last_good: LastGoodCheckpoint::Unknown,
                });
            }
        }
        let mut figures = autoencoder;
        figures.extend([
            (Figure::Loss, loss),
            (Figure::DenoisingLoss, denoising),
            (Figure::GradNorm, norm),
            (Figure::LearningRate, pending.lr),
        ]);
        figures.set(Figure::AlignmentLoss, aligned.then_some(alignment));
        let skipped = pending.corrupt_skipped;
        figures.set(
            Figure::CorruptSkipped,
            (skipped > 0).then_some(skipped as f64),
        );
        Ok(Some(StepMetrics {
            step: pending.step,
            figures,
        }))
    }

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

    /// Returns the number of images that [`sample`](Self::sample) draws at once.
    pub fn samples_at_once(&self) -> usize {
        sampling::batch_size(&self.config, self.inputs.device)
    }

    /// Draws one image for each of `labels` with the averaged weights. Returns u8 `[N, 3, H, W]` on the
    /// CPU. `progress` is called with the number of images done. The images' indices count from `first`, as
    /// in [`Sampling::sample`](crate::Sampling::sample). The training's random generator is not used.
    ///
    /// # Errors
    /// A label is out of range; the sampler refuses its settings; samples are not finite; the device is out
    /// of memory.
    pub fn sample(
        &self,
        first: u64,
        labels: &[i64],
        progress: impl FnMut(usize),
    ) -> Result<Tensor, TrainError> {
        self.sample_until(&AtomicBool::new(false), first, labels, progress)
    }

    /// Like [`Trainer::sample`], but stops when `interrupted` is set; see
    /// [`Sampling::sample_until`](crate::Sampling::sample_until).
    ///
    /// # Errors
    /// Those of [`Trainer::sample`]; [`TrainError::Interrupted`].
    pub fn sample_until(
        &self,
        interrupted: &AtomicBool,
        first: u64,
        labels: &[i64],
        progress: impl FnMut(usize),
    ) -> Result<Tensor, TrainError> {
        let sampler = self.config.sample.sampler;
        let check = || check_interrupted(interrupted);
        let samples = match &self.task {
            Task::Frozen(task) => {
                let samples = draw_samples(
                    task.average.denoiser().dimensions().image,
                    |noise: &Tensor, labels: &Tensor, steps: &mut StepNoise<'_>| {
                        task.average.sample(sampler, noise, labels, steps, check)
                    },
                    |latents| task.autoencoder.decode(latents),
                    &self.config,
                    (first, labels),
                    self.inputs.device,
                    interrupted,
                    progress,
                );
                // Trainers of a sweep sample one after the other, so only one autoencoder has to be in memory.
                task.autoencoder.unload();
                samples
            }
            Task::Joint(task) => {
                let network = (&task.average.objective, &task.average.sit);
                draw_samples(
                    task.average.sit.dimensions().image,
                    |noise: &Tensor, labels: &Tensor, steps: &mut StepNoise<'_>| {
                        sample_velocity(network, sampler, noise, labels, steps, check)
                    },
                    |latents| task.joint.decode(latents, &task.average.latent_norm),
                    &self.config,
                    (first, labels),
                    self.inputs.device,
                    interrupted,
                    progress,
                )
            }
        };
        samples.map_err(|error| {
            error.with_weights(|| format!("the averaged weights of step {}", self.step))
        })
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

#[cfg(test)]
mod tests;
