//! Both passes on the CPU: the division of the tokens among threads.

use tch::Tensor;
use torch_ext::autograd;
use torch_ext::kernel::{self as cpu, Element, Input, InputRows, Output, Real, Stored};

use super::super::form::parts;
use super::kernel::{Gate, GateBackward};
use crate::rows::{image_parts, image_parts_mut};
use crate::scope::run;

pub(super) fn forward<C: Stored<A>, A: Real + Stored<A>>(
    inputs: &[&Tensor; 3],
) -> autograd::Result<Tensor> {
    let (batch, count, width) = inputs[0].size3()?;
    let mut z = Output::<A>::new(&[batch, count, width])?;
    let x = Input::<A>::new(inputs[0])?;
    let (gate, y) = (InputRows::<C>::new(inputs[1])?, Input::<C>::new(inputs[2])?);
    let z_slice = z.as_mut_slice();
    run(|scope| {
        let (parts, part) = parts(count, width);
        let len = (count * width) as usize;
        let gate = scope.read_rows(&gate);
        let mut work: Vec<_> = image_parts(scope.read(&x), len, part)
            .zip(image_parts(scope.read(&y), len, part))
            .zip(image_parts_mut(z_slice, len, part))
            .enumerate()
            .map(|(index, ((x, y), z))| {
                Some(Gate {
                    x,
                    gate: gate.row(index / parts),
                    y,
                    z,
                })
            })
            .collect();
        cpu::for_each(&mut work, |work| {
            if let Some(work) = work.take() {
                cpu::vectorised(work);
            }
        })
    })?;
    Ok(z.into_tensor())
}

pub(super) fn backward<C: Stored<A>, A: Real + Stored<A>>(
    inputs: &[&Tensor; 3],
) -> autograd::Result<[Tensor; 2]> {
    let (batch, count, width) = inputs[1].size3()?;
    let (parts, part) = parts(count, width);
    let mut dy = Output::<C>::new(&[batch, count, width])?;
    let mut dgate = Output::<A>::new(&[batch, parts as i64, width])?;
    let (gate, y) = (InputRows::<C>::new(inputs[0])?, Input::<C>::new(inputs[1])?);
    let gradient = Input::<A>::new(inputs[2])?;
    let (dy_slice, dgate_slice) = (dy.as_mut_slice(), dgate.as_mut_slice());
    run(|scope| {
        let (len, width) = ((count * width) as usize, width as usize);
        let gate = scope.read_rows(&gate);
        let mut work: Vec<_> = image_parts(scope.read(&y), len, part)
            .zip(image_parts(scope.read(&gradient), len, part))
            .zip(image_parts_mut(dy_slice, len, part))
            .zip(dgate_slice.chunks_mut(width))
            .enumerate()
            .map(|(index, (((y, gradient), dy), dgate))| {
                Some(GateBackward {
                    y,
                    gate: gate.row(index / parts),
                    gradient,
                    dy,
                    dgate,
                })
            })
            .collect();
        cpu::for_each(&mut work, |work| {
            if let Some(work) = work.take() {
                cpu::vectorised(work);
            }
        })
    })?;
    let dgate = dgate.into_tensor().f_sum_dim_intlist(1, true, None)?;
    Ok([dgate.f_to_kind(<C as Element>::KIND)?, dy.into_tensor()])
}
