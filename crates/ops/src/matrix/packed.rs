//! The right factor of a product.

use super::{Operand, PANEL, Rows, tile};

/// The right factor `[K, N]` of products, stored in the order in which products read it and padded with
/// zeros to whole panels and units.
#[derive(Debug)]
pub(crate) struct Packed<E: Operand> {
    /// Ordered by panel, then by step.
    units: Vec<[E::Unit; PANEL]>,
    /// Number of units of a column.
    pub(super) depth: usize,
    pub(super) columns: usize,
}

impl<E: Operand> Default for Packed<E> {
    fn default() -> Self {
        Self {
            units: Vec::new(),
            depth: 0,
            columns: 0,
        }
    }
}

impl<E: Operand> Packed<E> {
    fn resize(&mut self, depth: usize, columns: usize) {
        self.depth = depth.div_ceil(E::UNIT);
        self.columns = columns;
        let len = self.depth * columns.div_ceil(PANEL);
        self.units.resize(len, [E::Unit::default(); PANEL]);
    }

    /// Stores the matrix whose rows are `rows`, and replaces the previous content.
    pub(crate) fn pack_rows(&mut self, rows: Rows<'_, E>) {
        self.resize(rows.count, rows.width);
        let depth = self.depth;
        for (index, panel) in self.units.chunks_mut(depth.max(1)).enumerate() {
            let first = index * PANEL;
            let width = PANEL.min(rows.width - first);
            for (step, units) in panel.iter_mut().enumerate() {
                let row = step * E::UNIT;
                tile::interleave(
                    units,
                    &rows.row(row)[first..][..width],
                    (E::UNIT > 1 && row + 1 < rows.count)
                        .then(|| &rows.row(row + 1)[first..][..width]),
                );
            }
        }
    }

    /// Stores the matrix whose columns are `columns`, and replaces the previous content.
    ///
    /// # Panics
    /// Columns do not consist of whole units.
    pub(crate) fn pack_columns(&mut self, columns: Rows<'_, E>) {
        assert!(
            columns.width.is_multiple_of(E::UNIT),
            "columns are not whole units"
        );
        self.resize(columns.width, columns.count);
        let depth = self.depth;
        for (index, panel) in self.units.chunks_mut(depth.max(1)).enumerate() {
            let first = index * PANEL;
            let width = PANEL.min(columns.count - first);
            let columns = columns.part(first, width);
            if width == PANEL && E::transpose_natively(columns, panel) {
                continue;
            }
            panel.fill([E::Unit::default(); PANEL]);
            for lane in 0..width {
                let column = columns.row(lane).chunks_exact(E::UNIT);
                for (units, elements) in panel.iter_mut().zip(column) {
                    units[lane] = E::unit(elements);
                }
            }
        }
    }

    /// Number of columns of the matrix.
    #[cfg(test)]
    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// The panels, with `depth` steps each.
    pub(super) fn panels(&self) -> impl Iterator<Item = &[[E::Unit; PANEL]]> {
        self.units.chunks_exact(self.depth.max(1))
    }
}
