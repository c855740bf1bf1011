use std::marker::PhantomData;
use std::slice;

/// Some columns of a matrix, which are this value's alone to write.
#[derive(Debug)]
pub struct Columns<'a, T> {
    start: *mut T,
    rows: usize,
    stride: usize,
    width: usize,
    matrix: PhantomData<&'a mut [T]>,
}

// SAFETY: as a `&mut [T]`: no other value has its elements.
unsafe impl<T: Send> Send for Columns<'_, T> {}
// SAFETY: as above; `&self` gives nothing of the elements.
unsafe impl<T: Sync> Sync for Columns<'_, T> {}

impl<'a, T> Columns<'a, T> {
    /// Cuts a matrix with rows of `row` elements into blocks of `width` columns, from left to right.
    ///
    /// # Panics
    /// The matrix does not consist of whole rows, or a row of whole blocks.
    pub fn split(matrix: &'a mut [T], row: usize, width: usize) -> Vec<Self> {
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

    /// Rows of the matrix.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// These columns of row `index`.
    ///
    /// # Panics
    /// There is no such row.
    #[inline(always)]
    pub fn row_mut(&mut self, index: usize) -> &mut [T] {
        assert!(index < self.rows, "row {index} of {}", self.rows);
        // SAFETY: `split` made sure that row `index` has `width` elements from here on within the matrix,
        // which is borrowed for `'a`. Blocks are disjoint, and `&mut self` keeps the rows of this one apart.
        unsafe { slice::from_raw_parts_mut(self.start.add(index * self.stride), self.width) }
    }
}
