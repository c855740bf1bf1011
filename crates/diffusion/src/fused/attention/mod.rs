//! Self-attention on the CPU, from the queries, keys and values as the linear layer leaves them to the
//! tokens as the next one takes them.
//!
//! libtorch's form wants the heads apart: it copies gradients together again, and its products of blocks
//! are slow in bfloat16.

mod kernel;
#[cfg(test)]
mod tests;

use half::bf16;
use tch::{Device, Kind, Tensor};
use torch_ext::autograd::{self, Backward, Forward, Function, Gradients, Outputs};
use torch_ext::kernel::{self as cpu, Columns, Input, Output, Rows};

use self::kernel::{Head, Scratch};
use super::Number;
use crate::DiffusionError;

/// `softmax(q k^T / sqrt(d)) v` of every head, for `qkv` `[B, T, 3 D]` with the heads of the queries first,
/// then those of keys and values; `[B, T, D]`.
///
/// `None` where there is no fused form: on other devices than the CPU, for other dtypes than float32,
/// bfloat16 and float64, for bfloat16 heads of an odd width; and where our products of matrices are slow.
pub(crate) fn attention(qkv: &Tensor, heads: i64) -> Result<Option<Tensor>, DiffusionError> {
    let size = qkv.size();
    let &[_, _, width] = size.as_slice() else {
        return Ok(None);
    };
    if qkv.device() != Device::Cpu || qkv.numel() == 0 || heads < 1 || width % (3 * heads) != 0 {
        return Ok(None);
    }
    // Tests run it everywhere.
    if !(cpu::multiplies_fast() || cfg!(test)) {
        return Ok(None);
    }
    let passes = match qkv.f_kind()? {
        Kind::Float => Passes::of::<f32>(),
        Kind::Double => Passes::of::<f64>(),
        Kind::BFloat16 if (width / (3 * heads)) % 2 == 0 => Passes::of::<bf16>(),
        _ => return Ok(None),
    };
    let function = FusedAttention { heads, passes };
    Ok(Some(autograd::apply(function, &[qkv])?.remove(0)))
}

/// The passes for one dtype.
#[derive(Clone, Copy)]
struct Passes {
    forward: fn(&Tensor, i64) -> autograd::Result<[Tensor; 2]>,
    backward: fn(&[&Tensor; 4], i64) -> autograd::Result<Tensor>,
}

impl Passes {
    fn of<E: Number>() -> Self {
        Self {
            forward: forward::<E>,
            backward: backward::<E>,
        }
    }
}

struct FusedAttention {
    heads: i64,
    passes: Passes,
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
        let &[qkv] = inputs else {
            return Err("it takes queries, keys and values as one tensor".into());
        };
        let qkv = qkv.f_contiguous()?;
        let [o, log_sums] = (self.passes.forward)(&qkv, self.heads)?;
        if context.needs_any_grad() {
            context.save(&qkv);
            context.save(&o);
            context.save(&log_sums);
        }
        Ok(vec![o])
    }

    fn backward(
        &self,
        context: &Backward<'_>,
        gradients: &Gradients,
    ) -> autograd::Result<Gradients> {
        let Some(d_o) = &gradients[0] else {
            return Ok(vec![None]);
        };
        let [qkv, o, log_sums] = [context.saved(0)?, context.saved(1)?, context.saved(2)?];
        let inputs = [&qkv, &o, &log_sums, &d_o.f_contiguous()?];
        Ok(vec![Some((self.passes.backward)(&inputs, self.heads)?)])
    }
}

/// Images, tokens, heads, and the width of a head.
#[derive(Clone, Copy)]
struct Layout {
    batch: usize,
    count: usize,
    heads: usize,
    width: usize,
}

impl Layout {
    fn new(qkv: &Tensor, heads: i64) -> autograd::Result<Self> {
        let (batch, count, width) = qkv.size3()?;
        Ok(Self {
            batch: batch as usize,
            count: count as usize,
            heads: heads as usize,
            width: (width / (3 * heads)) as usize,
        })
    }

    /// Elements of a token of `D` elements.
    fn token(&self) -> usize {
        self.heads * self.width
    }

    /// The images and heads in turn.
    fn each(&self) -> impl Iterator<Item = (usize, usize)> {
        let heads = self.heads;
        (0..self.batch).flat_map(move |image| (0..heads).map(move |head| (image, head)))
    }

