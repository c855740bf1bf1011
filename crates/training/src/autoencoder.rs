//! The autoencoder of a run, with its weights.

use std::path::Path;

use data::seed;
use diffusion::autoencoder::{Autoencoder as _, Identity, KlAutoencoder};
use diffusion::latents::LatentScaling;
use tch::{Device, Kind, Tensor};
use torch_ext::{Generator, Params};

use crate::{Autoencoder, Config, KlSettings, TrainError, read_tensors};

/// What stands between images and the space in which a run diffuses: nothing, or a frozen KL
/// autoencoder.
#[derive(Debug)]
pub struct AutoencoderModel(Option<Box<Latents>>);

/// A frozen autoencoder and the scale of its latents.
#[derive(Debug)]
struct Latents {
    network: KlAutoencoder,
    scaling: LatentScaling,
}

impl AutoencoderModel {
    /// The autoencoder of `config`, its weights read from `model.autoencoder.weights` to `device`.
    ///
    /// # Errors
    /// No such file, or one with other names or shapes; a scale that does not fit.
    pub fn load(config: &Config, device: Device) -> Result<Self, TrainError> {
        match &config.model.autoencoder {
            Autoencoder::Identity => Ok(Self(None)),
            Autoencoder::Kl(settings) => {
                let weights = read_weights(&settings.weights)?;
                let scaling = scaling(settings, device)?;
                Self::of_weights(settings, &weights, scaling, device).map_err(|error| match error {
                    TrainError::Torch(source) => TrainError::AutoencoderWeights {
                        path: settings.weights.clone(),
                        source,
                    },
                    other => other,
                })
            }
        }
    }

    /// An autoencoder of these weights, whose latents are scaled so.
    ///
    /// # Errors
    /// Weights with other names or shapes.
    pub(crate) fn of_weights(
        settings: &KlSettings,
        weights: &[(String, Tensor)],
        scaling: LatentScaling,
        device: Device,
    ) -> Result<Self, TrainError> {
        let params = Params::new(device, 0)?;
        let network = KlAutoencoder::new(&params.root(), &settings.layout.config())?;
        params.load(weights)?;
        for param in params.entries().iter() {
            let _frozen = param.tensor.f_set_requires_grad(false)?;
        }
        Ok(Self(Some(Box::new(Latents { network, scaling }))))
    }

    /// What the denoiser is trained on, `[B, C, h, w]`, float32, of `images` `[B, 3, H, W]`,
    /// bytes. Latents are samples of the posterior, their noise drawn from `generator`, scaled.
    ///
    /// # Errors
    /// Images of another shape, or of a size that the autoencoder cannot take.
    pub fn encode(&self, images: &Tensor, generator: &mut Generator) -> Result<Tensor, TrainError> {
        tch::no_grad(|| match &self.0 {
            None => Ok(Identity.encode(images, generator)?),
            Some(latents) => {
                let Latents { network, scaling } = latents.as_ref();
                let latents = network.encode(images, generator)?;
                Ok(scaling.to_denoiser(&latents)?)
            }
        })
    }

    /// Images `[B, 3, H, W]`, bytes, of what the denoiser makes, `[B, C, h, w]`.
    ///
    /// # Errors
    /// Another shape.
    pub fn decode(&self, x: &Tensor) -> Result<Tensor, TrainError> {
        tch::no_grad(|| match &self.0 {
            None => Ok(Identity.decode(x)?),
            Some(latents) => {
                let Latents { network, scaling } = latents.as_ref();
                let latents = scaling.to_decoder(&x.f_to_kind(Kind::Float)?)?;
                Ok(network.decode(&latents)?)
            }
        })
    }
}

/// The weights of an autoencoder that is to be trained, on `device`: those of the file that
/// `settings` names, or drawn from `seed_of_run`.
pub(crate) fn trained(
    settings: &KlSettings,
    seed_of_run: u64,
    device: Device,
) -> Result<(Params, KlAutoencoder), TrainError> {
    let params = Params::new(device, seed::derive(seed_of_run, "autoencoder", &[]))?;
    let network = KlAutoencoder::new(&params.root(), &settings.layout.config())?;
    if !settings.weights.as_os_str().is_empty() {
        let path = settings.weights.clone();
        let loaded = params.load(&read_weights(&path)?);
        loaded.map_err(|source| TrainError::AutoencoderWeights { path, source })?;
    }
    Ok((params, network))
}

/// The affine map that `settings` gives.
pub(crate) fn scaling(settings: &KlSettings, device: Device) -> Result<LatentScaling, TrainError> {
    let (scale, bias) = (settings.scale.values(), settings.bias.values());
    Ok(LatentScaling::new(scale, bias, device)?)
}

/// The weights in the file of `model.autoencoder.weights`.
pub(crate) fn read_weights(path: &Path) -> Result<Vec<(String, Tensor)>, TrainError> {
    match path.is_file() {
        true => Ok(read_tensors(path)?),
        false => Err(TrainError::NoAutoencoder(path.to_owned())),
    }
}
