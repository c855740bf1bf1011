//! Multi-head attention.

mod kernel;
#[cfg(test)]
mod tests;

use half::bf16;
use tch::{Device, Kind, Tensor};
use torch_ext::TorchError;
use torch_ext::autograd::{self, Backward, Forward, Function, Gradients, Outputs};
use torch_ext::kernel::{self as cpu, Input, Output};

use self::kernel::{Head, Scratch};
use crate::composed::is_composed;
use crate::matrix::{Columns, Rows, multiplies_fast};
use crate::rows::KernelElement;
use crate::scope::run;

/// Self-attention, `softmax(q k^T / sqrt(d)) v` of every head, `[B, T, D]`, for `qkv` `[B, T, 3 D]` with the heads of
/// the queries, then of the keys, then of the values. The result has the dtype of `qkv`.
///
/// A kernel runs on CPUs with AVX2 for float32, bfloat16 and float64, except for bfloat16 heads of an odd width. It
/// reads queries, keys and values as the linear layer returns them; libtorch's attention, which runs otherwise, needs
/// separate heads, whose gradients it copies together, and its products are slow in bfloat16.
///
/// # Errors
/// `qkv` is not three-dimensional, or its width is not a multiple of `3 heads`; memory is exhausted.
pub fn self_attention(qkv: &Tensor, heads: i64) -> Result<Tensor, TorchError> {
    check_heads(qkv, heads)?;
    if !is_composed()
        && let Some(o) = self_attention_kernel(qkv, heads)?
    {
        return Ok(o);
    }
    let [q, k, v] = split_heads(qkv, heads)?;
    compose(&q, &k, &v)
}

/// [`self_attention`], `[B, T, heads d]`, for separate `q`, `k` and `v` `[B, heads, T, d]`.
///
/// The kernel runs for tensors of one size and dtype.
///
/// # Errors
/// The shapes do not fit each other; the dtypes differ; memory is exhausted.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor, TorchError> {
    if !is_composed()
        && let Some(o) = attention_kernel(q, k, v)?
    {
        return Ok(o);
    }
    compose(q, k, v)
}

/// Checks that `qkv` is `[B, T, 3 heads d]`.
pub(crate) fn check_heads(qkv: &Tensor, heads: i64) -> Result<(), TorchError> {
    match qkv.size()[..] {
        [_, _, width] if heads > 0 && width % (3 * heads) == 0 => Ok(()),
        _ => Err(TorchError::Shape {
            what: "queries, keys and values",
            found: qkv.size(),
            expected: "[B, T, 3 heads d]",
        }),
    }
}

/// Queries, keys and values of `qkv` `[B, T, 3 D]`, `[B, heads, T, d]` each.
pub(crate) fn split_heads(qkv: &Tensor, heads: i64) -> Result<[Tensor; 3], TorchError> {
    let (batch, count, width) = qkv.size3()?;
    let qkv = qkv
        .f_view([batch, count, 3, heads, width / (3 * heads)])?
        .f_permute([2, 0, 3, 1, 4])?;
    // The gradients of the parts are joined by one operator. Those of three `select`s would each be padded with zeros
    // to the size of `qkv`, and added.
    let parts = qkv.f_unbind(0)?;
    parts
        .try_into()
        .map_err(|parts: Vec<_>| TorchError::Length {
            what: "queries, keys and values",
            left: parts.len(),
            right: 3,
        })
}

