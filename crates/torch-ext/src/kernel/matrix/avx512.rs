//! The product with AVX-512: float32, and bfloat16 where the processor multiplies pairs of it.

#[cfg(not(target_arch = "x86_64"))]
pub(super) use super::tile::{nothing as bfloat16, nothing as float32};
#[cfg(target_arch = "x86_64")]
pub(super) use x86::{bfloat16, float32};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m512, __m512bh, __m512i, _mm512_add_ps, _mm512_dpbf16_ps, _mm512_fmadd_ps,
        _mm512_loadu_ps, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps,
        _mm512_storeu_ps,
    };

    use half::bf16;

    use super::super::tile::store;
    use super::super::{Operand, PANEL, Product};

    /// Rows of a tile: with two vectors a row, half of the registers are sums.
    const ROWS: usize = 8;
    /// Numbers of a vector.
    const LANES: usize = PANEL / 2;

    pub(in super::super) fn float32(product: &mut Product<'_, f32>) -> bool {
        let has = is_x86_feature_detected!("avx512f");
        if has {
            // SAFETY: the processor has what the function was compiled for.
            unsafe { float32_tiles(product) };
        }
        has
    }

    pub(in super::super) fn bfloat16(product: &mut Product<'_, bf16>) -> bool {
        let has = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16");
        if has {
            // SAFETY: as above.
            unsafe { bfloat16_tiles(product) };
        }
        has
    }

    #[target_feature(enable = "avx512f")]
    fn float32_tiles(product: &mut Product<'_, f32>) {
        tiles(product, |rows, panel| {
            let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
            for (step, b) in panel.iter().enumerate() {
                // SAFETY: 2 x 16 numbers.
                let b = unsafe {
                    [
                        _mm512_loadu_ps(b.as_ptr()),
                        _mm512_loadu_ps(b.as_ptr().add(LANES)),
                    ]
                };
                for (sums, row) in sums.iter_mut().zip(rows) {
                    let a = _mm512_set1_ps(row[step]);
                    sums[0] = _mm512_fmadd_ps(a, b[0], sums[0]);
                    sums[1] = _mm512_fmadd_ps(a, b[1], sums[1]);
                }
            }
            sums
        });
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn bfloat16_tiles(product: &mut Product<'_, bf16>) {
        tiles(product, |rows, panel| {
            let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
            for (step, b) in panel.iter().enumerate() {
                // SAFETY: 2 x 16 pairs; all bit patterns are vectors of bfloat16.
                let b = unsafe {
                    [
                        pairs(_mm512_loadu_si512(b.as_ptr().cast())),
                        pairs(_mm512_loadu_si512(b.as_ptr().add(LANES).cast())),
                    ]
                };
                for (sums, row) in sums.iter_mut().zip(rows) {
                    let unit = bf16::unit(&row[2 * step..][..2]);
                    let a = pairs(_mm512_set1_epi32(unit as i32));
                    sums[0] = _mm512_dpbf16_ps(sums[0], a, b[0]);
                    sums[1] = _mm512_dpbf16_ps(sums[1], a, b[1]);
                }
            }
            sums
        });
    }

    #[inline(always)]
    fn pairs(vector: __m512i) -> __m512bh {
        // SAFETY: both are 512 bits, of which any are a value.
        unsafe { std::mem::transmute(vector) }
    }

    /// All tiles, whose sums `tile` computes of rows that have as many units as the panel has steps.
    #[inline(always)]
    fn tiles<E: Operand<Sum = f32>>(
        product: &mut Product<'_, E>,
        tile: impl Fn([&[E]; ROWS], &[[E::Unit; PANEL]]) -> [[__m512; 2]; ROWS],
    ) {
        let (count, columns, add) = (product.a.count(), product.b.columns, product.add);
        for (index, panel) in product.b.panels().enumerate() {
            let column = index * PANEL;
            let width = PANEL.min(columns - column);
            let mut first = 0;
            while first < count {
                // The last tile repeats the last row.
                let rows: [&[E]; ROWS] = std::array::from_fn(|row| {
                    &product.a.row((first + row).min(count - 1))[..panel.len() * E::UNIT]
                });
                let sums = tile(rows, panel);
                for (row, sums) in sums.iter().enumerate().take(count - first) {
                    let c = &mut product.c[(first + row) * columns + column..][..width];
                    match <&mut [f32; PANEL]>::try_from(&mut *c) {
                        Ok(whole) => put(whole, sums, add),
                        Err(_) => {
                            let mut buffer = [0.0; PANEL];
                            put(&mut buffer, sums, false);
                            store(c, &buffer, add);
                        }
                    }
                }
                first += ROWS;
            }
        }
    }

    #[inline(always)]
    fn put(c: &mut [f32; PANEL], sums: &[__m512; 2], add: bool) {
        for (half, &sum) in sums.iter().enumerate() {
            // SAFETY: half a panel are 16 numbers. AVX-512 is there: only functions compiled for it, into
            // which this is inlined, call it.
            unsafe {
                let c = c.as_mut_ptr().add(half * LANES);
                let sum = match add {
                    true => _mm512_add_ps(_mm512_loadu_ps(c), sum),
                    false => sum,
                };
                _mm512_storeu_ps(c, sum);
            }
        }
    }
}
