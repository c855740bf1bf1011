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

/// The values without repetitions, in order of their first occurrence, and the position of each value among them.
pub(crate) fn distinct<T: PartialEq>(values: impl IntoIterator<Item = T>) -> (Vec<T>, Vec<usize>) {
    let mut found = Vec::new();
    let mut positions = Vec::new();
    for value in values {
        let known = found.iter().position(|known| *known == value);
        positions.push(known.unwrap_or_else(|| {
            found.push(value);
            found.len() - 1
        }));
    }
    (found, positions)
}
