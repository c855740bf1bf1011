//! Terms of an alignment loss.

use crate::{HeadConfig, SpatialNorm, TokenLoss};

/// Where the tokens come from that hidden tokens are aligned with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A frozen encoder, by its position in the run's list of encoders.
    Encoder(usize),
}

/// One term of an alignment loss: which hidden tokens are compared with which source, and how.
///
/// A run has a list of terms. Terms with the same source, depth and head share the head's weights.
#[derive(Debug)]
pub struct Term {
    /// The source of the tokens.
    pub source: Source,
    /// The block of the denoiser, counted from 1, after which its hidden tokens are taken.
    pub depth: i64,
    /// Projection of the hidden tokens to the width of the source.
    pub head: HeadConfig,
    /// Normalisation of the source's tokens.
    pub norm: SpatialNorm,
    /// The loss.
    pub loss: Box<dyn TokenLoss>,
    /// The weight of the loss in the sum.
    pub coefficient: f64,
}

/// Hidden tokens that are projected for a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Projection {
    /// The source to whose width the tokens are projected.
    pub source: Source,
    /// The block of the denoiser, counted from 1.
    pub depth: i64,
    /// The head.
    pub head: HeadConfig,
}

impl Term {
    /// What the term needs projected.
    pub fn projection(&self) -> Projection {
        Projection {
            source: self.source,
            depth: self.depth,
            head: self.head,
        }
    }
}

/// The projections that `terms` need, each once, in order of their first use.
pub fn projections(terms: &[Term]) -> Vec<Projection> {
    distinct(terms.iter().map(Term::projection))
}

/// The depths of `projections`, each once, in order of their first use.
pub fn depths(projections: &[Projection]) -> Vec<i64> {
    distinct(projections.iter().map(|projection| projection.depth))
}

/// The values without repetitions, in order of their first occurrence.
fn distinct<T: PartialEq>(values: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut found = Vec::new();
    for value in values {
        if !found.contains(&value) {
            found.push(value);
        }
    }
    found
}
