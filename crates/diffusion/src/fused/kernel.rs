//! Layer norm and modulation of some tokens of one image, forward and backward. Sums are over
//! [`LANES`] partial sums in a fixed order.

// Lanes of several rows, one index for all: what becomes a vector instruction.
#![allow(clippy::needless_range_loop)]

use torch_ext::kernel::{LANES, Real, Row, Stored, Vectorised, sum_lanes};

/// `y = (x - mean) r (1 + scale) + shift`, for rows of `x` of the width of `shift`.
pub(super) struct NormModulate<'a, C, A> {
    pub(super) x: &'a [A],
    pub(super) shift: &'a [C],
    pub(super) scale: &'a [C],
    pub(super) eps: f64,
    pub(super) y: &'a mut [C],
    /// Mean and reciprocal deviation `r` of each row.
    pub(super) statistics: &'a mut [A],
}

impl<C: Stored<A>, A: Real> Vectorised for NormModulate<'_, C, A> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let width = self.shift.len();
        let count = width as f64;
        let [mut factor, mut offset] = [0.0; 2].map(|zero| Row::new(zero, width));
        let (factor, offset) = (factor.as_mut_slice(), offset.as_mut_slice());
        widen_scale(self.scale, factor);
        for (offset, shift) in offset.iter_mut().zip(self.shift) {
            *offset = shift.widen();
        }
        let rows = self
            .x
            .chunks_exact(width)
            .zip(self.y.chunks_exact_mut(width));
        for ((x, y), statistics) in rows.zip(self.statistics.chunks_exact_mut(2)) {
            let mean = A::from_f64(sum(x, |x| x) / count);
            let variance = sum(x, |x| (x - mean) * (x - mean)) / count;
            let reciprocal = A::from_f64(1.0 / (variance + self.eps).sqrt());
            for (((y, &x), &factor), &offset) in y.iter_mut().zip(x).zip(&*factor).zip(&*offset) {
                *y = C::narrow((x - mean) * reciprocal * factor + offset);
            }
            statistics.copy_from_slice(&[mean, reciprocal]);
        }
    }
}

/// `1 + scale`.
#[inline(always)]
fn widen_scale<C: Stored<A>, A: Real>(scale: &[C], factor: &mut [A]) {
    let one = A::from_f64(1.0);
    for (factor, scale) in factor.iter_mut().zip(scale) {
        *factor = one + scale.widen();
    }
}

/// The sum of a function of each element.
#[inline(always)]
fn sum<A: Real>(row: &[A], term: impl Fn(A) -> A) -> f64 {
    let (pieces, rest) = row.as_chunks::<LANES>();
    let mut lanes = [A::default(); LANES];
    for piece in pieces {
        for lane in 0..LANES {
            lanes[lane] += term(piece[lane]);
        }
    }
    for (lane, &element) in lanes.iter_mut().zip(rest) {
        *lane += term(element);
    }
    sum_lanes(lanes)
}

/// The gradients of [`NormModulate`].
pub(super) struct NormModulateBackward<'a, C, A> {
    pub(super) x: &'a [A],
    pub(super) scale: &'a [C],
    pub(super) statistics: &'a [A],
    pub(super) dy: &'a [C],
    pub(super) dx: &'a mut [A],
    /// Sums over these rows: the gradients of shift and scale, one after the other.
    pub(super) sums: &'a mut [A],
}

impl<C: Stored<A>, A: Real> Vectorised for NormModulateBackward<'_, C, A> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let width = self.scale.len();
        let count = width as f64;
        let [mut factor, mut normal, mut slope] = [0.0; 3].map(|zero| Row::new(zero, width));
        let (factor, normal) = (factor.as_mut_slice(), normal.as_mut_slice());
        let slope = slope.as_mut_slice();
        widen_scale(self.scale, factor);
        self.sums.fill(A::default());
        let (dshift, dscale) = self.sums.split_at_mut(width);
        let rows = self.x.chunks_exact(width).zip(self.dy.chunks_exact(width));
        let rows = rows.zip(self.statistics.chunks_exact(2));
        for (((x, dy), statistics), dx) in rows.zip(self.dx.chunks_exact_mut(width)) {
            let (mean, reciprocal) = (statistics[0], statistics[1]);
            for ((normal, &x), (slope, (dy, &factor))) in normal
                .iter_mut()
                .zip(x)
                .zip(slope.iter_mut().zip(dy.iter().zip(&*factor)))
            {
                *normal = (x - mean) * reciprocal;
                *slope = dy.widen() * factor;
            }
            let average = A::from_f64(sum(slope, |slope| slope) / count);
            let along = A::from_f64(product(slope, normal) / count);
            for ((dx, &slope), &normal) in dx.iter_mut().zip(&*slope).zip(&*normal) {
                *dx = reciprocal * (slope - average - normal * along);
            }
            for (((dshift, dscale), dy), &normal) in
                dshift.iter_mut().zip(&mut *dscale).zip(dy).zip(&*normal)
            {
                let dy = dy.widen();
                *dshift += dy;
                *dscale += dy * normal;
            }
        }
    }
}

#[inline(always)]
fn product<A: Real>(left: &[A], right: &[A]) -> f64 {
    let ((left, left_rest), (right, right_rest)) =
        (left.as_chunks::<LANES>(), right.as_chunks::<LANES>());
    let mut lanes = [A::default(); LANES];
    for (left, right) in left.iter().zip(right) {
        for lane in 0..LANES {
            lanes[lane] += left[lane] * right[lane];
        }
    }
    for ((lane, &left), &right) in lanes.iter_mut().zip(left_rest).zip(right_rest) {
        *lane += left * right;
    }
    sum_lanes(lanes)
}

/// `z = x + gate y`, for rows of the width of `gate`.
pub(super) struct Gate<'a, C, A> {
    pub(super) x: &'a [A],
    pub(super) gate: &'a [C],
    pub(super) y: &'a [C],
    pub(super) z: &'a mut [A],
}

impl<C: Stored<A>, A: Real> Vectorised for Gate<'_, C, A> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let width = self.gate.len();
        let rows = self.x.chunks_exact(width).zip(self.y.chunks_exact(width));
        for ((x, y), z) in rows.zip(self.z.chunks_exact_mut(width)) {
            for (((z, &x), y), gate) in z.iter_mut().zip(x).zip(y).zip(self.gate) {
                *z = x + gate.widen() * y.widen();
            }
        }
    }
}

/// The gradients of `x + gate y` with respect to `y` and `gate`.
pub(super) struct GateBackward<'a, C, A> {
    pub(super) y: &'a [C],
    pub(super) gate: &'a [C],
    pub(super) gradient: &'a [A],
    pub(super) dy: &'a mut [C],
    /// The sum over these rows.
    pub(super) dgate: &'a mut [A],
}

impl<C: Stored<A>, A: Real> Vectorised for GateBackward<'_, C, A> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let width = self.gate.len();
        self.dgate.fill(A::default());
        let rows = self
            .y
            .chunks_exact(width)
            .zip(self.gradient.chunks_exact(width));
        for ((y, gradient), dy) in rows.zip(self.dy.chunks_exact_mut(width)) {
            for ((dy, &gradient), gate) in dy.iter_mut().zip(gradient).zip(self.gate) {
                *dy = C::narrow(gradient * gate.widen());
            }
            for ((dgate, &gradient), y) in self.dgate.iter_mut().zip(gradient).zip(y) {
                *dgate += gradient * y.widen();
            }
        }
    }
}
