//! The left factor of a product.

use super::{Operand, Rows};

/// The left factor `[M, K]` of a product, whose units can be any two distances apart.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Left<'a, E> {
    values: &'a [E],
    /// Distance of rows, in elements.
    row_stride: usize,
    /// Distance of the units of a row, in elements.
    unit_stride: usize,
    pub(super) count: usize,
    /// Number of units of a row.
    pub(super) depth: usize,
}

impl<'a, E: Operand> Left<'a, E> {
    /// # Panics
    /// The last unit ends beyond the end of `values`.
    fn new(values: &'a [E], strides: [usize; 2], count: usize, depth: usize) -> Self {
        let [row_stride, unit_stride] = strides;
        let left = Self {
            values,
            row_stride,
            unit_stride,
            count,
            depth,
        };
        let last = count.saturating_sub(1) * row_stride + left.row_len();
        assert!(
            count == 0 || last <= values.len(),
            "{count} rows of {depth} units, {strides:?} apart, in {}",
            values.len()
        );
        left
    }

    /// Number of elements from the first of a row to its last.
    fn row_len(&self) -> usize {
        match self.depth {
            0 => 0,
            depth => (depth - 1) * self.unit_stride + E::UNIT,
        }
    }

    /// `R` rows from row `first`. In place of rows after the last, the last is repeated.
    #[inline(always)]
    pub(super) fn rows<const R: usize>(&self, first: usize) -> LeftRows<'a, E, R> {
        let len = self.row_len();
        LeftRows {
            rows: std::array::from_fn(|row| {
                let row = (first + row).min(self.count - 1);
                &self.values[row * self.row_stride..][..len]
            }),
            unit_stride: self.unit_stride,
        }
    }
}

impl<'a, E: Operand> From<Rows<'a, E>> for Left<'a, E> {
    /// # Panics
    /// The rows do not consist of whole units.
    fn from(rows: Rows<'a, E>) -> Self {
        assert!(
            rows.width.is_multiple_of(E::UNIT),
            "rows of {} elements are not whole units",
            rows.width
        );
        let strides = [rows.stride, E::UNIT];
        Self::new(rows.values, strides, rows.count, rows.width / E::UNIT)
    }
}

/// Some rows of a left factor.
#[derive(Clone, Copy)]
pub(super) struct LeftRows<'a, E, const R: usize> {
    rows: [&'a [E]; R],
    unit_stride: usize,
}

impl<E: Operand, const R: usize> LeftRows<'_, E, R> {
    /// A unit of a row.
    ///
    /// # Safety
    /// `step` is below the number of units of a row.
    #[inline(always)]
    pub(super) unsafe fn unit(&self, row: usize, step: usize) -> E::Unit {
        let start = step * self.unit_stride;
        // SAFETY: `Left::rows` cut the row such that its last unit ends with it.
        E::unit(unsafe { self.rows[row].get_unchecked(start..start + E::UNIT) })
    }
}

/// The transpose of a matrix `[K, M]`, stored as a left factor `[M, K]` and padded with zeros to whole units.
#[derive(Debug)]
pub(crate) struct Transposed<E> {
    /// Units, ordered by step, then by row.
    values: Vec<E>,
    count: usize,
    /// Number of units of a row.
    depth: usize,
}

impl<E> Default for Transposed<E> {
    fn default() -> Self {
        Self {
            values: Vec::new(),
            count: 0,
            depth: 0,
        }
    }
}

impl<E: Operand> Transposed<E> {
    /// Stores the transpose of `rows`, and replaces the previous content.
    pub(crate) fn pack(&mut self, rows: Rows<'_, E>) {
        (self.count, self.depth) = (rows.width, rows.count.div_ceil(E::UNIT));
        self.values
            .resize(self.count * self.depth * E::UNIT, E::default());
        let steps = self.values.chunks_exact_mut((self.count * E::UNIT).max(1));
        for (step, units) in steps.enumerate() {
            for lane in 0..E::UNIT {
                let row = step * E::UNIT + lane;
                let units = units.iter_mut().skip(lane).step_by(E::UNIT);
                if row < rows.count {
                    units
                        .zip(rows.row(row))
                        .for_each(|(unit, &element)| *unit = element);
                } else {
                    units.for_each(|unit| *unit = E::default());
                }
            }
        }
    }

    /// The factor.
    pub(crate) fn left(&self) -> Left<'_, E> {
        let strides = [E::UNIT, self.count * E::UNIT];
        Left::new(&self.values, strides, self.count, self.depth)
    }
}
