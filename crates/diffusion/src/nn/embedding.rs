//! Embeddings of positions, times and classes.

use tch::{Device, Kind, Tensor};
use torch_ext::{Init, Scope, optim};

use super::linear::Linear;
use crate::denoiser::{Mode, drop_labels};
use crate::{DiffusionError, check};

/// Longest period of the sinusoids of positions and times.
const MAX_PERIOD: f64 = 10_000.0;

/// The fixed position embedding of a square grid, `[side * side, width]` in float64
/// (`get_2d_sincos_pos_embed` upstream).
///
/// The first half of a token's vector encodes its column, the second half its row. Each half is
/// `[sin(p w_i), cos(p w_i)]` with `w_i = 10000^(-i / (width / 4))`.
///
/// # Errors
/// `width` is not a multiple of 4, or `width` or `side` is not positive.
pub fn sincos_2d(width: i64, side: i64) -> Result<Tensor, DiffusionError> {
    check::setting(
        width > 0 && width % 4 == 0,
        "hidden_size",
        width,
        "a multiple of 4, for the position embedding",
    )?;
    check::setting(side > 0, "the grid of tokens", side, "at least 1 x 1")?;
    let quarter = width / 4;
    let mut values = Vec::new();
    for token in 0..side * side {
        for position in [token % side, token / side] {
            let angles = (0..quarter)
                .map(|index| position as f64 / MAX_PERIOD.powf(index as f64 / quarter as f64));
            values.extend(angles.clone().map(f64::sin));
            values.extend(angles.map(f64::cos));
        }
    }
    Ok(Tensor::f_from_slice(&values)?.f_view([side * side, width])?)
}

/// Declares `pos_embed`, [`sincos_2d`] as `[1, side * side, width]` in float32: a weight if it is trained, or a buffer.
///
/// # Errors
/// As [`sincos_2d`]; the name is already declared.
pub fn position_embedding(
    scope: &Scope,
    width: i64,
    side: i64,
    trained: bool,
) -> Result<Tensor, DiffusionError> {
    let positions = sincos_2d(width, side)?.f_to_kind(Kind::Float)?;
    let positions = positions.f_unsqueeze(0)?;
    if !trained {
        return Ok(scope.buffer("pos_embed", positions)?);
    }
    let weight = scope.var("pos_embed", &positions.size(), Init::Zeros)?;
    optim::copy_(&[weight.shallow_clone()], &[positions])?;
    Ok(weight)
}

/// Sinusoids of times `t` `[B]`: `[cos(t f_i), sin(t f_i)]` with `f_i = 10000^(-i / half)` and
/// `half = width / 2` (`TimestepEmbedder.positional_embedding` upstream).
///
/// The result is `[B, width]`, in float64 if `t` is and in float32 otherwise. If `width` is odd, the
/// last column is zero. Times are in [0, 1] and are not scaled.
///
/// # Errors
/// `t` does not have exactly one dimension, or `width` is below 2.
pub fn timestep_sinusoids(t: &Tensor, width: i64) -> Result<Tensor, DiffusionError> {
    sinusoids(t, &frequencies(width, t.device())?, width)
}

fn frequencies(width: i64, device: Device) -> Result<Tensor, DiffusionError> {
    check::setting(
        width >= 2,
        "the width of the time embedding",
        width,
        "at least 2",
    )?;
    let half = width / 2;
    Ok(Tensor::f_arange(half, (Kind::Float, Device::Cpu))?
        .f_mul_scalar(-MAX_PERIOD.ln())?
        .f_div_scalar(half)?
        .f_exp()?
        .f_to_device(device)?)
}

pub(crate) fn sinusoids(
    t: &Tensor,
    frequencies: &Tensor,
    width: i64,
) -> Result<Tensor, DiffusionError> {
    check::shape("t", t, &[-1])?;
    let kind = match t.kind() {
        Kind::Double => Kind::Double,
        _ => Kind::Float,
    };
    let angles = t.f_to_kind(kind)?.f_unsqueeze(1)?.f_mul(frequencies)?;
    let mut parts = vec![angles.f_cos()?, angles.f_sin()?];
    if width % 2 == 1 {
        parts.push(angles.f_narrow(1, 0, 1)?.f_zeros_like()?);
    }
    Ok(Tensor::f_cat(&parts, 1)?)
}

/// The time derivative of [`sinusoids`], computed from its result: `[-f sin(t f), f cos(t f)]`.
pub(crate) fn sinusoids_derivative(
    sinusoids: &Tensor,
    frequencies: &Tensor,
) -> Result<Tensor, DiffusionError> {
    let (_, width) = sinusoids.size2()?;
    let half = width / 2;
    let cos = sinusoids.f_narrow(1, 0, half)?;
    let sin = sinusoids.f_narrow(1, half, half)?;
    let mut parts = vec![sin.f_mul(frequencies)?.f_neg()?, cos.f_mul(frequencies)?];
    if width % 2 == 1 {
        parts.push(sinusoids.f_narrow(1, 0, 1)?.f_zeros_like()?);
    }
    Ok(Tensor::f_cat(&parts, 1)?)
}

