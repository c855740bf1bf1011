//! The modulation of a transformer block (adaLN-Zero): norm with shift and scale, and gated residuals.

mod cuda;
mod kernel;
#[cfg(test)]
mod tests;

use half::bf16;
use tch::{Device, Kind, Tensor};
use torch_ext::TorchError;
use torch_ext::autograd::{self, Backward, Forward, Function, Gradients, Outputs};
use torch_ext::kernel::{self as cpu, Element, Input, InputRows, Output, Real, Stored, row_stride};

use self::cuda::Modulation;
use self::kernel::{Gate, GateBackward, NormModulate, NormModulateBackward};
use crate::composed::is_composed;
use crate::rows::{image_parts, image_parts_mut};
use crate::scope::run;

/// Number of tokens per work item. Sums over tokens are computed per item first, so they do not depend on the
/// number of threads.
const PART: i64 = 64;

/// The norm of tokens before modulation.
#[derive(Debug, Clone, Copy)]
pub enum Norm<'w> {
    /// Layer norm without weights.
    Layer,
    /// RMS norm with weights `[D]`, float32.
    Rms(&'w Tensor),
}

/// `norm(x) (1 + scale) + shift` for tokens `x` `[B, T, D]`, with `shift` and `scale` `[B, 1, D]`. Layer norm is
/// `(x - mean) / sqrt(var + eps)`, RMS norm `x / sqrt(mean(x^2) + eps) * weight`, both over `D`.
///
/// One pass over the tokens runs for float32 tokens with `shift` and `scale` in float32 or bfloat16: on the CPU, and
/// on CUDA for tokens of at most 5,120 numbers if the kernels can be compiled. On the CPU it also runs for float64.
/// Its result has the dtype of `scale`: under autocast, the next linear layer would cast it to that dtype. Otherwise
/// libtorch's operators run, with their promotion of dtypes; the composed RMS norm computes in float32 and returns
/// the dtype of `x`. `shift` and `scale` may be slices of one tensor `[B, N D]`: the kernels read them in place.
///
/// # Errors
/// The shapes do not fit each other; memory is exhausted.
pub fn norm_modulate(
    x: &Tensor,
    norm: Norm<'_>,
    shift: &Tensor,
    scale: &Tensor,
    eps: f64,
) -> Result<Tensor, TorchError> {
    if !is_composed()
        && let Some(y) = norm_modulate_kernel(x, norm, shift, scale, eps)?
    {
        return Ok(y);
    }
    compose_norm_modulate(x, norm, shift, scale, eps)
}

/// `x + gate y` for `x` and `y` `[B, T, D]` and `gate` `[B, 1, D]`, in the dtype of `x`.
///
/// One pass forward and one backward run for the dtypes and devices of [`norm_modulate`], with `gate` and `y` in the
/// place of `shift` and `scale`. Otherwise libtorch's operators run.
///
/// # Errors
/// The shapes do not fit each other; memory is exhausted.
pub fn gated_residual(x: &Tensor, gate: &Tensor, y: &Tensor) -> Result<Tensor, TorchError> {
    if !is_composed()
        && let Some(z) = gated_residual_kernel(x, gate, y)?
    {
        return Ok(z);
    }
    compose_gated_residual(x, gate, y)
}

fn compose_norm_modulate(
    x: &Tensor,
    norm: Norm<'_>,
    shift: &Tensor,
    scale: &Tensor,
    eps: f64,
) -> Result<Tensor, TorchError> {
    let width = x.size().last().copied().unwrap_or_default();
    let none: Option<&Tensor> = None;
    let normal = match norm {
        Norm::Layer => x.f_layer_norm([width], none, none, eps, true)?,
        Norm::Rms(weight) => rms_norm(x, weight, eps)?,
    };
    Ok(shift.f_addcmul(&normal, &scale.f_add_scalar(1.0)?)?)
}

/// RMS norm over the last dimension with weights `[D]`. Computes in float32 and returns the dtype of `x`.
pub(crate) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor, TorchError> {
    let width = x.size().last().copied().unwrap_or_default();
    Ok(x.f_to_kind(Kind::Float)?
        .f_rms_norm([width], Some(weight), eps)?
        .f_to_kind(x.kind())?)
}

fn compose_gated_residual(x: &Tensor, gate: &Tensor, y: &Tensor) -> Result<Tensor, TorchError> {
    Ok(x.f_addcmul(gate, y)?)
}

fn norm_modulate_kernel(
    x: &Tensor,
    norm: Norm<'_>,
    shift: &Tensor,
    scale: &Tensor,
    eps: f64,
) -> Result<Option<Tensor>, TorchError> {
    let Some(implementation) = implementation(x, &[shift, scale])? else {
        return Ok(None);
    };
    let mut inputs = vec![x, shift, scale];
    if let Norm::Rms(weight) = norm {
        let fits = weight.size() == x.size()[2..] && weight.device() == x.device();
        if !fits || weight.f_kind()? != x.f_kind()? {
            return Ok(None);
        }
        inputs.push(weight);
    }
    let function = FusedNormModulate {
        weighted: inputs.len() == 4,
        eps,
        implementation,
    };
    Ok(Some(autograd::apply(function, &inputs)?.remove(0)))
}

