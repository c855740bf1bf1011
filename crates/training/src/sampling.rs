//! Drawing images from a denoiser.

use std::sync::atomic::{AtomicBool, Ordering};

use data::seed;
use diffusion::DiffusionError;
use tch::{Device, Kind, Tensor};
use torch_ext::{Generator, TorchError, autocast};

use crate::autoencoder::read_weights;
use crate::model::{Model, Network, num_classes};
use crate::{Autoencoder, AutoencoderModel, Config, Inputs, TrainError};

/// The averaged denoiser of a checkpoint, without heads, for sampling.
#[derive(Debug)]
pub struct Sampling {
    config: Config,
    autoencoder: AutoencoderModel,
    network: Network,
    num_classes: i64,
    device: Device,
    /// The weights, for errors.
    weights: String,
}

impl Sampling {
    /// Builds the denoiser of `config` and loads `weights` into it; heads among them are left out.
    /// `vae` are the weights of an autoencoder that was trained with it, from the same checkpoint;
    /// without them, and for one that was not, they are read from `model.autoencoder.weights`.
    ///
    /// # Errors
    /// Weights of another model; no weights of the autoencoder; guidance of a model that was trained without
    /// label dropout.
    pub fn new(
        config: &Config,
        weights: &[(String, Tensor)],
        vae: Option<&[(String, Tensor)]>,
        device: Device,
    ) -> Result<Self, TrainError> {
        config.check_guidance()?;
        let num_classes = num_classes(config, weights)?;
        let inputs = Inputs {
            device,
            num_classes,
            encoders: Vec::new(),
            identity: String::new(),
        };
        let model = Model::new(config, &inputs)?;
        let denoiser_weights: Vec<(String, Tensor)> = weights
            .iter()
            .filter(|(name, _)| !name.starts_with("projectors."))
            .map(|(name, tensor)| (name.clone(), tensor.shallow_clone()))
            .collect();
        model.params.load(&denoiser_weights)?;
        Ok(Self {
            config: config.clone(),
            autoencoder: match (&config.model.autoencoder, &model.latent_norm) {
                (Autoencoder::Kl(settings), Some(norm)) => {
                    let read;
                    let vae = match vae {
                        Some(vae) => vae,
                        None => {
                            read = read_weights(&settings.weights)?;
                            &read
                        }
                    };
                    AutoencoderModel::of_weights(settings, vae, norm.scaling()?, device)?
                }
                _ => AutoencoderModel::load(config, device)?,
            },
            network: model.network,
            num_classes,
            device,
            weights: "the given weights".to_owned(),
        })
    }

    /// Names the weights, for errors: "the averaged weights of step 300 in RUN".
    pub fn named(mut self, weights: &str) -> Self {
        weights.clone_into(&mut self.weights);
        self
    }

    /// Number of classes, without the null class.
    pub fn num_classes(&self) -> i64 {
        self.num_classes
    }

    /// Samples drawn at once: `sample.batch_size`, but 8 on the CPU.
    pub fn batch_size(&self) -> usize {
        batch_size(&self.config, self.device)
    }

    /// Draws the images of indices `first`, `first + 1` and so on, one for each of `labels`,
    /// u8 `[N, 3, H, W]` on the CPU, [`Sampling::batch_size`] at once. `progress` is told the
    /// number of images done.
    ///
    /// The noise of an image comes from `sample.seed` and its index alone, and it is computed in
    /// a batch of the same length every time. So an index gives the same image however many are
    /// drawn and wherever one starts; on CUDA, for one `sample.batch_size`: another one may change
    /// last bits.
    ///
    /// # Errors
    /// A label out of range, settings that the sampler refuses, samples that are not finite, out of memory.
    pub fn sample(
        &self,
        first: u64,
        labels: &[i64],
        progress: impl FnMut(usize),
    ) -> Result<Tensor, TrainError> {
        self.sample_until(&AtomicBool::new(false), first, labels, progress)
    }

    /// As [`Sampling::sample`], until `interrupted` is set: it is looked at after each step of the sampler and
    /// each image that is decoded on a CPU.
    ///
    /// # Errors
    /// As [`Sampling::sample`]; [`TrainError::Interrupted`].
    pub fn sample_until(
        &self,
        interrupted: &AtomicBool,
        first: u64,
        labels: &[i64],
        progress: impl FnMut(usize),
    ) -> Result<Tensor, TrainError> {
        draw_samples(
            &self.network,
            |latents| self.autoencoder.decode(latents),
            &self.config,
            (first, labels),
            self.device,
            interrupted,
            progress,
        )
        .map_err(|error| error.of_weights(|| self.weights.clone()))
    }
}

