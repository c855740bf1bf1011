//! Both passes on the CPU: the division of the tokens among threads.

use tch::Tensor;
use torch_ext::autograd;
use torch_ext::kernel::{self as cpu, Element, Input, Output, vectorised};

use super::kernel::{HeadRows, Rotate, RotateBackward, TOKENS};
use crate::rows::{KernelElement, image_parts, image_parts_mut};
use crate::scope::run;

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

pub(super) fn forward<E: KernelElement>(
    inputs: &[&Tensor; 5],
    eps: f64,
) -> autograd::Result<Tensor> {
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

pub(super) fn backward<E: KernelElement>(
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
