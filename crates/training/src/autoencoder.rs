//! The frozen autoencoder of a run, with its weights and the scale of its latents.

use std::cell::RefCell;
use std::path::Path;

use data::seed;
use diffusion::autoencoder::{Autoencoder as _, Identity, KlAutoencoder};
use diffusion::latents::LatentScaling;
use tch::{Device, Kind, Tensor};
use torch_ext::device::Float32;
use torch_ext::{Generator, Params};

use crate::{Autoencoder, Config, KlSettings, TrainError, read_tensors};

/// The frozen autoencoder of a run: the identity for runs in pixel space, or a KL autoencoder.
#[derive(Debug)]
pub struct AutoencoderModel(Option<Box<Latents>>);

/// A frozen autoencoder and the scale of its latents.
#[derive(Debug)]
struct Latents {
    settings: KlSettings,
    scaling: LatentScaling,
    device: Device,
    /// `None` until it is first needed, if it is loaded on demand.
    network: RefCell<Option<KlAutoencoder>>,
}

impl AutoencoderModel {
    /// Loads the autoencoder of `config` to `device`, with the weights of `model.autoencoder.weights`.
    ///
    /// # Errors
    /// The file does not exist, or has other names or shapes; the scale does not fit.
    pub fn load(config: &Config, device: Device) -> Result<Self, TrainError> {
        let model = Self::on_demand(config, device)?;
        if let Some(latents) = &model.0 {
            latents.with_network(|_| Ok(()))?;
        }
        Ok(model)
    }

    /// Like [`AutoencoderModel::load`], but reads the weights when it first encodes or decodes. A run
    /// whose moments come from a cache needs them only for its samples.
    ///
    /// # Errors
    /// The file does not exist; the scale does not fit.
    pub fn on_demand(config: &Config, device: Device) -> Result<Self, TrainError> {
        let Autoencoder::Kl(settings) = &config.model.autoencoder else {
            return Ok(Self(None));
        };
        if !settings.weights.is_file() {
            return Err(TrainError::NoAutoencoder(settings.weights.to_path_buf()));
        }
        Ok(Self(Some(Box::new(Latents {
            scaling: scaling(settings, device)?,
            settings: settings.clone(),
            device,
            network: RefCell::new(None),
        }))))
    }

    /// Builds an autoencoder from `weights`, with the latent scaling `scaling`.
    ///
    /// # Errors
    /// `weights` has other names or shapes.
    pub(crate) fn from_weights(
        settings: &KlSettings,
        weights: &[(String, Tensor)],
        scaling: LatentScaling,
        device: Device,
    ) -> Result<Self, TrainError> {
        let network = frozen(settings, device, |params| Ok(params.load(weights)?))?;
        Ok(Self(Some(Box::new(Latents {
            settings: settings.clone(),
            scaling,
            device,
            network: RefCell::new(Some(network)),
        }))))
    }

    /// Frees the memory of the weights; the next use reads them again.
    pub fn unload(&self) {
        if let Some(latents) = &self.0 {
            latents.network.replace(None);
        }
    }

    /// Returns mean and standard deviation of the posterior of `images` (u8 `[B, 3, H, W]`), as
    /// `[B, 2 C, h, w]`. `None` without an autoencoder. On the CPU, an image's moments do not depend
    /// on the rest of the batch.
    ///
    /// # Errors
    /// The images have another shape, or a size that the autoencoder does not support.
    pub fn moments(&self, images: &Tensor) -> Result<Option<Tensor>, TrainError> {
        let latents = self.0.as_ref();
        latents.map(|latents| latents.moments(images)).transpose()
    }

    /// Returns the denoiser's training data, float32 `[B, C, h, w]`, for `images` (u8 `[B, 3, H, W]`).
    /// If `moments` is `Some`, it is used instead of encoding the images. Latents are scaled samples of
    /// the posterior, with noise from `generator` (`sample_posterior` upstream).
    ///
    /// # Errors
    /// Images or moments have another shape, or the images have a size that the autoencoder does not
    /// support.
    pub fn encode(
        &self,
        images: &Tensor,
        moments: Option<&Tensor>,
        generator: &mut Generator,
    ) -> Result<Tensor, TrainError> {
        let Some(latents) = &self.0 else {
            return Ok(tch::no_grad(|| Identity.encode(images, generator))?);
        };
        let moments = match moments {
            Some(moments) => moments,
            None => &latents.moments(images)?,
        };
        tch::no_grad(|| {
            let mut shape = moments.size();
            if let Some(channels) = shape.get_mut(1) {
                *channels /= 2;
            }
            let noise = generator.randn(&shape, Kind::Float)?;
            Ok(latents.scaling.sample_posterior(moments, &noise)?)
        })
    }

