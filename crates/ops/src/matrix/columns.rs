//! A matrix divided into blocks of columns that can be written in parallel.

use std::marker::PhantomData;
use std::slice;

/// Exclusive access to a block of columns of a matrix.
#[derive(Debug)]
pub(crate) struct Columns<'a, T> {
    start: *mut T,
    rows: usize,
    stride: usize,
    width: usize,
    matrix: PhantomData<&'a mut [T]>,
}

// SAFETY: like `&mut [T]`: no other value has access to its elements.
unsafe impl<T: Send> Send for Columns<'_, T> {}
// SAFETY: as above; `&self` gives no access to the elements.
unsafe impl<T: Sync> Sync for Columns<'_, T> {}

impl<'a, T> Columns<'a, T> {
    /// Divides a matrix with rows of `row` elements into blocks of `width` columns, from left to right.
    ///
    /// # Panics
    /// The length of `matrix` is not a multiple of `row`, or `row` is not a multiple of `width`.
    pub(crate) fn split(matrix: &'a mut [T], row: usize, width: usize) -> Vec<Self> {
        assert!(
            row > 0 && width > 0 && matrix.len().is_multiple_of(row) && row.is_multiple_of(width),
            "{} elements in rows of {row}, {width} columns each",
            matrix.len()
        );
        let rows = matrix.len() / row;
        let start = matrix.as_mut_ptr();
        let blocks = if rows == 0 { 0 } else { row / width };
        (0..blocks)
            .map(|block| Self {
                // SAFETY: within the first row.
                start: unsafe { start.add(block * width) },
                rows,
                stride: row,
                width,
                matrix: PhantomData,
            })
            .collect()
    }

    /// Number of rows of the matrix.
    #[cfg(test)]
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// These columns of row `index`.
    ///
    /// # Panics
    /// `index` is not below the number of rows.
    #[inline(always)]
    pub(crate) fn row_mut(&mut self, index: usize) -> &mut [T] {
        assert!(index < self.rows, "row {index} of {}", self.rows);
        // SAFETY: `split` ensured that the `width` elements of row `index` in this block are within the
        // matrix, which is borrowed for `'a`. Blocks are disjoint, and `&mut self` prevents two references
        // to rows of this block.
        unsafe { slice::from_raw_parts_mut(self.start.add(index * self.stride), self.width) }
    }
}
