//! What images are compared by.

use encoders::{Encoder, EncoderError, Inception, Precision};
use ndarray::Array2;
use tch::{Device, Kind, Tensor};

use super::EvaluationError;
use crate::encoder_bank::EncoderBank;
use crate::tensors;

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
    /// Its file is not there, or is not what its sidecar says.
    pub fn load(bank: &EncoderBank, name: &str, side: u32) -> Result<Self, EncoderError> {
        if Inception::NAMES.contains(&name) {
            let path = Inception::find(bank.registry(), name)?;
            let inception = Inception::load(&path, bank.device())?;
            return Ok(Self::Inception(Box::new(inception)));
        }
        let identity = bank.registry().identity(name, i64::from(side));
        Ok(Self::Encoder {
            encoder: bank.load(name, side, Precision::Fp32)?,
            identity: identity.unwrap_or_default(),
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
    /// The network failed.
    pub fn features(&self, images: &Tensor) -> Result<Features, EvaluationError> {
        match self {
            Self::Inception(inception) => {
                let features = inception.features(images)?;
                Ok(Features {
                    pooled: tensors::array2(&features.pool)?,
                    spatial: Some(tensors::array2(&features.spatial)?),
                    logits: Some(tensors::array2(&features.logits)?),
                })
            }
            Self::Encoder { encoder, .. } => Ok(Features {
                pooled: tensors::array2(&pooled_tokens(encoder.as_ref(), images)?)?,
                spatial: None,
                logits: None,
            }),
        }
    }
}

/// The mean of an encoder's patch tokens, float32 `[B, D]` on the CPU.
fn pooled_tokens(encoder: &dyn Encoder, images: &Tensor) -> Result<Tensor, EvaluationError> {
    let tokens = encoder.encode(images)?.patch;
    let pooled = tokens.f_mean_dim(1, false, Kind::Float)?;
    Ok(pooled.f_to_device(Device::Cpu)?)
}
