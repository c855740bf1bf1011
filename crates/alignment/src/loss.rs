use std::fmt::Debug;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::{AlignmentError, CosineLoss, SpatialNorm};

/// A distance between an encoder's tokens and projected tokens.
///
/// Implement it to add a loss, or to put a fused kernel in the place of a composite one.
pub trait TokenLoss: Debug + Send {
    /// Name in logs.
    fn name(&self) -> &'static str;

    /// The loss as a scalar tensor, for `target` and `projected` of one shape `[B, T, D]`.
    ///
    /// # Errors
    /// Shapes that differ, or are not three-dimensional.
    fn forward(&self, target: &Tensor, projected: &Tensor) -> Result<Tensor, AlignmentError>;

    /// The same of `norm.forward(tokens)` and `projected`, as one operation that does not make the
    /// normalised tokens; `None` where there is none for these tensors. `expected` is the gradient
    /// that the loss is likely to be given, for those that prepare it.
    ///
    /// # Errors
    /// As `forward`, and as [`SpatialNorm::forward`].
    fn fused(
        &self,
        norm: &SpatialNorm,
        tokens: &Tensor,
        projected: &Tensor,
        expected: f64,
    ) -> Result<Option<Tensor>, AlignmentError> {
        let _ = (norm, tokens, projected, expected);
        Ok(None)
    }
}

/// A loss and its weight in the sum. In TOML: `{ kind = "cosine", coefficient = 0.5 }`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossConfig {
    /// Which loss.
    pub kind: LossKind,
    /// Its weight. The paper uses 0.5 for REPA and JiT, 1.0 for iREPA on SiT.
    pub coefficient: f64,
}

/// The losses that exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LossKind {
    /// [`CosineLoss`].
    Cosine,
}

/// A weighted sum of losses, each averaged over the encoders (`SILoss` upstream).
///
/// It is meant to run outside autocast, on projected tokens cast to float32; the encoder's
/// tokens keep their own dtype.
///
/// ```
/// use alignment::{AlignmentLoss, LossConfig, LossKind};
/// use tch::{Device, Kind, Tensor};
///
/// # fn main() -> Result<(), alignment::AlignmentError> {
/// let loss = AlignmentLoss::new(&[LossConfig { kind: LossKind::Cosine, coefficient: 0.5 }])?;
/// let tokens = Tensor::randn([2, 16, 8], (Kind::Float, Device::Cpu));
/// // Equal tokens have cosine 1, so the loss is -1, half of which counts.
/// let output = loss.forward(&[&tokens], &[&tokens])?;
/// assert!((output.total.double_value(&[]) + 0.5).abs() < 1e-6);
/// assert!((output.terms[0].value.double_value(&[]) + 1.0).abs() < 1e-6);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct AlignmentLoss {
    terms: Vec<(f64, Box<dyn TokenLoss>)>,
    fused: bool,
}

/// What [`AlignmentLoss::forward`] returns. Nothing here was read back from the device.
#[derive(Debug)]
pub struct AlignmentOutput {
    /// The weighted sum, a scalar to be added to the denoising loss.
    pub total: Tensor,
    /// The summands before weighting, in the order of the configuration.
    pub terms: Vec<LossTerm>,
}

/// One summand of an alignment loss.
#[derive(Debug)]
pub struct LossTerm {
    /// Name of the loss.
    pub name: &'static str,
    /// Its weight in the sum.
    pub coefficient: f64,
    /// The loss averaged over the encoders, a scalar.
    pub value: Tensor,
}

impl AlignmentLoss {
    /// The losses of a configuration.
    ///
    /// # Errors
    /// No loss, or a coefficient that is not finite.
    pub fn new(configs: &[LossConfig]) -> Result<Self, AlignmentError> {
        Self::with_losses(
            configs
                .iter()
                .map(|config| {
                    let loss: Box<dyn TokenLoss> = match config.kind {
                        LossKind::Cosine => Box::new(CosineLoss),
                    };
                    (config.coefficient, loss)
                })
                .collect(),
        )
    }

    /// Losses of one's own, each with its coefficient.
    ///
    /// # Errors
    /// As [`AlignmentLoss::new`].
    pub fn with_losses(terms: Vec<(f64, Box<dyn TokenLoss>)>) -> Result<Self, AlignmentError> {
        if terms.is_empty() {
            return Err(AlignmentError::NoLoss);
        }
        for (coefficient, _) in &terms {
            if !coefficient.is_finite() {
                return Err(AlignmentError::Setting {
                    name: "coefficient",
                    found: *coefficient,
                    allowed: "a finite number",
                });
            }
        }
        Ok(Self { terms, fused: true })
    }

