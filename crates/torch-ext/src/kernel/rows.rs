//! Rows that are contiguous, but need not follow each other without a gap, such as one of several slices of a tensor.

use std::marker::PhantomData;

use tch::Tensor;

use super::element::{Element, check_dense, first_element};
use crate::TorchError;

/// Number of elements from the start of a row of `tensor` to the start of the next, if `tensor` `[R, 1, .., D]` has
/// contiguous rows of `D` elements. `None` for other layouts and shapes, and for a tensor that is undefined or not dense.
pub fn row_stride(tensor: &Tensor) -> Option<i64> {
    if !tensor.defined() || tensor.is_sparse() || tensor.is_mkldnn() {
        return None;
    }
    let (size, stride) = (tensor.size(), tensor.stride());
    let (&[rows, ref middle @ .., width], &[between, .., within]) =
        (size.as_slice(), stride.as_slice())
    else {
        return None;
    };
    let contiguous = (within == 1 || width <= 1) && middle.iter().all(|&count| count == 1);
    // The stride of a dimension of size 1 is arbitrary.
    contiguous.then_some(if rows <= 1 { width } else { between })
}

/// A tensor `[R, 1, .., D]` that a kernel reads by rows: on the CPU, of dtype `T`, with contiguous rows of `D` elements
/// at any distance from each other.
#[derive(Debug)]
pub struct InputRows<'t, T> {
    pub(super) start: *const T,
    /// Number of elements from the first of the first row to the last of the last row.
    pub(super) len: usize,
    stride: usize,
    width: usize,
    tensor: PhantomData<&'t Tensor>,
}

// SAFETY: only a scope creates slices from it, and only shared ones; `T: Sync` lets threads share them.
unsafe impl<T: Sync> Send for InputRows<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for InputRows<'_, T> {}

impl<'t, T: Element> InputRows<'t, T> {
    /// Gives kernels read access to the rows of `tensor`.
    ///
    /// # Errors
    /// The tensor is on another device, has another dtype, or has no such rows ([`row_stride`]).
    pub fn new(tensor: &'t Tensor) -> Result<Self, TorchError> {
        check_dense::<T>(tensor)?;
        let refused = || TorchError::Memory("has no contiguous rows".to_owned());
        let stride = row_stride(tensor).and_then(|stride| usize::try_from(stride).ok());
        let stride = stride.ok_or_else(refused)?;
        let size = tensor.size();
        let (rows, width) = match *size.as_slice() {
            [rows, .., width] => (rows as usize, width as usize),
            _ => return Err(refused()),
        };
        // libtorch keeps the last element of a view within its storage, and with it all elements between the rows.
        let len = match rows * width {
            0 => 0,
            _ => (rows - 1) * stride + width,
        };
        Ok(Self {
            start: first_element(tensor, len)?,
            len,
            stride,
            width,
            tensor: PhantomData,
        })
    }

    /// The rows within `memory`, which is that of this tensor.
    pub(super) fn rows<'scope>(&self, memory: &'scope [T]) -> Rows<'scope, T> {
        Rows {
            memory,
            stride: self.stride,
            width: self.width,
        }
    }
}

/// The rows of an [`InputRows`] while a kernel runs.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'scope, T> {
    memory: &'scope [T],
    stride: usize,
    width: usize,
}

impl<'scope, T> Rows<'scope, T> {
    /// The `D` elements of row `index`.
    ///
    /// # Panics
    /// There are fewer rows.
    #[inline]
    pub fn row(&self, index: usize) -> &'scope [T] {
        &self.memory[index * self.stride..][..self.width]
    }
}
