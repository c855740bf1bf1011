//! Projection heads from hidden tokens to the encoder's space.

use serde::{Deserialize, Serialize};
use tch::Tensor;
use torch_ext::{Init, Scope};

use crate::AlignmentError;
use crate::tokens;

/// The kind of projection from hidden tokens to the encoder's space.
///
/// In TOML: `{ kind = "mlp" }`, `{ kind = "linear" }` or `{ kind = "conv", kernel = 3 }`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", from = "StrictHeadConfig")]
pub enum HeadConfig {
    /// Three linear layers with SiLU between them (REPA).
    Mlp {
        /// Width of the two hidden layers; default 2048.
        width: i64,
    },
    /// One linear layer.
    Linear,
    /// One convolution over the token grid, zero-padded to keep the grid's size (iREPA).
    Conv {
        /// Side of the kernel; default 3.
        kernel: KernelSize,
    },
}

/// [`HeadConfig`] for deserialisation: serde refuses unknown keys of `{}` variants, but not of unit
/// variants.
#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
enum StrictHeadConfig {
    Mlp {
        #[serde(default = "default_mlp_width")]
        width: i64,
    },
    Linear {},
    Conv {
        #[serde(default)]
        kernel: KernelSize,
    },
}

impl From<StrictHeadConfig> for HeadConfig {
    fn from(config: StrictHeadConfig) -> Self {
        match config {
            StrictHeadConfig::Mlp { width } => Self::Mlp { width },
            StrictHeadConfig::Linear {} => Self::Linear,
            StrictHeadConfig::Conv { kernel } => Self::Conv { kernel },
        }
    }
}

fn default_mlp_width() -> i64 {
    2048
}

impl Default for HeadConfig {
    /// The paper's head: a 3x3 convolution.
    fn default() -> Self {
        Self::Conv {
            kernel: KernelSize::Three,
        }
    }
}

/// Side of a convolution kernel; a number in configuration files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "i64", into = "i64")]
pub enum KernelSize {
    /// 1x1: the same function as a linear layer, but initialised like a convolution.
    One,
    /// 3x3, the paper's choice.
    #[default]
    Three,
    /// 5x5.
    Five,
    /// 7x7.
    Seven,
}

impl TryFrom<i64> for KernelSize {
    type Error = AlignmentError;

    fn try_from(side: i64) -> Result<Self, AlignmentError> {
        match side {
            1 => Ok(Self::One),
            3 => Ok(Self::Three),
            5 => Ok(Self::Five),
            7 => Ok(Self::Seven),
            _ => Err(AlignmentError::KernelSize(side)),
        }
    }
}

impl From<KernelSize> for i64 {
    fn from(size: KernelSize) -> i64 {
        match size {
            KernelSize::One => 1,
            KernelSize::Three => 3,
            KernelSize::Five => 5,
            KernelSize::Seven => 7,
        }
    }
}

/// A projection head, which maps hidden tokens `[B, T, in]` to the encoder's space `[B, T, out]`
/// (`ProjectionLayer` upstream).
///
/// ```
/// use alignment::{Head, HeadConfig};
/// use tch::{Device, Kind, Tensor};
/// use torch_ext::Params;
///
/// # fn main() -> Result<(), alignment::AlignmentError> {
/// let params = Params::new(Device::Cpu, 0)?;
/// let head = Head::new(&params.root(), &HeadConfig::default(), 64, 768)?;
///
/// let hidden = Tensor::randn([2, 16, 64], (Kind::Float, Device::Cpu));
/// assert_eq!(head.forward(&hidden)?.size(), [2, 16, 768]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Head {
    projection: Projection,
    in_width: i64,
    out_width: i64,
}

#[derive(Debug)]
enum Projection {
    Mlp([Linear; 3]),
    Linear(Linear),
    Conv { layer: Linear, padding: i64 },
}

#[derive(Debug)]
struct Linear {
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    fn new(scope: &Scope, in_width: i64, out_width: i64) -> Result<Self, AlignmentError> {
        Ok(Self {
            weight: scope.cast_var("weight", &[out_width, in_width], Init::XavierUniform)?,
            bias: scope.cast_var("bias", &[out_width], Init::Zeros)?,
        })
    }