    /// Whether [`AlignmentLoss::forward_tokens`] may use fused operations, as it does from the start.
    pub fn with_fused(self, fused: bool) -> Self {
        Self { fused, ..self }
    }

    /// Compares the tokens of each encoder, as it gives them, with the projection made for it:
    /// normalises them with `norm` and goes on as [`AlignmentLoss::forward`]; in one operation where
    /// there is a fused one ([`TokenLoss::fused`]).
    ///
    /// Tokens of lower precision are compared in float32, as accelerate hands them to upstream's
    /// loss. There is a fused form of [`CosineLoss`], for targets without gradient; it equals
    /// the composition up to the order of its sums.
    ///
    /// # Errors
    /// As [`AlignmentLoss::forward`] and [`SpatialNorm::forward`].
    pub fn forward_tokens(
        &self,
        norm: &SpatialNorm,
        tokens: &[&Tensor],
        projected: &[&Tensor],
    ) -> Result<AlignmentOutput, AlignmentError> {
        // Made once for all losses, if any needs it.
        let mut normalised: Vec<Option<Tensor>> = tokens.iter().map(|_| None).collect();
        self.sum(tokens.len(), projected.len(), |loss, index, expected| {
            if self.fused {
                let fused = loss.fused(norm, tokens[index], projected[index], expected)?;
                if let Some(value) = fused {
                    return Ok(value);
                }
            }
            let target = match normalised[index].take() {
                Some(target) => target,
                None => norm.forward(&widened(tokens[index])?)?,
            };
            loss.forward(
                normalised[index].insert(target),
                &widened(projected[index])?,
            )
        })
    }

    /// Compares the tokens of each encoder with the projection made for it; both lists are in
    /// the order of the encoders, each entry `[B, T, D]` with its encoder's own width.
    ///
    /// # Errors
    /// Lists of different lengths or empty; shapes that differ within a pair.
    pub fn forward(
        &self,
        targets: &[&Tensor],
        projected: &[&Tensor],
    ) -> Result<AlignmentOutput, AlignmentError> {
        self.sum(targets.len(), projected.len(), |loss, index, _| {
            loss.forward(targets[index], projected[index])
        })
    }

    /// The weighted sum of what `value` gives for each loss and encoder, told the gradient that it
    /// will be given.
    fn sum(
        &self,
        targets: usize,
        projected: usize,
        mut value: impl FnMut(&dyn TokenLoss, usize, f64) -> Result<Tensor, AlignmentError>,
    ) -> Result<AlignmentOutput, AlignmentError> {
        if targets == 0 || targets != projected {
            return Err(AlignmentError::EncoderCount { targets, projected });
        }
        let mut total: Option<Tensor> = None;
        let mut terms = Vec::with_capacity(self.terms.len());
        for (coefficient, loss) in &self.terms {
            // The scalars of a backward pass are float32.
            let expected = f64::from(*coefficient as f32 / targets as f32);
            let mut mean: Option<Tensor> = None;
            for index in 0..targets {
                let value = value(loss.as_ref(), index, expected)?;
                mean = Some(match mean {
                    Some(sum) => sum.f_add(&value)?,
                    None => value,
                });
            }
            let value = match mean {
                Some(only) if targets == 1 => only,
                Some(sum) => sum.f_div_scalar(targets as f64)?,
                None => return Err(AlignmentError::EncoderCount { targets, projected }),
            };
            let weighted = value.f_mul_scalar(*coefficient)?;
            total = Some(match total {
                Some(sum) => sum.f_add(&weighted)?,
                None => weighted,
            });
            terms.push(LossTerm {
                name: loss.name(),
                coefficient: *coefficient,
                value,
            });
        }
        let total = total.ok_or(AlignmentError::NoLoss)?;
        Ok(AlignmentOutput { total, terms })
    }
}

/// Tokens in float32, or float64 if they are.
fn widened(tokens: &Tensor) -> Result<Tensor, AlignmentError> {
    Ok(match tokens.f_kind()? {
        Kind::Double => tokens.shallow_clone(),
        _ => tokens.f_to_kind(Kind::Float)?,
    })
}
