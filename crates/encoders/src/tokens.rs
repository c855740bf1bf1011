//! The tokens that an encoder computes, and their grid.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::repeatable::Outputs;

/// Tokens that an encoder computes for a batch of images.
#[derive(Debug)]
pub struct Tokens {
    /// Patch tokens in row-major order, float32 `[B, T, D]`.
    pub patch: Tensor,
    /// Class token, float32 `[B, D]`, if the encoder has one.
    pub class: Option<Tensor>,
}

impl Outputs for Tokens {
    fn tensors(&self) -> Vec<&Tensor> {
        [Some(&self.patch), self.class.as_ref()]
            .into_iter()
            .flatten()
            .collect()
    }
}

/// Rows and columns of the patch tokens. In TOML: `[16, 16]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "[usize; 2]", into = "[usize; 2]")]
pub struct Grid {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl From<[usize; 2]> for Grid {
    fn from([height, width]: [usize; 2]) -> Self {
        Self { height, width }
    }
}

impl From<Grid> for [usize; 2] {
    fn from(grid: Grid) -> Self {
        [grid.height, grid.width]
    }
}

impl Grid {
    /// Number of tokens, `T`.
    pub fn tokens(self) -> usize {
        self.height * self.width
    }
}
