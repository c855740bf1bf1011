//! The discriminator of the adversarial loss, and its losses.

use tch::{Device, Kind, Tensor};
use torch_ext::{Init, Scope};

use super::frozen::Frozen;
use crate::nn::{BatchNorm2d, Statistics};
use crate::nn::{Conv2d, default_init};
use crate::{DiffusionError, check};

/// Height and width of every kernel.
const KERNEL: i64 = 4;

/// The PatchGAN discriminator of pix2pix (arXiv 1611.07004; `NLayerDiscriminator` upstream):
/// strided convolutions with batch norm and leaky ReLU, and one logit per patch.
///
/// ```
/// use diffusion::repa_e::{Discriminator, Statistics, hinge_loss};
/// use tch::{Device, Kind, Tensor};
/// use torch_ext::Params;
///
/// # fn main() -> Result<(), diffusion::DiffusionError> {
/// let params = Params::new(Device::Cpu, 0)?;
/// let discriminator = Discriminator::new(&params.root(), 8, 3)?;
/// let images = Tensor::randn([2, 3, 32, 32], (Kind::Float, Device::Cpu));
/// let logits = discriminator.forward(&images, Statistics::Batch)?;
/// assert_eq!(logits.size(), [2, 1, 2, 2]);
/// hinge_loss(&logits, &logits)?.backward();
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Discriminator {
    main: Vec<Layer>,
    slope: Tensor,
    weights: Vec<Tensor>,
    strided_layers: i64,
}

#[derive(Debug)]
struct Layer {
    conv: Conv2d,
    norm: Option<BatchNorm2d>,
}

impl Discriminator {
    /// Number of channels of upstream's first layer.
    pub const CHANNELS: i64 = 64;
    /// Upstream's number of strided layers.
    pub const LAYERS: i64 = 3;

    /// Declares the weights as `main.N...` below `scope`. The first layer has `channels` channels;
    /// every further layer doubles them, up to `8 channels`. `layers` layers have stride 2. Weights are
    /// initialised as upstream does: normal with standard deviation 0.02, around 0 for convolutions and
    /// around 1 for norm scales.
    ///
    /// # Errors
    /// `channels` or `layers` is below 1, `layers` is above 16, or a weight name is already declared.
    pub fn new(scope: &Scope, channels: i64, layers: i64) -> Result<Self, DiffusionError> {
        check::setting(
            channels > 0,
            "discriminator channels",
            channels,
            "at least 1",
        )?;
        let fits = (1..=16).contains(&layers);
        check::setting(fits, "discriminator layers", layers, "between 1 and 16")?;
        let scope = scope.sub("main");
        let width = |layer: i64| channels * (1 << layer.min(3));
        // Names are positions in upstream's `nn.Sequential`, in which activations count.
        let mut main = vec![Layer {
            conv: convolution(&scope.sub(0), [channels, 3], 2, true)?,
            norm: None,
        }];
        for layer in 1..=layers {
            let stride = if layer < layers { 2 } else { 1 };
            let index = 3 * layer - 1;
            let widths = [width(layer), width(layer - 1)];
            main.push(Layer {
                conv: convolution(&scope.sub(index), widths, stride, false)?,
                norm: Some(norm(&scope.sub(index + 1), width(layer))?),
            });
        }
        main.push(Layer {
            conv: convolution(&scope.sub(3 * layers + 2), [1, width(layers)], 1, true)?,
            norm: None,
        });
        let slope = Tensor::f_full([1], 0.2, (Kind::Float, Device::Cpu))?;
        let weights = main.iter().flat_map(Layer::weights).collect();
        Ok(Self {
            main,
            slope: slope.f_to_device(scope.device())?,
            weights,
            strided_layers: layers,
        })
    }

