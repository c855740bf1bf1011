//! CPU kernels for norm and modulation of some tokens of one image. Sums use a fixed number of
//! partial sums in a fixed order.

use torch_ext::kernel::{Real, Row, Stored, Vectorised};

use crate::rows::{dot, sum};

/// `y = (x - mean) r weight (1 + scale) + shift`, for rows of `x` with the width of `shift`. With a weight, this
/// is an RMS norm: the mean is replaced by 0.
pub(super) struct NormModulate<'a, C, A> {
    pub(super) x: &'a [A],
    pub(super) shift: &'a [C],
    pub(super) scale: &'a [C],
    pub(super) weight: Option<&'a [A]>,
    pub(super) eps: f64,
    pub(super) y: &'a mut [C],
    /// Mean and reciprocal standard deviation `r` of each row.
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
        factors(self.scale, self.weight, factor);
        for (offset, shift) in offset.iter_mut().zip(self.shift) {
            *offset = shift.widen();
        }
        let rows = self
            .x
            .chunks_exact(width)
            .zip(self.y.chunks_exact_mut(width));
        for ((x, y), statistics) in rows.zip(self.statistics.chunks_exact_mut(2)) {
            let mean = match self.weight {
                None => A::from_f64(sum(x, |x| x) / count),
                Some(_) => A::default(),
            };
            let variance = sum(x, |x| (x - mean) * (x - mean)) / count;
            let reciprocal = A::from_f64(1.0 / (variance + self.eps).sqrt());
            for (((y, &x), &factor), &offset) in y.iter_mut().zip(x).zip(&*factor).zip(&*offset) {
                *y = C::narrow((x - mean) * reciprocal * factor + offset);
            }
            statistics.copy_from_slice(&[mean, reciprocal]);
        }
    }
}

/// Computes `weight (1 + scale)`.
#[inline(always)]
fn factors<C: Stored<A>, A: Real>(scale: &[C], weight: Option<&[A]>, factor: &mut [A]) {
    let one = A::from_f64(1.0);
    for (factor, scale) in factor.iter_mut().zip(scale) {
        *factor = one + scale.widen();
    }
    for (factor, &weight) in factor.iter_mut().zip(weight.unwrap_or_default()) {
        *factor = *factor * weight;
    }
}

/// The gradients of [`NormModulate`].
pub(super) struct NormModulateBackward<'a, C, A> {
    pub(super) x: &'a [A],
    pub(super) scale: &'a [C],
    pub(super) weight: Option<&'a [A]>,
    pub(super) statistics: &'a [A],
    pub(super) dy: &'a [C],
    pub(super) dx: &'a mut [A],
    /// Sums over these rows: the gradient of the shift, followed by the gradient of the scale without the factor
    /// of the weight.
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
        factors(self.scale, self.weight, factor);
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
            let average = match self.weight {
                None => A::from_f64(sum(slope, |slope| slope) / count),
                Some(_) => A::default(),
            };
            let along = A::from_f64(dot(slope, normal) / count);
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
