//! The state and the passes of a REPA-E step: joint training of denoiser, autoencoder and discriminator.

use std::cell::RefCell;
use std::collections::BTreeMap;

use data::seed;
use diffusion::autoencoder::KlAutoencoder;
use diffusion::nn::with_shared_statistics;
use diffusion::objective::velocity::Velocity;
use diffusion::repa_e::{
    AutoencoderLoss, AutoencoderPass, Discriminator, LatentNorm, Lpips, RepaE, RepaEConfig,
};
use diffusion::{Mode, Sit};
use tch::{Device, Kind, Tensor};
use torch_ext::{Generator, Params};

use crate::adamw::{AdamW, trained_bytes};
use crate::aligner::Aligned;
use crate::autoencoder::{decode, scaling, trainable};
use crate::checkpoint::VAE;
use crate::data_parallel::{DataParallel, Network};
use crate::weights::Weights;
use crate::{Config, JointTraining, KlSettings, TrainError, read_tensors};

/// A network with its weights and their optimiser.
#[derive(Debug)]
struct TrainedNetwork<N> {
    network: N,
    params: Params,
    adamw: AdamW,
}

/// The denoiser of REPA-E.
#[derive(Debug)]
pub(crate) struct JointNetwork {
    pub(crate) objective: Velocity,
    pub(crate) sit: Sit,
    /// Normalises latents, which are the network's input.
    pub(crate) latent_norm: LatentNorm,
}

/// Autoencoder and discriminator, with an optimiser each.
#[derive(Debug)]
pub(crate) struct Joint {
    autoencoder: TrainedNetwork<KlAutoencoder>,
    discriminator: TrainedNetwork<AutoencoderLoss>,
    /// Trainable weights of the denoiser and its heads.
    denoiser_weights: Vec<Tensor>,
    /// The blocks of the denoiser, counted from 1, whose tokens are aligned.
    hidden_depths: Vec<i64>,
    alignment: RepaEConfig,
    precision: Option<Kind>,
}

/// A part of a batch, with its alignment loss.
pub(crate) struct BatchPart<A> {
    /// u8 `[B, 3, H, W]`.
    pub(crate) images: Tensor,
    /// i64 `[B]`.
    pub(crate) labels: Tensor,
    /// Computes the alignment loss of hidden tokens `[B, T, D]`, one tensor for each depth.
    pub(crate) align: A,
}

/// The figures of a step. When they are returned, the gradients of denoiser and heads have been computed,
/// but the optimiser has not used them yet.
pub(crate) struct JointFigures {
    /// Total, denoising and alignment loss of the denoiser, `[3]`.
    pub(crate) denoiser: Tensor,
    /// Figures of autoencoder and discriminator, `[11]`: those of
    /// [`Kind::Autoencoder`](metrics::figures::Kind::Autoencoder), in the order of their table.
    pub(crate) autoencoder: Tensor,
}

impl Joint {
    /// Returns the bytes of autoencoder and discriminator, with gradients and optimiser state.
    pub(crate) fn state_bytes(&self) -> u64 {
        trained_bytes(&self.autoencoder.params) + trained_bytes(&self.discriminator.params)
    }

    /// Builds autoencoder and discriminator. `weights` and `norm` are those of the denoiser. The
    /// running statistics of latents start from the configuration's scale and bias.
    pub(crate) fn new(
        config: &Config,
        (settings, kl): (&JointTraining, &KlSettings),
        (weights, norm): (&Weights, &LatentNorm),
        device: Device,
    ) -> Result<Self, TrainError> {
        norm.set_statistics(&scaling(kl, device)?)?;
        let rate = |lr: Option<f64>| match lr {
            Some(lr) => config.learning_rate().with_peak(lr),
            None => config.learning_rate(),
        };
        let with_optimizer = |params: Params, lr| {
            let adamw = AdamW::new(&params, &config.optimizer, rate(lr))?;
            Ok::<_, TrainError>((params, adamw))
        };

        let (params, network) = trainable(kl, config.train.seed, device)?;
        let (params, adamw) = with_optimizer(params, settings.autoencoder_lr)?;
        let autoencoder = TrainedNetwork {
            network,
            params,
            adamw,
        };

        let params = Params::new(
            device,
            seed::derive(config.train.seed, "discriminator", &[]),
        )?;
        let (channels, layers) = (
            settings.discriminator_channels,
            settings.discriminator_layers,
        );
        let network = Discriminator::new(&params.root(), channels, layers)?;
        if !settings.discriminator_weights.is_empty() {
            let path = &settings.discriminator_weights;
            let loaded = params.load(&read_tensors(path)?);
            loaded.map_err(|source| TrainError::DiscriminatorWeights {
                path: path.to_path_buf(),
                source,
            })?;
        }
        let lpips = match settings.loss.perceptual_weight > 0.0 {
            true => Some(Lpips::load(&settings.lpips, device)?),
            false => None,
        };
        let loss = AutoencoderLoss::new(&params.root(), settings.loss.clone(), network, lpips)?;
        let (params, adamw) = with_optimizer(params, settings.discriminator_lr)?;
        let discriminator = TrainedNetwork {
            network: loss,
            params,
            adamw,
        };

        let aligned = !weights.heads.depths().is_empty();
        Ok(Self {
            autoencoder,
            discriminator,
            denoiser_weights: weights.params.trainable(),
            hidden_depths: weights.heads.depths().to_vec(),
            alignment: RepaEConfig {
                autoencoder_alignment: match aligned {
                    true => settings.autoencoder_alignment,
                    false => 0.0,
                },
                // The alignment loss is already weighted with the coefficients of `alignment.losses`.
                denoiser_alignment: 1.0,
            },
            precision: config.train.precision.autocast(),
        })
    }

