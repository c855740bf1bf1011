//! RMS norm and rotation of queries and keys.

use half::bf16;
use tch::{Device, Kind, Tensor};
use torch_ext::TorchError;
use torch_ext::autograd::{self, Backward, Forward, Function, Gradients, Outputs};
use torch_ext::kernel::{
    self as cpu, Element, Input, LANES, Output, Real, Row, Vectorised, vectorised,
};

use crate::attention::{attention, check_heads, self_attention, split_heads};
use crate::composed::is_composed;
use crate::modulation::rms_norm;
use crate::rows::{KernelElement, dot, image_parts, image_parts_mut, sum};
use crate::scope::run;

/// Number of tokens per work item. Sums over tokens are computed per item first, so they do not depend on the
/// number of threads.
const TOKENS: usize = 32;

/// The rotations of each token's queries and keys (rotary embedding). Each pair of successive numbers of a head is
/// multiplied, as a complex number, by `cos + i sin` of its angle.
#[derive(Debug)]
pub struct Rotations {
    /// Complex `[T, d / 2]`.
    factors: Tensor,
    /// For the kernel, `[T, d]`, float32: `y_i = x_i cos_i + x_j sin_i`, where `j` is the other number of the pair of
    /// `i`. The sines are negated for the first number of each pair.
    cosines: Tensor,
    sines: Tensor,
}

impl Rotations {
    /// Rotations on `device` with these `cosines` and `sines` `[T, d / 2]`, float32.
    ///
    /// # Errors
    /// The shapes or dtypes differ; memory is exhausted.
    pub fn new(cosines: &Tensor, sines: &Tensor, device: Device) -> Result<Self, TorchError> {
        let pairs = |first: &Tensor, second: &Tensor| {
            let pairs = Tensor::f_stack(&[first, second], -1)?;
            pairs.f_flatten(-2, -1)?.f_to_device(device)
        };
        Ok(Self {
            factors: Tensor::f_complex(cosines, sines)?.f_to_device(device)?,
            cosines: pairs(cosines, cosines)?,
            sines: pairs(&sines.f_neg()?, sines)?,
        })
    }

    /// The complex factors `[T, d / 2]`.
    pub fn factors(&self) -> &Tensor {
        &self.factors
    }

    /// The rotations of the last `count` tokens.
    ///
    /// # Errors
    /// There are fewer tokens.
    pub fn last(&self, count: i64) -> Result<Self, TorchError> {
        let start = self.factors.size2()?.0 - count;
        let last = |table: &Tensor| table.f_narrow(0, start, count);
        Ok(Self {
            factors: last(&self.factors)?,
            cosines: last(&self.cosines)?,
            sines: last(&self.sines)?,
        })
    }

    /// Rotates `x` `[B, heads, T, d]`. Computes in float32 and returns float32.
    ///
    /// # Errors
    /// The shape of `x` does not fit.
    pub fn rotate(&self, x: &Tensor) -> Result<Tensor, TorchError> {
        let (batch, heads, count, width) = x.size4()?;
        Ok(x.f_to_kind(Kind::Float)?
            .f_reshape([batch, heads, count, width / 2, 2])?
            .f_view_as_complex()?
            .f_mul(&self.factors)?
            .f_view_as_real()?
            .f_flatten(-2, -1)?)
    }
}

/// Queries, keys and values of all heads, in the layout of the form of [`norm_rotate`] that computed them.
#[derive(Debug)]
pub struct Heads(Layout);

#[derive(Debug)]
enum Layout {
    /// `[B, T, 3 D]` with the heads of the queries, then of the keys, then of the values; and their number.
    Packed(Tensor, i64),
    /// `[B, heads, T, d]` each.
    Separate([Tensor; 3]),
}

impl Heads {
    /// [`attention`](crate::attention) of these queries, keys and values, `[B, T, heads d]`.
    ///
    /// # Errors
    /// Memory is exhausted.
    pub fn attention(&self) -> Result<Tensor, TorchError> {
        match &self.0 {
            Layout::Packed(qkv, heads) => self_attention(qkv, *heads),
            Layout::Separate([q, k, v]) => attention(q, k, v),
        }
    }

