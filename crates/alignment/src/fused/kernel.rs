//! The loss of one image, in one pass over its tokens.
//!
//! Statistics first: they read the image's encoder tokens, which then lie in the cache for the second
//! reading. That one takes token after token: lengths and product, then the gradient, while both tokens
//! are in the nearest cache. Sums are over [`LANES`] partial sums in a fixed order, the same on any
//! processor.

use std::ops::{Add, AddAssign, Div, Mul, Sub};

use half::bf16;
use torch_ext::kernel::{Element, Vectorised};

/// Partial sums of a row.
const LANES: usize = 16;
/// Rows whose statistics are taken at once. A power of two: the mean of equal values is exact.
const ROWS: usize = 8;

/// What a kernel computes in.
pub(super) trait Real:
    Element
    + Default
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + AddAssign
{
    fn from_f64(value: f64) -> Self;
    fn to_f64(self) -> f64;
    fn sqrt(self) -> Self;
}

macro_rules! real {
    ($($type:ty),*) => {
        $(
            impl Real for $type {
                #[inline(always)]
                fn from_f64(value: f64) -> Self {
                    value as Self
                }

                #[inline(always)]
                fn to_f64(self) -> f64 {
                    self.into()
                }

                #[inline(always)]
                fn sqrt(self) -> Self {
                    self.sqrt()
                }
            }
        )*
    };
}

real!(f32, f64);

/// A dtype of tokens, and what is computed from it.
pub(super) trait Token<A>: Element {
    fn widen(self) -> A;
    fn narrow(value: A) -> Self;
}

impl<A: Real> Token<A> for A {
    #[inline(always)]
    fn widen(self) -> A {
        self
    }

    #[inline(always)]
    fn narrow(value: A) -> Self {
        value
    }
}

impl Token<f32> for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn narrow(value: f32) -> Self {
        // Round to nearest, ties to even; written out, for it to be vectorised.
        let bits = value.to_bits();
        let rounded = (bits + (0x7fff + ((bits >> 16) & 1))) >> 16;
        let quiet = (bits >> 16) | 0x40;
        let bits = if value.is_nan() { quiet } else { rounded };
        Self::from_bits(bits as u16)
    }
}

/// The settings of a z-score.
#[derive(Debug, Clone, Copy)]
pub(super) struct ZScore {
    pub(super) alpha: f64,
    pub(super) eps: f64,
}

/// One image: encoder tokens and projected tokens, each `T` rows of `width`.
pub(super) struct Image<'a, Z, P> {
    pub(super) target: &'a [Z],
    pub(super) projected: &'a [P],
    /// Where the gradient with respect to `projected` goes.
    pub(super) gradient: Option<&'a mut [P]>,
    pub(super) width: usize,
    pub(super) norm: Option<ZScore>,
    /// Factor of the gradient of each token's cosine.
    pub(super) slope: f64,
}

/// The sum of the cosines of an image's tokens.
pub(super) struct CosineSum<'a, Z, P, A> {
    pub(super) image: Image<'a, Z, P>,
    pub(super) accumulate_in: std::marker::PhantomData<A>,
}

impl<Z: Token<A>, P: Token<A>, A: Real> Vectorised for CosineSum<'_, Z, P, A> {
    type Output = f64;

    #[inline(always)]
    fn run(self) -> f64 {
        let Image {
            target,
            projected,
            mut gradient,
            width,
            norm,
            slope,
        } = self.image;
        let mut shift = vec![A::default(); width];
        let mut scale = vec![A::from_f64(1.0); width];
        if let Some(norm) = norm {
            statistics(target, &mut shift, &mut scale);
            let count = (target.len() / width) as f64;
            finish(&mut shift, &mut scale, count, norm);
        }
        let mut row = vec![A::default(); width];
        let mut sum = 0.0;
        for (index, (z, p)) in target
            .chunks_exact(width)
            .zip(projected.chunks_exact(width))
            .enumerate()
        {
            let products = normalise(z, p, &shift, &scale, &mut row);
            let (cosine, of_target, of_projected) = products.derivative(slope);
            sum += cosine;
            if let Some(gradient) = gradient.as_deref_mut() {
                let out = &mut gradient[index * width..][..width];
                combine(
                    &row,
                    p,
                    A::from_f64(of_target),
                    A::from_f64(of_projected),
                    out,
                );
            }
        }
        sum
    }
}

/// Mean, and sum of squared deviations, of each column of `rows`; both start at anything.
///
/// Blocks of rows are merged as Chan, Golub and LeVeque do: no cancellation, and constant columns give
/// their value and exactly 0.
#[inline(always)]
fn statistics<Z: Token<A>, A: Real>(rows: &[Z], mean: &mut [A], squares: &mut [A]) {
    let width = mean.len();
    mean.fill(A::default());
    squares.fill(A::default());
    let mut seen = 0.0;
    let mut blocks = rows.chunks_exact(ROWS * width);
    for block in blocks.by_ref() {
        let lines: [&[Z]; ROWS] = std::array::from_fn(|line| &block[line * width..][..width]);
        let total = seen + ROWS as f64;
        let share = A::from_f64(ROWS as f64 / total);
        let weight = A::from_f64(seen * ROWS as f64 / total);
        let whole = width - width % LANES;
        for start in (0..whole).step_by(LANES) {
            block_columns::<Z, A, LANES>(&lines, start, share, weight, mean, squares);
        }
        for start in whole..width {
            block_columns::<Z, A, 1>(&lines, start, share, weight, mean, squares);
        }
        seen = total;
    }
    for row in blocks.remainder().chunks_exact(width) {
        seen += 1.0;
        let share = A::from_f64(1.0 / seen);
        for ((value, mean), squares) in row.iter().zip(&mut *mean).zip(&mut *squares) {
            let value = value.widen();
            let delta = value - *mean;
            *mean += delta * share;
            *squares += delta * (value - *mean);
        }
    }
}