fn gated_residual_kernel(
    x: &Tensor,
    gate: &Tensor,
    y: &Tensor,
) -> Result<Option<Tensor>, TorchError> {
    if y.size() != x.size() || y.kind() != gate.kind() || y.device() != x.device() {
        return Ok(None);
    }
    let Some(implementation) = implementation(x, &[gate])? else {
        return Ok(None);
    };
    Ok(Some(
        autograd::apply(FusedGate { implementation }, &[x, gate, y])?.remove(0),
    ))
}

/// The implementation for these dtypes, if shapes and devices are suitable.
fn implementation(
    x: &Tensor,
    conditions: &[&Tensor],
) -> Result<Option<Implementation>, TorchError> {
    let size = x.size();
    let &[batch, _, width] = size.as_slice() else {
        return Ok(None);
    };
    let device = x.device();
    let fits = |tensor: &&Tensor| tensor.size() == [batch, 1, width] && tensor.device() == device;
    if x.numel() == 0 || !conditions.iter().all(fits) {
        return Ok(None);
    }
    let kinds: Vec<Kind> = conditions
        .iter()
        .map(|c| c.f_kind())
        .collect::<Result<_, _>>()?;
    let condition = match *kinds.as_slice() {
        [kind] => kind,
        [first, second] if first == second => first,
        _ => return Ok(None),
    };
    Ok(match (device, x.f_kind()?, condition) {
        (Device::Cuda(_), Kind::Float, _) => {
            Modulation::on(device, condition, width).map(Implementation::Cuda)
        }
        (Device::Cpu, Kind::Float, Kind::Float) => Some(Implementation::cpu::<f32, f32>()),
        (Device::Cpu, Kind::Float, Kind::BFloat16) => Some(Implementation::cpu::<bf16, f32>()),
        (Device::Cpu, Kind::Double, Kind::Double) => Some(Implementation::cpu::<f64, f64>()),
        _ => None,
    })
}

/// Returns the result and the statistics `[B, T, 2]`, from tokens, shift and scale, the weights of an RMS norm, and
/// eps.
type NormPass = fn(&[&Tensor; 3], Option<&Tensor>, f64) -> autograd::Result<[Tensor; 2]>;
/// Returns the gradient of the tokens and, in float32 or float64, two sums over tokens `[B, 2, D]`: of the gradient
/// of the result, and of that gradient times the normalised token. Arguments: tokens, scale, statistics and the
/// gradient of the result; the weights of an RMS norm.
type NormBackwardPass = fn(&[&Tensor; 4], Option<&Tensor>) -> autograd::Result<[Tensor; 2]>;

/// Forward and backward passes, compiled for one pair of dtypes and, on CUDA, for one width.
#[derive(Clone)]
enum Implementation {
    Cpu {
        norm_modulate: NormPass,
        norm_modulate_backward: NormBackwardPass,
        gate: fn(&[&Tensor; 3]) -> autograd::Result<Tensor>,
        gate_backward: fn(&[&Tensor; 3]) -> autograd::Result<[Tensor; 2]>,
    },
    Cuda(&'static Modulation),
}

impl Implementation {
    fn cpu<C: Stored<A>, A: Real + Stored<A>>() -> Self {
        Self::Cpu {
            norm_modulate: norm_modulate_pass::<C, A>,
            norm_modulate_backward: norm_modulate_backward::<C, A>,
            gate: gate_pass::<C, A>,
            gate_backward: gate_backward::<C, A>,
        }
    }

    fn norm_modulate(
        &self,
        inputs: &[&Tensor; 3],
        weight: Option<&Tensor>,
        eps: f64,
    ) -> autograd::Result<[Tensor; 2]> {
        match self {
            Self::Cpu { norm_modulate, .. } => norm_modulate(inputs, weight, eps),
            Self::Cuda(kernels) => kernels.norm_modulate(inputs, weight, eps),
        }
    }

    fn norm_modulate_backward(
        &self,
        inputs: &[&Tensor; 4],
        weight: Option<&Tensor>,
    ) -> autograd::Result<[Tensor; 2]> {
        match self {
            Self::Cpu {
                norm_modulate_backward,
                ..
            } => norm_modulate_backward(inputs, weight),
            Self::Cuda(kernels) => kernels.norm_modulate_backward(inputs, weight),
        }
    }

    fn gate(&self, inputs: &[&Tensor; 3]) -> autograd::Result<Tensor> {
        match self {
            Self::Cpu { gate, .. } => gate(inputs),
            Self::Cuda(kernels) => kernels.gate(inputs),
        }
    }

