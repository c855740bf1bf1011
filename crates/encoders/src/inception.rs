use std::path::{Path, PathBuf};

use serde::Deserialize;
use tch::{CModule, Device, IValue, Kind, Tensor};

use crate::encoder::check_images;
use crate::reference::relative;
use crate::registry::readable;
use crate::torchscript::{check_sha256, failure, first_line, keep_the_same_bits, read_toml};
use crate::{EncoderError, Reference, Registry};

/// Largest difference from Python's values that passes on loading, relative to the largest of them: far more
/// than rounding, far less than another resizing or network.
const TOLERANCE: f64 = 1e-2;

/// Images that go through the network at once on the CPU, as of other encoders.
const CPU_CHUNK: i64 = 4;

/// Inception-v3 as FID, sFID and the Inception score are measured with, in a TorchScript file that
/// `cargo xtask export inception` makes.
///
/// Resizing to 299 x 299 pixels is part of the file, since the measures depend on how it is done: as
/// TensorFlow 1 does, for figures that compare with those of ADM's evaluator and torch-fidelity, or as
/// pytorch-fid does.
#[derive(Debug)]
pub struct Inception {
    spec: InceptionSpec,
    module: CModule,
    device: Device,
}

/// What the sidecar says.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InceptionSpec {
    /// Name of the file.
    pub name: String,
    /// One line for people.
    #[serde(default)]
    pub description: String,
    /// Which weights.
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
    /// What Python computed.
    pub reference: InceptionReference,
}

/// Values that Python computed of [`Reference::images`] of `side` pixels.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InceptionReference {
    /// Side of the images.
    pub side: i64,
    /// Positions in the flattened pooled features.
    pub pool_index: Vec<i64>,
    /// The values there.
    pub pool: Vec<f64>,
    /// Positions in the flattened spatial features.
    pub spatial_index: Vec<i64>,
    /// The values there.
    pub spatial: Vec<f64>,
    /// Positions in the flattened logits.
    pub logits_index: Vec<i64>,
    /// The values there.
    pub logits: Vec<f64>,
}

/// What is measured of images.
#[derive(Debug)]
pub struct InceptionFeatures {
    /// Pooled features, float32 `[B, 2048]`: FID, KID, precision and recall.
    pub pool: Tensor,
    /// The first 7 channels of the 17 x 17 map `mixed_6/conv`, channels last, float32 `[B, 2023]`: sFID.
    pub spatial: Tensor,
    /// Logits without the bias, float32 `[B, 1008]`: the Inception score.
    pub logits: Tensor,
}

impl Inception {
    /// Names of the files: resized as TensorFlow 1 does, and as pytorch-fid does.
    pub const NAMES: [&'static str; 2] = ["inception", "inception-pytorch-fid"];

    /// Where the registry's folders hold the file `name`.
    ///
    /// # Errors
    /// The file is not there; the message says how to make it.
    pub fn find(registry: &Registry, name: &str) -> Result<PathBuf, EncoderError> {
        registry.find(name).ok_or_else(|| EncoderError::Missing {
            name: name.to_owned(),
            hint: format!(
                "`cargo xtask export {name} --weights FILE` makes it of torch-fidelity's or pytorch-fid's \
                 weights (docs/evaluation.md)"
            ),
            searched: registry.folders().to_vec(),
        })
    }

    /// The checksum that the sidecar of `inception` declares, where the registry's folders hold it.
    ///
    /// # Errors
    /// [`EncoderError::Io`]: the sidecar cannot be read.
    pub fn identity(registry: &Registry) -> Result<Option<String>, EncoderError> {
        let Some(path) = registry.find(Self::NAMES[0]) else {
            return Ok(None);
        };
        let spec = readable(read_toml::<InceptionSpec>(&path))?;
        Ok(spec.map(|spec| spec.sha256))
    }

    /// Loads a file to `device` and compares it with the values that Python recorded.
    ///
    /// # Errors
    /// File or sidecar missing, damaged or of each other's wrong kind; features of another shape than
    /// declared, not finite, or not Python's.
    pub fn load(path: &Path, device: Device) -> Result<Self, EncoderError> {
        let spec: InceptionSpec = read_toml(path)?;
        check_sha256(path, &spec.sha256)?;
        let refused = |error: tch::TchError| EncoderError::NotTorchScript {
            path: path.to_owned(),
            message: first_line(&error.to_string()),
        };
        let mut module = CModule::load_on_device(path, device).map_err(refused)?;
        module.f_set_eval().map_err(refused)?;
        let inception = Self {
            spec,
            module,
            device,
        };
        inception.check(path)?;
        Ok(inception)
    }

    /// Where it runs.
    pub fn device(&self) -> Device {
        self.device
    }

    /// What the sidecar says.
    pub fn spec(&self) -> &InceptionSpec {
        &self.spec
    }

    /// Features of images u8 `[B, 3, H, W]`, RGB. Records no gradients. On the CPU an image's features are
    /// the same to the bit in any company.
    ///
    /// # Errors
    /// Images of another shape or dtype.
    pub fn features(&self, images: &Tensor) -> Result<InceptionFeatures, EncoderError> {
        let (batch, ..) = check_images(images)?;
        let _no_grad = tch::no_grad_guard();
        let images = images.f_to_device(self.device)?;
        if self.device != Device::Cpu {
            return self.features_of_chunk(&images);
        }
        let (mut pool, mut spatial, mut logits) = (Vec::new(), Vec::new(), Vec::new());
        for start in (0..batch).step_by(CPU_CHUNK as usize) {
            let count = CPU_CHUNK.min(batch - start);
            let mut chunk = images.f_narrow(0, start, count)?;
            if count < CPU_CHUNK {
                let filling = chunk.f_narrow(0, 0, 1)?;
                let filling = filling.f_expand([CPU_CHUNK - count, -1, -1, -1], false)?;
                chunk = Tensor::f_cat(&[chunk, filling], 0)?;
            }
            let features = self.features_of_chunk(&chunk)?;
            pool.push(features.pool.f_narrow(0, 0, count)?);
            spatial.push(features.spatial.f_narrow(0, 0, count)?);
            logits.push(features.logits.f_narrow(0, 0, count)?);
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
        keep_the_same_bits();
        let output = self
            .module
            .forward_is(&[IValue::Tensor(images.shallow_clone())])
            .map_err(|error| {
                failure(&self.spec.name, &error)
                    .unwrap_or_else(|| output_error(first_line(&error.to_string())))
            })?;
        let IValue::Tuple(parts) = output else {
            return Err(output_error("no tuple".to_owned()));
        };
        let Ok(
            [
                IValue::Tensor(pool),
                IValue::Tensor(spatial),
                IValue::Tensor(logits),
            ],
        ) = <[IValue; 3]>::try_from(parts)
        else {
            return Err(output_error("another tuple".to_owned()));
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
            let places = tensor.numel() as i64;
            if index.len() != values.len() || index.iter().any(|at| !(0..places).contains(at)) {
                return Err(EncoderError::Sidecar {
                    path: path.with_extension("toml"),
                    message: format!("`reference` has positions of {what} that are not there"),
                });
            }
            let difference = relative(tensor, index, values)?;
            if difference.is_nan() || difference > TOLERANCE {
                return Err(EncoderError::ReferenceMismatch {
                    name: name(),
                    what,
                    difference,
                });
            }
        }
        Ok(())
    }
}
