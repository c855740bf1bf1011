//! Matrix products in tiles, for any processor.

// Indexing several rows with one lane index lets the compiler generate vector instructions.
#![allow(clippy::needless_range_loop)]

use torch_ext::kernel::Real;

use super::left::LeftRows;
use super::{Operand, PANEL, Product, Rows};

/// Number of rows of a tile.
const ROWS: usize = 4;
/// Number of columns of a tile, such that the sums fit in the registers of AVX2.
const LANES: usize = 16;

/// [`Operand::multiply_natively`] for types without a native implementation.
pub(super) fn no_native_product<E: Operand>(_: &mut Product<'_, E>) -> bool {
    false
}

/// [`Operand::transpose_natively`] for types without a native implementation.
pub(super) fn no_native_transpose<E: Operand>(_: Rows<'_, E>, _: &mut [[E::Unit; PANEL]]) -> bool {
    false
}

/// Combines the elements of two rows to units. A missing second row counts as zeros.
#[inline(always)]
pub(super) fn interleave<E: Operand>(
    units: &mut [E::Unit; PANEL],
    first: &[E],
    second: Option<&[E]>,
) {
    units[first.len()..].fill(E::Unit::default());
    match second {
        Some(second) => {
            for ((unit, &first), &second) in units.iter_mut().zip(first).zip(second) {
                *unit = E::unit(&[first, second]);
            }
        }
        None => {
            for (unit, &first) in units.iter_mut().zip(first) {
                *unit = E::unit(&[first, E::default()]);
            }
        }
    }
}

/// As [`super::multiply`], for operands with matching shapes.
pub(super) fn multiply<E: Operand>(product: &mut Product<'_, E>) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
        fn avx512<E: Operand>(product: &mut Product<'_, E>) {
            tiles::<E, true>(product);
        }

        #[target_feature(enable = "avx2,fma")]
        fn avx2<E: Operand>(product: &mut Product<'_, E>) {
            tiles::<E, true>(product);
        }

        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
            {
                // SAFETY: the processor has the features that the function was compiled for.
                return unsafe { avx512(product) };
            }
            // SAFETY: as above.
            return unsafe { avx2(product) };
        }
    }
    tiles::<E, false>(product);
}

#[inline(always)]
fn tiles<E: Operand, const FUSED: bool>(product: &mut Product<'_, E>) {
    let (count, columns) = (product.a.count, product.b.columns);
    for (index, panel) in product.b.panels().enumerate() {
        let mut first = 0;
        while first < count {
            let rows = product.a.rows(first);
            for half in 0..PANEL / LANES {
                let column = index * PANEL + half * LANES;
                if column >= columns {
                    break;
                }
                let sums = tile::<E, FUSED>(rows, panel, half * LANES);
                let width = LANES.min(columns - column);
                for (row, sums) in sums.iter().enumerate().take(count - first) {
                    let c = &mut product.c[(first + row) * columns + column..][..width];
                    store(c, sums, product.add);
                }
            }
            first += ROWS;
        }
    }
}

/// The sums of a tile whose columns start at `lane` of the panel.
#[inline(always)]
fn tile<E: Operand, const FUSED: bool>(
    rows: LeftRows<'_, E, ROWS>,
    panel: &[[E::Unit; PANEL]],
    lane: usize,
) -> [[E::Sum; LANES]; ROWS] {
    let mut sums = [[E::Sum::default(); LANES]; ROWS];
    for (step, b) in panel.iter().enumerate() {
        for row in 0..ROWS {
            // SAFETY: `multiply` checked that a row has as many units as the panel has steps.
            let a = unsafe { rows.unit(row, step) };
            for column in 0..LANES {
                let sum = sums[row][column];
                sums[row][column] = E::multiply_add::<FUSED>(sum, a, b[lane + column]);
            }
        }
    }
    sums
}

/// Writes sums to `c`, or adds them if `add` is true.
#[inline(always)]
pub(super) fn store<A: Real>(c: &mut [A], sums: &[A], add: bool) {
    for (c, &sum) in c.iter_mut().zip(sums) {
        *c = if add { *c + sum } else { sum };
    }
}
