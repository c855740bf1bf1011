//! The autoencoder of a run, with its weights.

use std::cell::RefCell;
use std::path::Path;

use data::seed;
use diffusion::autoencoder::{Autoencoder as _, Identity, KlAutoencoder};
use diffusion::latents::LatentScaling;
use tch::{Device, Kind, Tensor};
use torch_ext::device::Float32;
use torch_ext::{Generator, Params};

use crate::{Autoencoder, Config, KlSettings, TrainError, read_tensors};

/// What stands between images and the space in which a run diffuses: nothing, or a frozen KL
/// autoencoder.
#[derive(Debug)]
pub struct AutoencoderModel(Option<Box<Latents>>);

/// A frozen autoencoder and the scale of its latents.
#[derive(Debug)]
struct Latents {
    settings: KlSettings,
    scaling: LatentScaling,
    device: Device,
    /// Read when it is first needed, where it is loaded on demand.
    network: RefCell<Option<KlAutoencoder>>,
}

impl AutoencoderModel {
    /// The autoencoder of `config`, its weights read from `model.autoencoder.weights` to `device`.
    ///
    /// # Errors
    /// No such file, or one with other names or shapes; a scale that does not fit.
    pub fn load(config: &Config, device: Device) -> Result<Self, TrainError> {
        let model = Self::on_demand(config, device)?;
        if let Some(latents) = &model.0 {
            latents.with_network(|_| Ok(()))?;
        }
        Ok(model)
    }

    /// The same, but its weights are read when it first encodes or decodes: a run whose moments
    /// come from elsewhere needs them for its samples only.
    ///
    /// # Errors
    /// No such file; a scale that does not fit.
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
        let network = frozen(settings, device, |params| Ok(params.load(weights)?))?;
        Ok(Self(Some(Box::new(Latents {
            settings: settings.clone(),
            scaling,
            device,
            network: RefCell::new(Some(network)),
        }))))
    }

    /// Gives the memory of the weights back; they are read again when they are needed again.
    pub fn unload(&self) {
        if let Some(latents) = &self.0 {
            latents.network.replace(None);
        }
    }

    /// Mean and standard deviation of the posterior of `images` `[B, 3, H, W]`, bytes:
    /// `[B, 2 C, h, w]`. `None` without an autoencoder. On the CPU, an image has the same bits in
    /// any batch.
    ///
    /// # Errors
    /// Images of another shape, or of a size that the autoencoder cannot take.
    pub fn moments(&self, images: &Tensor) -> Result<Option<Tensor>, TrainError> {
        let latents = self.0.as_ref();
        latents.map(|latents| latents.moments(images)).transpose()
    }

    /// What the denoiser is trained on, `[B, C, h, w]`, float32, of `images` `[B, 3, H, W]`,
    /// bytes, or of their `moments`, where those are known. Latents are samples of the posterior,
    /// their noise drawn from `generator`, scaled (`sample_posterior` upstream).
    ///
    /// # Errors
    /// Images or moments of another shape, or images of a size that the autoencoder cannot take.
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

    /// Images `[B, 3, H, W]`, bytes, of what the denoiser makes, `[B, C, h, w]`, a few at a time.
    ///
    /// # Errors
    /// Another shape.
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

/// Images `[B, 3, H, W]`, bytes, of scaled latents `x` `[B, C, h, w]`.
pub(crate) fn decode(
    network: &KlAutoencoder,
    scaling: &LatentScaling,
    x: &Tensor,
    device: Device,
) -> Result<Tensor, TrainError> {
    let latents = scaling.to_decoder(&x.f_to_kind(Kind::Float)?)?;
    in_parts(&latents, device, |part| Ok(network.decode(part)?))
}

/// Runs over a batch in parts: an image of 256 pixels takes some 200 MB on its way. On the CPU
/// the parts are single images, whose bits then cannot depend on the batch; elsewhere they are as
/// large as upstream's, and what is float32 stays so.
fn in_parts(
    batch: &Tensor,
    device: Device,
    run: impl Fn(&Tensor) -> Result<Tensor, TrainError>,
) -> Result<Tensor, TrainError> {
    let size = match device {
        Device::Cpu => 1,
        _ => 8,
    };
    // Under TF32 images would be some levels off.
    let _float32 = match device {
        Device::Cpu => None,
        _ => Some(Float32::enter()?),
    };
    let parts = batch.f_split(size, 0)?;
    let done = parts.iter().map(run).collect::<Result<Vec<_>, _>>()?;
    Ok(Tensor::f_cat(&done, 0)?)
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
    if !settings.weights.is_empty() {
        load_weights(&params, &settings.weights)?;
    }
    Ok((params, network))
}

/// An autoencoder whose weights `load` fills and nothing trains.
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

/// The affine map that `settings` gives.
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

/// The weights in the file of `model.autoencoder.weights`.
pub(crate) fn read_weights(path: &Path) -> Result<Vec<(String, Tensor)>, TrainError> {
    match path.is_file() {
        true => Ok(read_tensors(path)?),
        false => Err(TrainError::NoAutoencoder(path.to_owned())),
    }
}
