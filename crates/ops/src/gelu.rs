//! The tanh form of GELU.

use tch::Tensor;
use torch_ext::TorchError;
use torch_ext::autograd;
use torch_ext::kernel::{self as cpu, Input, Output, Real, Vectorised, vectorised};

use crate::composed::is_composed;
use crate::rows::{KernelElement, sigmoid};
use crate::scope::run;
use crate::unary::{self, Unary};

/// Number of elements per work item.
const PART: usize = 1 << 14;

/// The tanh form of GELU, `x (1 + tanh(u)) / 2` with `u = sqrt(2 / pi) (x + 0.044715 x^3)`, for `x` of any shape. The
/// result has the shape and the dtype of `x`.
///
/// A kernel runs on the CPU for float32, bfloat16 and float64. It computes `x sigmoid(2 u)`: libtorch's GELU, which
/// runs otherwise, spends most of its time on the tanh.
///
/// # Errors
/// The dtype is not a floating-point dtype; memory is exhausted.
pub fn gelu(x: &Tensor) -> Result<Tensor, TorchError> {
    if !is_composed()
        && let Some(y) = kernel(x)?
    {
        return Ok(y);
    }
    compose(x)
}

fn kernel(x: &Tensor) -> Result<Option<Tensor>, TorchError> {
    unary::apply::<Gelu>(x)
}

fn compose(x: &Tensor) -> Result<Tensor, TorchError> {
    Ok(x.f_gelu("tanh")?)
}

struct Gelu;

impl Unary for Gelu {
    const NAME: &'static str = "fused GELU";

    fn forward<E: KernelElement>(x: &Tensor) -> autograd::Result<Tensor> {
        let mut y = Output::<E>::new(&x.size())?;
        let x = Input::<E>::new(x)?;
        let y_slice = y.as_mut_slice();
        run(|scope| {
            let parts = scope.read(&x).chunks(PART).zip(y_slice.chunks_mut(PART));
            let mut parts: Vec<_> = parts.collect();
            cpu::for_each(&mut parts, |(x, y)| {
                vectorised(Map {
                    x,
                    with: x,
                    y,
                    f: |x: E::Sum, _| x * sigmoid(twice_u(x)),
                });
            })
        })?;
        Ok(y.into_tensor())
    }

    fn backward<E: KernelElement>(x: &Tensor, dy: &Tensor) -> autograd::Result<Tensor> {
        let mut dx = Output::<E>::new(&x.size())?;
        let (x, dy) = (Input::<E>::new(x)?, Input::<E>::new(dy)?);
        let dx_slice = dx.as_mut_slice();
        run(|scope| {
            let parts = scope.read(&x).chunks(PART);
            let parts = parts.zip(scope.read(&dy).chunks(PART));
            let mut parts: Vec<_> = parts.zip(dx_slice.chunks_mut(PART)).collect();
            cpu::for_each(&mut parts, |((x, dy), dx)| {
                vectorised(Map {
                    x,
                    with: dy,
                    y: dx,
                    f: |x: E::Sum, dy| {
                        let s = sigmoid(twice_u(x));
                        let slope = x * s * (E::Sum::from_f64(1.0) - s);
                        dy * slope.mul_add(twice_u_slope(x), s)
                    },
                });
            })
        })?;
        Ok(dx.into_tensor())
    }
}

/// Computes `y = f(x, with)` for each element.
struct Map<'a, E, F> {
    x: &'a [E],
    with: &'a [E],
    y: &'a mut [E],
    f: F,
}

impl<E: KernelElement, F: Fn(E::Sum, E::Sum) -> E::Sum> Vectorised for Map<'_, E, F> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for ((y, x), with) in self.y.iter_mut().zip(self.x).zip(self.with) {
            *y = E::narrow((self.f)(x.widen(), with.widen()));
        }
    }
}

/// `2 sqrt(2 / pi)`.
const SCALE: f64 = std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::SQRT_2;
/// Coefficient of `x^3`.
const CUBIC: f64 = 0.044715;

#[inline(always)]
fn twice_u<A: Real>(x: A) -> A {
    x * (x * x).mul_add(A::from_f64(SCALE * CUBIC), A::from_f64(SCALE))
}

#[inline(always)]
fn twice_u_slope<A: Real>(x: A) -> A {
    (x * x).mul_add(A::from_f64(3.0 * SCALE * CUBIC), A::from_f64(SCALE))
}

#[cfg(test)]
mod tests {
    use tch::Kind;
    use torch_ext::autograd::check_gradients;

    use super::*;
    use crate::test_support::{assert_close, random, run};

    fn fused(x: &Tensor) -> Tensor {
        kernel(x).unwrap().expect("a kernel")
    }

    #[test]
    fn gradients_agree_with_finite_differences() {
        let function = |inputs: &[Tensor]| Ok(vec![gelu(&inputs[0])?]);
        check_gradients(function, &[random(1, [2, 3, 17], Kind::Double)], 1e-6, 1e-6).unwrap();
    }

    #[test]
    fn kernel_and_composition_agree() {
        for (kind, limit) in [(Kind::Float, 2e-6), (Kind::BFloat16, 8e-3)] {
            for (scale, size) in [(1.0, [3, 100, 200]), (8.0, [1, 1, 33]), (60.0, [1, 7, 9])] {
                let x = [(random(1, size, kind) * scale).detach()];
                let fused = run(&x, |i| {
                    let y = fused(&i[0]);
                    assert_eq!(y.kind(), kind);
                    y
                });
                let plain = run(&x, |i| compose(&i[0]).unwrap());
                assert_close(&fused, &plain, limit);
            }
        }
        let odd = [0f32, -0.0, 1e12, -1e12, f32::INFINITY, f32::NAN];
        let odd = [Tensor::from_slice(&odd).view([1, 1, 6])];
        let values = run(&odd, |i| fused(&i[0]));
        for (fused, plain) in values.iter().zip(run(&odd, |i| compose(&i[0]).unwrap())) {
            assert!(fused.allclose(&plain, 0.0, 1e-7, true), "{fused} {plain}");
        }
        let odd = &odd[0];
        let half = odd.to_kind(Kind::Half);
        assert!(kernel(&half).unwrap().is_none());
        assert_eq!(
            gelu(&half).unwrap().nan_to_num(0.0, 0.0, 0.0),
            half.gelu("tanh").nan_to_num(0.0, 0.0, 0.0)
        );
    }
}
