//! Controls: networks with random weights, which have an architecture but learned nothing.

use tch::{Device, Tensor};
use torch_ext::{Init, Params, Scope, TorchError};

use crate::classic::STRIDE;

/// Seed of the weights: they are part of the encoder's definition.
const SEED: u64 = 0;

/// Side in input pixels of the patch that one token covers.
const PATCH: i64 = STRIDE as i64;

/// The architecture of a network with random weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Architecture {
    /// Four convolutions of stride 2 with ReLU between them.
    Cnn,
    /// A vision transformer of four pre-norm blocks, with the initialisation of MAE.
    Vit,
}

impl Architecture {
    /// Width of a token, `D`.
    pub(crate) fn width(self) -> i64 {
        match self {
            Self::Cnn => *Cnn::WIDTHS.last().unwrap_or(&0),
            Self::Vit => Vit::WIDTH,
        }
    }
}

/// A network with random weights on one device.
#[derive(Debug)]
pub(crate) struct RandomNetwork {
    device: Device,
    layers: Layers,
}

#[derive(Debug)]
enum Layers {
    Cnn(Cnn),
    Vit(Vit),
}

impl RandomNetwork {
    /// Draws the weights for images of `input_size` pixels, always the same. Uniform numbers do not depend on the
    /// processor, unlike normal ones.
    pub(crate) fn new(
        architecture: Architecture,
        input_size: i64,
        device: Device,
    ) -> Result<Self, TorchError> {
        let params = Params::new(device, SEED)?;
        let root = params.root();
        let layers = match architecture {
            Architecture::Cnn => Layers::Cnn(Cnn::new(&root)?),
            Architecture::Vit => Layers::Vit(Vit::new(&root, (input_size / PATCH).pow(2))?),
        };
        Ok(Self { device, layers })
    }

    pub(crate) fn device(&self) -> Device {
        self.device
    }

    /// Maps normalised images `[B, 3, S, S]` to patch tokens `[B, T, D]`.
    pub(crate) fn forward(&self, images: &Tensor) -> Result<Tensor, TorchError> {
        match &self.layers {
            Layers::Cnn(cnn) => cnn.forward(images),
            Layers::Vit(vit) => vit.forward(images),
        }
    }
}

/// Maps a feature map `[B, D, h, w]` to tokens `[B, h w, D]`.
fn to_tokens(grid: &Tensor) -> Result<Tensor, TorchError> {
    Ok(grid.f_flatten(2, -1)?.f_transpose(1, 2)?.f_contiguous()?)
}

/// Weight and bias of a linear layer or a convolution.
#[derive(Debug)]
struct Affine {
    weight: Tensor,
    bias: Tensor,
}

impl Affine {
    /// Weights with this initialisation, and a bias of zeros.
    fn new(scope: &Scope, shape: &[i64], init: Init) -> Result<Self, TorchError> {
        Ok(Self {
            weight: scope.var("weight", shape, init)?,
            bias: scope.var("bias", &shape[..1], Init::Zeros)?,
        })
    }

    fn linear(&self, x: &Tensor) -> Result<Tensor, TorchError> {
        Ok(x.f_linear(&self.weight, Some(&self.bias))?)
    }

    fn convolve(&self, x: &Tensor, stride: i64, padding: i64) -> Result<Tensor, TorchError> {
        let bias = Some(&self.bias);
        let (stride, padding) = ([stride; 2], [padding; 2]);
        Ok(x.f_conv2d(&self.weight, bias, stride, padding, [1, 1], 1)?)
    }
}

/// Convolutions 3 x 3 of stride 2, initialised as in He et al. 2015.
#[derive(Debug)]
struct Cnn {
    layers: Vec<Affine>,
}

impl Cnn {
    const WIDTHS: [i64; 4] = [32, 64, 96, 128];