    /// Decodes the denoiser's output `[B, C, h, w]` to images, u8 `[B, 3, H, W]`, a few at a time.
    ///
    /// # Errors
    /// `x` has another shape.
    pub fn decode(&self, x: &Tensor) -> Result<Tensor, TrainError> {
        tch::no_grad(|| match &self.0 {
            None => Ok(Identity.decode(x)?),
            Some(latents) => {
                latents.with_network(|network| decode(network, &latents.scaling, x, latents.device))
            }
        })
    }
}

impl Latents {
    fn moments(&self, images: &Tensor) -> Result<Tensor, TrainError> {
        tch::no_grad(|| {
            self.with_network(|network| {
                in_parts(images, self.device, |images| {
                    Ok(network.posterior_of_bytes(images)?.to_stored()?)
                })
            })
        })
    }

    fn with_network<T>(
        &self,
        run: impl FnOnce(&KlAutoencoder) -> Result<T, TrainError>,
    ) -> Result<T, TrainError> {
        let mut loaded = self.network.borrow_mut();
        let network = match loaded.take() {
            Some(network) => network,
            None => frozen(&self.settings, self.device, |params| {
                load_weights(params, &self.settings.weights)
            })?,
        };
        run(loaded.insert(network))
    }
}

/// Decodes scaled latents `x` `[B, C, h, w]` to images, u8 `[B, 3, H, W]`.
pub(crate) fn decode(
    network: &KlAutoencoder,
    scaling: &LatentScaling,
    x: &Tensor,
    device: Device,
) -> Result<Tensor, TrainError> {
    let latents = scaling.to_decoder(&x.f_to_kind(Kind::Float)?)?;
    in_parts(&latents, device, |part| Ok(network.decode(part)?))
}

/// Runs over a batch in parts, since one image of 256 x 256 pixels needs about 200 MB for its
/// activations. On the CPU the parts are single images, so that an image's result cannot depend on
/// the batch. On other devices the parts are as large as upstream's, and TF32 is switched off.
fn in_parts(
    batch: &Tensor,
    device: Device,
    run: impl Fn(&Tensor) -> Result<Tensor, TrainError>,
) -> Result<Tensor, TrainError> {
    let size = match device {
        Device::Cpu => 1,
        _ => 8,
    };
    // With TF32, pixel values would be off by several levels.
    let _float32 = match device {
        Device::Cpu => None,
        _ => Some(Float32::enter()?),
    };
    let parts = batch.f_split(size, 0)?;
    let results = parts.iter().map(run).collect::<Result<Vec<_>, _>>()?;
    Ok(Tensor::f_cat(&results, 0)?)
}

/// Builds an autoencoder for training on `device`, with the weights of the file in `settings`, or with
/// random ones drawn from `run_seed`.
pub(crate) fn trainable(
    settings: &KlSettings,
    run_seed: u64,
    device: Device,
) -> Result<(Params, KlAutoencoder), TrainError> {
    let params = Params::new(device, seed::derive(run_seed, "autoencoder", &[]))?;
    let network = KlAutoencoder::new(&params.root(), &settings.layout.config())?;
    if !settings.weights.is_empty() {
        load_weights(&params, &settings.weights)?;
    }
    Ok((params, network))
}

/// Builds an autoencoder whose weights `load` fills and which is not trained.
fn frozen(
    settings: &KlSettings,
    device: Device,
    load: impl FnOnce(&Params) -> Result<(), TrainError>,
) -> Result<KlAutoencoder, TrainError> {
    let params = Params::new(device, 0)?;
    let network = KlAutoencoder::new(&params.root(), &settings.layout.config())?;
    load(&params)?;
    for param in params.entries().iter() {
        let _frozen = param.tensor.f_set_requires_grad(false)?;
    }
    Ok(network)
}

/// Builds the affine map of latents from `scale` and `bias` of `settings`.
pub(crate) fn scaling(settings: &KlSettings, device: Device) -> Result<LatentScaling, TrainError> {
    let (scale, bias) = (settings.scale.values(), settings.bias.values());
    Ok(LatentScaling::new(scale, bias, device)?)
}

fn load_weights(params: &Params, path: &Path) -> Result<(), TrainError> {
    let loaded = params.load(&read_weights(path)?);
    loaded.map_err(|source| TrainError::AutoencoderWeights {
        path: path.to_owned(),
        source,
    })
}

/// Reads the weights of the file `model.autoencoder.weights`.
pub(crate) fn read_weights(path: &Path) -> Result<Vec<(String, Tensor)>, TrainError> {
    match path.is_file() {
        true => Ok(read_tensors(path)?),
        false => Err(TrainError::NoAutoencoder(path.to_owned())),
    }
}
