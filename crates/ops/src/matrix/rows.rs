//! A matrix in memory.

/// A matrix in memory whose rows start `stride` elements apart.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows<'a, E> {
    pub(super) values: &'a [E],
    pub(super) stride: usize,
    pub(super) count: usize,
    pub(super) width: usize,
}

impl<'a, E> Rows<'a, E> {
    /// `count` rows of `width` elements. The first row starts at the first element of `values`.
    ///
    /// # Panics
    /// The last row ends beyond the end of `values`.
    pub(crate) fn new(values: &'a [E], stride: usize, count: usize, width: usize) -> Self {
        let last = count.saturating_sub(1) * stride + width;
        assert!(
            count == 0 || last <= values.len(),
            "{count} rows of {width} elements, {stride} apart, in {}",
            values.len()
        );
        Self {
            values,
            stride,
            count,
            width,
        }
    }

    /// Number of rows.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Number of elements of each row.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Row `index`.
    #[inline(always)]
    pub(crate) fn row(&self, index: usize) -> &'a [E] {
        &self.values[index * self.stride..][..self.width]
    }

    /// `count` rows, starting at row `first`.
    ///
    /// # Panics
    /// There are fewer rows.
    pub(crate) fn part(&self, first: usize, count: usize) -> Self {
        assert!(
            first + count <= self.count,
            "rows {first}..{}",
            first + count
        );
        Self::new(
            &self.values[first * self.stride..],
            self.stride,
            count,
            self.width,
        )
    }
}
