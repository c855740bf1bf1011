//! The fused cosine loss of one image on the CPU.
//!
//! The kernel first computes the statistics. This reads the image's encoder tokens, which then are in the
//! cache for the second read. The second pass handles one token at a time: lengths and dot product, then
//! the gradient, while both tokens are in the first-level cache. Sums are over [`LANES`] partial sums in a
//! fixed order, so they are the same on any processor.

// Loops that index the lanes of several rows with one index compile to vector instructions.
#![allow(clippy::needless_range_loop)]

use std::marker::PhantomData;

use torch_ext::kernel::{LANES, Real, Row, Stored, Stream, Vectorised, prefetch, sum_lanes};

use super::settings::{NORM_EPS, ZScore};

/// Rows whose statistics are merged at once. It is a power of two, so that the mean of equal values is
/// exact.
const ROWS: usize = 8;

/// Computes the sum of the cosines of an image's tokens. Encoder tokens and projected tokens are `T` rows
/// of `width` elements each.
pub(super) struct CosineSum<'a, Z, P, A> {
    pub(super) target: &'a [Z],
    pub(super) projected: &'a [P],
    pub(super) gradient: Gradient<'a, P>,
    pub(super) width: usize,
    pub(super) norm: Option<ZScore>,
    /// Gradient of the loss with respect to each token's cosine.
    pub(super) slope: f64,
    pub(super) accumulate_in: PhantomData<A>,
}

/// The destination of the gradient with respect to `projected`.
pub(super) enum Gradient<'a, P> {
    /// No gradient is needed.
    None,
    Cached(&'a mut [P]),
    /// For a gradient that is too large for the cache.
    Streamed(Stream<'a, P>),
}

impl<Z: Stored<A>, P: Stored<A>, A: Real> Vectorised for CosineSum<'_, Z, P, A> {
    type Output = f64;

    #[inline(always)]
    fn run(self) -> f64 {
        let Self {
            target,
            projected,
            mut gradient,
            width,
            norm,
            slope,
            ..
        } = self;
        let [mut shift, mut scale, mut row] = [0.0, 1.0, 0.0].map(|value| Row::new(value, width));
        let (shift, scale, row) = (
            shift.as_mut_slice(),
            scale.as_mut_slice(),
            row.as_mut_slice(),
        );
        if let Some(norm) = norm {
            // The statistics are of differences from the first token. In many encoders a channel's mean is
            // large relative to its deviation, and its rounding errors would make both inaccurate.
            for (origin, first) in row.iter_mut().zip(target) {
                *origin = first.widen();
            }
            statistics(target, row, shift, scale);
            let count = (target.len() / width) as f64;
            to_shift_and_scale(row, shift, scale, count, norm);
        }
        let mut streamed = match gradient {
            Gradient::Streamed(_) => vec![P::narrow(A::default()); width],
            _ => Vec::new(),
        };
        let mut sum = 0.0;
        for (index, (z, p)) in target
            .chunks_exact(width)
            .zip(projected.chunks_exact(width))
            .enumerate()
        {
            let products = normalise(z, p, shift, scale, row);
            let (cosine, target_factor, projected_factor) = products.derivative(slope);
            sum += cosine;
            let factors = [target_factor, projected_factor].map(A::from_f64);
            let start = index * width;
            match &mut gradient {
                Gradient::None => {}
                Gradient::Cached(gradient) => {
                    combine(factors, row, p, &mut gradient[start..][..width]);
                }
                Gradient::Streamed(gradient) => {
                    let ahead = projected.get(start + 2 * width..).unwrap_or_default();
                    for piece in 0..width / LANES {
                        prefetch(ahead, piece * LANES);
                    }
                    combine(factors, row, p, &mut streamed);
                    gradient.write(start, &streamed);
                }
            }
        }
        sum
    }
}

