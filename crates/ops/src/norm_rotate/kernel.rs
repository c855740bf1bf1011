//! CPU kernels for norm and rotation of some tokens of one image.

use torch_ext::kernel::{LANES, Real, Row, Vectorised};

use crate::rows::{KernelElement, dot, sum};

/// Number of tokens per work item. Sums over tokens are computed per item first, so they do not depend on the
/// number of threads.
pub(super) const TOKENS: usize = 32;

/// The division of tokens into heads, with the parameters for each head.
pub(super) struct HeadRows<'a, A> {
    /// Weights of queries and keys.
    weights: [&'a [A]; 2],
    /// Cosines and sines, starting at the part's first token.
    cosines: &'a [A],
    sines: &'a [A],
    /// Number of numbers per token, `3 D`.
    width: usize,
    eps: f64,
}

impl<'a, A: Real> HeadRows<'a, A> {
    pub(super) fn new(
        weights: [&'a [A]; 2],
        [cosines, sines]: [&'a [A]; 2],
        part: usize,
        width: usize,
        eps: f64,
    ) -> Self {
        let first = part * TOKENS * weights[0].len();
        Self {
            weights,
            cosines: &cosines[first..],
            sines: &sines[first..],
            width,
            eps,
        }
    }

    fn head(&self) -> usize {
        self.weights[0].len()
    }

    /// Cosines and sines of each token.
    #[inline(always)]
    fn rotations(&self) -> impl Iterator<Item = (&'a [A], &'a [A])> + use<'a, A> {
        let head = self.head();
        self.cosines
            .chunks_exact(head)
            .zip(self.sines.chunks_exact(head))
    }

    /// The reciprocal of the root mean square.
    #[inline(always)]
    fn reciprocal(&self, x: &[A]) -> A {
        let mean = sum(x, |x| x * x) / x.len() as f64;
        A::from_f64(1.0 / (mean + self.eps).sqrt())
    }
}

/// Rotates the pairs of a head: `x_i cos_i + x_j sin_i`, where `j` is the other number of the pair of `i`.
#[inline(always)]
fn rotate<A: Real>(x: &mut [A], cosines: &[A], sines: &[A]) {
    let (pieces, rest) = x.as_chunks_mut::<LANES>();
    let (cosines, cosines_rest) = cosines.as_chunks::<LANES>();
    let (sines, sines_rest) = sines.as_chunks::<LANES>();
    for ((piece, cosines), sines) in pieces.iter_mut().zip(cosines).zip(sines) {
        let x = *piece;
        for lane in 0..LANES {
            piece[lane] = x[lane] * cosines[lane] + x[lane ^ 1] * sines[lane];
        }
    }
    let pairs = rest.as_chunks_mut::<2>().0.iter_mut();
    let rotations = cosines_rest
        .as_chunks()
        .0
        .iter()
        .zip(sines_rest.as_chunks().0);
    for (pair, (cosines, sines)) in pairs.zip(rotations) {
        let ([x, y], [c, d]): (_, &[A; 2]) = (*pair, cosines);
        let [s, t]: &[A; 2] = sines;
        *pair = [x * *c + y * *s, y * *d + x * *t];
    }
}

/// Norm and rotation of the tokens of one work item.
pub(super) struct Rotate<'a, E: KernelElement> {
    pub(super) x: &'a [E],
    pub(super) y: &'a mut [E],
    pub(super) heads: HeadRows<'a, E::Sum>,
}

impl<E: KernelElement> Vectorised for Rotate<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { x, y, heads } = self;
        let (head, all) = (heads.head(), heads.width / 3);
        let mut row = Row::new(0.0, head);
        let row = row.as_mut_slice();
        let tokens = x
            .chunks_exact(heads.width)
            .zip(y.chunks_exact_mut(heads.width));
        for ((x, y), (cosines, sines)) in tokens.zip(heads.rotations()) {
            let (x, values) = x.split_at(2 * all);
            let (y, out) = y.split_at_mut(2 * all);
            out.copy_from_slice(values);
            let pairs = x.chunks_exact(head).zip(y.chunks_exact_mut(head));
            for (index, (x, y)) in pairs.enumerate() {
                let weight = heads.weights[usize::from(index * head >= all)];
                for (row, x) in row.iter_mut().zip(x) {
                    *row = x.widen();
                }
                let reciprocal = heads.reciprocal(row);
                for (row, &weight) in row.iter_mut().zip(weight) {
                    *row = *row * reciprocal * weight;
                }
                rotate(row, cosines, sines);
                for (y, &row) in y.iter_mut().zip(&*row) {
                    *y = E::narrow(row);
                }
            }
        }
    }
}

/// The gradients of [`Rotate`].
pub(super) struct RotateBackward<'a, E: KernelElement> {
    pub(super) x: &'a [E],
    pub(super) dy: &'a [E],
    pub(super) dx: &'a mut [E],
    /// Sums over the tokens: the gradient of the weight of queries, followed by that of keys.
    pub(super) sums: &'a mut [E::Sum],
    pub(super) heads: HeadRows<'a, E::Sum>,
}

impl<E: KernelElement> Vectorised for RotateBackward<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self {
            x,
            dy,
            dx,
            sums,
            heads,
        } = self;
        let (head, all) = (heads.head(), heads.width / 3);
        sums.fill(E::Sum::default());
        let mut rows = [0.0; 3].map(|zero| Row::new(zero, head));
        let [normal, slope, negated_sines] = rows.each_mut().map(|row| row.as_mut_slice());
        let tokens = x
            .chunks_exact(heads.width)
            .zip(dy.chunks_exact(heads.width))
            .zip(dx.chunks_exact_mut(heads.width));
        for (((x, dy), dx), (cosines, sines)) in tokens.zip(heads.rotations()) {
            let (dy, values) = dy.split_at(2 * all);
            let (dx, out) = dx.split_at_mut(2 * all);
            out.copy_from_slice(values);
            // The gradient is rotated by the negative angle.
            for (negated, &sine) in negated_sines.iter_mut().zip(sines) {
                *negated = E::Sum::default() - sine;
            }
            let pairs = x.chunks_exact(head).zip(dy.chunks_exact(head));
            for (index, ((x, dy), dx)) in pairs.zip(dx.chunks_exact_mut(head)).enumerate() {
                let of_keys = usize::from(index * head >= all);
                let weight = heads.weights[of_keys];
                let sums = &mut sums[of_keys * head..][..head];
                for ((normal, slope), (x, dy)) in
                    normal.iter_mut().zip(&mut *slope).zip(x.iter().zip(dy))
                {
                    *normal = x.widen();
                    *slope = dy.widen();
                }
                let reciprocal = heads.reciprocal(normal);
                for normal in normal.iter_mut() {
                    *normal = *normal * reciprocal;
                }
                rotate(slope, cosines, negated_sines);
                for (((sum, slope), &normal), &weight) in
                    sums.iter_mut().zip(&mut *slope).zip(&*normal).zip(weight)
                {
                    *sum += *slope * normal;
                    *slope = *slope * weight;
                }
                let along = E::Sum::from_f64(dot(slope, normal) / head as f64);
                for ((dx, &slope), &normal) in dx.iter_mut().zip(&*slope).zip(&*normal) {
                    *dx = E::narrow(reciprocal * (slope - normal * along));
                }
            }
        }
    }
}
