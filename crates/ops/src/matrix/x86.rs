//! Matrix products with vector instructions: float32 with AVX-512 or AVX2, and bfloat16 on processors that
//! have instructions for pairs of bfloat16.

use std::arch::x86_64::{
    __m256, __m512, __m512bh, __m512i, _mm256_add_ps, _mm256_fmadd_ps, _mm256_loadu_ps,
    _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps, _mm512_add_ps, _mm512_dpbf16_ps,
    _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_set1_ps,
    _mm512_setzero_ps, _mm512_storeu_ps,
};

use half::bf16;

use super::tile::store;
use super::{Operand, PANEL, Product};

/// Number of rows of a tile with AVX-512. With two vectors of sums per row, a tile uses half of the 32
/// registers.
const ROWS: usize = 8;
/// Number of rows of a tile with AVX2, which has 16 registers.
const FEW_ROWS: usize = 6;
/// Number of columns of a tile with AVX2.
const HALF: usize = PANEL / 2;

/// Computes the product if the processor has the instructions; returns whether it has.
pub(super) fn float32(product: &mut Product<'_, f32>) -> bool {
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the processor has the features that the function was compiled for.
        unsafe { float32_avx512(product) };
        return true;
    }
    let has = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    if has {
        // SAFETY: as above.
        unsafe { float32_avx2(product) };
    }
    has
}

/// As [`float32`].
pub(super) fn bfloat16(product: &mut Product<'_, bf16>) -> bool {
    let has = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16");
    if has {
        // SAFETY: as above.
        unsafe { bfloat16_avx512(product) };
    }
    has
}

#[target_feature(enable = "avx512f")]
fn float32_avx512(product: &mut Product<'_, f32>) {
    let tile = |rows: [&[f32]; ROWS], panel: &[[f32; PANEL]], _| {
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        for (step, b) in panel.iter().enumerate() {
            // SAFETY: 2 x 16 numbers.
            let b = unsafe {
                [
                    _mm512_loadu_ps(b.as_ptr()),
                    _mm512_loadu_ps(b.as_ptr().add(HALF)),
                ]
            };
            for (sums, row) in sums.iter_mut().zip(rows) {
                // SAFETY: the row has as many numbers as the panel has steps.
                let a = _mm512_set1_ps(unsafe { *row.get_unchecked(step) });
                sums[0] = _mm512_fmadd_ps(a, b[0], sums[0]);
                sums[1] = _mm512_fmadd_ps(a, b[1], sums[1]);
            }
        }
        sums
    };
    tiles(product, tile, put_avx512);
}

#[target_feature(enable = "avx512f,avx512bf16")]
fn bfloat16_avx512(product: &mut Product<'_, bf16>) {
    let tile = |rows: [&[bf16]; ROWS], panel: &[[u32; PANEL]], _| {
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        for (step, b) in panel.iter().enumerate() {
            // SAFETY: 2 x 16 pairs.
            let b = unsafe {
                [
                    pairs(_mm512_loadu_si512(b.as_ptr().cast())),
                    pairs(_mm512_loadu_si512(b.as_ptr().add(HALF).cast())),
                ]
            };
            for (sums, row) in sums.iter_mut().zip(rows) {
                // SAFETY: the row has twice as many numbers as the panel has steps.
                let unit = bf16::unit(unsafe { row.get_unchecked(2 * step..2 * step + 2) });
                let a = pairs(_mm512_set1_epi32(unit.cast_signed()));
                sums[0] = _mm512_dpbf16_ps(sums[0], a, b[0]);
                sums[1] = _mm512_dpbf16_ps(sums[1], a, b[1]);
            }
        }
        sums
    };
    tiles(product, tile, put_avx512);
}

#[target_feature(enable = "avx2,fma")]
fn float32_avx2(product: &mut Product<'_, f32>) {
    let tile = |rows: [&[f32]; FEW_ROWS], panel: &[[f32; PANEL]], lane: usize| {
        let mut sums = [[_mm256_setzero_ps(); 2]; FEW_ROWS];
        for (step, b) in panel.iter().enumerate() {
            let b = &b[lane..][..HALF];
            // SAFETY: 2 x 8 numbers.
            let b = unsafe {
                [
                    _mm256_loadu_ps(b.as_ptr()),
                    _mm256_loadu_ps(b.as_ptr().add(HALF / 2)),
                ]
            };
            for (sums, row) in sums.iter_mut().zip(rows) {
                // SAFETY: as above.
                let a = _mm256_set1_ps(unsafe { *row.get_unchecked(step) });
                sums[0] = _mm256_fmadd_ps(a, b[0], sums[0]);
                sums[1] = _mm256_fmadd_ps(a, b[1], sums[1]);
            }
        }
        sums
    };
    tiles(product, tile, put_avx2);
}

#[inline(always)]
fn pairs(vector: __m512i) -> __m512bh {
    // SAFETY: both types have 512 bits, and every bit pattern is valid.
    unsafe { std::mem::transmute(vector) }
}

/// Computes a product in tiles of `R` rows and `C` columns. `tile` computes the sums of rows, which have as many
/// units as the panel has steps, for `C` columns of the panel from a lane on. `put` writes a row of sums, or adds
/// it.
#[inline(always)]
fn tiles<E: Operand<Sum = f32>, V, const R: usize, const C: usize>(
    product: &mut Product<'_, E>,
    tile: impl Fn([&[E]; R], &[[E::Unit; PANEL]], usize) -> [[V; 2]; R],
    put: impl Fn(&mut [f32; C], &[V; 2], bool),
) {
    let (count, columns, add) = (product.a.count(), product.b.columns, product.add);
    for (index, panel) in product.b.panels().enumerate() {
        for lane in (0..PANEL).step_by(C) {
            let column = index * PANEL + lane;
            if column >= columns {
                break;
            }
            let width = C.min(columns - column);
            for first in (0..count).step_by(R) {
                // An incomplete last tile repeats the last row.
                let rows: [&[E]; R] = std::array::from_fn(|row| {
                    &product.a.row((first + row).min(count - 1))[..panel.len() * E::UNIT]
                });
                let sums = tile(rows, panel, lane);
                for (row, sums) in sums.iter().enumerate().take(count - first) {
                    let c = &mut product.c[(first + row) * columns + column..][..width];
                    match <&mut [f32; C]>::try_from(&mut *c) {
                        Ok(whole) => put(whole, sums, add),
                        Err(_) => {
                            let mut buffer = [0.0; C];
                            put(&mut buffer, sums, false);
                            store(c, &buffer, add);
                        }
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn put_avx512(c: &mut [f32; PANEL], sums: &[__m512; 2], add: bool) {
    for (half, &sum) in sums.iter().enumerate() {
        // SAFETY: half a panel has 16 numbers. Only functions compiled for AVX-512 call this.
        unsafe {
            let c = c.as_mut_ptr().add(half * HALF);
            let sum = match add {
                true => _mm512_add_ps(_mm512_loadu_ps(c), sum),
                false => sum,
            };
            _mm512_storeu_ps(c, sum);
        }
    }
}

#[inline(always)]
fn put_avx2(c: &mut [f32; HALF], sums: &[__m256; 2], add: bool) {
    for (half, &sum) in sums.iter().enumerate() {
        // SAFETY: as above, with vectors of 8 numbers and AVX2.
        unsafe {
            let c = c.as_mut_ptr().add(half * HALF / 2);
            let sum = match add {
                true => _mm256_add_ps(_mm256_loadu_ps(c), sum),
                false => sum,
            };
            _mm256_storeu_ps(c, sum);
        }
    }
}