/// Writes the mean minus `origin` and the sum of squared deviations of each column of `rows` to `mean`
/// and `squares`, whose previous contents are ignored.
///
/// Blocks of rows are merged with the formulas of Chan, Golub and LeVeque, which avoid cancellation.
/// Constant columns have exactly their value as the mean, and squared deviations of exactly 0.
#[inline(always)]
fn statistics<Z: Stored<A>, A: Real>(rows: &[Z], origin: &[A], mean: &mut [A], squares: &mut [A]) {
    let width = mean.len();
    mean.fill(A::default());
    squares.fill(A::default());
    let mut seen = 0.0;
    let mut blocks = rows.chunks_exact(ROWS * width);
    for (index, block) in blocks.by_ref().enumerate() {
        let ahead = rows.get((index + 2) * ROWS * width..).unwrap_or_default();
        merge_block(block, ahead, origin, seen, mean, squares);
        seen += ROWS as f64;
    }
    for row in blocks.remainder().chunks_exact(width) {
        seen += 1.0;
        let share = A::from_f64(1.0 / seen);
        let columns = row.iter().zip(origin).zip(&mut *mean).zip(&mut *squares);
        for (((value, &origin), mean), squares) in columns {
            let value = value.widen() - origin;
            let delta = value - *mean;
            *mean += delta * share;
            *squares += delta * (value - *mean);
        }
    }
}

/// Merges [`ROWS`] rows into the statistics of the `seen` rows before them. Meanwhile it prefetches as
/// many rows from `ahead`: a processor's own prefetcher does not cross pages, and a page is not much longer
/// than a row.
#[inline(always)]
fn merge_block<Z: Stored<A>, A: Real>(
    block: &[Z],
    ahead: &[Z],
    origin: &[A],
    seen: f64,
    mean: &mut [A],
    squares: &mut [A],
) {
    let width = mean.len();
    let (origin, origin_rest) = origin.as_chunks();
    let rows: [&[Z]; ROWS] = std::array::from_fn(|row| &block[row * width..][..width]);
    let (mean, mean_rest) = mean.as_chunks_mut();
    let (squares, squares_rest) = squares.as_chunks_mut();
    let whole = rows.map(|row| row.as_chunks().0);
    merge_columns::<Z, A, LANES>(&whole, ahead, origin, seen, mean, squares);
    let rest = rows.map(|row| row.as_chunks::<LANES>().1.as_chunks().0);
    let (mean, squares) = (mean_rest.as_chunks_mut().0, squares_rest.as_chunks_mut().0);
    merge_columns::<Z, A, 1>(&rest, &[], origin_rest.as_chunks().0, seen, mean, squares);
}

/// Like [`merge_block`], in pieces of `N` columns. Within a piece nothing is written to memory, so that
/// the compiler can vectorise the loop over its lanes.
#[inline(always)]
fn merge_columns<Z: Stored<A>, A: Real, const N: usize>(
    rows: &[&[[Z; N]]; ROWS],
    ahead: &[Z],
    origin: &[[A; N]],
    seen: f64,
    mean: &mut [[A; N]],
    squares: &mut [[A; N]],
) {
    let total = seen + ROWS as f64;
    let share = A::from_f64(ROWS as f64 / total);
    let weight = A::from_f64(seen * ROWS as f64 / total);
    let part = A::from_f64(1.0 / ROWS as f64);
    let columns = origin.iter().zip(mean).zip(squares);
    for (index, ((origin, mean), squares)) in columns.enumerate() {
        let piece: [&[Z; N]; ROWS] = std::array::from_fn(|row| &rows[row][index]);
        // All pieces together prefetch as many elements as `rows` has.
        for row in 0..ROWS {
            prefetch(ahead, (index * ROWS + row) * N);
        }
        let (old_mean, old_squares) = (*mean, *squares);
        let (mut new_mean, mut new_squares) = (old_mean, old_squares);
        for lane in 0..N {
            let v: [A; ROWS] = std::array::from_fn(|row| piece[row][lane].widen() - origin[lane]);
            let block_mean = pairwise(v) * part;
            let deviation = pairwise(v.map(|v| (v - block_mean) * (v - block_mean)));
            let delta = block_mean - old_mean[lane];
            new_mean[lane] = old_mean[lane] + delta * share;
            new_squares[lane] = old_squares[lane] + (deviation + delta * delta * weight);
        }
        *mean = new_mean;
        *squares = new_squares;
    }
}

#[inline(always)]
fn pairwise<A: Real>(v: [A; ROWS]) -> A {
    ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]))
}