    fn new(scope: &Scope) -> Result<Self, TorchError> {
        let mut channels = 3;
        let mut layers = Vec::new();
        for (index, width) in Self::WIDTHS.into_iter().enumerate() {
            let bound = (6.0 / (9 * channels) as f64).sqrt();
            let shape = [width, channels, 3, 3];
            layers.push(Affine::new(
                &scope.sub(index),
                &shape,
                Init::Uniform { bound },
            )?);
            channels = width;
        }
        Ok(Self { layers })
    }

    fn forward(&self, images: &Tensor) -> Result<Tensor, TorchError> {
        let mut x = images.shallow_clone();
        for (index, layer) in self.layers.iter().enumerate() {
            if index > 0 {
                x = x.f_relu()?;
            }
            x = layer.convolve(&x, 2, 1)?;
        }
        to_tokens(&x)
    }
}

#[derive(Debug)]
struct Vit {
    patches: Affine,
    /// `[1, T, D]`.
    positions: Tensor,
    blocks: Vec<VitBlock>,
}

impl Vit {
    const WIDTH: i64 = 192;
    const DEPTH: usize = 4;
    const HEADS: i64 = 3;

    fn new(scope: &Scope, tokens: i64) -> Result<Self, TorchError> {
        let width = Self::WIDTH;
        // A standard deviation of 0.02, as learned positions have at the start of training.
        let bound = 0.02 * 3_f64.sqrt();
        let blocks = (0..Self::DEPTH).map(|index| VitBlock::new(&scope.sub("blocks").sub(index)));
        Ok(Self {
            patches: Affine::new(
                &scope.sub("patch_embed"),
                &[width, 3, PATCH, PATCH],
                Init::XavierUniform,
            )?,
            positions: scope.var("pos_embed", &[1, tokens, width], Init::Uniform { bound })?,
            blocks: blocks.collect::<Result<_, _>>()?,
        })
    }

    fn forward(&self, images: &Tensor) -> Result<Tensor, TorchError> {
        let patches = self.patches.convolve(images, PATCH, 0)?;
        let mut x = to_tokens(&patches)?.f_add(&self.positions)?;
        for block in &self.blocks {
            x = block.forward(&x)?;
        }
        norm(&x)
    }
}

/// `x + attention(norm(x))`, then `x + mlp(norm(x))`.
#[derive(Debug)]
struct VitBlock {
    qkv: Affine,
    proj: Affine,
    fc1: Affine,
    fc2: Affine,
}

impl VitBlock {
    fn new(scope: &Scope) -> Result<Self, TorchError> {
        let width = Vit::WIDTH;
        let layer =
            |name, from, to| Affine::new(&scope.sub(name), &[to, from], Init::XavierUniform);
        Ok(Self {
            qkv: layer("qkv", width, 3 * width)?,
            proj: layer("proj", width, width)?,
            fc1: layer("fc1", width, 4 * width)?,
            fc2: layer("fc2", 4 * width, width)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor, TorchError> {
        let (batch, tokens, width) = x.size3()?;
        let qkv = self.qkv.linear(&norm(x)?)?;
        let heads = qkv.f_view([batch, tokens, 3, Vit::HEADS, width / Vit::HEADS])?;
        let heads = heads.f_permute([2, 0, 3, 1, 4])?; // [3, B, heads, T, d]
        let [q, k, v] = [0, 1, 2].map(|index| heads.f_select(0, index));
        let mixed = Tensor::f_scaled_dot_product_attention::<&Tensor>(
            &q?, &k?, &v?, None, 0.0, false, None, false,
        )?;
        let mixed = mixed.f_transpose(1, 2)?.f_reshape([batch, tokens, width])?;
        let x = x.f_add(&self.proj.linear(&mixed)?)?;
        let hidden = self.fc1.linear(&norm(&x)?)?.f_gelu("none")?;
        Ok(x.f_add(&self.fc2.linear(&hidden)?)?)
    }
}

/// Layer norm without weights, which are one and zero before training.
fn norm(x: &Tensor) -> Result<Tensor, TorchError> {
    let width = x.size().last().copied().unwrap_or(0);
    Ok(x.f_layer_norm::<&Tensor>([width], None, None, 1e-6, false)?)
}
