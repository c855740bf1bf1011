//! Matrix products with vector instructions: float32 with AVX-512 or AVX2, and bfloat16 on processors that
//! have instructions for pairs of bfloat16.

use std::arch::x86_64::{
    __m256, __m512, __m512bh, __m512i, _mm256_add_ps, _mm256_fmadd_ps, _mm256_loadu_ps,
    _mm256_permute2f128_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_shuffle_ps, _mm256_storeu_ps,
    _mm256_unpackhi_ps, _mm256_unpacklo_ps, _mm512_add_ps, _mm512_dpbf16_ps, _mm512_fmadd_ps,
    _mm512_loadu_ps, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps,
    _mm512_storeu_ps,
};

use half::bf16;

use super::left::LeftRows;
use super::tile::store;
use super::{Operand, PANEL, Product, Rows};

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
    let tile = |rows: LeftRows<'_, f32, ROWS>, panel: &[[f32; PANEL]], _| {
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        for (step, b) in panel.iter().enumerate() {
            // SAFETY: 2 x 16 numbers.
            let b = unsafe {
                [
                    _mm512_loadu_ps(b.as_ptr()),
                    _mm512_loadu_ps(b.as_ptr().add(HALF)),
                ]
            };
            for (row, sums) in sums.iter_mut().enumerate() {
                // SAFETY: `multiply` checked that a row has as many units as the panel has steps.
                let a = _mm512_set1_ps(unsafe { rows.unit(row, step) });
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
    let tile = |rows: LeftRows<'_, bf16, ROWS>, panel: &[[u32; PANEL]], _| {
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        for (step, b) in panel.iter().enumerate() {
            // SAFETY: 2 x 16 pairs.
            let b = unsafe {
                [
                    pairs(_mm512_loadu_si512(b.as_ptr().cast())),
                    pairs(_mm512_loadu_si512(b.as_ptr().add(HALF).cast())),
                ]
            };
            for (row, sums) in sums.iter_mut().enumerate() {
                // SAFETY: as above.
                let unit = unsafe { rows.unit(row, step) };
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
    let tile = |rows: LeftRows<'_, f32, FEW_ROWS>, panel: &[[f32; PANEL]], lane: usize| {
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
            for (row, sums) in sums.iter_mut().enumerate() {
                // SAFETY: as above.
                let a = _mm256_set1_ps(unsafe { rows.unit(row, step) });
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
    tile: impl Fn(LeftRows<'_, E, R>, &[[E::Unit; PANEL]], usize) -> [[V; 2]; R],
    put: impl Fn(&mut [f32; C], &[V; 2], bool),
) {
    let (count, columns, add) = (product.a.count, product.b.columns, product.add);
    for (index, panel) in product.b.panels().enumerate() {
        for lane in (0..PANEL).step_by(C) {
            let column = index * PANEL + lane;
            if column >= columns {
                break;
            }
            let width = C.min(columns - column);
            for first in (0..count).step_by(R) {
                let sums = tile(product.a.rows(first), panel, lane);
                let c = &mut product.c[first * columns + column..];
                let rows = R.min(count - first);
                if rows == R && width == C {
                    for (row, sums) in sums.iter().enumerate() {
                        // SAFETY: `multiply` checked the length of `c`, so that all rows of the tile are in it, with
                        // `C` columns each.
                        let c = unsafe { c.as_mut_ptr().add(row * columns).cast::<[f32; C]>() };
                        // SAFETY: as above, and the rows do not overlap.
                        put(unsafe { &mut *c }, sums, add);
                    }
                } else {
                    for (row, sums) in sums.iter().enumerate().take(rows) {
                        let mut buffer = [0.0; C];
                        put(&mut buffer, sums, false);
                        store(&mut c[row * columns..][..width], &buffer, add);
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

/// Number of columns, and of units of each, that are transposed at once.
const SQUARE: usize = 8;

/// Stores a panel, of which all columns are given, if the processor has AVX2; returns whether it has.
pub(super) fn transpose<E: Operand>(columns: Rows<'_, E>, panel: &mut [[E::Unit; PANEL]]) -> bool {
    let has = is_x86_feature_detected!("avx2");
    if has {
        // SAFETY: the processor has the features that the function was compiled for.
        unsafe { transpose_avx2(columns, panel) };
    }
    has
}

#[target_feature(enable = "avx2")]
fn transpose_avx2<E: Operand>(columns: Rows<'_, E>, panel: &mut [[E::Unit; PANEL]]) {
    const { assert!(size_of::<E::Unit>() == 4 && size_of::<E>() * E::UNIT == 4) };
    let (squares, rest) = panel.as_chunks_mut::<SQUARE>();
    for first in (0..PANEL).step_by(SQUARE) {
        let columns: [&[E]; SQUARE] = std::array::from_fn(|column| columns.row(first + column));
        for (index, square) in squares.iter_mut().enumerate() {
            let start = index * SQUARE * E::UNIT;
            let units = columns.map(|column| {
                let units = &column[start..start + SQUARE * E::UNIT];
                // SAFETY: these elements are 32 bytes.
                unsafe { _mm256_loadu_ps(units.as_ptr().cast()) }
            });
            for (step, lanes) in square.iter_mut().zip(transpose_square(units)) {
                let lanes_of_step = &mut step[first..first + SQUARE];
                // SAFETY: as above.
                unsafe { _mm256_storeu_ps(lanes_of_step.as_mut_ptr().cast(), lanes) };
            }
        }
        let done = squares.len() * SQUARE;
        for (step, lanes) in rest.iter_mut().enumerate() {
            let start = (done + step) * E::UNIT;
            for (lane, column) in lanes[first..first + SQUARE].iter_mut().zip(columns) {
                *lane = E::unit(&column[start..start + E::UNIT]);
            }
        }
    }
}

/// The transpose of eight rows of eight.
#[inline]
#[target_feature(enable = "avx2")]
fn transpose_square(rows: [__m256; SQUARE]) -> [__m256; SQUARE] {
    let [a, b, c, d, e, f, g, h] = rows;
    // Columns 0, 1, 4 and 5 of two rows alternate in the lower halves, 2, 3, 6 and 7 in the upper ones.
    let pairs = |a, b| [_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b)];
    // Four rows in each half, column `n` below and `n + 4` above.
    let fours = |[low, high]: [__m256; 2], [next_low, next_high]: [__m256; 2]| {
        [
            _mm256_shuffle_ps::<0b01_00_01_00>(low, next_low),
            _mm256_shuffle_ps::<0b11_10_11_10>(low, next_low),
            _mm256_shuffle_ps::<0b01_00_01_00>(high, next_high),
            _mm256_shuffle_ps::<0b11_10_11_10>(high, next_high),
        ]
    };
    let upper = fours(pairs(a, b), pairs(c, d));
    let lower = fours(pairs(e, f), pairs(g, h));
    std::array::from_fn(|column| {
        let (left, right) = (upper[column % 4], lower[column % 4]);
        match column < 4 {
            true => _mm256_permute2f128_ps::<0x20>(left, right),
            false => _mm256_permute2f128_ps::<0x31>(left, right),
        }
    })
}
