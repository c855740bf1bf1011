//! Preprocessing of images for each encoder family, described as data.

use serde::{Deserialize, Serialize};
use tch::{Kind, TchError, Tensor};

/// Conversion from image bytes to a network's input, as in upstream's `preprocess` for each encoder
/// family.
///
/// All steps are computed in float32 on the images' device. Resizing is PyTorch's `interpolate`
/// with `align_corners=False`; it is skipped if the images already have the required size.
///
/// ```
/// use encoders::{Order, Preprocessing, Resize};
/// use tch::{Device, Kind, Tensor};
///
/// // The preprocessing of DINOv2 for images of 256 pixels.
/// let preprocessing = Preprocessing {
///     scale: true,
///     order: Order::NormalizeFirst,
///     resize: Resize::Bicubic,
///     antialias: false,
///     mean: [0.485, 0.456, 0.406],
///     std: [0.229, 0.224, 0.225],
/// };
/// let images = Tensor::zeros([2, 3, 256, 256], (Kind::Uint8, Device::Cpu));
/// let input = preprocessing.apply(&images, 224)?;
/// assert_eq!((input.size(), input.kind()), (vec![2, 3, 224, 224], Kind::Float));
/// # Ok::<(), tch::TchError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preprocessing {
    /// Whether to divide by 255.
    pub scale: bool,
    /// Whether to resize before or after the normalisation.
    pub order: Order,
    /// Interpolation method.
    pub resize: Resize,
    /// Whether to antialias when shrinking; also changes the bicubic kernel, see [`Resize::Bicubic`].
    #[serde(default)]
    pub antialias: bool,
    /// Mean to subtract from each channel.
    pub mean: [f32; 3],
    /// Standard deviation to divide each channel by.
    pub std: [f32; 3],
}

/// Order of the steps after scaling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Resize, then normalise.
    ResizeFirst,
    /// Normalise, then resize.
    NormalizeFirst,
}

/// Interpolation for images whose size differs from the network's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Resize {
    /// No resizing: images of another size are refused.
    None,
    /// Bilinear.
    Bilinear,
    /// Bicubic with a = -0.75 without antialiasing and -0.5 with it; overshoot is not clamped.
    Bicubic,
}

impl Preprocessing {
    /// Bytes to `[-1, 1]` without resizing: the input of autoencoders.
    pub const SIGNED: Self = Self {
        scale: true,
        order: Order::NormalizeFirst,
        resize: Resize::None,
        antialias: false,
        mean: [0.5; 3],
        std: [0.5; 3],
    };

    /// Bytes as float32 in 0..=255, resized bilinearly: the input of HOG and SIFT in upstream.
    pub const RAW: Self = Self {
        scale: false,
        order: Order::ResizeFirst,
        resize: Resize::Bilinear,
        antialias: false,
        mean: [0.0; 3],
        std: [1.0; 3],
    };

    /// Converts images u8 `[B, 3, H, W]` to the network's input, float32 `[B, 3, size, size]`.
    ///
    /// With [`Resize::None`] the size is unchanged.
    ///
    /// # Errors
    /// libtorch fails, because it runs out of memory or because of the images' shape.
    pub fn apply(&self, images: &Tensor, size: i64) -> Result<Tensor, TchError> {
        let mut x = images.f_to_kind(Kind::Float)?;
        if self.scale {
            x = x.f_div_scalar(255.0)?;
        }
        match self.order {
            Order::ResizeFirst => self.normalize(self.resize(x, size)?),
            Order::NormalizeFirst => self.resize(self.normalize(x)?, size),
        }
    }

    fn normalize(&self, x: Tensor) -> Result<Tensor, TchError> {
        if self.mean == [0.0; 3] && self.std == [1.0; 3] {
            return Ok(x);
        }
        let channels = |values: &[f32; 3]| {
            Tensor::f_from_slice(values)?
                .f_view([1, 3, 1, 1])?
                .f_to_device(x.device())
        };
        let (mean, std) = (channels(&self.mean)?, channels(&self.std)?);
        x.f_sub(&mean)?.f_div_(&std)
    }

    fn resize(&self, x: Tensor, size: i64) -> Result<Tensor, TchError> {
        let (_, _, height, width) = x.size4()?;
        if (height, width) == (size, size) || self.resize == Resize::None {
            return Ok(x);
        }
        let to = [size, size];
        match (self.resize, self.antialias) {
            (Resize::Bilinear, false) => x.f_upsample_bilinear2d(to, false, None, None),
            (Resize::Bilinear, true) => x.f_internal_upsample_bilinear2d_aa(to, false, None, None),
            (Resize::Bicubic, false) => x.f_upsample_bicubic2d(to, false, None, None),
            (Resize::Bicubic, true) => x.f_internal_upsample_bicubic2d_aa(to, false, None, None),
            (Resize::None, _) => Ok(x),
        }
    }
}

/// Resamples a table of absolute position embeddings `[1, prefix + N, D]` to a grid of
/// `(rows, columns)`, as timm's `resample_abs_pos_embed` does. The first `prefix` rows are kept. The
/// other N rows form a square grid, which is resized bicubically with antialiasing.
///
/// # Errors
/// The table has another shape.
pub fn resample_pos_embed(
    table: &Tensor,
    (rows, columns): (i64, i64),
    prefix: i64,
) -> Result<Tensor, TchError> {
    let (_, count, width) = table.size3()?;
    let side = ((count - prefix) as f64).sqrt().floor() as i64;
    if count == rows * columns + prefix && rows == columns {
        return Ok(table.shallow_clone());
    }
    let kept = table.f_narrow(1, 0, prefix)?;
    let grid = table
        .f_narrow(1, prefix, count - prefix)?
        .f_to_kind(Kind::Float)?
        .f_reshape([1, side, side, width])?
        .f_permute([0, 3, 1, 2])?
        .f_internal_upsample_bicubic2d_aa([rows, columns], false, None, None)?
        .f_permute([0, 2, 3, 1])?
        .f_reshape([1, rows * columns, width])?
        .f_to_kind(table.kind())?;
    Tensor::f_cat(&[kept, grid], 1)
}
