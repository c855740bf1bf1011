//! Trains one model, step by step.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use data::{Cursor, seed};
use metrics::figures::{Figure, Figures};
use tch::{Kind, Tensor};
use torch_ext::readback::Readback;
use torch_ext::{Generator, Mismatch, Params, TorchError, autocast};

use crate::adamw::{AdamW, trained_bytes};
use crate::aligner::{Aligned, Aligner};
use crate::average::Average;
use crate::model::{Model, Network};
use crate::objective::{ForwardOutput, NoisyInputs, project};
use crate::repa_e::{BatchPart, Joint, JointFigures};
use crate::sampling::{self, draw_samples};
use crate::step_graph::StepGraph;
use crate::{
    AutoencoderModel, Checkpoint, Config, DeviceBatch, Inputs, LastGoodCheckpoint, Objective,
    StepMetrics, TrainError,
};

/// The autoencoder of a trainer.
#[derive(Debug)]
enum Autoencoding {
    /// It is not trained.
    Frozen(AutoencoderModel),
    /// REPA-E's autoencoder, which is trained jointly.
    Trained(Box<Joint>),
}

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
    autoencoder: Autoencoding,
    model: Model,
    average: Model,
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
        let model = Model::new(config, &inputs)?;
        let autoencoder = match Joint::new(config, &model, inputs.device)? {
            Some(joint) => Autoencoding::Trained(Box::new(joint)),
            None => Autoencoding::Frozen(AutoencoderModel::on_demand(config, inputs.device)?),
        };
        let average = model.averaged(config, &inputs)?;
        let second_average = match config.train.second_ema_decay {
            Some(_) => Some(model.averaged(config, &inputs)?.params),
            None => None,
        };
        if let Some(kind) = copies {
            model.params.keep_copies(kind)?;
        }
        let train = &config.train;
        let averages = [
            Some((&average.params, train.ema_decay)),
            second_average.as_ref().zip(train.second_ema_decay),
        ];
        let averages = averages.into_iter().flatten();
        Ok(Self {
            averages: averages
                .map(|(target, decay)| Average::new(target, &model.params, decay))
                .collect(),
            adamw: AdamW::new(&model.params, &config.optimizer, config.learning_rate())?,
            aligner: Aligner::new(
                config,
                &inputs.encoders,
                model.network.denoiser().token_grid(),
            )?,
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
            autoencoder,
            inputs,
            model,
            average,
            second_average,
        })
    }

    /// Returns the number of optimiser steps done.
    pub fn steps_done(&self) -> u64 {
        self.step
    }

    /// Returns the bytes of weights, averages, gradients and optimiser state after the first step. A step needs more
    /// memory only temporarily.
    pub fn state_bytes(&self) -> u64 {
        let second = self.second_average.as_ref().map_or(0, Params::bytes);
        let trained = match &self.autoencoder {
            Autoencoding::Frozen(_) => 0,
            Autoencoding::Trained(joint) => joint.state_bytes(),
        };
        trained_bytes(&self.model.params) + self.average.params.bytes() + second + trained
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
        &self.model.params
    }

    /// Returns the moving average of the weights.
    pub fn average(&self) -> &Params {
        &self.average.params
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
        if tokens.len() != self.model.heads.len() {
            return Err(TrainError::EncoderCount {
                found: tokens.len(),
                expected: self.model.heads.len(),
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
        let (figures, autoencoder_figures) = match &self.autoencoder {
            Autoencoding::Frozen(_) => (self.backward(batch, tokens)?, None),
            Autoencoding::Trained(_) => {
                let figures = self.joint_step(batch, tokens, step)?;
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

    /// Computes the gradients of the whole batch. Returns total, denoising and alignment loss, `[3]`.
    fn backward(&mut self, batch: &DeviceBatch, tokens: &[Tensor]) -> Result<Tensor, TrainError> {
        let parts = self.config.train.accumulation as i64;
        let part_len = batch.labels.size1()? / parts;
        let mut figures: Option<Tensor> = None;
        for part in 0..parts {
            let cut = |tensor: &Tensor| tensor.f_narrow(0, part * part_len, part_len);
            let tokens = tokens.iter().map(cut).collect::<Result<Vec<_>, _>>()?;
            let moments = batch.moments.as_ref().map(cut).transpose()?;
            let part_figures = self.backward_part(
                &cut(&batch.images)?,
                moments.as_ref(),
                &cut(&batch.labels)?,
                &tokens,
                parts,
            )?;
            figures = Some(match figures {
                Some(sum) => sum.f_add(&part_figures)?,
                None => part_figures,
            });
        }
        match figures {
            Some(sum) if parts > 1 => Ok(sum.f_div_scalar(parts as f64)?),
            Some(sum) => Ok(sum),
            None => Ok(Tensor::f_zeros([3], (Kind::Float, self.inputs.device))?),
        }
    }

    /// Adds the gradients of one of `parts` parts of a batch. Returns the part's figures, like
    /// [`backward`](Self::backward).
    fn backward_part(
        &mut self,
        images: &Tensor,
        moments: Option<&Tensor>,
        labels: &Tensor,
        tokens: &[Tensor],
        parts: i64,
    ) -> Result<Tensor, TrainError> {
        let x0 = match &self.autoencoder {
            Autoencoding::Frozen(autoencoder) => {
                autoencoder.encode(images, moments, &mut self.generator)?
            }
            Autoencoding::Trained(_) => return Err(self.mismatch()),
        };
        let objective = self.config.objective();
        let noisy = objective.draw(&self.model, &x0, labels, &mut self.generator)?;
        let tokens = self.aligner.pooled(tokens)?;
        if self.config.train.cuda_graphs
            && self.inputs.device.is_cuda()
            && let Some(mut inputs) = noisy.tensors()
        {
            inputs.extend(tokens);
            return self.replay_graph(&objective, &noisy, &inputs);
        }
        self.forward_backward(&objective, noisy, &tokens, parts)
    }

    /// Runs the forward pass, the losses and the backward pass on one of `parts` parts of a batch.
    fn forward_backward(
        &mut self,
        objective: &Objective,
        noisy: NoisyInputs,
        tokens: &[Tensor],
        parts: i64,
    ) -> Result<Tensor, TrainError> {
        let precision = self.config.train.precision.autocast();
        let ForwardOutput {
            loss: denoising,
            error,
            projected,
        } = objective.compute(
            &self.model,
            noisy,
            &mut self.generator,
            (self.inputs.device, precision),
        )?;
        let (total, alignment) = match self.aligner.compare(tokens, &projected)? {
            Some(aligned) => (denoising.f_add(&aligned.weighted)?, aligned.mean.detach()),
            None => (denoising, error.f_zeros_like()?),
        };
        let figures = Tensor::f_stack(&[total.detach(), error, alignment], 0)?;
        total.f_div_scalar(parts as f64)?.f_backward()?;
        Ok(figures)
    }

    /// Runs [`forward_backward`](Self::forward_backward) as a CUDA graph, which is recorded for the first
    /// batch of each new shape. `inputs` holds the tensors of `noisy`, then the encoders' tokens.
    fn replay_graph(
        &mut self,
        objective: &Objective,
        noisy: &NoisyInputs,
        inputs: &[Tensor],
    ) -> Result<Tensor, TrainError> {
        if !self.graph.as_ref().is_some_and(|graph| graph.fits(inputs)) {
            // Frees the old graph's memory for the new one.
            self.graph = None;
            let weights = self.model.params.leaves();
            let device = self.inputs.device;
            let graph = StepGraph::capture(device, inputs, weights, |inputs| {
                let replaced = noisy.with_tensors(inputs);
                let (noisy, tokens) = replaced.ok_or_else(|| self.mismatch())?;
                self.forward_backward(objective, noisy, tokens, 1)
            })?;
            self.graph = Some(graph);
        }
        match &self.graph {
            Some(graph) => graph.replay(inputs),
            None => Err(self.mismatch()),
        }
    }

    /// Runs REPA-E's step up to the gradients of the denoiser.
    fn joint_step(
        &mut self,
        batch: &DeviceBatch,
        tokens: &[Tensor],
        step: u64,
    ) -> Result<JointFigures, TrainError> {
        let Self {
            aligner,
            model,
            config,
            inputs,
            generator,
            autoencoder,
            ..
        } = self;
        let (aligner, heads, device) = (&*aligner, &model.heads, inputs.device);
        let precision = config.train.precision.autocast();
        let parts = config.train.accumulation as i64;
        let part_len = batch.labels.size1()? / parts;
        let batch_parts = (0..parts)
            .map(|part| {
                let cut = |tensor: &Tensor| tensor.f_narrow(0, part * part_len, part_len);
                let tokens = tokens.iter().map(cut).collect::<Result<Vec<_>, _>>()?;
                let tokens = aligner.pooled(&tokens)?;
                Ok(BatchPart {
                    images: cut(&batch.images)?,
                    labels: cut(&batch.labels)?,
                    align: move |hidden: &Tensor| {
                        let projected =
                            autocast::run(device, precision, || project(heads, hidden))??;
                        if let Some(aligned) = aligner.compare(&tokens, &projected)? {
                            return Ok(aligned);
                        }
                        let nothing = Tensor::f_zeros([0; 0], (Kind::Float, device))?;
                        Ok(Aligned {
                            mean: nothing.shallow_clone(),
                            weighted: nothing,
                        })
                    },
                })
            })
            .collect::<Result<Vec<_>, TrainError>>()?;
        match (autoencoder, &model.network, &model.latent_norm) {
            (Autoencoding::Trained(joint), Network::Sit(sit), Some(norm)) => {
                joint.step((sit, norm), &batch_parts, step, generator)
            }
            _ => {
                drop(batch_parts);
                Err(self.mismatch())
            }
        }
    }

    /// Returns the error for an objective and a network that do not fit each other. It cannot occur with a
    /// validated configuration.
    fn mismatch(&self) -> TrainError {
        TrainError::Objective {
            objective: self.config.objective.name(),
            network: self.model.network.family(),
        }
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
        let aligned = !self.model.heads.is_empty();
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
            model: self.model.params.state_dict(),
            ema: self.average.params.state_dict(),
            second_ema: self.second_average.as_ref().map(Params::state_dict),
            optimizer: self.adamw.state(),
            random: vec![("training".to_owned(), self.generator.state()?)],
            others: match &self.autoencoder {
                Autoencoding::Frozen(_) => BTreeMap::new(),
                Autoencoding::Trained(joint) => joint.state(),
            },
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
        self.model.params.load(&checkpoint.model)?;
        self.average.params.load(&checkpoint.ema)?;
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
        if let Autoencoding::Trained(joint) = &self.autoencoder {
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
            true => self.model.params.load_partial(weights)?,
            false => {
                self.model.params.load(weights)?;
                Mismatch::default()
            }
        };
        let start = self.model.params.state_dict();
        self.average.params.load(&start)?;
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
        let decode = |latents: &Tensor| match &self.autoencoder {
            Autoencoding::Frozen(autoencoder) => autoencoder.decode(latents),
            Autoencoding::Trained(joint) => match &self.average.latent_norm {
                Some(norm) => joint.decode(latents, norm),
                None => Err(self.mismatch()),
            },
        };
        let samples = draw_samples(
            &self.average.network,
            decode,
            &self.config,
            (first, labels),
            self.inputs.device,
            interrupted,
            progress,
        );
        // Trainers of a sweep sample one after the other, so only one autoencoder has to be in memory.
        if let Autoencoding::Frozen(autoencoder) = &self.autoencoder {
            autoencoder.unload();
        }
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