    /// Logits `[B, 1, h, w]` of `images` `[B, 3, H, W]`, float32. A positive logit means real. With
    /// [`Statistics::Batch`], as throughout training, every call updates the running statistics.
    ///
    /// # Errors
    /// `images` has another shape, or is too small for the strided layers.
    pub fn forward(
        &self,
        images: &Tensor,
        statistics: Statistics,
    ) -> Result<Tensor, DiffusionError> {
        check::shape("the discriminator's input", images, &[-1, 3, -1, -1])?;
        // Each of the two layers with stride 1 removes a row and a column; at least one must remain.
        let smallest = 3 << self.strided_layers;
        let (_, _, height, width) = images.size4()?;
        let side = height.min(width);
        let allowed = format!("at least {smallest}, for the discriminator");
        check::setting(side >= smallest, "the images' side", side, allowed)?;
        let mut x = images.shallow_clone();
        for (index, Layer { conv, norm }) in self.main.iter().enumerate() {
            if index > 0 {
                x = x.f_prelu(&self.slope)?; // with one fixed slope: leaky ReLU
            }
            x = conv.forward(&x)?;
            if let Some(norm) = norm {
                x = norm.forward(&x, statistics)?;
            }
        }
        Ok(x)
    }

    /// As [`Discriminator::forward`] with [`Statistics::Batch`], but the weights record no gradient.
    pub(super) fn forward_frozen(&self, images: &Tensor) -> Result<Tensor, DiffusionError> {
        let _frozen = Frozen::new(&self.weights)?;
        self.forward(images, Statistics::Batch)
    }
}

impl Layer {
    fn weights(&self) -> Vec<Tensor> {
        let affine = self.norm.iter().flat_map(BatchNorm2d::weights);
        let conv = std::iter::once(&self.conv.weight).chain(&self.conv.bias);
        conv.chain(affine).map(Tensor::shallow_clone).collect()
    }
}

/// Declares a convolution with channels `[out, in]`.
fn convolution(
    scope: &Scope,
    [out_channels, in_channels]: [i64; 2],
    stride: i64,
    bias: bool,
) -> Result<Conv2d, DiffusionError> {
    let shape = [out_channels, in_channels, KERNEL, KERNEL];
    Ok(Conv2d {
        weight: scope.var("weight", &shape, Init::Normal { std: 0.02 })?,
        bias: if bias {
            Some(scope.var("bias", &[out_channels], default_init(&shape))?)
        } else {
            None
        },
        stride,
        padding: 1,
    })
}

fn norm(scope: &Scope, channels: i64) -> Result<BatchNorm2d, DiffusionError> {
    let weight = scope.var("weight", &[channels], Init::Normal { std: 0.02 })?;
    let _around_one = tch::no_grad(|| weight.shallow_clone().f_add_scalar_(1.0))?;
    let bias = scope.var("bias", &[channels], Init::Zeros)?;
    BatchNorm2d::new(scope, channels, Some((weight, bias)), 0.1, 1e-5)
}

/// `0.5 (mean relu(1 - real) + mean relu(1 + fake))` of logits of any shapes, a scalar
/// (`hinge_d_loss` upstream).
///
/// # Errors
/// libtorch failed.
pub fn hinge_loss(real: &Tensor, fake: &Tensor) -> Result<Tensor, DiffusionError> {
    let real = real.f_rsub_scalar(1.0)?.f_relu()?.f_mean(None)?;
    let fake = fake.f_add_scalar(1.0)?.f_relu()?.f_mean(None)?;
    Ok(real.f_add(&fake)?.f_mul_scalar(0.5)?)
}

/// LeCam regularisation (arXiv 2104.03310; `compute_lecam_loss` upstream):
/// `relu(real - average_fake)^2 + relu(average_real - fake)^2`, a scalar. `real` and `fake` are the means
/// of a batch's logits; the averages are their moving averages. Each has one element.
///
/// # Errors
/// The shapes do not match.
pub fn lecam_loss(
    real: &Tensor,
    fake: &Tensor,
    average_real: &Tensor,
    average_fake: &Tensor,
) -> Result<Tensor, DiffusionError> {
    let above = real.f_sub(average_fake)?.f_relu()?.f_square()?;
    let below = average_real.f_sub(fake)?.f_relu()?.f_square()?;
    Ok(above.f_mean(None)?.f_add(&below.f_mean(None)?)?)
}
