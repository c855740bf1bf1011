//! Products of small matrices that fit in the cache, for kernels that combine several products.

mod columns;
#[cfg(test)]
mod tests;
mod tile;
#[cfg(target_arch = "x86_64")]
mod x86;

/// Other architectures have no native implementation.
#[cfg(not(target_arch = "x86_64"))]
mod x86 {
    pub(super) use super::tile::{no_native_product as bfloat16, no_native_product as float32};
}

use half::bf16;
use torch_ext::kernel::{Element, Real};

pub(crate) use self::columns::Columns;

/// Number of columns of a panel. The sums of a few rows and one panel are computed at once, in registers.
pub(super) const PANEL: usize = 32;

/// Element types of matrices that can be multiplied.
pub(crate) trait Operand: Element + Default {
    /// Type in which products are summed: float64 for float64, otherwise float32.
    type Sum: Real;
    /// Elements of a row that one step of a product uses: one number, or a pair of 16-bit numbers.
    type Unit: Copy + Default + std::fmt::Debug + Send + Sync + 'static;
    /// Number of elements of a unit.
    const UNIT: usize;

    /// The unit that consists of these `UNIT` elements.
    fn unit(elements: &[Self]) -> Self::Unit;

    /// `sum + a b`; for pairs, both products are added. With `FUSED`, each step is rounded once; use it only
    /// if the processor has a fused instruction.
    fn multiply_add<const FUSED: bool>(sum: Self::Sum, a: Self::Unit, b: Self::Unit) -> Self::Sum;

    /// [`multiply`] with native instructions of the processor, if it has any; returns whether it has.
    fn multiply_natively(_: &mut Product<'_, Self>) -> bool {
        false
    }
}

macro_rules! operand {
    ($($type:ident, $native:path);*) => {
        $(
            impl Operand for $type {
                type Sum = $type;
                type Unit = $type;
                const UNIT: usize = 1;

                #[inline(always)]
                fn unit(elements: &[Self]) -> $type {
                    elements[0]
                }

                #[inline(always)]
                fn multiply_add<const FUSED: bool>(sum: $type, a: $type, b: $type) -> $type {
                    if FUSED { a.mul_add(b, sum) } else { sum + a * b }
                }

                fn multiply_natively(product: &mut Product<'_, Self>) -> bool {
                    $native(product)
                }
            }
        )*
    };
}

operand!(f32, x86::float32; f64, tile::no_native_product);

impl Operand for bf16 {
    type Sum = f32;
    /// The first element is in the lower half, as in memory.
    type Unit = u32;
    const UNIT: usize = 2;

    #[inline(always)]
    fn unit(elements: &[Self]) -> u32 {
        u32::from(elements[0].to_bits()) | (u32::from(elements[1].to_bits()) << 16)
    }

    #[inline(always)]
    fn multiply_add<const FUSED: bool>(sum: f32, a: u32, b: u32) -> f32 {
        let low = |pair: u32| f32::from_bits(pair << 16);
        let high = |pair: u32| f32::from_bits(pair & 0xffff_0000);
        let sum = f32::multiply_add::<FUSED>(sum, high(a), high(b));
        f32::multiply_add::<FUSED>(sum, low(a), low(b))
    }

    fn multiply_natively(product: &mut Product<'_, Self>) -> bool {
        x86::bfloat16(product)
    }
}

/// A matrix in memory whose rows start `stride` elements apart.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows<'a, E> {
    values: &'a [E],
    stride: usize,
    count: usize,
    width: usize,
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

/// The right factor `[K, N]` of products, stored in the order in which products read it and padded with
/// zeros to whole panels and units.
#[derive(Debug)]
pub(crate) struct Packed<E: Operand> {
    /// Ordered by panel, then by step.
    units: Vec<[E::Unit; PANEL]>,
    /// Number of units of a column.
    depth: usize,
    columns: usize,
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
            if width < PANEL {
                panel.fill([E::Unit::default(); PANEL]);
            }
            for lane in 0..width {
                let column = columns.row(first + lane);
                for (units, elements) in panel.iter_mut().zip(column.chunks_exact(E::UNIT)) {
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
    fn panels(&self) -> impl Iterator<Item = &[[E::Unit; PANEL]]> {
        self.units.chunks_exact(self.depth.max(1))
    }
}

/// Whether [`multiply`] is about as fast as a library for matrix products, which it is on processors with AVX2
/// or AVX-512. For float64 it never is.
pub(crate) fn multiplies_fast() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// The operands and the result of a product.
#[derive(Debug)]
pub(crate) struct Product<'a, E: Operand> {
    a: Rows<'a, E>,
    b: &'a Packed<E>,
    c: &'a mut [E::Sum],
    add: bool,
}

/// Computes `c = a b`, or `c += a b` if `add` is true, for `a` `[M, K]`, `b` `[K, N]` and a contiguous `c`
/// `[M, N]`. Every element is a sum over `K` in ascending order. Its bits depend only on its row, its column
/// and the instruction set of the processor.
///
/// # Panics
/// The shapes do not match, or the rows of `a` do not consist of whole units.
pub(crate) fn multiply<E: Operand>(a: Rows<'_, E>, b: &Packed<E>, c: &mut [E::Sum], add: bool) {
    assert!(
        a.width.is_multiple_of(E::UNIT) && a.width / E::UNIT == b.depth,
        "rows of {} elements and columns of {} units",
        a.width,
        b.depth
    );
    assert_eq!(c.len(), a.count * b.columns, "{} x {}", a.count, b.columns);
    if a.count == 0 || b.columns == 0 {
        return;
    }
    if b.depth == 0 {
        if !add {
            c.fill(E::Sum::default());
        }
        return;
    }
    let mut product = Product { a, b, c, add };
    if !E::multiply_natively(&mut product) {
        tile::multiply(&mut product);
    }
}
