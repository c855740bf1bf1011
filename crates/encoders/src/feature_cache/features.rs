//! The kinds of features that a cache stores, and moments laid out as tokens.

use serde::{Deserialize, Serialize};
use tch::{TchError, Tensor};

use crate::{Grid, Tokens};

/// Kind of the features that a cache stores for each image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Features {
    /// An encoder's tokens.
    #[default]
    Tokens,
    /// Mean and standard deviation of an autoencoder's posterior.
    Moments,
}

impl Features {
    /// Plural noun for messages and file names.
    pub fn noun(self) -> &'static str {
        match self {
            Self::Tokens => "tokens",
            Self::Moments => "moments",
        }
    }

    /// Kind of the model that computes them.
    pub fn model(self) -> &'static str {
        match self {
            Self::Tokens => "encoder",
            Self::Moments => "autoencoder",
        }
    }

    /// Command that computes and stores them.
    pub fn command(self) -> &'static str {
        match self {
            Self::Tokens => "runner prepare features",
            Self::Moments => "runner prepare latents",
        }
    }
}

/// Converts moments `[B, 2 C, h, w]` to the stored layout, patch tokens `[B, h w, 2 C]`.
pub(super) fn tokens_of(moments: &Tensor) -> Result<Tokens, TchError> {
    Ok(Tokens {
        patch: moments.f_flatten(2, 3)?.f_transpose(1, 2)?,
        class: None,
    })
}

/// Inverse of [`tokens_of`]: converts patch tokens `[B, h w, 2 C]` to moments `[B, 2 C, h, w]`.
pub(super) fn moments_of(tokens: &Tokens, grid: Grid) -> Result<Tensor, TchError> {
    let (height, width) = (grid.height as i64, grid.width as i64);
    tokens
        .patch
        .f_transpose(1, 2)?
        .f_unflatten(2, [height, width])?
        .f_contiguous()
}
