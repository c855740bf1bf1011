//! SwiGLU, the gated activation of JiT's MLP.

use tch::Tensor;
use torch_ext::TorchError;
use torch_ext::autograd;
use torch_ext::kernel::{self as cpu, Input, Output, Real, Vectorised, vectorised};

use crate::composed::is_composed;
use crate::rows::{KernelElement, map_to_two, sigmoid};
use crate::scope::run;
use crate::unary::{self, Unary};

/// Number of tokens per work item.
const TOKENS: usize = 16;

/// `silu(a) b` `[.., I]` for `x` `[.., 2 I]`, whose first half is `a`. The result has the dtype of `x`.
///
/// A kernel runs on the CPU for float32, bfloat16 and float64: one pass forward and one backward, without copies of
/// the halves. Otherwise libtorch's operators run.
///
/// # Errors
/// `x` has an odd width or no dimension; its dtype is not a floating-point dtype; memory is exhausted.
pub fn swiglu(x: &Tensor) -> Result<Tensor, TorchError> {
    let size = x.size();
    if size.last().is_none_or(|width| width % 2 != 0) {
        return Err(TorchError::Shape {
            what: "the input of SwiGLU",
            found: size,
            expected: "[.., 2 I]",
        });
    }
    if !is_composed()
        && let Some(y) = kernel(x)?
    {
        return Ok(y);
    }
    compose(x)
}

/// The kernel for `x` of an even width.
fn kernel(x: &Tensor) -> Result<Option<Tensor>, TorchError> {
    match x.numel() {
        0 => Ok(None),
        _ => unary::apply::<Gated>(x),
    }
}

fn compose(x: &Tensor) -> Result<Tensor, TorchError> {
    let width = x.size().last().copied().unwrap_or_default() / 2;
    // The gradients of both halves are joined by one operator. Those of two `narrow`s would each be padded with zeros
    // to the size of `x`, and added.
    match x.f_split_with_sizes([width, width], -1)?.as_slice() {
        [gate, value] => Ok(gate.f_silu()?.f_mul(value)?),
        parts => Err(TorchError::Length {
            what: "the halves of tokens",
            left: parts.len(),
            right: 2,
        }),
    }
}

/// The size of the result for tokens `x`, and the width of the result.
fn halved(x: &Tensor) -> (Vec<i64>, usize) {
    let mut size = x.size();
    if let Some(width) = size.last_mut() {
        *width /= 2;
    }
    let width = size.last().copied().unwrap_or_default() as usize;
    (size, width)
}

struct Gated;

impl Unary for Gated {
    const NAME: &'static str = "fused SwiGLU";

    fn forward<E: KernelElement>(x: &Tensor) -> autograd::Result<Tensor> {
        let (size, width) = halved(x);
        let mut y = Output::<E>::new(&size)?;
        let x = Input::<E>::new(x)?;
        let y_slice = y.as_mut_slice();
        run(|scope| {
            let parts = scope.read(&x).chunks(2 * width * TOKENS);
            let mut parts: Vec<_> = parts.zip(y_slice.chunks_mut(width * TOKENS)).collect();
            cpu::for_each(&mut parts, |(x, y)| vectorised(SwiGlu { x, y, width }))
        })?;
        Ok(y.into_tensor())
    }

    fn backward<E: KernelElement>(x: &Tensor, dy: &Tensor) -> autograd::Result<Tensor> {
        let (_, width) = halved(x);
        let mut dx = Output::<E>::new(&x.size())?;
        let (x, dy) = (Input::<E>::new(x)?, Input::<E>::new(dy)?);
        let dx_slice = dx.as_mut_slice();
        run(|scope| {
            let parts = scope.read(&x).chunks(2 * width * TOKENS);
            let parts = parts.zip(scope.read(&dy).chunks(width * TOKENS));
            let parts = parts.zip(dx_slice.chunks_mut(2 * width * TOKENS));
            let mut parts: Vec<_> = parts.collect();
            cpu::for_each(&mut parts, |((x, dy), dx)| {
                vectorised(SwiGluBackward { x, dy, dx, width });
            })
        })?;
        Ok(dx.into_tensor())
    }
}

/// Computes `y` from tokens `[a, b]`, whose halves have width `width`.
struct SwiGlu<'a, E> {
    x: &'a [E],
    y: &'a mut [E],
    width: usize,
}

impl<E: KernelElement> Vectorised for SwiGlu<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let rows = self.x.chunks_exact(2 * self.width);
        for (x, y) in rows.zip(self.y.chunks_exact_mut(self.width)) {
            let (a, b) = x.split_at(self.width);
            for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
                let (a, b): (E::Sum, E::Sum) = (a.widen(), b.widen());
                *y = E::narrow(a * sigmoid(a) * b);
            }
        }
    }
}

/// The gradients of [`SwiGlu`].
struct SwiGluBackward<'a, E> {
    x: &'a [E],
    dy: &'a [E],
    dx: &'a mut [E],
    width: usize,
}