/// Samples drawn at once on the CPU: enough for the matrix products to be fast.
const CPU_BATCH: usize = 8;

/// Samples drawn at once.
pub(crate) fn batch_size(config: &Config, device: Device) -> usize {
    match device {
        Device::Cpu => CPU_BATCH,
        _ => config.sample.batch_size.max(1),
    }
}

/// Draws the images of `labels`, whose indices count from `first`.
///
/// Matrix products round differently in batches of another length, so batches start at multiples
/// of theirs and are whole: at both ends they are filled up with images that nobody wants.
pub(crate) fn draw_samples(
    network: &Network,
    decode: impl Fn(&Tensor) -> Result<Tensor, TrainError>,
    config: &Config,
    (first, labels): (u64, &[i64]),
    device: Device,
    interrupted: &AtomicBool,
    mut progress: impl FnMut(usize),
) -> Result<Tensor, TrainError> {
    let go_on = || match interrupted.load(Ordering::Relaxed) {
        true => Err(DiffusionError::Interrupted),
        false => Ok(()),
    };
    config.apply_numerics(device)?;
    let sampler = config.objective.sampler(config.sample.sampler)?;
    let shape = network.denoiser().image_shape();
    let precision = config.train.precision.autocast();
    let length = batch_size(config, device);
    let mut images = Vec::new();
    let mut done = 0;
    while let Some(&filler) = labels.get(done) {
        let start = first + done as u64;
        let before = (start % length as u64) as usize;
        let wanted = (length - before).min(labels.len() - done);
        let mut batch_labels = vec![filler; length];
        batch_labels[before..before + wanted].copy_from_slice(&labels[done..done + wanted]);
        let start = start - before as u64;

        let mut noise =
            IndexedNoise::new(config.sample.seed, start..start + length as u64, device)?;
        let latents = noise.draw(&shape, Kind::Float)?;
        let batch_labels = Tensor::f_from_slice(&batch_labels)?.f_to_device(device)?;
        let latents = autocast::run(device, precision, || {
            let step_noise = || noise.draw(&shape, Kind::Double);
            sampler.sample(network, &latents, &batch_labels, step_noise, go_on)
        })??;
        let samples = latents.f_narrow(0, before as i64, wanted as i64)?;
        check_finite(&samples, start + before as u64)?;
        match device {
            // An image is decoded alone there in any case.
            Device::Cpu => {
                for index in before..before + wanted {
                    go_on()?;
                    images.push(decode(&latents.f_narrow(0, index as i64, 1)?)?);
                }
            }
            _ => {
                let decoded = decode(&latents)?.f_to_device(Device::Cpu)?;
                images.push(decoded.f_narrow(0, before as i64, wanted as i64)?);
            }
        }
        done += wanted;
        progress(done);
    }
    if images.is_empty() {
        return Ok(Tensor::f_zeros([0, 3, 1, 1], (Kind::Uint8, Device::Cpu))?);
    }
    Ok(Tensor::f_cat(&images, 0)?)
}

/// Refuses samples `[B, C, H, W]`, whose indices count from `start`, that are no images.
fn check_finite(samples: &Tensor, start: u64) -> Result<(), TrainError> {
    let finite = samples
        .f_isfinite()?
        .f_flatten(1, -1)?
        .f_all_dim(1, false)?;
    let finite = Vec::<bool>::try_from(finite.f_to_device(Device::Cpu)?)?;
    let Some(first) = finite.iter().position(|finite| !finite) else {
        return Ok(());
    };
    Err(TrainError::SamplesNotFinite {
        first: start + first as u64,
        more: finite.iter().filter(|finite| !**finite).count() - 1,
        weights: "these weights".to_owned(),
    })
}

/// Noise of a batch of images, each from a generator of its own: an image is the same in any
/// batch.
struct IndexedNoise {
    generators: Vec<Generator>,
}

impl IndexedNoise {
    fn new(
        seed: u64,
        indices: impl Iterator<Item = u64>,
        device: Device,
    ) -> Result<Self, TorchError> {
        let generators = indices
            .map(|index| Generator::new(device, seed::derive(seed, "sample", &[index])))
            .collect::<Result<_, _>>()?;
        Ok(Self { generators })
    }

    /// The next standard normal numbers, `[B, C, H, W]`.
    fn draw(&mut self, shape: &[i64; 3], kind: Kind) -> Result<Tensor, DiffusionError> {
        let noise = self
            .generators
            .iter_mut()
            .map(|generator| generator.randn(shape, kind))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Tensor::f_stack(&noise, 0)?)
    }
}
