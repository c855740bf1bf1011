//! Forward and backward passes of a step.

use tch::{Device, Kind, Tensor};
use torch_ext::{Generator, TorchError, autocast};

use crate::aligner::{Aligned, Aligner};
use crate::data_parallel::{DataParallel, Network};
use crate::forward::{Drawn, ForwardOutput, Hidden};
use crate::repa_e::{BatchPart, JointFigures};
use crate::step_graph::StepGraph;
use crate::task::{FrozenTask, JointTask};
use crate::weights::Weights;
use crate::{Config, DeviceBatch, TrainError};

/// The parts of a trainer that its passes read.
#[derive(Clone, Copy)]
pub(crate) struct Passes<'a> {
    pub(crate) config: &'a Config,
    pub(crate) device: Device,
    pub(crate) weights: &'a Weights,
    pub(crate) aligner: &'a Aligner,
}

impl Passes<'_> {
    fn precision(&self) -> Option<Kind> {
        self.config.train.precision.autocast()
    }

    /// Cuts a batch into `train.accumulation` parts, and returns part `index` of a tensor.
    fn cut(&self, batch: &DeviceBatch, index: i64, tensor: &Tensor) -> Result<Tensor, TrainError> {
        let length = batch.labels.size1()? / self.config.train.accumulation as i64;
        Ok(tensor.f_narrow(0, index * length, length)?)
    }

    /// Computes the gradients of the whole batch, averaged over the processes that share it. Returns total, denoising and
    /// alignment loss of this process's rows, `[3]`.
    pub(crate) fn backward(
        &self,
        task: &FrozenTask,
        batch: &DeviceBatch,
        tokens: &[Tensor],
        generator: &mut Generator,
        graph: &mut Option<StepGraph>,
        mut parallel: Option<&mut DataParallel>,
    ) -> Result<Tensor, TrainError> {
        let parts = self.config.train.accumulation as i64;
        let mut figures: Option<Tensor> = None;
        for part in 0..parts {
            let cut = |tensor: &Tensor| self.cut(batch, part, tensor);
            let tokens = tokens.iter().map(cut).collect::<Result<Vec<_>, _>>()?;
            let moments = batch.moments.as_ref().map(cut).transpose()?;
            let x0 = task
                .autoencoder
                .encode(&cut(&batch.images)?, moments.as_ref(), generator)?;
            let drawn = task.trained.draw(&x0, &cut(&batch.labels)?, generator)?;
            let tokens = self.aligner.pooled(&tokens)?;
            // A reduction cannot be recorded together with the passes.
            let records =
                self.config.train.cuda_graphs && self.device.is_cuda() && parallel.is_none();
            let backward = |loss: &Tensor| {
                let loss = loss.f_div_scalar(parts as f64)?;
                match parallel.as_deref_mut() {
                    Some(parallel) => {
                        parallel.backward(Network::Denoiser, &loss, part + 1 == parts)
                    }
                    None => Ok(loss.f_backward()?),
                }
            };
            let part_figures = match drawn.recordable().filter(|_| records) {
                Some((pass, inputs)) => {
                    let run = |inputs: &[Tensor; 4], tokens: &[Tensor]| {
                        let backward = |loss: &Tensor| Ok(loss.f_backward()?);
                        self.forward_backward(pass.batch(inputs), tokens, generator, backward)
                    };
                    self.replay_graph(graph, &inputs, &tokens, run)?
                }
                None => self.forward_backward(drawn, &tokens, generator, backward)?,
            };
            figures = Some(match figures {
                Some(sum) => sum.f_add(&part_figures)?,
                None => part_figures,
            });
        }
        Ok(match figures {
            Some(sum) if parts > 1 => sum.f_div_scalar(parts as f64)?,
            Some(sum) => sum,
            None => Tensor::f_zeros([3], (Kind::Float, self.device))?,
        })
    }

    /// Runs the forward pass, the losses and `backward` on a part of a batch. Returns the part's figures, like
    /// [`backward`](Self::backward).
    fn forward_backward(
        &self,
        drawn: Drawn<'_>,
        tokens: &[Tensor],
        generator: &mut Generator,
        backward: impl FnOnce(&Tensor) -> Result<(), TorchError>,
    ) -> Result<Tensor, TrainError> {
        let ForwardOutput {
            loss: denoising,
            error,
            hidden,
        } = drawn.compute(
            &self.weights.heads,
            generator,
            (self.device, self.precision()),
        )?;
        let (total, alignment) = match self.aligner.compare(tokens, &hidden)? {
            Some(aligned) => (denoising.f_add(&aligned.weighted)?, aligned.mean.detach()),
            None => (denoising, error.f_zeros_like()?),
        };
        let figures = Tensor::f_stack(&[total.detach(), error, alignment], 0)?;
        backward(&total)?;
        Ok(figures)
    }

    /// Runs `passes` as a CUDA graph, which is recorded for the first batch of each new shape. `passes` takes the
    /// tensors of the noisy batch, then the encoders' tokens.
    fn replay_graph(
        &self,
        graph: &mut Option<StepGraph>,
        inputs: &[Tensor; 4],
        tokens: &[Tensor],
        passes: impl FnMut(&[Tensor; 4], &[Tensor]) -> Result<Tensor, TrainError>,
    ) -> Result<Tensor, TrainError> {
        // The old graph's memory is freed before the new one is recorded.
        let fitting = graph.take().filter(|graph| graph.fits(inputs, tokens));
        let recorded = match fitting {
            Some(recorded) => recorded,
            None => {
                let weights = self.weights.params.leaves();
                StepGraph::capture(self.device, inputs, tokens, weights, passes)?
            }
        };
        graph.insert(recorded).replay(inputs, tokens)
    }

    /// Runs REPA-E's step up to the gradients of the denoiser.
    pub(crate) fn joint_step(
        &self,
        task: &JointTask,
        batch: &DeviceBatch,
        tokens: &[Tensor],
        step: u64,
        generator: &mut Generator,
        parallel: Option<&mut DataParallel>,
    ) -> Result<JointFigures, TrainError> {
        let heads = &self.weights.heads;
        let (device, precision) = (self.device, self.precision());
        let batch_parts = (0..self.config.train.accumulation as i64)
            .map(|part| {
                let cut = |tensor: &Tensor| self.cut(batch, part, tensor);
                let tokens = tokens.iter().map(cut).collect::<Result<Vec<_>, _>>()?;
                let tokens = self.aligner.pooled(&tokens)?;
                Ok(BatchPart {
                    images: cut(&batch.images)?,
                    labels: cut(&batch.labels)?,
                    align: move |hidden: &[Tensor]| {
                        let depths = hidden.iter().map(Tensor::shallow_clone).collect();
                        let project = || Hidden::project(heads, depths);
                        let hidden = autocast::run(device, precision, project)??;
                        if let Some(aligned) = self.aligner.compare(&tokens, &hidden)? {
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
        task.joint
            .step(&task.trained, &batch_parts, step, generator, parallel)
    }
}
