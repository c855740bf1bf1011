//! The alignment loss: a weighted sum of token losses over the encoders.

use std::fmt::Debug;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::{AlignmentError, CosineLoss, SpatialNorm, tokens};

/// A loss between an encoder's tokens and projected tokens.
///
/// Implement it to add a loss ([`AlignmentLoss::with_losses`]).
pub trait TokenLoss: Debug + Send {
    /// The loss's name in logs.
    fn name(&self) -> &'static str;

    /// Returns the loss as a scalar tensor, for `target` and `projected` of the same shape
    /// `[B, T, D]`.
    ///
    /// # Errors
    /// The shapes differ, or are not three-dimensional.
    fn forward(&self, target: &Tensor, projected: &Tensor) -> Result<Tensor, AlignmentError>;
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

/// The built-in losses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LossKind {
    /// [`CosineLoss`].
    Cosine,
}

/// A weighted sum of losses, each averaged over the encoders (`SILoss` upstream).
///
/// It should run outside autocast, on projected tokens cast to float32. The encoder's tokens keep
/// their own dtype.
///
/// ```
/// use alignment::{AlignmentLoss, LossConfig, LossKind};
/// use tch::{Device, Kind, Tensor};
///
/// # fn main() -> Result<(), alignment::AlignmentError> {
/// let loss = AlignmentLoss::new(&[LossConfig { kind: LossKind::Cosine, coefficient: 0.5 }])?;
/// let tokens = Tensor::randn([2, 16, 8], (Kind::Float, Device::Cpu));
/// // Equal tokens have cosine 1, so the loss is -1, and the weighted loss -0.5.
/// let output = loss.forward(&[&tokens], &[&tokens])?;
/// assert!((output.total.double_value(&[]) + 0.5).abs() < 1e-6);
/// assert!((output.terms[0].value.double_value(&[]) + 1.0).abs() < 1e-6);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct AlignmentLoss {
    terms: Vec<(f64, Term)>,
}

/// One of the losses.
#[derive(Debug)]
enum Term {
    /// [`CosineLoss`], which has one operation for spatial normalisation and loss ([`ops::cosine_loss`]).
    Cosine,
    Custom(Box<dyn TokenLoss>),
}

impl Term {
    fn loss(&self) -> &dyn TokenLoss {
        match self {
            Self::Cosine => &CosineLoss,
            Self::Custom(loss) => loss.as_ref(),
        }
    }
}

/// The result of [`AlignmentLoss::forward`]. Its tensors stay on the device.
#[derive(Debug)]
pub struct AlignmentOutput {
    /// The weighted sum, a scalar to be added to the denoising loss.
    pub total: Tensor,
    /// The terms before weighting, in the order of the configuration.
    pub terms: Vec<LossTerm>,
}

/// One term of an alignment loss.
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
    /// Builds the losses of a configuration.
    ///
    /// # Errors
    /// `configs` is empty, or a coefficient is not finite.
    pub fn new(configs: &[LossConfig]) -> Result<Self, AlignmentError> {
        let terms = configs.iter().map(|config| {
            let term = match config.kind {
                LossKind::Cosine => Term::Cosine,
            };
            (config.coefficient, term)
        });
        Self::with_terms(terms.collect())
    }

    /// Builds the weighted sum of custom losses, each with its coefficient.
    ///
    /// # Errors
    /// Those of [`AlignmentLoss::new`].
    pub fn with_losses(losses: Vec<(f64, Box<dyn TokenLoss>)>) -> Result<Self, AlignmentError> {
        let terms = losses.into_iter();
        Self::with_terms(
            terms
                .map(|(coefficient, loss)| (coefficient, Term::Custom(loss)))
                .collect(),
        )
    }

    fn with_terms(terms: Vec<(f64, Term)>) -> Result<Self, AlignmentError> {
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
        Ok(Self { terms })
    }

    /// Normalises each encoder's raw tokens with `norm` and compares them with the projection for
    /// that encoder, like [`AlignmentLoss::forward`].
    ///
    /// Tokens of lower precision are compared in float32, the dtype in which accelerate passes them
    /// to upstream's loss. For [`LossKind::Cosine`], both steps run as one operation
    /// ([`ops::cosine_loss`]).
    ///
    /// # Errors
    /// Those of [`AlignmentLoss::forward`] and [`SpatialNorm::forward`].
    pub fn forward_tokens(
        &self,
        norm: &SpatialNorm,
        tokens: &[&Tensor],
        projected: &[&Tensor],
    ) -> Result<AlignmentOutput, AlignmentError> {
        // Computed at the first custom loss, and shared by all.
        let mut normalised: Vec<Option<Tensor>> = tokens.iter().map(|_| None).collect();
        self.sum(
            tokens.len(),
            projected.len(),
            |term, index, expected_grad| {
                let (tokens, projected) = (tokens[index], projected[index]);
                let loss = match term {
                    Term::Cosine => {
                        tokens::pair(tokens, projected)?;
                        let norm = norm.zscore_for(tokens)?;
                        return Ok(ops::cosine_loss(norm, tokens, projected, expected_grad)?);
                    }
                    Term::Custom(loss) => loss,
                };
                let target = match normalised[index].take() {
                    Some(target) => target,
                    None => norm.forward(&widened(tokens)?)?,
                };
                loss.forward(normalised[index].insert(target), &widened(projected)?)
            },
        )
    }

    /// Compares each encoder's tokens with the projection for that encoder. Both lists are in the
    /// order of the encoders; each entry is `[B, T, D]`, with the width `D` of its encoder.
    ///
    /// # Errors
    /// The lists are empty or differ in length, or the shapes of a pair differ.
    pub fn forward(
        &self,
        targets: &[&Tensor],
        projected: &[&Tensor],
    ) -> Result<AlignmentOutput, AlignmentError> {
        self.sum(targets.len(), projected.len(), |term, index, _| {
            term.loss().forward(targets[index], projected[index])
        })
    }

    /// Returns the weighted sum of `value` over losses and encoders. `value` takes the loss, the
    /// encoder's index and the gradient that the loss is expected to receive in the backward pass.
    fn sum(
        &self,
        targets: usize,
        projected: usize,
        mut value: impl FnMut(&Term, usize, f64) -> Result<Tensor, AlignmentError>,
    ) -> Result<AlignmentOutput, AlignmentError> {
        if targets == 0 || targets != projected {
            return Err(AlignmentError::EncoderCount { targets, projected });
        }
        let mut total: Option<Tensor> = None;
        let mut terms = Vec::with_capacity(self.terms.len());
        for (coefficient, term) in &self.terms {
            // The backward pass computes its scalars in float32.
            let expected_grad = f64::from(*coefficient as f32 / targets as f32);
            let mut mean: Option<Tensor> = None;
            for index in 0..targets {
                let value = value(term, index, expected_grad)?;
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
                name: term.loss().name(),
                coefficient: *coefficient,
                value,
            });
        }
        let total = total.ok_or(AlignmentError::NoLoss)?;
        Ok(AlignmentOutput { total, terms })
    }
}

/// Casts tokens to float32; float64 tokens stay float64.
fn widened(tokens: &Tensor) -> Result<Tensor, AlignmentError> {
    Ok(match tokens.f_kind()? {
        Kind::Double => tokens.shallow_clone(),
        _ => tokens.f_to_kind(Kind::Float)?,
    })
}
