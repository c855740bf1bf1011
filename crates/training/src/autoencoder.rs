//! The autoencoder of a run, with its weights.

use std::path::Path;

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
                let params = Params::new(device, 0)?;
                let network = KlAutoencoder::new(&params.root(), &settings.layout.config())?;
                load_weights(&params, &settings.weights)?;
                freeze(&params)?;
                Ok(Self(Some(Box::new(Latents {
                    network,
                    scaling: scaling(settings, device)?,
                }))))
            }
        }
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

/// The affine map that `settings` gives.
fn scaling(settings: &KlSettings, device: Device) -> Result<LatentScaling, TrainError> {
    let (scale, bias) = (settings.scale.values(), settings.bias.values());
    Ok(LatentScaling::new(scale, bias, device)?)
}

fn load_weights(params: &Params, path: &Path) -> Result<(), TrainError> {
    if !path.is_file() {
        return Err(TrainError::NoAutoencoder(path.to_owned()));
    }
    let loaded = params.load(&read_tensors(path)?);
    loaded.map_err(|source| TrainError::AutoencoderWeights {
        path: path.to_owned(),
        source,
    })
}

fn freeze(params: &Params) -> Result<(), TrainError> {
    for param in params.entries().iter() {
        let _frozen = param.tensor.f_set_requires_grad(false)?;
    }
    Ok(())
}