/// Converts mean and squared deviations of `count` tokens, in place, to the shift and the scale of the
/// z-score: `alpha * mean` and `1 / (std + eps)`.
#[inline(always)]
fn to_shift_and_scale<A: Real>(
    origin: &[A],
    mean: &mut [A],
    squares: &mut [A],
    count: f64,
    norm: ZScore,
) {
    let (alpha, eps) = (A::from_f64(norm.alpha), A::from_f64(norm.eps));
    let (one, freedom) = (A::from_f64(1.0), A::from_f64(count - 1.0));
    for ((&origin, mean), squares) in origin.iter().zip(mean).zip(squares) {
        *mean = (origin + *mean) * alpha;
        *squares = one / ((*squares / freedom).sqrt() + eps);
    }
}

/// Sums over the elements of a pair of tokens.
struct Products {
    /// Of the products of both tokens.
    product: f64,
    /// Of the target's squares.
    target: f64,
    /// Of the projected token's squares.
    projected: f64,
}

/// Normalises the token `z`, writes it to `row`, and sums its products with `p`.
#[inline(always)]
fn normalise<Z: Stored<A>, P: Stored<A>, A: Real>(
    z: &[Z],
    p: &[P],
    shift: &[A],
    scale: &[A],
    row: &mut [A],
) -> Products {
    let ((z, z_rest), (p, p_rest)) = (z.as_chunks(), p.as_chunks());
    let ((shift, shift_rest), (scale, scale_rest)) = (shift.as_chunks(), scale.as_chunks());
    let (row, row_rest) = row.as_chunks_mut();
    let sums: [[A; LANES]; 3] = products(z, p, shift, scale, row);
    let rest: [[A; 1]; 3] = products(
        z_rest.as_chunks().0,
        p_rest.as_chunks().0,
        shift_rest.as_chunks().0,
        scale_rest.as_chunks().0,
        row_rest.as_chunks_mut().0,
    );
    let [product, target, projected] =
        [0, 1, 2].map(|which| sum_lanes(sums[which]) + rest[which][0].to_f64());
    Products {
        product,
        target,
        projected,
    }
}

/// Returns partial sums of `y p`, `y y` and `p p` over pieces of `N` elements, and writes `y` to `row`.
#[inline(always)]
fn products<Z: Stored<A>, P: Stored<A>, A: Real, const N: usize>(
    z: &[[Z; N]],
    p: &[[P; N]],
    shift: &[[A; N]],
    scale: &[[A; N]],
    row: &mut [[A; N]],
) -> [[A; N]; 3] {
    let mut product = [A::default(); N];
    let mut target = [A::default(); N];
    let mut projected = [A::default(); N];
    let pieces = z.iter().zip(p).zip(shift).zip(scale).zip(row);
    for ((((z, p), shift), scale), row) in pieces {
        let mut normalised = [A::default(); N];
        for lane in 0..N {
            let y = (z[lane].widen() - shift[lane]) * scale[lane];
            let p = p[lane].widen();
            normalised[lane] = y;
            product[lane] += y * p;
            target[lane] += y * y;
            projected[lane] += p * p;
        }
        *row = normalised;
    }
    [product, target, projected]
}

impl Products {
    /// Returns the cosine, and the factors of the target and of the projected token whose sum is the
    /// gradient with respect to the projected token. Both factors include `slope`.
    #[inline(always)]
    fn derivative(&self, slope: f64) -> (f64, f64, f64) {
        // Not `f64::max`, which would replace a NaN by the bound.
        let clamp = |length: f64| if length < NORM_EPS { NORM_EPS } else { length };
        let length = self.projected.sqrt();
        let (target_divisor, projected_divisor) = (clamp(self.target.sqrt()), clamp(length));
        let cosine = self.product / target_divisor / projected_divisor;
        // Below the bound, the divisor is constant.
        let through_length = if length < NORM_EPS {
            0.0
        } else {
            -slope * cosine / projected_divisor / projected_divisor
        };
        (
            cosine,
            slope / target_divisor / projected_divisor,
            through_length,
        )
    }
}

/// Writes a row of the gradient to `out`: the sum of both tokens' elements, each times its factor.
#[inline(always)]
fn combine<P: Stored<A>, A: Real>(
    [target_factor, projected_factor]: [A; 2],
    row: &[A],
    projected: &[P],
    out: &mut [P],
) {
    for ((out, &y), &p) in out.iter_mut().zip(row).zip(projected) {
        *out = P::narrow(target_factor * y + projected_factor * p.widen());
    }
}