    fn gate_backward(&self, inputs: &[&Tensor; 3]) -> autograd::Result<[Tensor; 2]> {
        match self {
            Self::Cpu { gate_backward, .. } => gate_backward(inputs),
            Self::Cuda(kernels) => kernels.gate_backward(inputs),
        }
    }
}

struct FusedNormModulate {
    /// Whether it is an RMS norm, whose weights are the fourth input.
    weighted: bool,
    eps: f64,
    implementation: Implementation,
}

impl Function for FusedNormModulate {
    fn name(&self) -> &'static str {
        "fused norm and modulation"
    }

    fn forward(
        &mut self,
        context: &mut Forward<'_>,
        inputs: &[&Tensor],
    ) -> autograd::Result<Outputs> {
        let &[x, shift, scale, ref weight @ ..] = inputs else {
            return Err("it takes tokens, shift and scale, and the weights of an RMS norm".into());
        };
        let (x, shift, scale) = (x.f_contiguous()?, rows(shift)?, rows(scale)?);
        let weight = weight.first().map(|w| w.f_contiguous()).transpose()?;
        let inputs = [&x, &shift, &scale];
        let [y, statistics] =
            self.implementation
                .norm_modulate(&inputs, weight.as_ref(), self.eps)?;
        if context.needs_any_grad() {
            for saved in [&x, &scale, &statistics].into_iter().chain(&weight) {
                context.save(saved);
            }
        }
        Ok(vec![y])
    }

    fn backward(
        &self,
        context: &Backward<'_>,
        gradients: &Gradients,
    ) -> autograd::Result<Gradients> {
        let Some(dy) = &gradients[0] else {
            return Ok((0..3 + usize::from(self.weighted)).map(|_| None).collect());
        };
        let [x, scale, statistics] = [context.saved(0)?, context.saved(1)?, context.saved(2)?];
        let weight = self.weighted.then(|| context.saved(3)).transpose()?;
        let inputs = [&x, &scale, &statistics, &dy.f_contiguous()?];
        let [dx, sums] = self
            .implementation
            .norm_modulate_backward(&inputs, weight.as_ref())?;
        let of = |index| sums.f_narrow(1, index, 1);
        let (dshift, along) = (of(0)?.f_to_kind(scale.kind())?, of(1)?);
        let Some(weight) = weight else {
            let dscale = along.f_to_kind(scale.kind())?;
            return Ok([dx, dshift, dscale].map(Some).into());
        };
        let dscale = along.f_mul(&weight)?.f_to_kind(scale.kind())?;
        let dweight = scale
            .f_to_kind(along.kind())?
            .f_add_scalar(1.0)?
            .f_mul(&along)?
            .f_sum_dim_intlist([0, 1].as_slice(), false, None)?;
        Ok([dx, dshift, dscale, dweight].map(Some).into())
    }
}

struct FusedGate {
    implementation: Implementation,
}

impl Function for FusedGate {
    fn name(&self) -> &'static str {
        "fused gated residual"
    }

    fn forward(
        &mut self,
        context: &mut Forward<'_>,
        inputs: &[&Tensor],
    ) -> autograd::Result<Outputs> {
        let &[x, gate, y] = inputs else {
            return Err("it takes tokens, gate and the tensor to gate".into());
        };
        let (x, gate, y) = (x.f_contiguous()?, rows(gate)?, y.f_contiguous()?);
        if context.needs_any_grad() {
            context.save(&gate);
            context.save(&y);
        }
        Ok(vec![self.implementation.gate(&[&x, &gate, &y])?])
    }

    fn backward(
        &self,
        context: &Backward<'_>,
        gradients: &Gradients,
    ) -> autograd::Result<Gradients> {
        let Some(gradient) = &gradients[0] else {
            return Ok(vec![None, None, None]);
        };
        let (gate, y) = (context.saved(0)?, context.saved(1)?);
        let inputs = [&gate, &y, &gradient.f_contiguous()?];
        let [dgate, dy] = self.implementation.gate_backward(&inputs)?;
        Ok(vec![Some(gradient.shallow_clone()), Some(dgate), Some(dy)])
    }
}

/// A shift, scale or gate `[B, 1, D]` with contiguous rows. Slices of one `[B, N D]` have them, and are not copied.
fn rows(condition: &Tensor) -> Result<Tensor, TorchError> {
    match row_stride(condition) {
        Some(_) => Ok(condition.shallow_clone()),
        None => Ok(condition.f_contiguous()?),
    }
}

/// Number of parts per image, and number of elements per part.
fn parts(count: i64, width: i64) -> (usize, usize) {
    (
        (count as usize).div_ceil(PART as usize),
        (PART * width) as usize,
    )
}

fn norm_modulate_pass<C: Stored<A>, A: Real + Stored<A>>(
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

fn norm_modulate_backward<C: Stored<A>, A: Real + Stored<A>>(
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

fn gate_pass<C: Stored<A>, A: Real + Stored<A>>(inputs: &[&Tensor; 3]) -> autograd::Result<Tensor> {
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

fn gate_backward<C: Stored<A>, A: Real + Stored<A>>(
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
