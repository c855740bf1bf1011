//! Convolutions for the image networks: autoencoder, discriminator and perceptual loss.

use tch::Tensor;
use torch_ext::{Init, Scope};

use crate::DiffusionError;

/// A two-dimensional convolution over `[B, C, H, W]`.
#[derive(Debug)]
pub(crate) struct Conv2d {
    /// `[out, in, kernel, kernel]`.
    pub weight: Tensor,
    /// `[out]`.
    pub bias: Option<Tensor>,
    pub stride: i64,
    pub padding: i64,
}

impl Conv2d {
    /// A convolution with an odd `kernel` that keeps height and width. Declares `weight` and `bias`,
    /// initialised like `torch.nn.Conv2d`.
    pub fn same(
        scope: &Scope,
        in_channels: i64,
        out_channels: i64,
        kernel: i64,
    ) -> Result<Self, DiffusionError> {
        let shape = [out_channels, in_channels, kernel, kernel];
        let init = default_init(&shape);
        Ok(Self {
            weight: scope.var("weight", &shape, init)?,
            bias: Some(scope.var("bias", &[out_channels], init)?),
            stride: 1,
            padding: kernel / 2,
        })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor, DiffusionError> {
        let (stride, padding) = (self.stride, self.padding);
        Ok(x.f_conv2d(
            &self.weight,
            self.bias.as_ref(),
            [stride, stride],
            [padding, padding],
            [1, 1],
            1,
        )?)
    }
}

/// The initialisation of `torch.nn.Conv2d` for both weight and bias. Kaiming-uniform with
/// `a = sqrt(5)` is uniform within `1 / sqrt(fan_in)`, and so is the bias. `shape` is the weight's.
pub(crate) fn default_init(shape: &[i64]) -> Init {
    let fan_in: i64 = shape.iter().skip(1).product();
    Init::Uniform {
        bound: 1.0 / (fan_in as f64).sqrt(),
    }
}