    /// A convolution initialised like `torch.nn.Conv2d`, whose default upstream keeps: Kaiming
    /// uniform with `a = sqrt(5)` is uniform within `1 / sqrt(fan_in)`, and so is the bias.
    fn conv(
        scope: &Scope,
        in_width: i64,
        out_width: i64,
        side: i64,
    ) -> Result<Self, AlignmentError> {
        let fan_in = in_width * side * side;
        let init = Init::Uniform {
            bound: 1.0 / (fan_in as f64).sqrt(),
        };
        Ok(Self {
            weight: scope.cast_var("weight", &[out_width, in_width, side, side], init)?,
            bias: scope.cast_var("bias", &[out_width], init)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor, AlignmentError> {
        Ok(x.f_linear(&self.weight, Some(&self.bias))?)
    }
}

impl Head {
    /// Declares a head's weights below `scope`, as `projection_layer.{weight,bias}` or, for an
    /// MLP, `projection_layer.{0,2,4}.{weight,bias}`.
    ///
    /// Linear layers are initialised Xavier-uniform with zero bias, convolutions with PyTorch's
    /// default.
    ///
    /// # Errors
    /// A width is below 1, or `scope` already has a weight of that name.
    pub fn new(
        scope: &Scope,
        config: &HeadConfig,
        in_width: i64,
        out_width: i64,
    ) -> Result<Self, AlignmentError> {
        positive("the head's input width", in_width)?;
        positive("the head's output width", out_width)?;
        let scope = scope.sub("projection_layer");
        let projection = match *config {
            HeadConfig::Mlp { width } => {
                positive("the head's hidden width", width)?;
                Projection::Mlp([
                    Linear::new(&scope.sub(0), in_width, width)?,
                    Linear::new(&scope.sub(2), width, width)?,
                    Linear::new(&scope.sub(4), width, out_width)?,
                ])
            }
            HeadConfig::Linear => Projection::Linear(Linear::new(&scope, in_width, out_width)?),
            HeadConfig::Conv { kernel } => {
                let side = i64::from(kernel);
                Projection::Conv {
                    layer: Linear::conv(&scope, in_width, out_width, side)?,
                    padding: side / 2,
                }
            }
        };
        Ok(Self {
            projection,
            in_width,
            out_width,
        })
    }

    /// Width of the hidden tokens that this head takes.
    pub fn in_width(&self) -> i64 {
        self.in_width
    }

    /// Width of the tokens that this head returns.
    pub fn out_width(&self) -> i64 {
        self.out_width
    }

    /// Projects `hidden` `[B, T, in]`, row-major tokens of a square grid, to `[B, T, out]`.
    ///
    /// # Errors
    /// `hidden` has another shape, or, for a convolution, its number of tokens is not a square.
    pub fn forward(&self, hidden: &Tensor) -> Result<Tensor, AlignmentError> {
        let (_, count, _) = self.sizes(hidden)?;
        match &self.projection {
            Projection::Mlp([first, second, third]) => {
                let x = first.forward(hidden)?.f_silu()?;
                let x = second.forward(&x)?.f_silu()?;
                third.forward(&x)
            }
            Projection::Linear(layer) => layer.forward(hidden),
            Projection::Conv { .. } => {
                let side = (count as f64).sqrt().round() as i64;
                if side * side != count {
                    return Err(AlignmentError::NotSquare { tokens: count });
                }
                self.forward_on_grid(hidden, (side, side))
            }
        }
    }

    /// Like [`Head::forward`], for row-major tokens of a grid of `(rows, columns)`.
    ///
    /// # Errors
    /// `hidden` has another shape, or its number of tokens is not rows times columns.
    pub fn forward_on_grid(
        &self,
        hidden: &Tensor,
        (rows, columns): (i64, i64),
    ) -> Result<Tensor, AlignmentError> {
        let (batch, count, width) = self.sizes(hidden)?;
        if rows < 1 || columns < 1 || rows.checked_mul(columns) != Some(count) {
            return Err(AlignmentError::Grid {
                rows,
                columns,
                tokens: count,
            });
        }
        let Projection::Conv { layer, padding } = &self.projection else {
            return self.forward(hidden);
        };
        // Tokens are already channels-last. As permuted views, the convolution's input and output
        // need no copy.
        let image = hidden
            .f_reshape([batch, rows, columns, width])?
            .f_permute([0, 3, 1, 2])?;
        let projected = image.f_conv2d(
            &layer.weight,
            Some(&layer.bias),
            1,
            [*padding, *padding],
            1,
            1,
        )?;
        Ok(projected
            .f_permute([0, 2, 3, 1])?
            .f_reshape([batch, count, self.out_width])?)
    }

    fn sizes(&self, hidden: &Tensor) -> Result<(i64, i64, i64), AlignmentError> {
        let sizes = tokens::sizes("hidden tokens", hidden)?;
        if sizes.2 != self.in_width {
            return Err(AlignmentError::Width {
                found: hidden.size(),
                expected: self.in_width,
            });
        }
        Ok(sizes)
    }
}

fn positive(name: &'static str, found: i64) -> Result<(), AlignmentError> {
    if found < 1 {
        return Err(AlignmentError::Setting {
            name,
            found: found as f64,
            allowed: "at least 1",
        });
    }
    Ok(())
}
