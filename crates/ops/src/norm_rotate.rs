//! RMS norm and rotation of queries and keys on the CPU. Input and result are one tensor of queries, keys and
//! values, which attention takes without copying the heads.

use half::bf16;
use tch::{Device, Kind, Tensor};
use torch_ext::TorchError;
use torch_ext::autograd::{self, Backward, Forward, Function, Gradients, Outputs};
use torch_ext::kernel::{
    self as cpu, Element, Input, LANES, Output, Real, Row, Vectorised, vectorised,
};

use crate::rows::{KernelElement, dot, image_parts, image_parts_mut, sum};

/// Number of tokens per work item. Sums over tokens are computed per item first, so they do not depend on the
/// number of threads.
const TOKENS: usize = 32;

/// Factors of a rotation: `y_i = x_i cos_i + x_j sin_i`, where `j` is the other number of the pair of `i`.
/// `[T, d]` each, float32.
#[derive(Debug, Clone, Copy)]
pub struct Rotations<'t> {
    /// The cosines, each twice in succession.
    pub cosines: &'t Tensor,
    /// The sines, negated for the first number of each pair.
    pub sines: &'t Tensor,
}

/// Normalises and rotates the queries and keys of `qkv` `[B, T, 3 D]`: divides each head by its root mean
/// square, multiplies it by the `weights` `[d]` (of queries, of keys), and rotates it. Values do not change. The
/// result is `[B, T, 3 D]`, in the dtype of `qkv`.
///
/// Returns `None` if there is no fused form: on devices other than the CPU; for dtypes other than float32 or
/// bfloat16 with float32 weights, or float64 with float64 weights; and for other shapes.
pub fn norm_rotate(
    qkv: &Tensor,
    weights: [&Tensor; 2],
    rotations: Rotations<'_>,
    eps: f64,
) -> Result<Option<Tensor>, TorchError> {
    let size = qkv.size();
    let &[batch, count, width] = size.as_slice() else {
        return Ok(None);
    };
    let head = weights[0].numel() as i64;
    let tables = [rotations.cosines, rotations.sines];
    let fits = head > 0
        && head % 2 == 0
        && width % (3 * head) == 0
        && batch * count * width > 0
        && weights.iter().all(|weight| weight.size() == [head])
        && tables.iter().all(|table| table.size() == [count, head])
        && [qkv]
            .iter()
            .chain(&weights)
            .chain(&tables)
            .all(|t| t.device() == Device::Cpu);
    if !fits {
        return Ok(None);
    }
    let implementation = match (qkv.f_kind()?, weights[0].f_kind()?, weights[1].f_kind()?) {
        (Kind::Float, Kind::Float, Kind::Float) => Implementation::of::<f32>(),
        (Kind::BFloat16, Kind::Float, Kind::Float) => Implementation::of::<bf16>(),
        (Kind::Double, Kind::Double, Kind::Double) => Implementation::of::<f64>(),
        _ => return Ok(None),
    };
    let kind = weights[0].f_kind()?;
    let [cosines, sines] = [tables[0].f_to_kind(kind)?, tables[1].f_to_kind(kind)?];
    let inputs = [qkv, weights[0], weights[1], &cosines, &sines];
    let rotated = autograd::apply(
        NormRotate {
            implementation,
            eps,
        },
        &inputs,
    )?;
    Ok(rotated.into_iter().next())
}

/// Rotates the pairs of successive numbers of `x` `[B, heads, T, d]`: multiplies each pair, as a complex number, by
/// its factor in `rotations`, complex `[T, d / 2]`. It computes in float32 and returns float32.
///
/// # Errors
/// The shapes do not fit each other.
pub fn rotate_pairs(x: &Tensor, rotations: &Tensor) -> Result<Tensor, TorchError> {
    let (batch, heads, count, width) = x.size4()?;
    Ok(x.f_to_kind(Kind::Float)?
        .f_reshape([batch, heads, count, width / 2, 2])?
        .f_view_as_complex()?
        .f_mul(rotations)?
        .f_view_as_real()?
        .f_flatten(-2, -1)?)
}

