//! Extracts the features that images are compared by.

use std::sync::atomic::AtomicBool;

use encoders::{Encoder, Inception, InceptionFeatures, Precision, Tokens};
use ndarray::Array2;
use tch::{Device, Kind, TchError, Tensor};

use crate::encoder_bank::EncoderBank;
use crate::error::{EvaluationError, check_interrupted};
use crate::tensors;
use terminal::interruptible::interruptible;

/// A network that computes features of images.
pub enum Extractor {
    /// Inception-v3, for FID, sFID and Inception score.
    Inception(Box<Inception>),
    /// An encoder, whose mean patch tokens are the features of `fd`.
    Encoder {
        /// The encoder.
        encoder: Box<dyn Encoder>,
        /// The checksum of its file, or a version.
        identity: String,
        /// The device it runs on.
        device: Device,
    },
}

/// Features of a batch, float32.
pub struct Features {
    /// Pooled features `[B, D]`.
    pub pooled: Array2<f32>,
    /// Inception's spatial features `[B, 2023]`.
    pub spatial: Option<Array2<f32>>,
    /// Inception's logits `[B, 1008]`.
    pub logits: Option<Array2<f32>>,
}

impl Extractor {
    /// Loads the network `name`, Inception or an encoder, for images of `side` x `side` pixels.
    ///
    /// # Errors
    /// Its file is not installed or does not match its sidecar, or `interrupted` was set.
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

    /// The name of the network.
    pub fn name(&self) -> &str {
        match self {
            Self::Inception(inception) => &inception.spec().name,
            Self::Encoder { encoder, .. } => &encoder.spec().name,
        }
    }

    /// A description of its weights for people.
    pub fn weights(&self) -> &str {
        match self {
            Self::Inception(inception) => &inception.spec().weights,
            Self::Encoder { encoder, .. } => &encoder.spec().weights,
        }
    }

    /// The SHA-256 of its file, or a version.
    pub fn identity(&self) -> &str {
        match self {
            Self::Inception(inception) => &inception.spec().sha256,
            Self::Encoder { identity, .. } => identity,
        }
    }

    /// The number `D` of pooled features.
    pub fn dimension(&self) -> usize {
        match self {
            Self::Inception(inception) => inception.spec().pool,
            Self::Encoder { encoder, .. } => encoder.spec().width,
        }
    }

    /// The numbers of spatial features and of classes of Inception; `None` for an encoder.
    pub fn inception(&self) -> Option<(usize, usize)> {
        match self {
            Self::Inception(inception) => Some((inception.spec().spatial, inception.spec().logits)),
            Self::Encoder { .. } => None,
        }
    }

    /// Computes the features of images u8 `[B, 3, H, W]`.
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
                let mut computed = Vec::new();
                for batch in split_for_device(images, inception.device())? {
                    check_interrupted(interrupted)?;
                    computed.push(inception.features(&batch)?);
                }
                let joined = |of: fn(&InceptionFeatures) -> &Tensor| {
                    let tensors: Vec<&Tensor> = computed.iter().map(of).collect();
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

/// Images that a network on the CPU processes between two checks for an interruption. On the CPU, an image's features
/// have the same bits in batches of any length.
const CPU_BATCH: i64 = 4;

fn split_for_device(images: &Tensor, device: Device) -> Result<Vec<Tensor>, TchError> {
    match device {
        Device::Cpu => images.f_split(CPU_BATCH, 0),
        _ => Ok(vec![images.shallow_clone()]),
    }
}

/// Computes the tokens of images u8 `[B, 3, H, W]` with an encoder on `device`, as [`Encoder::encode`] returns them.
///
/// # Errors
/// As [`Encoder::encode`], or `interrupted` was set.
pub(crate) fn encode(
    encoder: &dyn Encoder,
    images: &Tensor,
    device: Device,
    interrupted: &AtomicBool,
) -> Result<Tokens, EvaluationError> {
    let mut computed = Vec::new();
    for batch in split_for_device(images, device)? {
        check_interrupted(interrupted)?;
        computed.push(encoder.encode(&batch)?);
    }
    let patch: Vec<&Tensor> = computed.iter().map(|tokens| &tokens.patch).collect();
    let class: Option<Vec<&Tensor>> = computed
        .iter()
        .map(|tokens| tokens.class.as_ref())
        .collect();
    Ok(Tokens {
        patch: Tensor::f_cat(&patch, 0)?,
        class: class.map(|class| Tensor::f_cat(&class, 0)).transpose()?,
    })
}
