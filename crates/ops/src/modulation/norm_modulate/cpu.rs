//! Both passes on the CPU: the division of the tokens among threads.

use tch::Tensor;
use torch_ext::autograd;
use torch_ext::kernel::{self as cpu, Input, InputRows, Output, Real, Stored};

use super::super::form::{PART, parts};
use super::kernel::{NormModulate, NormModulateBackward};
use crate::rows::{image_parts, image_parts_mut};
use crate::scope::run;

pub(super) fn forward<C: Stored<A>, A: Real + Stored<A>>(
    inputs: &[&Tensor; 3],
    weight: Option<&Tensor>,
    eps: f64,
) -> autograd::Result<[Tensor; 2]> {
    let (batch, count, width) = inputs[0].size3()?;
    let mut y = Output::<C>::new(&[batch, count, width])?;
    let mut statistics = Output::<A>::new(&[batch, count, 2])?;
    let x = Input::<A>::new(inputs[0])?;
    let (shift, scale) = (
        InputRows::<C>::new(inputs[1])?,
        InputRows::<C>::new(inputs[2])?,
    );
    let weight = weight.map(Input::<A>::new).transpose()?;
    let (y_slice, statistics_slice) = (y.as_mut_slice(), statistics.as_mut_slice());
    run(|scope| {
        let (parts, part) = parts(count, width);
        let len = (count * width) as usize;
        let (shift, scale) = (scope.read_rows(&shift), scope.read_rows(&scale));
        let weight = weight.as_ref().map(|weight| scope.read(weight));
        let mut work: Vec<_> = image_parts(scope.read(&x), len, part)
            .zip(image_parts_mut(y_slice, len, part))
            .zip(image_parts_mut(
                statistics_slice,
                2 * count as usize,
                2 * PART as usize,
            ))
            .enumerate()
            .map(|(index, ((x, y), statistics))| {
                Some(NormModulate {
                    x,
                    shift: shift.row(index / parts),
                    scale: scale.row(index / parts),
                    weight,
                    eps,
                    y,
                    statistics,
                })
            })
            .collect();
        cpu::for_each(&mut work, |work| {
            if let Some(work) = work.take() {
                cpu::vectorised(work);
            }
        })
    })?;
    Ok([y.into_tensor(), statistics.into_tensor()])
}

pub(super) fn backward<C: Stored<A>, A: Real + Stored<A>>(
    inputs: &[&Tensor; 4],
    weight: Option<&Tensor>,
) -> autograd::Result<[Tensor; 2]> {
    let (batch, count, width) = inputs[0].size3()?;
    let (parts, part) = parts(count, width);
    let mut dx = Output::<A>::new(&[batch, count, width])?;
    let mut sums = Output::<A>::new(&[batch, parts as i64, 2, width])?;
    let (x, scale) = (Input::<A>::new(inputs[0])?, InputRows::<C>::new(inputs[1])?);
    let (statistics, dy) = (Input::<A>::new(inputs[2])?, Input::<C>::new(inputs[3])?);
    let weight = weight.map(Input::<A>::new).transpose()?;
    let (dx_slice, sums_slice) = (dx.as_mut_slice(), sums.as_mut_slice());
    run(|scope| {
        let (len, width) = ((count * width) as usize, width as usize);
        let scale = scope.read_rows(&scale);
        let weight = weight.as_ref().map(|weight| scope.read(weight));
        let mut work: Vec<_> = image_parts(scope.read(&x), len, part)
            .zip(image_parts(scope.read(&dy), len, part))
            .zip(image_parts(
                scope.read(&statistics),
                2 * count as usize,
                2 * PART as usize,
            ))
            .zip(image_parts_mut(dx_slice, len, part))
            .zip(sums_slice.chunks_mut(2 * width))
            .enumerate()
            .map(|(index, ((((x, dy), statistics), dx), sums))| {
                Some(NormModulateBackward {
                    x,
                    scale: scale.row(index / parts),
                    weight,
                    statistics,
                    dy,
                    dx,
                    sums,
                })
            })
            .collect();
        cpu::for_each(&mut work, |work| {
            if let Some(work) = work.take() {
                cpu::vectorised(work);
            }
        })
    })?;
    let sums = sums.into_tensor().f_sum_dim_intlist(1, false, None)?;
    Ok([dx.into_tensor(), sums])
}