    /// Block `block` of an image, in tensors whose tokens consist of `blocks` blocks of a head's width.
    fn rows<'a, E>(
        &self,
        values: &'a [E],
        image: usize,
        block: usize,
        blocks: usize,
    ) -> Rows<'a, E> {
        let stride = blocks * self.width;
        let first = image * self.count * stride + block * self.width;
        Rows::new(&values[first..], stride, self.count, self.width)
    }

    fn head<'a, E>(&self, qkv: &'a [E], image: usize, head: usize) -> Head<'a, E> {
        let of = |kind: usize| self.rows(qkv, image, kind * self.heads + head, 3 * self.heads);
        Head {
            q: of(0),
            k: of(1),
            v: of(2),
        }
    }
}

/// Works on items with a scratch that each thread makes once. No item's result depends on which others
/// a thread has had.
fn for_each<E: Number, T: Send>(
    items: Vec<T>,
    work: impl Fn(&mut T, &mut Scratch<E>) + Sync,
) -> autograd::Result<()> {
    let threads = usize::try_from(tch::get_num_threads()).unwrap_or(1).max(1);
    let share = items.len().div_ceil(threads).max(1);
    let mut items = items;
    let mut shares: Vec<&mut [T]> = items.chunks_mut(share).collect();
    Ok(cpu::for_each(&mut shares, |items| {
        let mut scratch = Scratch::default();
        for item in items.iter_mut() {
            work(item, &mut scratch);
        }
    })?)
}

fn forward<E: Number>(qkv: &Tensor, heads: i64) -> autograd::Result<[Tensor; 2]> {
    let layout = Layout::new(qkv, heads)?;
    let (batch, count, width) = qkv.size3()?;
    let mut o = Output::<E>::new(&[batch, count, width / 3])?;
    let mut log_sums = Output::<E::Sum>::new(&[batch, heads, count])?;
    let qkv = Input::<E>::new(qkv)?;
    let (o_slice, log_sums_slice) = (o.as_mut_slice(), log_sums.as_mut_slice());
    cpu::run(|scope| {
        let qkv = scope.read(&qkv);
        let token = layout.token();
        let images = o_slice.chunks_mut(layout.count * token);
        let items = images
            .flat_map(|image| Columns::split(image, token, layout.width))
            .zip(log_sums_slice.chunks_mut(layout.count))
            .zip(layout.each())
            .map(|((o, log_sums), (image, head))| kernel::Forward {
                head: layout.head(qkv, image, head),
                o,
                log_sums,
            });
        for_each(items.collect(), kernel::Forward::run)
    })?;
    Ok([o.into_tensor(), log_sums.into_tensor()])
}

/// The gradient of queries, keys and values, of these, the result, the logarithms of sums and the gradient
/// of the result.
fn backward<E: Number>(inputs: &[&Tensor; 4], heads: i64) -> autograd::Result<Tensor> {
    let &[qkv, o, log_sums, d_o] = inputs;
    let layout = Layout::new(qkv, heads)?;
    let mut gradient = Output::<E>::new(&qkv.size())?;
    let (qkv, o, d_o) = (
        Input::<E>::new(qkv)?,
        Input::<E>::new(o)?,
        Input::<E>::new(d_o)?,
    );
    let log_sums = Input::<E::Sum>::new(log_sums)?;
    let gradient_slice = gradient.as_mut_slice();
    cpu::run(|scope| {
        let (qkv, o, d_o) = (scope.read(&qkv), scope.read(&o), scope.read(&d_o));
        let token = 3 * layout.token();
        let mut blocks = gradient_slice
            .chunks_mut(layout.count * token)
            .map(|image| Columns::split(image, token, layout.width).into_iter())
            .flat_map(|mut blocks| {
                let [q, k, v] = [(); 3].map(|()| {
                    let of_heads: Vec<_> = blocks.by_ref().take(layout.heads).collect();
                    of_heads
                });
                q.into_iter().zip(k).zip(v)
            });
        let items = layout
            .each()
            .zip(blocks.by_ref())
            .zip(scope.read(&log_sums).chunks(layout.count))
            .map(
                |(((image, head), ((dq, dk), dv)), log_sums)| kernel::Backward {
                    head: layout.head(qkv, image, head),
                    o: layout.rows(o, image, head, layout.heads),
                    d_o: layout.rows(d_o, image, head, layout.heads),
                    log_sums,
                    dq,
                    dk,
                    dv,
                },
            );
        for_each(items.collect(), kernel::Backward::run)
    })?;
    Ok(gradient.into_tensor())
}