    /// Queries, keys and values, `[B, heads, T, d]` each.
    ///
    /// # Errors
    /// Memory is exhausted.
    pub fn split(self) -> Result<[Tensor; 3], TorchError> {
        match self.0 {
            Layout::Packed(qkv, heads) => split_heads(&qkv, heads),
            Layout::Separate(heads) => Ok(heads),
        }
    }
}

/// Normalises and rotates the queries and keys of `qkv` `[B, T, 3 D]` with `heads` heads: divides each head by its root
/// mean square, `sqrt(mean(x^2) + eps)`, multiplies it by the `weights` `[d]` (of queries, of keys), and rotates it.
/// Values do not change. The result has the dtype of `qkv`.
///
/// A kernel runs on the CPU for float32 or bfloat16 with float32 weights, and for float64 with float64 weights. Its
/// result is one tensor, which the kernel of attention takes without copying the heads. Otherwise libtorch's
/// operators run; they compute in float32 and round to the dtype of `qkv` after the norm and after the rotation.
///
/// # Errors
/// The shapes do not fit each other; memory is exhausted.
pub fn norm_rotate(
    qkv: &Tensor,
    heads: i64,
    weights: [&Tensor; 2],
    rotations: &Rotations,
    eps: f64,
) -> Result<Heads, TorchError> {
    check_heads(qkv, heads)?;
    let fits = qkv.size()[2] == 3 * heads * weights[0].numel() as i64;
    if fits
        && !is_composed()
        && let Some(rotated) = kernel(qkv, weights, rotations, eps)?
    {
        return Ok(Heads(Layout::Packed(rotated, heads)));
    }
    let heads = compose(qkv, heads, weights, rotations, eps)?;
    Ok(Heads(Layout::Separate(heads)))
}

fn compose(
    qkv: &Tensor,
    heads: i64,
    [of_queries, of_keys]: [&Tensor; 2],
    rotations: &Rotations,
    eps: f64,
) -> Result<[Tensor; 3], TorchError> {
    let [q, k, v] = split_heads(qkv, heads)?;
    let q = rotations.rotate(&rms_norm(&q, of_queries, eps)?)?;
    let k = rotations.rotate(&rms_norm(&k, of_keys, eps)?)?;
    Ok([q.f_to_kind(v.kind())?, k.f_to_kind(v.kind())?, v])
}

fn kernel(
    qkv: &Tensor,
    weights: [&Tensor; 2],
    rotations: &Rotations,
    eps: f64,
) -> Result<Option<Tensor>, TorchError> {
    let size = qkv.size();
    let &[batch, count, width] = size.as_slice() else {
        return Ok(None);
    };
    let head = weights[0].numel() as i64;
    let tables = [&rotations.cosines, &rotations.sines];
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
    run(|scope| {
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
                heads: HeadRows::new(weights, tables, *index % inputs.parts(), width, eps),
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
    run(|scope| {
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
                heads: HeadRows::new(weights, tables, *index % inputs.parts(), width, eps),
            });
        })
    })?;
    let sums = sums.into_tensor().f_sum_dim_intlist(0, false, None)?;
    let kind = <E::Sum as Element>::KIND;
    let of = |index| sums.f_select(0, index)?.f_to_kind(kind);
    Ok([dx.into_tensor(), of(0)?, of(1)?])
}

