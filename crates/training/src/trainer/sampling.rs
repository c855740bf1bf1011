//! Samples of a trainer's averaged weights.

use std::sync::atomic::AtomicBool;

use tch::Tensor;

use super::Trainer;
use crate::TrainError;
use crate::denoising::sample_velocity;
use crate::sampling::{self, SampleSettings, StepNoise, check_interrupted, draw_samples};
use crate::task::Task;

impl Trainer {
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
        let settings = SampleSettings {
            config: &self.config,
            shape: self.task.denoiser().dimensions().image,
            device: self.inputs.device,
            interrupted,
        };
        let samples = match &self.task {
            Task::Frozen(task) => {
                let samples = draw_samples(
                    &settings,
                    |noise: &Tensor, labels: &Tensor, steps: &mut StepNoise<'_>| {
                        task.average.sample(sampler, noise, labels, steps, check)
                    },
                    |latents| task.autoencoder.decode(latents),
                    (first, labels),
                    progress,
                );
                // Trainers of a sweep sample one after the other, so only one autoencoder has to be in memory.
                task.autoencoder.unload();
                samples
            }
            Task::Joint(task) => {
                let network = (&task.average.objective, &task.average.sit);
                draw_samples(
                    &settings,
                    |noise: &Tensor, labels: &Tensor, steps: &mut StepNoise<'_>| {
                        sample_velocity(network, sampler, noise, labels, steps, check)
                    },
                    |latents| task.joint.decode(latents, &task.average.latent_norm),
                    (first, labels),
                    progress,
                )
            }
        };
        samples.map_err(|error| {
            error.with_weights(|| format!("the averaged weights of step {}", self.step))
        })
    }
}
