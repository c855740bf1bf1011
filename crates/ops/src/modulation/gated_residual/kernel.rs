//! CPU kernels for gated residuals of some tokens of one image. Sums are in a fixed order.

use torch_ext::kernel::{Real, Stored, Vectorised};

/// `z = x + gate y`, for rows with the width of `gate`.
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
    /// Sum over these rows.
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
