use serde::{Deserialize, Serialize};
use tch::{TchError, Tensor};

use crate::{Grid, Tokens};

/// What a cache holds of each image.
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
    /// For messages and file names.
    pub fn noun(self) -> &'static str {
        match self {
            Self::Tokens => "tokens",
            Self::Moments => "moments",
        }
    }

    /// What computes them.
    pub fn model(self) -> &'static str {
        match self {
            Self::Tokens => "encoder",
            Self::Moments => "autoencoder",
        }
    }

    /// The command that stores them.
    pub fn command(self) -> &'static str {
        match self {
            Self::Tokens => "runner prepare features",
            Self::Moments => "runner prepare latents",
        }
    }
}

/// Moments `[B, 2 C, h, w]` as a cache stores them, `[B, h w, 2 C]`.
pub(super) fn tokens_of(moments: &Tensor) -> Result<Tokens, TchError> {
    Ok(Tokens {
        patch: moments.f_flatten(2, 3)?.f_transpose(1, 2)?,
        class: None,
    })
}

/// The other way round.
pub(super) fn moments_of(tokens: &Tokens, grid: Grid) -> Result<Tensor, TchError> {
    let (height, width) = (grid.height as i64, grid.width as i64);
    tokens
        .patch
        .f_transpose(1, 2)?
        .f_unflatten(2, [height, width])?
        .f_contiguous()
}
