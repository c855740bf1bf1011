//! The alignment loss: a weighted sum of terms.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::term::distinct;
use crate::{AlignmentError, CosineLoss, Projection, Source, Term, TokenLoss, Tokens};

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

impl LossKind {
    /// The loss of this kind.
    pub fn build(self) -> Box<dyn TokenLoss> {
        match self {
            Self::Cosine => Box::new(CosineLoss),
        }
    }
}

/// A weighted sum of terms (`SILoss` upstream).
///
/// It should run outside autocast. The tokens of sources and denoiser keep their own dtypes.
///
/// ```
/// use alignment::{AlignmentLoss, HeadConfig, LossKind, Source, SpatialNorm, Term};
/// use tch::{Device, Kind, Tensor};
///
/// # fn main() -> Result<(), alignment::AlignmentError> {
/// let loss = AlignmentLoss::new(vec![Term {
///     source: Source::Encoder(0),
///     depth: 4,
///     head: HeadConfig::Linear,
///     norm: SpatialNorm::None,
///     loss: LossKind::Cosine.build(),
///     coefficient: 0.5,
/// }])?;
/// let tokens = Tensor::randn([2, 16, 8], (Kind::Float, Device::Cpu));
/// // Equal tokens have cosine 1, so the loss is -1, and the weighted loss -0.5.
/// let output = loss.forward(&[&tokens], &[&tokens], &[&tokens])?;
/// assert!((output.total.double_value(&[]) + 0.5).abs() < 1e-6);
/// assert!((output.terms[0].value.double_value(&[]) + 1.0).abs() < 1e-6);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct AlignmentLoss {
    terms: Vec<Term>,
    /// For each term, the positions of its hidden tokens and of its projection.
    positions: Vec<(usize, usize)>,
    projections: Vec<Projection>,
    depths: Vec<i64>,
}

/// The result of [`AlignmentLoss::forward`]. Its tensors stay on the device.
#[derive(Debug)]
pub struct AlignmentOutput {
    /// The weighted sum, a scalar to be added to the denoising loss.
    pub total: Tensor,
    /// The terms before weighting, in their order.
    pub terms: Vec<TermOutput>,
}

impl AlignmentOutput {
    /// The mean of the terms before weighting, a scalar in float32.
    ///
    /// # Errors
    /// libtorch failed.
    pub fn mean(&self) -> Result<Tensor, AlignmentError> {
        let values: Vec<&Tensor> = self.terms.iter().map(|term| &term.value).collect();
        Ok(Tensor::f_stack(&values, 0)?.f_mean(Kind::Float)?)
    }
}

/// The loss of one term.
#[derive(Debug)]
pub struct TermOutput {
    /// Name of the loss.
    pub name: &'static str,
    /// Its weight in the sum.
    pub coefficient: f64,
    /// The loss before weighting, a scalar.
    pub value: Tensor,
}

impl AlignmentLoss {
    /// Builds the weighted sum of `terms`. Without terms, there is nothing to compare.
    ///
    /// # Errors
    /// A coefficient is not finite, or a depth is below 1.
    pub fn new(terms: Vec<Term>) -> Result<Self, AlignmentError> {
        for term in &terms {
            if !term.coefficient.is_finite() {
                return Err(AlignmentError::Setting {
                    name: "coefficient",
                    found: term.coefficient,
                    allowed: "a finite number",
                });
            }
            if term.depth < 1 {
                return Err(AlignmentError::Setting {
                    name: "the depth of hidden tokens",
                    found: term.depth as f64,
                    allowed: "the number of a block, 1 or more",
                });
            }
        }
        let (depths, hidden) = distinct(terms.iter().map(|term| term.depth));
        let (projections, projected) = distinct(terms.iter().map(Term::projection));
        Ok(Self {
            positions: hidden.into_iter().zip(projected).collect(),
            terms,
            projections,
            depths,
        })
    }

    /// The terms.
    pub fn terms(&self) -> &[Term] {
        &self.terms
    }

    /// The projections that the terms need, each once.
    pub fn projections(&self) -> &[Projection] {
        &self.projections
    }

    /// The depths of the hidden tokens that the terms need, each once.
    pub fn depths(&self) -> &[i64] {
        &self.depths
    }

    /// Compares the tokens of each term's source with the denoiser's. `sources` holds the tokens of each encoder,
    /// `[B, T, D]`, before normalisation; `hidden` the hidden tokens `[B, T, H]` of [`AlignmentLoss::depths`];
    /// `projected` those that a head has projected, `[B, T, D]`, for each of [`AlignmentLoss::projections`].
    ///
    /// Tokens of lower precision are compared in float32, the dtype in which upstream's trainer (the package
    /// accelerate) passes them to its loss.
    ///
    /// # Errors
    /// There are no terms; the numbers of tensors differ from those that the terms need; the shapes of a pair differ.
    pub fn forward(
        &self,
        sources: &[&Tensor],
        hidden: &[&Tensor],
        projected: &[&Tensor],
    ) -> Result<AlignmentOutput, AlignmentError> {
        self.check_counts(sources, hidden, projected)?;
        let mut total: Option<Tensor> = None;
        let mut terms = Vec::with_capacity(self.terms.len());
        for (term, &(depth, projection)) in self.terms.iter().zip(&self.positions) {
            let Source::Encoder(source) = term.source;
            let tokens = Tokens::new(
                (sources[source], &term.norm),
                (hidden[depth], projected[projection]),
                term.coefficient,
            )?;
            let value = term.loss.forward(&tokens)?;
            let weighted = value.f_mul_scalar(term.coefficient)?;
            total = Some(match total {
                Some(sum) => sum.f_add(&weighted)?,
                None => weighted,
            });
            terms.push(TermOutput {
                name: term.loss.name(),
                coefficient: term.coefficient,
                value,
            });
        }
        let total = total.ok_or(AlignmentError::NoTerm)?;
        Ok(AlignmentOutput { total, terms })
    }

    fn check_counts(
        &self,
        sources: &[&Tensor],
        hidden: &[&Tensor],
        projected: &[&Tensor],
    ) -> Result<(), AlignmentError> {
        let used = self.terms.iter().map(|term| match term.source {
            Source::Encoder(index) => index + 1,
        });
        let encoders = used.max().unwrap_or(0);
        let count = |what, found: usize, expected: usize| match found == expected {
            true => Ok(()),
            false => Err(AlignmentError::Count {
                what,
                found,
                expected,
            }),
        };
        // A run may load an encoder that no term uses.
        count("encoders", sources.len().min(encoders), encoders)?;
        count("depths", hidden.len(), self.depths.len())?;
        count("projections", projected.len(), self.projections.len())
    }
}
