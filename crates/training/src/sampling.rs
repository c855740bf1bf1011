//! Sampling of images from a trained denoiser.

use std::sync::atomic::{AtomicBool, Ordering};

use data::seed;
use diffusion::DiffusionError;
use diffusion::repa_e::LatentNorm;
use tch::{Device, Kind, Tensor};
use torch_ext::{Generator, Params, TorchError, autocast};

use crate::autoencoder::read_weights;
use crate::denoising::Denoising;
use crate::weights::num_classes;
use crate::{AutoencoderModel, Config, TrainError};

/// The averaged denoiser of a checkpoint, without heads, for sampling.
#[derive(Debug)]
pub struct Sampling {
    config: Config,
    autoencoder: AutoencoderModel,
    network: Denoising,
    num_classes: i64,
    device: Device,
    /// Name of the weights, for errors.
    weights: String,
}

impl Sampling {
    /// Builds the denoiser of `config` and loads `weights` into it; the weights of heads are ignored.
    /// `vae` holds the weights of an autoencoder that was trained jointly, from the same checkpoint. If
    /// it is `None`, or the autoencoder was not trained, its weights are read from
    /// `model.autoencoder.weights`.
    ///
    /// # Errors
    /// `weights` belongs to another model; the autoencoder's weights cannot be read; `config` asks for
    /// guidance of a model that was trained without label dropout.
    pub fn new(
        config: &Config,
        weights: &[(String, Tensor)],
        vae: Option<&[(String, Tensor)]>,
        device: Device,
    ) -> Result<Self, TrainError> {
        config.check_guidance()?;
        let num_classes = num_classes(config, weights)?;
        let params = Params::new(device, 0)?;
        let network = Denoising::new(&params.root(), config, num_classes)?;
        let joint = match config.joint() {
            Some((settings, autoencoder)) => {
                let [channels, ..] = network.denoiser().dimensions().image;
                let momentum = settings.latent_norm_momentum;
                let norm = LatentNorm::new(&params.root(), channels, momentum)?;
                Some((autoencoder, norm))
            }
            None => None,
        };
        let denoiser_weights: Vec<(String, Tensor)> = weights
            .iter()
            .filter(|(name, _)| !name.starts_with("projectors."))
            .map(|(name, tensor)| (name.clone(), tensor.shallow_clone()))
            .collect();
        params.load(&denoiser_weights)?;
        Ok(Self {
            config: config.clone(),
            autoencoder: match joint {
                Some((settings, norm)) => {
                    let read;
                    let vae = match vae {
                        Some(vae) => vae,
                        None => {
                            read = read_weights(&settings.weights)?;
                            &read
                        }
                    };
                    AutoencoderModel::from_weights(settings, vae, norm.scaling()?, device)?
                }
                None => AutoencoderModel::load(config, device)?,
            },
            network,
            num_classes,
            device,
            weights: "the loaded weights".to_owned(),
        })
    }

    /// Sets the name of the weights for errors, such as "the averaged weights of step 300 in RUN".
    pub fn named(mut self, weights: &str) -> Self {
        weights.clone_into(&mut self.weights);
        self
    }

    /// Returns the number of classes, without the null class.
    pub fn num_classes(&self) -> i64 {
        self.num_classes
    }

    /// Returns the number of samples drawn at once: `sample.batch_size`, but 8 on the CPU.
    pub fn batch_size(&self) -> usize {
        batch_size(&self.config, self.device)
    }

    /// Draws one image for each of `labels`, with the indices `first`, `first + 1` and so on, in
    /// batches of [`Sampling::batch_size`]. Returns u8 `[N, 3, H, W]` on the CPU. `progress` is called
    /// with the number of images done.
    ///
    /// The noise of an image depends only on `sample.seed` and the image's index, and every batch has
    /// the same length. So an image depends only on its index and label, not on the number of images or
    /// on `first`. On CUDA this holds for a fixed `sample.batch_size`; another one may change the last
    /// bits.
    ///
    /// # Errors
    /// A label is out of range; the sampler refuses its settings; samples are not finite; the device is
    /// out of memory.
    pub fn sample(
        &self,
        first: u64,
        labels: &[i64],
        progress: impl FnMut(usize),
    ) -> Result<Tensor, TrainError> {
        self.sample_until(&AtomicBool::new(false), first, labels, progress)
    }

    /// Like [`Sampling::sample`], but stops when `interrupted` is set. It is checked after each step of the
    /// sampler and, on the CPU, before each image is decoded.
    ///
    /// # Errors
    /// Those of [`Sampling::sample`]; [`TrainError::Interrupted`].
    pub fn sample_until(
        &self,
        interrupted: &AtomicBool,
        first: u64,
        labels: &[i64],
        progress: impl FnMut(usize),
    ) -> Result<Tensor, TrainError> {
        let sample = |noise: &Tensor, labels: &Tensor, steps: &mut StepNoise<'_>| {
            let check = || check_interrupted(interrupted);
            self.network
                .sample(self.config.sample.sampler, noise, labels, steps, check)
        };
        let settings = SampleSettings {
            config: &self.config,
            shape: self.network.denoiser().dimensions().image,
            device: self.device,
            interrupted,
        };
        let decode = |latents: &Tensor| self.autoencoder.decode(latents);
        draw_samples(&settings, sample, decode, (first, labels), progress)
            .map_err(|error| error.with_weights(|| self.weights.clone()))
    }
}