    /// Decodes normalised latents `[B, C, h, w]` to images, u8 `[B, 3, H, W]`, with the current weights
    /// of the autoencoder.
    pub(crate) fn decode(&self, x: &Tensor, norm: &LatentNorm) -> Result<Tensor, TrainError> {
        let network = &self.autoencoder.network;
        tch::no_grad(|| decode(network, &norm.scaling()?, x, x.device()))
    }

    /// Returns the tensors of autoencoder and discriminator that receive gradients.
    pub(crate) fn leaves(&self) -> [(Network, Vec<Tensor>); 2] {
        [
            (Network::Autoencoder, self.autoencoder.params.leaves()),
            (Network::Discriminator, self.discriminator.params.leaves()),
        ]
    }

    /// Runs step `step`, counted from 1, on a batch in `parts`: updates autoencoder and discriminator, and computes the
    /// gradients of the denoiser. Gradients, and the statistics of batch normalisations, are those of the batches of all
    /// processes of `parallel`; figures are those of this process.
    pub(crate) fn step<A>(
        &self,
        network: &JointNetwork,
        parts: &[BatchPart<A>],
        step: u64,
        generator: &mut Generator,
        parallel: Option<&mut DataParallel>,
    ) -> Result<JointFigures, TrainError>
    where
        A: Fn(&[Tensor]) -> Result<Aligned, TrainError>,
    {
        let group = parallel.as_ref().map(|parallel| parallel.group().clone());
        with_shared_statistics(group.as_ref(), || {
            self.run_step(network, parts, step, generator, parallel)
        })
    }

