//! What images are compared by.

use std::sync::atomic::AtomicBool;

use encoders::{Encoder, Inception, InceptionFeatures, Precision, Tokens};
use ndarray::Array2;
use tch::{Device, Kind, TchError, Tensor};

use crate::encoder_bank::EncoderBank;
use crate::error::{EvaluationError, check_interrupted};
use crate::tensors;
use console::interruptible::interruptible;

/// A network that turns images into features.
pub enum Extractor {
    /// Inception-v3: FID, sFID, Inception score.
    Inception(Box<Inception>),
    /// An encoder's patch tokens, their mean: `fd`.
    Encoder {
        /// The encoder.
        encoder: Box<dyn Encoder>,
        /// What makes it what it is: a checksum or version.
        identity: String,
        /// Where it runs.
        device: Device,
    },
}

/// Features of a batch.
pub struct Features {
    /// `[B, D]`.
    pub pooled: Array2<f32>,
    /// Inception's spatial features `[B, 2023]`.
    pub spatial: Option<Array2<f32>>,
    /// Inception's logits `[B, 1008]`.
    pub logits: Option<Array2<f32>>,
}

impl Extractor {
    /// The network `name`, Inception or an encoder, for images of `side` pixels.
    ///
    /// # Errors
    /// Its file is not there, or is not what its sidecar says, or `interrupted` was set.
    pub fn load(
        bank: &EncoderBank,
        name: &str,
        side: u32,
        interrupted: &AtomicBool,
    ) -> Result<Self, EvaluationError> {
        if Inception::NAMES.contains(&name) {
            let path = Inception::find(bank.registry(), name)?;
            let device = bank.device();
            let inception = interruptible(interrupted, move || Inception::load(&path, device))
                .ok_or(EvaluationError::Interrupted)??;
            return Ok(Self::Inception(Box::new(inception)));
        }
        let identity = bank.registry().identity(name, i64::from(side))?;
        Ok(Self::Encoder {
            encoder: bank
                .load_until(interrupted, name, side, Precision::Fp32)?
                .ok_or(EvaluationError::Interrupted)?,
            identity: identity.unwrap_or_default(),
            device: bank.device(),
        })
    }

    /// Name of the network.
    pub fn name(&self) -> &str {
        match self {
            Self::Inception(inception) => &inception.spec().name,
            Self::Encoder { encoder, .. } => &encoder.spec().name,
        }
    }

    /// Which weights it has, for people.
    pub fn weights(&self) -> &str {
        match self {
            Self::Inception(inception) => &inception.spec().weights,
            Self::Encoder { encoder, .. } => &encoder.spec().weights,
        }
    }

    /// What makes it what it is: the SHA-256 of its file, or a version.
    pub fn identity(&self) -> &str {
        match self {
            Self::Inception(inception) => &inception.spec().sha256,
            Self::Encoder { identity, .. } => identity,
        }
    }

    /// Number of pooled features.
    pub fn dimension(&self) -> usize {
        match self {
            Self::Inception(inception) => inception.spec().pool,
            Self::Encoder { encoder, .. } => encoder.spec().width,
        }
    }

    /// Number of spatial features and of classes, where there are any.
    pub fn inception(&self) -> Option<(usize, usize)> {
        match self {
            Self::Inception(inception) => Some((inception.spec().spatial, inception.spec().logits)),
            Self::Encoder { .. } => None,
        }
    }

    /// Features of images u8 `[B, 3, H, W]`.
    ///
    /// # Errors
    /// The network failed, or `interrupted` was set.
    pub fn features(
        &self,
        images: &Tensor,
        interrupted: &AtomicBool,
    ) -> Result<Features, EvaluationError> {
        match self {
            Self::Inception(inception) => {
                let mut found = Vec::new();
                for part in parts(images, inception.device())? {
                    check_interrupted(interrupted)?;
                    found.push(inception.features(&part)?);
                }
                let joined = |of: fn(&InceptionFeatures) -> &Tensor| {
                    let tensors: Vec<&Tensor> = found.iter().map(of).collect();
                    tensors::array2(&Tensor::f_cat(&tensors, 0)?)
                };
                Ok(Features {
                    pooled: joined(|features| &features.pool)?,
                    spatial: Some(joined(|features| &features.spatial)?),
                    logits: Some(joined(|features| &features.logits)?),
                })
            }
            Self::Encoder {
                encoder, device, ..
            } => {
                let tokens = encode(encoder.as_ref(), images, *device, interrupted)?;
                let pooled = tokens.patch.f_mean_dim(1, false, Kind::Float)?;
                Ok(Features {
                    pooled: tensors::array2(&pooled.f_to_device(Device::Cpu)?)?,
                    spatial: None,
                    logits: None,
                })
            }
        }
    }
}

/// Images that a network on the CPU sees before an interruption is looked for. An image's features are the same
/// to the bit in batches of any length there.
const CPU_PART: i64 = 4;

fn parts(images: &Tensor, device: Device) -> Result<Vec<Tensor>, TchError> {
    match device {
        Device::Cpu => images.f_split(CPU_PART, 0),
        _ => Ok(vec![images.shallow_clone()]),
    }
}

/// Tokens of images u8 `[B, 3, H, W]` from an encoder on `device`, as [`Encoder::encode`] gives them.
///
/// # Errors
/// As [`Encoder::encode`], or `interrupted` was set.
pub(crate) fn encode(
    encoder: &dyn Encoder,
    images: &Tensor,
    device: Device,
    interrupted: &AtomicBool,
) -> Result<Tokens, EvaluationError> {
    let mut found = Vec::new();
    for part in parts(images, device)? {
        check_interrupted(interrupted)?;
        found.push(encoder.encode(&part)?);
    }
    let patch: Vec<&Tensor> = found.iter().map(|tokens| &tokens.patch).collect();
    let class: Option<Vec<&Tensor>> = found.iter().map(|tokens| tokens.class.as_ref()).collect();
    Ok(Tokens {
        patch: Tensor::f_cat(&patch, 0)?,
        class: class.map(|class| Tensor::f_cat(&class, 0)).transpose()?,
    })
}
