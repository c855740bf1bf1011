//! The learned perceptual distance LPIPS.

use std::path::Path;

use tch::{Device, Kind, Tensor};
use torch_ext::{Params, Scope};

use crate::nn::Conv2d;
use crate::{DiffusionError, check};

#[cfg(test)]
mod tests;

/// Positions of the convolutions in torchvision's `vgg16().features`, per slice.
const CONVOLUTIONS: [&[i64]; 5] = [
    &[0, 2],
    &[5, 7],
    &[10, 12, 14],
    &[17, 19, 21],
    &[24, 26, 28],
];

/// Lower bound of a feature's sum of squares, before the square root. The root of the bound is negligible
/// next to [`NORM_EPS`], so no value changes, but the derivative of the root stays finite where all
/// channels are zero.
const SQUARES_EPS: f64 = 1e-30;

/// Added to the length of a feature before the feature is divided by it.
const NORM_EPS: f64 = 1e-10;

/// The learned perceptual distance of two images (arXiv 1801.03924; `LPIPS` upstream): weighted
/// squared differences of the features of a VGG16. Its weights are frozen.
///
/// As upstream, it first maps its input `x` to `2 x - 1`, which suits images in [0, 1]; also as upstream,
/// REPA-E passes images in [-1, 1].
///
/// ```
/// use diffusion::repa_e::Lpips;
/// use tch::{Device, Kind, Tensor};
/// use torch_ext::Params;
///
/// # fn main() -> Result<(), diffusion::DiffusionError> {
/// // Real use: `Lpips::load(path, device)`.
/// let params = Params::new(Device::Cpu, 0)?;
/// let lpips = Lpips::new(&params.root(), [4, 8, 8, 8, 8])?;
/// let images = Tensor::rand([2, 3, 32, 32], (Kind::Float, Device::Cpu));
/// assert_eq!(lpips.forward(&images, &images)?.size(), [2, 1, 1, 1]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Lpips {
    shift: Tensor,
    scale: Tensor,
    slices: Vec<Vec<Conv2d>>,
    heads: Vec<Conv2d>,
}

impl Lpips {
    /// Numbers of channels of VGG16's five slices.
    pub const VGG16: [i64; 5] = [64, 128, 256, 512, 512];
    /// Smallest height and width of an image: VGG16 halves both four times.
    pub const SMALLEST_SIDE: u32 = 16;

    /// Declares the frozen weights below `scope`, zero until they are loaded. `widths` are the numbers
    /// of channels of the five slices.
    ///
    /// # Errors
    /// A width is below 1, or a name is already declared.
    pub fn new(scope: &Scope, widths: [i64; 5]) -> Result<Self, DiffusionError> {
        let constants = scope.sub("scaling_layer");
        let constant = |name, values: [f32; 3]| -> Result<Tensor, DiffusionError> {
            let value = Tensor::f_from_slice(&values)?.f_view([1, 3, 1, 1])?;
            Ok(constants.buffer(name, value)?)
        };
        let shift = constant("shift", [-0.030, -0.088, -0.188])?;
        let scale = constant("scale", [0.458, 0.448, 0.450])?;
        let (mut slices, mut heads) = (Vec::new(), Vec::new());
        let mut in_channels = 3;
        for (index, (&width, positions)) in widths.iter().zip(CONVOLUTIONS).enumerate() {
            check::setting(width > 0, "the width of a VGG slice", width, "at least 1")?;
            let slice = scope.sub("net").sub(format!("slice{}", index + 1));
            let mut convolutions = Vec::new();
            for position in positions {
                convolutions.push(frozen(&slice.sub(position), [width, in_channels], 3)?);
                in_channels = width;
            }
            slices.push(convolutions);
            let head = scope.sub(format!("lin{index}")).sub("model").sub(1);
            heads.push(frozen(&head, [1, width], 1)?);
        }
        Ok(Self {
            shift,
            scale,
            slices,
            heads,
        })
    }

    /// Reads the weights of VGG16 and of LPIPS' heads from a safetensors file with the names of
    /// upstream's state dict: `net.slice1.0.weight`, ..., `lin0.model.1.weight`, ...,
    /// `scaling_layer.shift`. `crates/diffusion/python/convert_lpips.py` writes this file.
    ///
    /// # Errors
    /// The file is missing, or its names or shapes differ.
    pub fn load(path: &Path, device: Device) -> Result<Self, DiffusionError> {
        if !path.is_file() {
            let path = path.to_owned();
            return Err(DiffusionError::NoLpips { path });
        }
        let params = Params::new(device, 0)?;
        let lpips = Self::new(&params.root(), Self::VGG16)?;
        let loaded = Tensor::read_safetensors(path).map_err(Into::into);
        loaded
            .and_then(|tensors| params.load(&tensors))
            .map_err(|source| DiffusionError::LpipsFile {
                path: path.to_owned(),
                source,
            })?;
        Ok(lpips)
    }