fn compose(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor, TorchError> {
    let mixed =
        Tensor::f_scaled_dot_product_attention::<&Tensor>(q, k, v, None, 0.0, false, None, false)?;
    let (batch, heads, count, width) = mixed.size4()?;
    Ok(mixed
        .f_transpose(1, 2)?
        .f_reshape([batch, count, heads * width])?)
}

fn self_attention_kernel(qkv: &Tensor, heads: i64) -> Result<Option<Tensor>, TorchError> {
    let size = qkv.size();
    let &[batch, count, width] = size.as_slice() else {
        return Ok(None);
    };
    if heads < 1 || width % (3 * heads) != 0 {
        return Ok(None);
    }
    apply(&[qkv], [batch, count, heads, width / (3 * heads)])
}

fn attention_kernel(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Option<Tensor>, TorchError> {
    let size = q.size();
    let &[batch, heads, count, width] = size.as_slice() else {
        return Ok(None);
    };
    let alike = |x: &Tensor| x.size() == size && x.kind() == q.kind() && x.device() == q.device();
    if !(alike(k) && alike(v)) {
        return Ok(None);
    }
    apply(&[q, k, v], [batch, count, heads, width])
}

fn apply(
    inputs: &[&Tensor],
    [batch, count, heads, width]: [i64; 4],
) -> Result<Option<Tensor>, TorchError> {
    // Tests run it on all processors.
    let fast = multiplies_fast() || cfg!(test);
    if !fast || inputs[0].device() != Device::Cpu || inputs[0].numel() == 0 {
        return Ok(None);
    }
    let implementation = match inputs[0].f_kind()? {
        Kind::Float => Implementation::of::<f32>(),
        Kind::Double => Implementation::of::<f64>(),
        Kind::BFloat16 if width % 2 == 0 => Implementation::of::<bf16>(),
        _ => return Ok(None),
    };
    let [batch, count, heads, width] = [batch, count, heads, width].map(|size| size as usize);
    let layout = Layout {
        batch,
        count,
        heads,
        width,
        packed: inputs.len() == 1,
    };
    let function = FusedAttention {
        layout,
        implementation,
    };
    Ok(Some(autograd::apply(function, inputs)?.remove(0)))
}

type ForwardPass = fn(&[Tensor], Layout) -> autograd::Result<[Tensor; 2]>;
type BackwardPass = fn(&[Tensor], &[&Tensor; 3], Layout) -> autograd::Result<Vec<Tensor>>;

/// Forward and backward pass for one dtype.
#[derive(Clone, Copy)]
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

struct FusedAttention {
    layout: Layout,
    implementation: Implementation,
}

impl Function for FusedAttention {
    fn name(&self) -> &'static str {
        "fused attention"
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
        let [o, log_sums] = (self.implementation.forward)(&inputs, self.layout)?;
        if context.needs_any_grad() {
            for saved in inputs.iter().chain([&o, &log_sums]) {
                context.save(saved);
            }
        }
        Ok(vec![o])
    }

    fn backward(
        &self,
        context: &Backward<'_>,
        gradients: &Gradients,
    ) -> autograd::Result<Gradients> {
        let count = if self.layout.packed { 1 } else { 3 };
        let Some(d_o) = &gradients[0] else {
            return Ok((0..count).map(|_| None).collect());
        };
        let inputs: Vec<Tensor> = (0..count)
            .map(|index| context.saved(index))
            .collect::<Result<_, _>>()?;
        let (o, log_sums) = (context.saved(count)?, context.saved(count + 1)?);
        let results = [&o, &log_sums, &d_o.f_contiguous()?];
        let gradients = (self.implementation.backward)(&inputs, &results, self.layout)?;
        Ok(gradients.into_iter().map(Some).collect())
    }
}

/// Numbers of images, tokens and heads, and the width of a head.
#[derive(Clone, Copy)]
struct Layout {
    batch: usize,
    count: usize,
    heads: usize,
    width: usize,
    /// Whether queries, keys and values are one tensor `[B, T, 3 D]` instead of three `[B, heads, T, d]`.
    packed: bool,
}

impl Layout {
    /// Number of elements of a token of the result.
    fn token(&self) -> usize {
        self.heads * self.width
    }

    /// Shape of the result, `[B, T, D]`.
    fn result(&self) -> [i64; 3] {
        [self.batch, self.count, self.token()].map(|size| size as i64)
    }

    /// All pairs of image and head, ordered by image.
    fn each(&self) -> impl Iterator<Item = (usize, usize)> {
        let heads = self.heads;
        (0..self.batch).flat_map(move |image| (0..heads).map(move |head| (image, head)))
    }

    /// Block number `block` of an image, in a tensor whose tokens consist of `blocks` blocks of a head's width.
    fn rows<'a, E>(
        &self,
        values: &'a [E],
        (image, block): (usize, usize),
        blocks: usize,
    ) -> Rows<'a, E> {
        let stride = blocks * self.width;
        let first = image * self.count * stride + block * self.width;
        Rows::new(&values[first..], stride, self.count, self.width)
    }

    /// Queries, keys and values of one head of one image, from the inputs.
    fn head<'a, E>(&self, inputs: &[&'a [E]], (image, head): (usize, usize)) -> Head<'a, E> {
        let [q, k, v] = std::array::from_fn(|kind| match inputs {
            [qkv] => self.rows(qkv, (image, kind * self.heads + head), 3 * self.heads),
            parts => self.rows(parts[kind], (image * self.heads + head, 0), 1),
        });
        Head { q, k, v }
    }

    /// Divides the gradients of the inputs into those of each head, ordered by image, then by head.
    fn split<'a, E>(&self, gradients: Vec<&'a mut [E]>) -> Vec<[Columns<'a, E>; 3]> {
        let mut columns: Vec<_> = if self.packed {
            let token = 3 * self.token();
            let images = gradients
                .into_iter()
                .flat_map(|gradient| gradient.chunks_mut(self.count * token));
            // Order within an image: heads of the queries, of the keys, of the values.
            images
                .flat_map(|image| Columns::split(image, token, self.width))
                .collect()
        } else {
            let heads = gradients
                .into_iter()
                .flat_map(|gradient| gradient.chunks_mut(self.count * self.width));
            heads
                .flat_map(|head| Columns::split(head, self.width, self.width))
                .collect()
        };
        // Regroups columns of one kind into triples of queries, keys and values.
        let group = if self.packed {
            self.heads
        } else {
            self.batch * self.heads
        };
        let mut triples = Vec::with_capacity(self.batch * self.heads);
        while !columns.is_empty() {
            let rest = columns.split_off((3 * group).min(columns.len()));
            let mut kinds = std::mem::replace(&mut columns, rest).into_iter();
            let [q, k, v]: [Vec<_>; 3] =
                std::array::from_fn(|_| kinds.by_ref().take(group).collect());
            triples.extend(q.into_iter().zip(k).zip(v).map(|((q, k), v)| [q, k, v]));
        }
        triples
    }
}

