//! The interface of a vision encoder, and its declared properties.

use std::collections::BTreeMap;
use std::fmt::Debug;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::{EncoderError, Grid, Preprocessing, Reference, Tokens, WeightDtype};

/// A frozen vision encoder.
pub trait Encoder: Debug + Send {
    /// Declared properties of the encoder.
    fn spec(&self) -> &EncoderSpec;

    /// Computes the tokens of RGB images u8 `[B, 3, H, W]`, which may be on any device. Records no
    /// gradients.
    ///
    /// # Errors
    /// Images of another shape or dtype, or of a size that the encoder does not support.
    fn encode(&self, images: &Tensor) -> Result<Tokens, EncoderError>;
}

/// Declared properties of an encoder. A sidecar file is this struct in TOML.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncoderSpec {
    /// Name in configurations.
    pub name: String,
    /// One-line description for users.
    #[serde(default)]
    pub description: String,
    /// Model family, such as `DINOv2`.
    #[serde(default)]
    pub family: String,
    /// Name and origin of the weights.
    #[serde(default)]
    pub weights: String,
    /// Licence of the weights.
    #[serde(default)]
    pub licence: String,
    /// Whether access to the weights must be requested.
    #[serde(default)]
    pub gated: bool,
    /// SHA-256 of the TorchScript file, hexadecimal; `None` for a native encoder.
    #[serde(default)]
    pub sha256: Option<String>,
    /// Rows and columns of the patch tokens.
    pub grid: Grid,
    /// Width of a token, `D`.
    pub width: usize,
    /// Whether there is a class token.
    #[serde(default)]
    pub class_token: bool,
    /// Number of tokens that the network has besides the patch tokens: class token, registers.
    #[serde(default)]
    pub prefix_tokens: usize,
    /// Millions of parameters.
    #[serde(default)]
    pub params_m: Option<f64>,
    /// Number of transformer blocks.
    #[serde(default)]
    pub depth: Option<usize>,
    /// Dtype of the weights in the file; they are cast on loading if another precision is
    /// requested.
    #[serde(default)]
    pub dtype: WeightDtype,
    /// Side in pixels of the images that the file was exported for, 256 or a multiple of it;
    /// `None` if it accepts any size.
    #[serde(default)]
    pub resolution: Option<i64>,
    /// Side of the network's input in pixels.
    pub input_size: i64,
    /// Side of the network's input for each side of the images, `{ "256" = 224, "512" = 448 }`.
    /// The keys are the resolutions that the encoder can be exported for.
    #[serde(default)]
    pub input_sizes: BTreeMap<String, i64>,
    /// Conversion from image bytes to the network's input.
    pub preprocessing: Preprocessing,
    /// Values that Python computed for the reference images when it wrote the file.
    #[serde(default)]
    pub reference: Option<Reference>,
}

impl EncoderSpec {
    /// Checks that `tokens` of `batch` images have the declared shapes.
    pub(crate) fn check(&self, tokens: &Tokens, batch: i64) -> Result<(), EncoderError> {
        let width = self.width as i64;
        self.check_shape(
            "the patch tokens",
            &tokens.patch,
            &[batch, self.grid.tokens() as i64, width],
        )?;
        match &tokens.class {
            Some(class) => self.check_shape("the class token", class, &[batch, width]),
            None if self.class_token => Err(EncoderError::Output {
                name: self.name.clone(),
                found: "no class token, though the sidecar declares one".to_owned(),
            }),
            None => Ok(()),
        }
    }

    fn check_shape(
        &self,
        what: &'static str,
        tensor: &Tensor,
        declared: &[i64],
    ) -> Result<(), EncoderError> {
        if tensor.size() == declared {
            return Ok(());
        }
        Err(EncoderError::Shape {
            name: self.name.clone(),
            what,
            found: tensor.size(),
            declared: declared.to_vec(),
        })
    }
}

/// Checks that `images` is a non-empty batch of RGB bytes and returns `(B, H, W)`.
pub(crate) fn check_images(images: &Tensor) -> Result<(i64, i64, i64), EncoderError> {
    match images.size()[..] {
        [batch, 3, height, width]
            if images.kind() == Kind::Uint8 && batch > 0 && height > 0 && width > 0 =>
        {
            Ok((batch, height, width))
        }
        _ => Err(EncoderError::InvalidImages {
            found: images.size(),
            kind: format!("{:?}", images.kind()),
        }),
    }
}