    /// The distance per pair of images, `[B, 1, 1, 1]`, for `left` and `right` `[B, 3, H, W]`, float32,
    /// nominally in [0, 1].
    ///
    /// # Errors
    /// The shapes differ, or a side is below 16.
    pub fn forward(&self, left: &Tensor, right: &Tensor) -> Result<Tensor, DiffusionError> {
        check::shape("the second image of LPIPS", right, &left.size())?;
        let (left, right) = (self.features(left)?, self.features(right)?);
        let mut total: Option<Tensor> = None;
        for (head, (left, right)) in self.heads.iter().zip(left.iter().zip(&right)) {
            let term = term(head, &difference(left, right)?)?;
            total = Some(match total {
                Some(sum) => sum.f_add(&term)?,
                None => term,
            });
        }
        match total {
            Some(total) => Ok(total),
            None => Ok(Tensor::f_zeros(
                [0, 1, 1, 1],
                (Kind::Float, self.scale.device()),
            )?),
        }
    }

    /// VGG's features after relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3: `[B, 64, H, W]` to
    /// `[B, 512, H / 16, W / 16]`.
    fn features(&self, images: &Tensor) -> Result<Vec<Tensor>, DiffusionError> {
        check::shape("the image of LPIPS", images, &[-1, 3, -1, -1])?;
        let (_, _, height, width) = images.size4()?;
        let side = height.min(width);
        let smallest = Self::SMALLEST_SIDE;
        let allowed = format!("at least {smallest}, for LPIPS");
        let fits = side >= i64::from(smallest);
        check::setting(fits, "the images' side", side, allowed)?;
        let mut x = self.scaled(images)?;
        let mut features = Vec::with_capacity(self.slices.len());
        for (index, slice) in self.slices.iter().enumerate() {
            if index > 0 {
                x = x.f_max_pool2d([2, 2], [2, 2], [0, 0], [1, 1], false)?;
            }
            for conv in slice {
                x = conv.forward(&x)?.f_relu()?;
            }
            features.push(x.shallow_clone());
        }
        Ok(features)
    }

    /// Maps images from [0, 1] to the normalised input of VGG.
    fn scaled(&self, images: &Tensor) -> Result<Tensor, DiffusionError> {
        let x = images.f_mul_scalar(2.0)?.f_sub_scalar(1.0)?;
        Ok(x.f_sub(&self.shift)?.f_div(&self.scale)?)
    }
}

/// Declares a convolution that is in the state dict but not trained. Channels are `[out, in]`. A 1x1
/// convolution has no bias.
fn frozen(scope: &Scope, [out, input]: [i64; 2], kernel: i64) -> Result<Conv2d, DiffusionError> {
    let cpu = (Kind::Float, Device::Cpu);
    let weight = Tensor::f_zeros([out, input, kernel, kernel], cpu)?;
    Ok(Conv2d {
        weight: scope.buffer("weight", weight)?,
        bias: if kernel > 1 {
            Some(scope.buffer("bias", Tensor::f_zeros([out], cpu)?)?)
        } else {
            None
        },
        stride: 1,
        padding: kernel / 2,
    })
}

/// Divides features `[B, C, H, W]` by their length over the channels.
fn unit(features: &Tensor) -> Result<Tensor, DiffusionError> {
    let length = features
        .f_square()?
        .f_sum_dim_intlist(1, true, None)?
        .f_clamp_min(SQUARES_EPS)?
        .f_sqrt()?;
    Ok(features.f_div(&length.f_add_scalar(NORM_EPS)?)?)
}

/// Squared difference of unit features, `[B, C, H, W]`.
fn difference(left: &Tensor, right: &Tensor) -> Result<Tensor, DiffusionError> {
    Ok(unit(left)?.f_sub(&unit(right)?)?.f_square()?)
}

/// The contribution of one slice to the distance, `[B, 1, 1, 1]`.
fn term(head: &Conv2d, difference: &Tensor) -> Result<Tensor, DiffusionError> {
    let weighted = head.forward(difference)?;
    Ok(weighted.f_mean_dim([2, 3].as_slice(), true, None)?)
}