/// Merges `N` columns of a block of rows.
#[inline(always)]
fn block_columns<Z: Token<A>, A: Real, const N: usize>(
    lines: &[&[Z]; ROWS],
    start: usize,
    share: A,
    weight: A,
    mean: &mut [A],
    squares: &mut [A],
) {
    let (mean, squares) = (&mut mean[start..][..N], &mut squares[start..][..N]);
    let mut values = [[A::default(); N]; ROWS];
    for (values, line) in values.iter_mut().zip(lines) {
        for (value, element) in values.iter_mut().zip(&line[start..][..N]) {
            *value = element.widen();
        }
    }
    let part = A::from_f64(1.0 / ROWS as f64);
    for lane in 0..N {
        let v = |row: usize| values[row][lane];
        let sum = ((v(0) + v(1)) + (v(2) + v(3))) + ((v(4) + v(5)) + (v(6) + v(7)));
        let own = sum * part;
        let d = |row: usize| (v(row) - own) * (v(row) - own);
        let deviation = ((d(0) + d(1)) + (d(2) + d(3))) + ((d(4) + d(5)) + (d(6) + d(7)));
        let delta = own - mean[lane];
        mean[lane] += delta * share;
        squares[lane] += deviation + delta * delta * weight;
    }
}

/// From mean and squares to what is subtracted, and what is multiplied with.
#[inline(always)]
fn finish<A: Real>(mean: &mut [A], squares: &mut [A], count: f64, norm: ZScore) {
    let (alpha, eps) = (A::from_f64(norm.alpha), A::from_f64(norm.eps));
    let (one, freedom) = (A::from_f64(1.0), A::from_f64(count - 1.0));
    for (mean, squares) in mean.iter_mut().zip(squares) {
        *mean = *mean * alpha;
        *squares = one / ((*squares / freedom).sqrt() + eps);
    }
}

/// Sums over a pair of tokens.
struct Products {
    product: f64,
    target: f64,
    projected: f64,
}

/// Writes the normalised token `z` to `row`, and sums it up against `p`.
#[inline(always)]
fn normalise<Z: Token<A>, P: Token<A>, A: Real>(
    z: &[Z],
    p: &[P],
    shift: &[A],
    scale: &[A],
    row: &mut [A],
) -> Products {
    let width = z.len();
    let (p, shift, scale, row) = (
        &p[..width],
        &shift[..width],
        &scale[..width],
        &mut row[..width],
    );
    let mut sums = [[A::default(); LANES]; 3];
    let whole = width - width % LANES;
    for start in (0..whole).step_by(LANES) {
        add_products::<Z, P, A, LANES>(z, p, shift, scale, row, start, &mut sums);
    }
    // The rest goes to the first lanes.
    for (lane, index) in (whole..width).enumerate() {
        let mut last = [[A::default(); LANES]; 3];
        add_products::<Z, P, A, 1>(z, p, shift, scale, row, index, &mut last);
        for (sums, last) in sums.iter_mut().zip(last) {
            sums[lane] += last[0];
        }
    }
    let [product, target, projected] = sums.map(|lanes| {
        // Halves together, so that the order is that of a vector instruction.
        let mut lanes = lanes.map(A::to_f64);
        let mut half = LANES / 2;
        while half > 0 {
            for lane in 0..half {
                lanes[lane] += lanes[lane + half];
            }
            half /= 2;
        }
        lanes[0]
    });
    Products {
        product,
        target,
        projected,
    }
}

#[inline(always)]
fn add_products<Z: Token<A>, P: Token<A>, A: Real, const N: usize>(
    z: &[Z],
    p: &[P],
    shift: &[A],
    scale: &[A],
    row: &mut [A],
    start: usize,
    sums: &mut [[A; LANES]; 3],
) {
    let (z, p) = (&z[start..][..N], &p[start..][..N]);
    let (shift, scale) = (&shift[start..][..N], &scale[start..][..N]);
    let row = &mut row[start..][..N];
    for lane in 0..N {
        let y = (z[lane].widen() - shift[lane]) * scale[lane];
        let p = p[lane].widen();
        row[lane] = y;
        sums[0][lane] += y * p;
        sums[1][lane] += y * y;
        sums[2][lane] += p * p;
    }
}

/// Lower bound of a token's length before it is divided by it (`F.normalize`).
const NORM_EPS: f64 = 1e-12;

impl Products {
    /// The cosine, and with `slope` as its factor, what the two tokens are multiplied with for the
    /// gradient with respect to the projected one.
    #[inline(always)]
    fn derivative(&self, slope: f64) -> (f64, f64, f64) {
        // A length that is NaN stays so: `f64::max` would hide it.
        let clamp = |length: f64| if length < NORM_EPS { NORM_EPS } else { length };
        let length = self.projected.sqrt();
        let (of_target, of_projected) = (clamp(self.target.sqrt()), clamp(length));
        let cosine = self.product / of_target / of_projected;
        // Below the bound, the length is a constant.
        let through_length = if length < NORM_EPS {
            0.0
        } else {
            -slope * cosine / of_projected / of_projected
        };
        (cosine, slope / of_target / of_projected, through_length)
    }
}

/// `of_target * row + of_projected * p`.
#[inline(always)]
fn combine<P: Token<A>, A: Real>(row: &[A], p: &[P], of_target: A, of_projected: A, out: &mut [P]) {
    for ((out, &y), p) in out.iter_mut().zip(row).zip(p) {
        *out = P::narrow(of_target * y + of_projected * p.widen());
    }
}
