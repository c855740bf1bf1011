//! Products of small matrices that fit in the cache, for kernels that combine several products.

mod columns;
mod left;
mod packed;
mod rows;
#[cfg(test)]
mod tests;
mod tile;
#[cfg(target_arch = "x86_64")]
mod x86;

/// Other architectures have no native implementation.
#[cfg(not(target_arch = "x86_64"))]
mod x86 {
    pub(super) use super::tile::{
        no_native_product as bfloat16, no_native_product as float32,
        no_native_transpose as transpose,
    };
}

use half::bf16;
use torch_ext::kernel::{Element, Real};

pub(crate) use self::columns::Columns;
pub(crate) use self::left::{Left, Transposed};
pub(crate) use self::packed::Packed;
pub(crate) use self::rows::Rows;

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

    /// Stores one panel of [`Packed::pack_columns`] with native instructions of the processor, if it has any; returns
    /// whether it has.
    fn transpose_natively(_: Rows<'_, Self>, _: &mut [[Self::Unit; PANEL]]) -> bool {
        false
    }
}

macro_rules! operand {
    ($($type:ident, $product:path, $transpose:path);*) => {
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
                    $product(product)
                }

                fn transpose_natively(columns: Rows<'_, Self>, panel: &mut [[Self; PANEL]]) -> bool {
                    $transpose(columns, panel)
                }
            }
        )*
    };
}

operand!(
    f32, x86::float32, x86::transpose;
    f64, tile::no_native_product, tile::no_native_transpose
);

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

    fn transpose_natively(columns: Rows<'_, Self>, panel: &mut [[u32; PANEL]]) -> bool {
        x86::transpose(columns, panel)
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
    a: Left<'a, E>,
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
pub(crate) fn multiply<'a, E: Operand>(
    a: impl Into<Left<'a, E>>,
    b: &Packed<E>,
    c: &mut [E::Sum],
    add: bool,
) {
    let a = a.into();
    assert_eq!(a.depth, b.depth, "units of a row and of a column");
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