    fn run_step<A>(
        &self,
        network: &JointNetwork,
        parts: &[BatchPart<A>],
        step: u64,
        generator: &mut Generator,
        mut parallel: Option<&mut DataParallel>,
    ) -> Result<JointFigures, TrainError>
    where
        A: Fn(&[Tensor]) -> Result<Aligned, TrainError>,
    {
        let repa_e = RepaE {
            autoencoder: &self.autoencoder.network,
            loss: &self.discriminator.network,
            denoiser: &network.sit,
            latent_norm: &network.latent_norm,
            denoiser_weights: &self.denoiser_weights,
            objective: network.objective,
            config: self.alignment,
            precision: self.precision,
            hidden_depths: &self.hidden_depths,
        };
        let share = 1.0 / parts.len().max(1) as f64;
        let mut backward = |network: Network, loss: &Tensor, part: usize| {
            let loss = loss.f_mul_scalar(share)?;
            match parallel.as_deref_mut() {
                Some(parallel) => parallel.backward(network, &loss, part + 1 == parts.len()),
                None => Ok(loss.f_backward()?),
            }
        };
        let steps_before = step.saturating_sub(1);

        let mut passes: Vec<AutoencoderPass> = Vec::with_capacity(parts.len());
        let mut autoencoder_figures = MeanFigures::new(share);
        for (index, part) in parts.iter().enumerate() {
            let (images, labels) = (&part.images, &part.labels);
            let draws = repa_e.draw(images, generator)?;
            let align = |hidden: &[Tensor]| Ok::<_, TrainError>((part.align)(hidden)?.mean);
            let mut pass = repa_e.autoencoder_pass(images, labels, &draws, steps_before, align)?;
            backward(Network::Autoencoder, &pass.total, index)?;
            // Frees the autograd graph, which is large and no longer needed.
            pass.total = pass.total.f_detach()?;
            let terms = &pass.generator;
            autoencoder_figures.add(&[
                &pass.total,
                &terms.reconstruction,
                &terms.perceptual,
                &terms.kl,
                &terms.gan,
                &pass.alignment,
            ])?;
            passes.push(pass);
        }
        let autoencoder_norm = self.autoencoder.adamw.step(step, &[])?;

        let mut discriminator_figures = MeanFigures::new(share);
        for (index, pass) in passes.iter().enumerate() {
            let losses = repa_e.discriminator_pass(pass, steps_before)?;
            backward(Network::Discriminator, &losses.total, index)?;
            discriminator_figures.add(&[
                &losses.total,
                &losses.logits_real,
                &losses.logits_fake,
            ])?;
        }
        let discriminator_norm = self.discriminator.adamw.step(step, &[])?;

        let mut denoiser_figures = MeanFigures::new(share);
        for (index, (pass, part)) in passes.iter().zip(parts).enumerate() {
            let mean = RefCell::new(None);
            let align = |hidden: &[Tensor]| {
                let aligned = (part.align)(hidden)?;
                mean.replace(Some(aligned.mean.f_detach()?));
                Ok::<_, TrainError>(aligned.weighted)
            };
            let mode = Mode::Train(&mut *generator);
            let losses = repa_e.denoiser_pass(pass, &part.labels, mode, align)?;
            backward(Network::Denoiser, &losses.total, index)?;
            let alignment = mean.into_inner().unwrap_or(losses.alignment);
            let denoising = losses.denoising.f_mean(Kind::Float)?;
            denoiser_figures.add(&[&losses.total.f_detach()?, &denoising, &alignment])?;
        }
        let norms = [autoencoder_norm, discriminator_norm];
        let mut figures = vec![autoencoder_figures.mean()?, discriminator_figures.mean()?];
        for norm in norms {
            figures.push(norm.f_reshape([1])?);
        }
        Ok(JointFigures {
            denoiser: denoiser_figures.mean()?,
            autoencoder: Tensor::f_cat(&figures, 0)?,
        })
    }

    /// Returns weights and moments, by the name of their file without extension.
    pub(crate) fn state(&self) -> BTreeMap<String, Vec<(String, Tensor)>> {
        let (vae, discriminator) = (&self.autoencoder, &self.discriminator);
        [
            (VAE, vae.params.state_dict()),
            (DISCRIMINATOR, discriminator.params.state_dict()),
            ("vae_optimizer", vae.adamw.state()),
            ("discriminator_optimizer", discriminator.adamw.state()),
        ]
        .map(|(name, tensors)| (name.to_owned(), tensors))
        .into()
    }

    /// Loads saved weights and moments. `Err` holds the reason if they do not fit.
    pub(crate) fn load(
        &self,
        saved: &BTreeMap<String, Vec<(String, Tensor)>>,
    ) -> Result<(), String> {
        let (vae, discriminator) = (&self.autoencoder, &self.discriminator);
        let part = |name: &str| {
            saved
                .get(name)
                .ok_or_else(|| format!("it has no {name}.safetensors"))
        };
        let weights = |params: &Params, name| {
            let loaded = params.load(part(name)?);
            loaded.map_err(|error| format!("{name}.safetensors: {error}"))
        };
        weights(&vae.params, VAE)?;
        weights(&discriminator.params, DISCRIMINATOR)?;
        vae.adamw.load(part("vae_optimizer")?)?;
        discriminator.adamw.load(part("discriminator_optimizer")?)
    }
}

/// Key of the discriminator's weights in [`Checkpoint::others`](crate::Checkpoint::others).
const DISCRIMINATOR: &str = "discriminator";

/// The mean of figures over the parts of a batch.
struct MeanFigures {
    share: f64,
    sum: Option<Tensor>,
}

impl MeanFigures {
    fn new(share: f64) -> Self {
        Self { share, sum: None }
    }

    /// Adds the figures of one part, which are scalars.
    fn add(&mut self, figures: &[&Tensor]) -> Result<(), TrainError> {
        let figures = figures
            .iter()
            .map(|figure| figure.f_to_kind(Kind::Float)?.f_reshape([1]))
            .collect::<Result<Vec<_>, _>>()?;
        let figures = Tensor::f_cat(&figures, 0)?;
        self.sum = Some(match &self.sum {
            Some(sum) => sum.f_add(&figures)?,
            None => figures,
        });
        Ok(())
    }

    fn mean(self) -> Result<Tensor, TrainError> {
        match self.sum {
            Some(sum) => Ok(sum.f_mul_scalar(self.share)?),
            None => Ok(Tensor::f_zeros([0], (Kind::Float, Device::Cpu))?),
        }
    }
}