/// Embeds times `[B]` as vectors `[B, D]` (`TimestepEmbedder` upstream).
#[derive(Debug)]
pub struct TimestepEmbedder {
    /// `f_i`, `[128]`.
    pub frequencies: Tensor,
    /// From the sinusoids to `D`; `mlp.0` in the state dict.
    pub first: Linear,
    /// From `D` to `D`; `mlp.2` in the state dict.
    pub second: Linear,
}

impl TimestepEmbedder {
    /// Number of sinusoids.
    pub const WIDTH: i64 = 256;

    /// Declares the weights, normal with standard deviation 0.02, for vectors of `width`.
    ///
    /// # Errors
    /// A weight name is already declared.
    pub fn new(scope: &Scope, width: i64) -> Result<Self, DiffusionError> {
        let scope = scope.sub("mlp");
        let init = Init::Normal { std: 0.02 };
        Ok(Self {
            frequencies: frequencies(Self::WIDTH, scope.device())?,
            first: Linear::new(&scope.sub(0), Self::WIDTH, width, init)?,
            second: Linear::new(&scope.sub(2), width, width, init)?,
        })
    }

    /// Maps times `t` `[B]` to vectors `[B, D]`.
    ///
    /// # Errors
    /// `t` does not have exactly one dimension.
    pub fn forward(&self, t: &Tensor) -> Result<Tensor, DiffusionError> {
        let x = sinusoids(t, &self.frequencies, Self::WIDTH)?.f_to_kind(t.kind())?;
        self.second.forward(&self.first.forward(&x)?.f_silu()?)
    }
}

/// Embeds labels `[B]` as vectors `[B, D]` (`LabelEmbedder` upstream). The table has a row for the
/// null class if training drops labels.
#[derive(Debug)]
pub struct LabelEmbedder {
    /// One row per class, `[num_classes, D]` or `[num_classes + 1, D]`.
    pub table: Tensor,
    num_classes: i64,
    null_class: Option<i64>,
    dropout: f64,
}

impl LabelEmbedder {
    /// Declares the table, normal with standard deviation 0.02. `dropout` is the fraction of the labels that training
    /// replaces by the null class; at 0 there is no null class.
    ///
    /// # Errors
    /// The weight name is already declared.
    pub fn new(
        scope: &Scope,
        num_classes: i64,
        width: i64,
        dropout: f64,
    ) -> Result<Self, DiffusionError> {
        let null_class = (dropout > 0.0).then_some(num_classes);
        Self::declare(scope, num_classes, null_class, width, dropout)
    }

    /// An embedder with a row for the null class that drops no labels itself.
    ///
    /// # Errors
    /// The weight name is already declared.
    pub fn with_null_class(
        scope: &Scope,
        num_classes: i64,
        width: i64,
    ) -> Result<Self, DiffusionError> {
        Self::declare(scope, num_classes, Some(num_classes), width, 0.0)
    }

    fn declare(
        scope: &Scope,
        num_classes: i64,
        null_class: Option<i64>,
        width: i64,
        dropout: f64,
    ) -> Result<Self, DiffusionError> {
        let rows = num_classes + i64::from(null_class.is_some());
        let init = Init::Normal { std: 0.02 };
        Ok(Self {
            table: scope
                .sub("embedding_table")
                .var("weight", &[rows, width], init)?,
            num_classes,
            null_class,
            dropout,
        })
    }

    /// The label that stands for no class.
    pub fn null_class(&self) -> Option<i64> {
        self.null_class
    }

    /// Maps `labels` `[B]`, int64, to vectors `[B, D]`. In training, labels are dropped first.
    ///
    /// # Errors
    /// As [`Denoiser::forward`](crate::Denoiser::forward).
    pub fn forward(&self, labels: &Tensor, mode: Mode<'_>) -> Result<Tensor, DiffusionError> {
        let labels = self.drop(labels, mode)?;
        Ok(Tensor::f_embedding(&self.table, &labels, -1, false, false)?)
    }

    /// The labels to embed: in training, some are replaced by the null class.
    ///
    /// # Errors
    /// As [`Denoiser::forward`](crate::Denoiser::forward).
    pub fn drop(&self, labels: &Tensor, mode: Mode<'_>) -> Result<Tensor, DiffusionError> {
        self.check(labels)?;
        match (mode, self.null_class()) {
            (Mode::Train(generator), Some(null_class)) => {
                let draws = generator.rand(&labels.size(), Kind::Float)?;
                drop_labels(labels, &draws, self.dropout, null_class)
            }
            _ => Ok(labels.shallow_clone()),
        }
    }

    fn check(&self, labels: &Tensor) -> Result<(), DiffusionError> {
        check::shape("labels", labels, &[-1])?;
        check::dtype("labels", labels, Kind::Int64)?;
        if labels.device() != Device::Cpu || labels.numel() == 0 {
            return Ok(());
        }
        let null_class = self.null_class();
        let largest = null_class.unwrap_or(self.num_classes - 1);
        let (low, high) = labels.f_aminmax(None, false)?;
        for found in [low.f_int64_value(&[])?, high.f_int64_value(&[])?] {
            if !(0..=largest).contains(&found) {
                return Err(DiffusionError::Label {
                    found,
                    largest,
                    has_null: null_class.is_some(),
                });
            }
        }
        Ok(())
    }
}