/// Number of samples drawn at once on the CPU, large enough for fast matrix products.
const CPU_BATCH: usize = 8;

/// Returns the number of samples drawn at once.
pub(crate) fn batch_size(config: &Config, device: Device) -> usize {
    match device {
        Device::Cpu => CPU_BATCH,
        _ => config.sample.batch_size.max(1),
    }
}

/// Draws the noise of a sampler's step, `[B, C, H, W]` in float64.
pub(crate) type StepNoise<'a> = dyn FnMut() -> Result<Tensor, DiffusionError> + 'a;

/// Returns an error if `interrupted` is set.
pub(crate) fn check_interrupted(interrupted: &AtomicBool) -> Result<(), DiffusionError> {
    match interrupted.load(Ordering::Relaxed) {
        true => Err(DiffusionError::Interrupted),
        false => Ok(()),
    }
}

/// How samples are drawn.
pub(crate) struct SampleSettings<'a> {
    pub(crate) config: &'a Config,
    /// `[C, H, W]` of the denoiser's images.
    pub(crate) shape: [i64; 3],
    pub(crate) device: Device,
    pub(crate) interrupted: &'a AtomicBool,
}

/// Draws one image for each of `labels`, with indices from `first` on. `sample` maps noise `[B, C, H, W]`,
/// labels `[B]` and the noise of its steps to images or latents, which `decode` maps to images.
///
/// Matrix products round differently in batches of another length. Therefore all batches are full and
/// start at multiples of their length; the first and the last one are padded with images that are
/// discarded.
pub(crate) fn draw_samples(
    settings: &SampleSettings<'_>,
    sample: impl Fn(&Tensor, &Tensor, &mut StepNoise<'_>) -> Result<Tensor, DiffusionError>,
    decode: impl Fn(&Tensor) -> Result<Tensor, TrainError>,
    (first, labels): (u64, &[i64]),
    mut progress: impl FnMut(usize),
) -> Result<Tensor, TrainError> {
    let &SampleSettings {
        config,
        shape,
        device,
        interrupted,
    } = settings;
    config.apply_numerics(device)?;
    let precision = config.train.precision.autocast();
    let length = batch_size(config, device);
    let mut images = Vec::new();
    let mut done = 0;
    while let Some(&padding_label) = labels.get(done) {
        let index = first + done as u64;
        let offset = (index % length as u64) as usize;
        let count = (length - offset).min(labels.len() - done);
        let mut batch_labels = vec![padding_label; length];
        batch_labels[offset..offset + count].copy_from_slice(&labels[done..done + count]);
        let start = index - offset as u64;

        let mut noise =
            IndexedNoise::new(config.sample.seed, start..start + length as u64, device)?;
        let latents = noise.draw(&shape, Kind::Float)?;
        let batch_labels = Tensor::f_from_slice(&batch_labels)?.f_to_device(device)?;
        let latents = ops::composed_if(!config.train.fused, || {
            autocast::run(device, precision, || {
                let mut step_noise = || noise.draw(&shape, Kind::Double);
                sample(&latents, &batch_labels, &mut step_noise)
            })
        })??;
        let samples = latents.f_narrow(0, offset as i64, count as i64)?;
        check_finite(&samples, index)?;
        match device {
            // On the CPU, `decode` would decode images one by one anyway.
            Device::Cpu => {
                for position in offset..offset + count {
                    check_interrupted(interrupted)?;
                    images.push(decode(&latents.f_narrow(0, position as i64, 1)?)?);
                }
            }
            _ => {
                let decoded = decode(&latents)?.f_to_device(Device::Cpu)?;
                images.push(decoded.f_narrow(0, offset as i64, count as i64)?);
            }
        }
        done += count;
        progress(done);
    }
    if images.is_empty() {
        return Ok(Tensor::f_zeros([0, 3, 1, 1], (Kind::Uint8, Device::Cpu))?);
    }
    Ok(Tensor::f_cat(&images, 0)?)
}

/// Checks that all values of samples `[B, C, H, W]` are finite. The samples' indices count from `start`.
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

/// The noise of a batch. Each image has its own generator, so its noise does not depend on the batch.
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

    /// Draws the next standard normal numbers, `[B, C, H, W]`, for images of `shape`.
    fn draw(&mut self, shape: &[i64; 3], kind: Kind) -> Result<Tensor, DiffusionError> {
        let noise = self
            .generators
            .iter_mut()
            .map(|generator| generator.randn(shape, kind))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Tensor::f_stack(&noise, 0)?)
    }
}