/// Arguments: `qkv`, two weights, cosines and sines; eps.
type ForwardPass = fn(&[&Tensor; 5], f64) -> autograd::Result<Tensor>;
/// Arguments: as [`ForwardPass`], and the gradient of the result. Returns the gradients of the first three tensors.
type BackwardPass = fn(&[&Tensor; 5], f64, &Tensor) -> autograd::Result<[Tensor; 3]>;

/// Forward and backward pass for one dtype.
struct Implementation {
    forward: ForwardPass,
    backward: BackwardPass,
}

impl Implementation {
    fn of<E: KernelElement>() -> Self {
        Self {
            forward: forward::<E>,
            backward: backward::<E>,
        }
    }
}

struct NormRotate {
    implementation: Implementation,
    eps: f64,
}

impl Function for NormRotate {
    fn name(&self) -> &'static str {
        "fused norm and rotation"
    }

    fn forward(
        &mut self,
        context: &mut Forward<'_>,
        inputs: &[&Tensor],
    ) -> autograd::Result<Outputs> {
        let inputs: Vec<Tensor> = inputs
            .iter()
            .map(|input| input.f_contiguous())
            .collect::<Result<_, _>>()?;
        let [qkv, of_queries, of_keys, cosines, sines] = inputs.as_slice() else {
            return Err("it takes queries, keys and values, two weights, cosines and sines".into());
        };
        let inputs = [qkv, of_queries, of_keys, cosines, sines];
        if context.needs_any_grad() {
            for saved in inputs {
                context.save(saved);
            }
        }
        Ok(vec![(self.implementation.forward)(&inputs, self.eps)?])
    }

    fn backward(
        &self,
        context: &Backward<'_>,
        gradients: &Gradients,
    ) -> autograd::Result<Gradients> {
        let Some(dy) = &gradients[0] else {
            return Ok((0..5).map(|_| None).collect());
        };
        let [qkv, of_queries, of_keys] = [context.saved(0)?, context.saved(1)?, context.saved(2)?];
        let (cosines, sines) = (context.saved(3)?, context.saved(4)?);
        let inputs = [&qkv, &of_queries, &of_keys, &cosines, &sines];
        let [dqkv, of_queries, of_keys] =
            (self.implementation.backward)(&inputs, self.eps, &dy.f_contiguous()?)?;
        let gradients = [Some(dqkv), Some(of_queries), Some(of_keys), None, None];
        Ok(gradients.into())
    }
}