impl<E: KernelElement> Vectorised for SwiGluBackward<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let rows = self.x.chunks_exact(2 * self.width);
        let rows = rows.zip(self.dy.chunks_exact(self.width));
        for ((x, dy), dx) in rows.zip(self.dx.chunks_exact_mut(2 * self.width)) {
            let (a, b) = x.split_at(self.width);
            let (da, db) = dx.split_at_mut(self.width);
            map_to_two([a, b, dy], [da, db], gradients);
        }
    }
}

/// The gradients of `a` and `b`.
#[inline(always)]
fn gradients<E: KernelElement>([a, b, dy]: [E; 3]) -> [E; 2] {
    let one = E::Sum::from_f64(1.0);
    let (a, b, dy): (E::Sum, E::Sum, E::Sum) = (a.widen(), b.widen(), dy.widen());
    let s = sigmoid(a);
    [
        E::narrow(dy * b * s * (one + a * (one - s))),
        E::narrow(dy * a * s),
    ]
}

#[cfg(test)]
mod tests {
    use tch::Kind;
    use torch_ext::autograd::check_gradients;
    use torch_ext::operators;

    use super::*;
    use crate::test_support::{assert_close, random, run};

    fn fused(x: &Tensor) -> Tensor {
        kernel(x).unwrap().expect("a kernel")
    }

    fn composed(x: &Tensor) -> Tensor {
        compose(x).unwrap()
    }

    #[test]
    fn gradients_agree_with_finite_differences() {
        let function = |inputs: &[Tensor]| Ok(vec![swiglu(&inputs[0])?]);
        check_gradients(function, &[random(1, [2, 3, 34], Kind::Double)], 1e-6, 1e-6).unwrap();
    }

    #[test]
    fn kernel_and_composition_agree() {
        for (kind, limit) in [(Kind::Float, 2e-6), (Kind::BFloat16, 1.2e-2)] {
            for (scale, size) in [(1.0, [3, 100, 200]), (8.0, [1, 1, 2]), (30.0, [1, 37, 18])] {
                let x = [(random(1, size, kind) * scale).detach()];
                let fused = run(&x, |i| {
                    let y = fused(&i[0]);
                    assert_eq!(y.kind(), kind);
                    y
                });
                assert_close(&fused, &run(&x, |i| composed(&i[0])), limit);
            }
        }
        // Non-contiguous tokens and gradients.
        let x = [random(1, [4, 20, 6], Kind::Float)];
        let fused = run(&x, |i| fused(&i[0].transpose(1, 2)).transpose(1, 2));
        let plain = run(&x, |i| composed(&i[0].transpose(1, 2)).transpose(1, 2));
        assert_close(&fused, &plain, 2e-6);
        assert!(kernel(&x[0].to_kind(Kind::Half)).unwrap().is_none());
    }

    #[test]
    fn the_composition_joins_the_gradients_of_both_halves_once() {
        let x = random(1, [2, 3, 8], Kind::Float);
        let loss = composed(&x).sum(Kind::Float);
        let ((), counts) = operators::count(|| loss.backward()).unwrap();
        assert_eq!(counts["aten::cat"], 1);
        for name in [
            "aten::zeros",
            "aten::narrow_backward",
            "aten::slice_backward",
            "aten::add",
        ] {
            assert!(!counts.contains_key(name), "{name} in {counts:?}");
        }
    }

    #[test]
    fn the_composition_has_the_bits_of_two_slices() {
        for kind in [Kind::Float, Kind::BFloat16] {
            let x = [random(1, [2, 3, 34], kind)];
            let sliced = run(&x, |i| {
                i[0].narrow(-1, 0, 17).silu() * i[0].narrow(-1, 17, 17)
            });
            assert_eq!(run(&x, |i| composed(&i[0])), sliced);
        }
    }

    #[test]
    fn an_odd_width_is_refused() {
        let error = swiglu(&random(1, [1, 2, 3], Kind::Float));
        assert!(matches!(error, Err(TorchError::Shape { .. })), "{error:?}");
        let empty = Tensor::zeros([2, 0], (Kind::Float, tch::Device::Cpu));
        assert_eq!(swiglu(&empty).unwrap().size(), [2, 0]);
    }

    #[test]
    fn kernel_and_composition_agree_on_extreme_numbers() {
        let a = [0f32, -0.0, 1e30, -1e30, f32::NEG_INFINITY, f32::NAN];
        let x: Vec<f32> = a.into_iter().chain([2.0; 6]).collect();
        let x = [Tensor::from_slice(&x).view([1, 1, 12])];
        let values = run(&x, |i| fused(&i[0]));
        for (fused, plain) in values.iter().zip(run(&x, |i| composed(&i[0]))) {
            assert!(fused.allclose(&plain, 0.0, 1e-7, true), "{fused} {plain}");
        }
    }
}