/// The division of tokens into heads, with the parameters for each head.
struct HeadRows<'a, A> {
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
    heads: HeadRows<'a, E::Sum>,
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
    heads: HeadRows<'a, E::Sum>,
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

    /// Rotations by random angles.
    fn random_rotations(count: i64, head: i64) -> Rotations {
        let angles = random(4, [1, count, head / 2], Kind::Float).detach() * 3.0;
        let angles = angles.view([count, head / 2]);
        Rotations::new(&angles.cos(), &angles.sin(), Device::Cpu).unwrap()
    }

    fn fused(i: &[Tensor], rotations: &Rotations) -> Tensor {
        let y = kernel(&i[0], [&i[1], &i[2]], rotations, EPS).unwrap();
        y.expect("a kernel")
    }

    /// The composition in float32, as one tensor of queries, keys and values.
    fn composed(i: &[Tensor], rotations: &Rotations) -> Tensor {
        let heads = i[0].size()[2] / (3 * i[1].size()[0]);
        let qkv = i[0].to_kind(Kind::Float);
        let heads = compose(&qkv, heads, [&i[1], &i[2]], rotations, EPS).unwrap();
        let joined = Tensor::stack(&heads, 0).permute([1, 3, 0, 2, 4]);
        joined.reshape(i[0].size())
    }

    #[test]
    fn gradients_agree_with_finite_differences() {
        for (heads, head) in [(2, 4), (1, 20)] {
            let rotations = random_rotations(9, head);
            let inputs = inputs([2, 9], heads, head, Kind::Double);
            let function = |i: &[Tensor]| Ok::<_, TorchError>(vec![fused(i, &rotations)]);
            check_gradients(function, &inputs, 1e-6, 1e-6).unwrap();
        }
    }

    #[test]
    fn kernel_and_composition_agree() {
        for (kind, limit) in [(Kind::Float, 4e-6), (Kind::BFloat16, 1.2e-2)] {
            for (batch, count, heads, head) in [
                (2, 81, 3, 64),
                (1, 69, 1, 32),
                (3, 1, 2, 4),
                (2, 19, 2, 36),
                (1, 5, 2, 6),
            ] {
                let rotations = random_rotations(count, head);
                let inputs = inputs([batch, count], heads, head, kind);
                let found = run(&inputs, |i| {
                    let y = fused(i, &rotations);
                    assert_eq!(y.kind(), kind);
                    y
                });
                assert_close(&found, &run(&inputs, |i| composed(i, &rotations)), limit);
            }
        }
    }

    #[test]
    fn the_bits_do_not_depend_on_the_number_of_threads() {
        let before = tch::get_num_threads();
        let rotations = random_rotations(83, 32);
        let inputs = inputs([3, 83], 2, 32, Kind::Float);
        let results = [1, 2, 5].map(|threads| {
            tch::set_num_threads(threads);
            run(&inputs, |i| fused(i, &rotations))
        });
        tch::set_num_threads(before);
        assert_eq!(results[0], results[1]);
        assert_eq!(results[0], results[2]);
    }

    #[test]
    fn unsupported_inputs_have_no_kernel() {
        let rotations = random_rotations(4, 8);
        let [qkv, of_queries, of_keys] = inputs([1, 4], 2, 8, Kind::Float);
        let weights = [&of_queries, &of_keys];
        let form = |qkv: &Tensor, weights| kernel(qkv, weights, &rotations, EPS).unwrap();
        assert!(form(&qkv, weights).is_some());
        assert!(form(&qkv.to_kind(Kind::Half), weights).is_none());
        assert!(form(&qkv.narrow(1, 0, 3), weights).is_none());
        assert!(form(&qkv.narrow(2, 0, 40), weights).is_none());
        let narrow = of_keys.narrow(0, 0, 4);
        assert!(form(&qkv, [&of_queries, &narrow]).is_none());
        let halves = weights.map(|weight| weight.to_kind(Kind::BFloat16));
        assert!(form(&qkv, [&halves[0], &halves[1]]).is_none());
    }

    #[test]
    fn attention_of_both_forms_agrees() {
        let rotations = random_rotations(19, 8);
        let [qkv, of_queries, of_keys] = inputs([2, 19], 3, 8, Kind::Float);
        let rotated = || norm_rotate(&qkv, 3, [&of_queries, &of_keys], &rotations, EPS).unwrap();
        let (packed, separate) = (rotated(), crate::composed(rotated));
        let [left, right] = [&packed, &separate].map(|heads| heads.attention().unwrap());
        assert_close(&[left.detach()], &[right.detach()], 4e-6);
        let [left, right] = [packed, separate].map(|heads| heads.split().unwrap());
        for (left, right) in left.iter().zip(&right) {
            assert_close(&[left.detach()], &[right.detach()], 4e-6);
        }
    }
}
