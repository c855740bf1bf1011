//! Loads and runs the Inception-v3 network that FID, sFID and the Inception score are computed with.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use tch::{CModule, Device, IValue, Kind, Tensor};

use crate::chunks::chunks;
use crate::encoder::check_images;
use crate::reference::relative_difference;
use crate::registry::INCEPTION_NAMES;
use crate::repeatable::{self, Outputs};
use crate::torchscript::{
    check_sha256, disable_graph_optimisation, first_line, ignore_invalid, read_toml,
    runtime_failure,
};
use crate::{EncoderError, Precision, Reference, Registry};

/// Largest difference from Python's values that loading accepts, relative to the largest value. It is far
/// above rounding errors and far below the effect of another resizing or network.
const TOLERANCE: f64 = 1e-2;

/// The Inception-v3 network for FID, sFID and the Inception score, in a TorchScript file that
/// `cargo xtask export inception` writes.
///
/// The file includes the resizing to 299 x 299 pixels, because the metrics depend on the method: that of
/// TensorFlow 1, whose results are comparable with those of ADM's evaluator and torch-fidelity, or that of
/// pytorch-fid.
#[derive(Debug)]
pub struct Inception {
    spec: InceptionSpec,
    module: CModule,
    device: Device,
}

/// Contents of the sidecar.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InceptionSpec {
    /// Name of the file without extension.
    pub name: String,
    /// One-line description for users.
    #[serde(default)]
    pub description: String,
    /// Name and origin of the weights.
    #[serde(default)]
    pub weights: String,
    /// Licence of the weights.
    #[serde(default)]
    pub licence: String,
    /// SHA-256 of the TorchScript file, hexadecimal.
    pub sha256: String,
    /// Number of pooled features.
    pub pool: usize,
    /// Number of spatial features.
    pub spatial: usize,
    /// Number of classes.
    pub logits: usize,
    /// Values that Python computed for the reference images.
    pub reference: InceptionReference,
}

/// Values that Python computed for [`Reference::images`] of `side` pixels.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InceptionReference {
    /// Side of the images in pixels.
    pub side: i64,
    /// Positions in the flattened pooled features.
    pub pool_index: Vec<i64>,
    /// Values at these positions.
    pub pool: Vec<f64>,
    /// Positions in the flattened spatial features.
    pub spatial_index: Vec<i64>,
    /// Values at these positions.
    pub spatial: Vec<f64>,
    /// Positions in the flattened logits.
    pub logits_index: Vec<i64>,
    /// Values at these positions.
    pub logits: Vec<f64>,
}

/// Outputs of the network for a batch of images.
#[derive(Debug)]
pub struct InceptionFeatures {
    /// Pooled features, float32 `[B, 2048]`, for FID, KID, precision and recall.
    pub pool: Tensor,
    /// The first 7 channels of the 17 x 17 feature map `mixed_6/conv`, flattened with channels last, float32
    /// `[B, 2023]`, for sFID.
    pub spatial: Tensor,
    /// Logits without the bias, float32 `[B, 1008]`, for the Inception score.
    pub logits: Tensor,
}

impl Outputs for InceptionFeatures {
    fn tensors(&self) -> Vec<&Tensor> {
        vec![&self.pool, &self.spatial, &self.logits]
    }
}

