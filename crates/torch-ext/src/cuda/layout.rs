//! Tensors as kernels read them, and the division of tokens among threads.

use tch::Tensor;

use super::program::BLOCK;
use crate::TorchError;

/// `tensor` in a form that kernels can read: contiguous, and aligned for 16-byte loads. Returns a copy if
/// `tensor` is not.
///
/// # Errors
/// Memory is exhausted.
pub fn readable(tensor: &Tensor) -> Result<Tensor, TorchError> {
    let tensor = tensor.f_contiguous()?;
    if tensor.data_ptr().addr().is_multiple_of(16) {
        return Ok(tensor);
    }
    let mut copy = tensor.f_empty_like()?;
    copy.f_copy_(&tensor)?;
    Ok(copy)
}

/// The layout of a program's tokens in registers, which the prelude's macros describe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    width: i64,
    vector: i64,
    warps: i64,
}

impl Layout {
    /// A layout for tokens of `width` numbers of at most `bytes` bytes each, of which a thread holds at most
    /// `limit`. `None` if tokens are too wide.
    pub fn new(width: i64, bytes: i64, limit: i64) -> Option<Self> {
        let vector = [16 / bytes, 4, 2, 1]
            .into_iter()
            .find(|&vector| vector * bytes <= 16 && width % vector == 0)?;
        let held = |warps: i64| (width / vector + 32 * warps - 1) / (32 * warps) * vector;
        let warps = [1, 2, 4, 8]
            .into_iter()
            .find(|&warps| held(warps) <= limit)?;
        (width > 0).then_some(Self {
            width,
            vector,
            warps,
        })
    }

    /// Number of tokens that a block processes at once.
    pub fn tokens(&self) -> i64 {
        BLOCK / (32 * self.warps)
    }

    /// Number of numbers that a thread reads at once.
    pub fn vector(&self) -> i64 {
        self.vector
    }

    /// Definitions of the prelude's macros.
    pub fn defines(&self) -> Vec<(&'static str, String)> {
        let Self {
            width,
            vector,
            warps,
        } = self;
        [("WIDTH", width), ("VEC", vector), ("WARPS", warps)]
            .map(|(name, value)| (name, value.to_string()))
            .into()
    }
}