/// The inputs of both passes.
struct Inputs<'t, E: KernelElement> {
    qkv: Input<'t, E>,
    weights: [Input<'t, E::Sum>; 2],
    tables: [Input<'t, E::Sum>; 2],
    count: usize,
    width: usize,
}

impl<'t, E: KernelElement> Inputs<'t, E> {
    fn new(inputs: &[&'t Tensor; 5]) -> autograd::Result<Self> {
        let (_, count, width) = inputs[0].size3()?;
        Ok(Self {
            qkv: Input::new(inputs[0])?,
            weights: [Input::new(inputs[1])?, Input::new(inputs[2])?],
            tables: [Input::new(inputs[3])?, Input::new(inputs[4])?],
            count: count as usize,
            width: width as usize,
        })
    }

    /// Number of parts per image.
    fn parts(&self) -> usize {
        self.count.div_ceil(TOKENS)
    }
}

fn forward<E: KernelElement>(inputs: &[&Tensor; 5], eps: f64) -> autograd::Result<Tensor> {
    let mut y = Output::<E>::new(&inputs[0].size())?;
    let inputs = Inputs::<E>::new(inputs)?;
    let y_slice = y.as_mut_slice();
    cpu::run(|scope| {
        let (count, width) = (inputs.count, inputs.width);
        let weights = [0, 1].map(|index| scope.read(&inputs.weights[index]));
        let tables = [0, 1].map(|index| scope.read(&inputs.tables[index]));
        let mut work: Vec<_> = image_parts(scope.read(&inputs.qkv), count * width, TOKENS * width)
            .zip(image_parts_mut(y_slice, count * width, TOKENS * width))
            .enumerate()
            .collect();
        cpu::for_each(&mut work, |(index, (x, y))| {
            vectorised(Rotate {
                x,
                y,
                heads: Heads::new(weights, tables, *index % inputs.parts(), width, eps),
            });
        })
    })?;
    Ok(y.into_tensor())
}

fn backward<E: KernelElement>(
    inputs: &[&Tensor; 5],
    eps: f64,
    dy: &Tensor,
) -> autograd::Result<[Tensor; 3]> {
    let (batch, ..) = inputs[0].size3()?;
    let mut dx = Output::<E>::new(&inputs[0].size())?;
    let head = inputs[1].numel();
    let inputs = Inputs::<E>::new(inputs)?;
    let dy = Input::<E>::new(dy)?;
    let parts = batch * inputs.parts() as i64;
    let mut sums = Output::<E::Sum>::new(&[parts, 2, head as i64])?;
    let (dx_slice, sums_slice) = (dx.as_mut_slice(), sums.as_mut_slice());
    cpu::run(|scope| {
        let (count, width) = (inputs.count, inputs.width);
        let weights = [0, 1].map(|index| scope.read(&inputs.weights[index]));
        let tables = [0, 1].map(|index| scope.read(&inputs.tables[index]));
        let mut work: Vec<_> = image_parts(scope.read(&inputs.qkv), count * width, TOKENS * width)
            .zip(image_parts(scope.read(&dy), count * width, TOKENS * width))
            .zip(image_parts_mut(dx_slice, count * width, TOKENS * width))
            .zip(sums_slice.chunks_mut(2 * head))
            .enumerate()
            .collect();
        cpu::for_each(&mut work, |(index, (((x, dy), dx), sums))| {
            vectorised(RotateBackward {
                x,
                dy,
                dx,
                sums,
                heads: Heads::new(weights, tables, *index % inputs.parts(), width, eps),
            });
        })
    })?;
    let sums = sums.into_tensor().f_sum_dim_intlist(0, false, None)?;
    let kind = <E::Sum as Element>::KIND;
    let of = |index| sums.f_select(0, index)?.f_to_kind(kind);
    Ok([dx.into_tensor(), of(0)?, of(1)?])
}

/// The division of tokens into heads, with the parameters for each head.
struct Heads<'a, A> {
    /// Weights of queries and keys.
    weights: [&'a [A]; 2],
    /// Cosines and sines, starting at the part's first token.
    cosines: &'a [A],
    sines: &'a [A],
    /// Number of numbers per token, `3 D`.
    width: usize,
    eps: f64,
}

impl<'a, A: Real> Heads<'a, A> {
    fn new(
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
struct Rotate<'a, E: KernelElement> {
    x: &'a [E],
    y: &'a mut [E],
    heads: Heads<'a, E::Sum>,
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
struct RotateBackward<'a, E: KernelElement> {
    x: &'a [E],
    dy: &'a [E],
    dx: &'a mut [E],
    /// Sums over the tokens: the gradient of the weight of queries, followed by that of keys.
    sums: &'a mut [E::Sum],
    heads: Heads<'a, E::Sum>,
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

#[cfg(test)]
mod tests {
    use torch_ext::autograd::check_gradients;

    use super::*;
    use crate::test_support::{assert_close, random, run};

    const EPS: f64 = 1e-6;

    /// Queries, keys and values in one tensor, and the weights of queries and keys.
    fn inputs(size: [i64; 2], heads: i64, head: i64, kind: Kind) -> [Tensor; 3] {
        let [batch, count] = size;
        let of_weights = match kind {
            Kind::Double => Kind::Double,
            _ => Kind::Float,
        };
        let weight = |seed| {
            let weight = random(seed, [1, 1, head], of_weights) * 0.3 + 1.0;
            weight.view(head).detach().set_requires_grad(true)
        };
        let qkv = random(1, [batch, count, 3 * heads * head], kind);
        [qkv, weight(2), weight(3)]
    }

    /// Rotations by random angles: the complex factors `[T, d / 2]`, and the tables of [`Rotations`].
    struct Tables {
        complex: Tensor,
        cosines: Tensor,
        sines: Tensor,
    }

    impl Tables {
        fn new(count: i64, head: i64) -> Self {
            let angles = random(4, [1, count, head / 2], Kind::Float).detach() * 3.0;
            let angles = angles.view([count, head / 2]);
            let (cosines, sines) = (angles.cos(), angles.sin());
            let pairs = |first: &Tensor, second: &Tensor| {
                Tensor::stack(&[first, second], -1).flatten(-2, -1)
            };
            Self {
                complex: Tensor::complex(&cosines, &sines),
                cosines: pairs(&cosines, &cosines),
                sines: pairs(&-&sines, &sines),
            }
        }

        fn rotations(&self) -> Rotations<'_> {
            Rotations {
                cosines: &self.cosines,
                sines: &self.sines,
            }
        }
    }

    fn fused(i: &[Tensor], tables: &Tables) -> Tensor {
        let y = norm_rotate(&i[0], [&i[1], &i[2]], tables.rotations(), EPS).unwrap();
        y.expect("a fused form")
    }

    /// The same with libtorch's operators.
    fn composed(i: &[Tensor], tables: &Tables) -> Tensor {
        let (batch, count, width) = i[0].size3().unwrap();
        let head = i[1].size()[0];
        let heads = i[0].view([batch, count, 3, width / 3 / head, head]);
        let heads = heads.permute([2, 0, 3, 1, 4]);
        let rotated = [0, 1].map(|index| {
            let x = heads.get(index).to_kind(Kind::Float);
            let normal = x.rms_norm([head], Some(&i[1 + index as usize]), EPS);
            rotate_pairs(&normal, &tables.complex).unwrap()
        });
        let [q, k] = rotated;
        let heads = Tensor::stack(&[q, k, heads.get(2).to_kind(Kind::Float)], 0);
        heads
            .permute([1, 3, 0, 2, 4])
            .reshape([batch, count, width])
    }

    #[test]
    fn gradients_agree_with_finite_differences() {
        for (heads, head) in [(2, 4), (1, 20)] {
            let tables = Tables::new(9, head);
            let inputs = inputs([2, 9], heads, head, Kind::Double);
            let function = |i: &[Tensor]| Ok::<_, TorchError>(vec![fused(i, &tables)]);
            check_gradients(function, &inputs, 1e-6, 1e-6).unwrap();
        }
    }

    #[test]
    fn it_agrees_with_the_composed_form() {
        for (kind, limit) in [(Kind::Float, 4e-6), (Kind::BFloat16, 1.2e-2)] {
            for (batch, count, heads, head) in [
                (2, 81, 3, 64),
                (1, 69, 1, 32),
                (3, 1, 2, 4),
                (2, 19, 2, 36),
                (1, 5, 2, 6),
            ] {
                let tables = Tables::new(count, head);
                let inputs = inputs([batch, count], heads, head, kind);
                let found = run(&inputs, |i| {
                    let y = fused(i, &tables);
                    assert_eq!(y.kind(), kind);
                    y
                });
                assert_close(&found, &run(&inputs, |i| composed(i, &tables)), limit);
            }
        }
    }

    #[test]
    fn the_bits_do_not_depend_on_the_number_of_threads() {
        let before = tch::get_num_threads();
        let tables = Tables::new(83, 32);
        let inputs = inputs([3, 83], 2, 32, Kind::Float);
        let results = [1, 2, 5].map(|threads| {
            tch::set_num_threads(threads);
            run(&inputs, |i| fused(i, &tables))
        });
        tch::set_num_threads(before);
        assert_eq!(results[0], results[1]);
        assert_eq!(results[0], results[2]);
    }

    #[test]
    fn unsupported_inputs_have_no_fused_form() {
        let tables = Tables::new(4, 8);
        let [qkv, of_queries, of_keys] = inputs([1, 4], 2, 8, Kind::Float);
        let weights = [&of_queries, &of_keys];
        let form =
            |qkv: &Tensor, weights| norm_rotate(qkv, weights, tables.rotations(), EPS).unwrap();
        assert!(form(&qkv, weights).is_some());
        assert!(form(&qkv.to_kind(Kind::Half), weights).is_none());
        assert!(form(&qkv.narrow(1, 0, 3), weights).is_none());
        assert!(form(&qkv.narrow(2, 0, 40), weights).is_none());
        let narrow = of_keys.narrow(0, 0, 4);
        assert!(form(&qkv, [&of_queries, &narrow]).is_none());
        let halves = weights.map(|weight| weight.to_kind(Kind::BFloat16));
        assert!(form(&qkv, [&halves[0], &halves[1]]).is_none());
    }
}