/// Gives kernels read access to tensors.
fn readable<E: KernelElement>(tensors: &[Tensor]) -> autograd::Result<Vec<Input<'_, E>>> {
    Ok(tensors.iter().map(Input::new).collect::<Result<_, _>>()?)
}

fn forward<E: KernelElement>(inputs: &[Tensor], layout: Layout) -> autograd::Result<[Tensor; 2]> {
    let [batch, count, heads] = [layout.batch, layout.count, layout.heads].map(|size| size as i64);
    let mut o = Output::<E>::new(&layout.result())?;
    let mut log_sums = Output::<E::Sum>::new(&[batch, heads, count])?;
    let inputs = readable::<E>(inputs)?;
    let (o_slice, log_sums_slice) = (o.as_mut_slice(), log_sums.as_mut_slice());
    run(|scope| {
        let inputs: Vec<&[E]> = inputs.iter().map(|input| scope.read(input)).collect();
        let token = layout.token();
        let images = o_slice.chunks_mut(layout.count * token);
        let mut items: Vec<_> = images
            .flat_map(|image| Columns::split(image, token, layout.width))
            .zip(log_sums_slice.chunks_mut(layout.count))
            .zip(layout.each())
            .map(|((o, log_sums), place)| kernel::Forward {
                head: layout.head(&inputs, place),
                o,
                log_sums,
            })
            .collect();
        cpu::for_each_with(&mut items, Scratch::default, kernel::Forward::run)
    })?;
    Ok([o.into_tensor(), log_sums.into_tensor()])
}

/// The gradients of the inputs, computed from the inputs, the result, the logarithms of sums and the gradient of
/// the result.
fn backward<E: KernelElement>(
    inputs: &[Tensor],
    &[o, log_sums, d_o]: &[&Tensor; 3],
    layout: Layout,
) -> autograd::Result<Vec<Tensor>> {
    let mut gradients: Vec<Output<E>> = inputs
        .iter()
        .map(|input| Output::new(&input.size()))
        .collect::<Result<_, _>>()?;
    let inputs = readable::<E>(inputs)?;
    let (o, d_o) = (Input::<E>::new(o)?, Input::<E>::new(d_o)?);
    let log_sums = Input::<E::Sum>::new(log_sums)?;
    let slices = gradients.iter_mut().map(Output::as_mut_slice).collect();
    let columns = layout.split(slices);
    run(|scope| {
        let inputs: Vec<&[E]> = inputs.iter().map(|input| scope.read(input)).collect();
        let (o, d_o) = (scope.read(&o), scope.read(&d_o));
        let mut items: Vec<_> = layout
            .each()
            .zip(columns)
            .zip(scope.read(&log_sums).chunks(layout.count))
            .map(|((place, [dq, dk, dv]), log_sums)| kernel::Backward {
                head: layout.head(&inputs, place),
                o: layout.rows(o, place, layout.heads),
                d_o: layout.rows(d_o, place, layout.heads),
                log_sums,
                dq,
                dk,
                dv,
            })
            .collect();
        cpu::for_each_with(&mut items, Scratch::default, kernel::Backward::run)
    })?;
    Ok(gradients.into_iter().map(Output::into_tensor).collect())
}