impl Inception {
    /// Names of the files: with the resizing of TensorFlow 1, and with that of pytorch-fid.
    pub const NAMES: [&'static str; 2] = INCEPTION_NAMES;

    /// Searches the registry's folders for the file `name`.
    ///
    /// # Errors
    /// The file is not installed; the message explains how to create it.
    pub fn find(registry: &Registry, name: &str) -> Result<PathBuf, EncoderError> {
        registry.find(name).ok_or_else(|| EncoderError::Missing {
            name: name.to_owned(),
            hint: format!(
                "`cargo xtask export {name} --weights FILE` creates it from the weights of torch-fidelity or \
                 pytorch-fid (docs/evaluation.md)"
            ),
            searched: registry.folders().to_vec(),
        })
    }

    /// Returns the checksum that the sidecar of `inception` declares; `None` if the file is not installed or
    /// its sidecar is invalid.
    ///
    /// # Errors
    /// [`EncoderError::Io`] if the sidecar cannot be read.
    pub fn identity(registry: &Registry) -> Result<Option<String>, EncoderError> {
        let Some(path) = registry.find(Self::NAMES[0]) else {
            return Ok(None);
        };
        let spec = ignore_invalid(read_toml::<InceptionSpec>(&path))?;
        Ok(spec.map(|spec| spec.sha256))
    }

    /// Loads a file to `device`, compares its outputs with the values that Python recorded, and checks that the
    /// features of an image do not depend on the run or the rest of the batch.
    ///
    /// # Errors
    /// The file or its sidecar is missing or damaged, or they do not belong together; the features do not have
    /// the declared shape, are not finite, differ from Python's values, or are not repeatable.
    pub fn load(path: &Path, device: Device) -> Result<Self, EncoderError> {
        let spec: InceptionSpec = read_toml(path)?;
        check_sha256(path, &spec.sha256)?;
        repeatable::check_devices(path)?;
        let load_error = |error: tch::TchError| EncoderError::NotTorchScript {
            path: path.to_owned(),
            message: first_line(&error.to_string()),
        };
        let mut module = CModule::load_on_device(path, device).map_err(load_error)?;
        module.f_set_eval().map_err(load_error)?;
        let inception = Self {
            spec,
            module,
            device,
        };
        inception.check(path)?;
        Ok(inception)
    }

    /// Device that the network runs on.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Contents of the sidecar.
    pub fn spec(&self) -> &InceptionSpec {
        &self.spec
    }

    /// Computes the features of RGB images u8 `[B, 3, H, W]`. Records no gradients. On the CPU an image's
    /// features are bit-identical whatever the rest of the batch.
    ///
    /// # Errors
    /// Images of another shape or dtype.
    pub fn features(&self, images: &Tensor) -> Result<InceptionFeatures, EncoderError> {
        check_images(images)?;
        let _no_grad = tch::no_grad_guard();
        let images = images.f_to_device(self.device)?;
        let (mut pool, mut spatial, mut logits) = (Vec::new(), Vec::new(), Vec::new());
        for chunk in chunks(&images) {
            let chunk = chunk?;
            let features = self.features_of_chunk(&chunk.images)?;
            pool.push(chunk.without_padding(&features.pool)?);
            spatial.push(chunk.without_padding(&features.spatial)?);
            logits.push(chunk.without_padding(&features.logits)?);
        }
        Ok(InceptionFeatures {
            pool: Tensor::f_cat(&pool, 0)?,
            spatial: Tensor::f_cat(&spatial, 0)?,
            logits: Tensor::f_cat(&logits, 0)?,
        })
    }

    fn features_of_chunk(&self, images: &Tensor) -> Result<InceptionFeatures, EncoderError> {
        let output_error = |found: String| EncoderError::InceptionOutput {
            name: self.spec.name.clone(),
            found,
        };
        disable_graph_optimisation();
        let output = self
            .module
            .forward_is(&[IValue::Tensor(images.shallow_clone())])
            .map_err(|error| {
                runtime_failure(&self.spec.name, &error)
                    .unwrap_or_else(|| output_error(first_line(&error.to_string())))
            })?;
        let IValue::Tuple(parts) = output else {
            return Err(output_error("the output is not a tuple".to_owned()));
        };
        let Ok(
            [
                IValue::Tensor(pool),
                IValue::Tensor(spatial),
                IValue::Tensor(logits),
            ],
        ) = <[IValue; 3]>::try_from(parts)
        else {
            return Err(output_error(
                "the output is not a tuple of three tensors".to_owned(),
            ));
        };
        let batch = images.size().first().copied().unwrap_or(0);
        for (what, tensor, width) in [
            ("the pooled features", &pool, self.spec.pool),
            ("the spatial features", &spatial, self.spec.spatial),
            ("the logits", &logits, self.spec.logits),
        ] {
            let declared = vec![batch, width as i64];
            if tensor.size() != declared || tensor.kind() != Kind::Float {
                return Err(EncoderError::Shape {
                    name: self.spec.name.clone(),
                    what,
                    found: tensor.size(),
                    declared,
                });
            }
        }
        Ok(InceptionFeatures {
            pool,
            spatial,
            logits,
        })
    }

    fn check(&self, path: &Path) -> Result<(), EncoderError> {
        let reference = &self.spec.reference;
        if !(1..=4096).contains(&reference.side) {
            return Err(EncoderError::Sidecar {
                path: path.with_extension("toml"),
                message: "`reference.side` must be 1 to 4096".to_owned(),
            });
        }
        let images = Reference::images(reference.side)?;
        let found = self.features(&images)?;
        for (what, tensor, index, values) in [
            (
                "the pooled features",
                &found.pool,
                &reference.pool_index,
                &reference.pool,
            ),
            (
                "the spatial features",
                &found.spatial,
                &reference.spatial_index,
                &reference.spatial,
            ),
            (
                "the logits",
                &found.logits,
                &reference.logits_index,
                &reference.logits,
            ),
        ] {
            let name = || self.spec.name.clone();
            if !bool::try_from(tensor.f_isfinite()?.f_all()?)? {
                return Err(EncoderError::NotFinite { name: name(), what });
            }
            let count = tensor.numel() as i64;
            if index.len() != values.len()
                || index.iter().any(|position| !(0..count).contains(position))
            {
                return Err(EncoderError::Sidecar {
                    path: path.with_extension("toml"),
                    message: format!("`reference` has positions outside of {what}"),
                });
            }
            let difference = relative_difference(tensor, index, values)?;
            if difference.is_nan() || difference > TOLERANCE {
                return Err(EncoderError::ReferenceMismatch {
                    name: name(),
                    what,
                    difference,
                });
            }
        }
        let key = (self.spec.sha256.as_str(), self.device, Precision::Fp32);
        repeatable::check_repeatable(&self.spec.name, key, &images, &found, |images| {
            self.features(images)
        })
    }
}
