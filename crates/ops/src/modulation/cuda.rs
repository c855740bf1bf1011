//! Norm with modulation and gated residuals on CUDA devices, with the kernels in `modulation.cu`.

use tch::{Device, Kind, Tensor};
use torch_ext::cuda::{self, Argument, CudaError, Kernel, Kernels, Layout, Program, Source};
use torch_ext::kernel::row_stride;
use torch_ext::{OnceMap, TorchError, autograd};

static MODULATION: Source = Source {
    name: "modulation.cu",
    text: include_str!("modulation.cu"),
};

/// Number of a token's numbers that a thread holds. Four such arrays fit in the 128 registers that a thread has
/// when two blocks share a multiprocessor.
const HELD: i64 = 20;

/// The kernels for one width of tokens and one dtype of modulation.
///
/// Its launches are sound because `implementation` has checked the sizes, dtypes and the device of the inputs for which
/// it made the kernels. Autograd gives the gradient of a result the size and dtype of the result, and saved tensors are
/// unchanged. Results are allocated here, in the size that the kernel writes.
#[derive(Debug)]
pub(super) struct Modulation {
    device: Device,
    layout: Layout,
    condition: Kind,
    norm_modulate: Kernel,
    norm_modulate_backward: Kernel,
    gate: Kernel,
    gate_backward: Kernel,
    sum_parts: Kernel,
}

/// The kernels for a device, a dtype of modulation and a width of tokens; `None` if they cannot be used.
type Resolved = OnceMap<(Device, Kind, i64), Option<Modulation>>;

/// The division of an image's tokens among blocks, which keeps the number of partial sums small. It depends
/// only on shapes, and so do the bits of the result.
struct Parts {
    batch: i64,
    count: i64,
    parts: i64,
    tokens: i64,
}

/// A shift, scale or gate `[B, 1, D]`, and the number of elements from one of its rows to the next.
struct Rows {
    tensor: Tensor,
    stride: i64,
}

impl Modulation {
    /// Returns `None` if there is no kernel, or if it cannot be compiled or loaded, which is logged.
    pub(super) fn on(device: Device, condition: Kind, width: i64) -> Option<&'static Self> {
        static RESOLVED: Resolved = OnceMap::new();
        let modulation = RESOLVED.get_or_make((device, condition, width), || {
            let (program, layout) = program(condition, width)?;
            let kernels = Kernels::load(device, &program);
            let modulation = kernels.and_then(|kernels| Self::new(kernels, layout, condition));
            cuda::usable(device, modulation)
        });
        modulation.as_ref()
    }

    /// Emulated kernels on the CPU, for tests.
    #[cfg(test)]
    pub(super) fn emulated(condition: Kind, width: i64) -> Option<&'static Self> {
        static RESOLVED: Resolved = OnceMap::new();
        let modulation = RESOLVED.get_or_make((Device::Cpu, condition, width), || {
            let (program, layout) = program(condition, width)?;
            // SAFETY: the source has no code that runs when it is loaded.
            let kernels = unsafe { Kernels::emulate(&program) }.unwrap();
            Some(Self::new(kernels, layout, condition).unwrap())
        });
        modulation.as_ref()
    }

    fn new(kernels: &'static Kernels, layout: Layout, condition: Kind) -> Result<Self, CudaError> {
        Ok(Self {
            device: kernels.device(),
            layout,
            condition,
            norm_modulate: kernels.kernel("norm_modulate")?,
            norm_modulate_backward: kernels.kernel("norm_modulate_backward")?,
            gate: kernels.kernel("gate")?,
            gate_backward: kernels.kernel("gate_backward")?,
            sum_parts: kernels.kernel("sum_parts")?,
        })
    }

    fn empty(&self, size: &[i64], kind: Kind) -> autograd::Result<Tensor> {
        Ok(Tensor::f_empty(size, (kind, self.device))?)
    }

    /// `condition` `[B, 1, D]` as the kernels read it: in place if all its rows are contiguous and aligned to vectors.
    fn rows(&self, condition: &Tensor) -> Result<Rows, TorchError> {
        let bytes = match self.condition {
            Kind::BFloat16 => 2,
            _ => 4,
        };
        let (vector, address) = (self.layout.vector(), condition.data_ptr().addr());
        let aligned = |stride: i64| {
            address.is_multiple_of((vector * bytes) as usize)
                && stride % vector == 0
                && stride <= i64::from(i32::MAX)
        };
        Ok(
            match row_stride(condition).filter(|&stride| aligned(stride)) {
                Some(stride) => Rows {
                    tensor: condition.shallow_clone(),
                    stride,
                },
                None => Rows {
                    tensor: cuda::readable(condition)?,
                    stride: condition.size().last().copied().unwrap_or_default(),
                },
            },
        )
    }

    fn parts(&self, x: &Tensor) -> autograd::Result<Parts> {
        // Number of blocks that keeps the largest GPUs busy.
        const BLOCKS: i64 = 1024;
        let (batch, count, _) = x.size3()?;
        let at_once = self.layout.tokens();
        let tokens = at_once * (batch * count / at_once / BLOCKS).clamp(1, 8);
        Ok(Parts {
            batch,
            count,
            parts: ceil(count, tokens),
            tokens,
        })
    }

    /// The result `y` and the statistics `[B, T, 2]`, from tokens, shift and scale, and the weights of an RMS norm.
    pub(super) fn norm_modulate(
        &self,
        inputs: &[&Tensor; 3],
        weight: Option<&Tensor>,
        eps: f64,
    ) -> autograd::Result<[Tensor; 2]> {
        let x = cuda::readable(inputs[0])?;
        let (shift, scale) = (self.rows(inputs[1])?, self.rows(inputs[2])?);
        let weight = weight.map(cuda::readable).transpose()?;
        let (batch, count, width) = x.size3()?;
        let y = self.empty(&[batch, count, width], self.condition)?;
        let statistics = self.empty(&[batch, count, 2], Kind::Float)?;
        // SAFETY: see the type. The kernel writes one token of `y` and two statistics for each token of `x`.
        unsafe {
            self.norm_modulate.launch(
                ceil(batch * count, self.layout.tokens()),
                &[
                    Argument::Tensor(&x),
                    Argument::Rows(&shift.tensor),
                    Argument::Rows(&scale.tensor),
                    weight.as_ref().map_or(Argument::Null, Argument::Tensor),
                    Argument::Tensor(&y),
                    Argument::Tensor(&statistics),
                    Argument::Int(batch * count),
                    Argument::Int(count),
                    Argument::Int(shift.stride),
                    Argument::Int(scale.stride),
                    Argument::Float(eps),
                ],
            )
        }?;
        Ok([y, statistics])
    }

    /// The gradient of the tokens and the sums over tokens, from tokens, scale, statistics and the gradient of `y`,
    /// and the weights of an RMS norm.
    pub(super) fn norm_modulate_backward(
        &self,
        inputs: &[&Tensor; 4],
        weight: Option<&Tensor>,
    ) -> autograd::Result<[Tensor; 2]> {
        let &[x, scale, statistics, dy] = inputs;
        let [x, statistics, dy] = readable(&[x, statistics, dy])?;
        let scale = self.rows(scale)?;
        let weight = weight.map(cuda::readable).transpose()?;
        let parts = self.parts(&x)?;
        let (batch, _, width) = x.size3()?;
        let dx = x.f_empty_like()?;
        let sums = self.empty(&[batch, parts.parts, 2, width], Kind::Float)?;
        // SAFETY: see the type. The kernel writes `dx`, of the size of `x`, and two sums for each part.
        unsafe {
            self.norm_modulate_backward.launch(
                batch * parts.parts,
                &[
                    Argument::Tensor(&x),
                    Argument::Rows(&scale.tensor),
                    weight.as_ref().map_or(Argument::Null, Argument::Tensor),
                    Argument::Tensor(&statistics),
                    Argument::Tensor(&dy),
                    Argument::Tensor(&dx),
                    Argument::Tensor(&sums),
                    Argument::Int(parts.count),
                    Argument::Int(parts.parts),
                    Argument::Int(parts.tokens),
                    Argument::Int(scale.stride),
                ],
            )
        }?;
        let of_images = self.empty(&[batch, 2, width], Kind::Float)?;
        self.sum_parts(&sums, &of_images, &parts)?;
        Ok([dx, of_images])
    }

    /// `x + gate y`, from `x`, `gate` and `y`.
    pub(super) fn gate(&self, inputs: &[&Tensor; 3]) -> autograd::Result<Tensor> {
        let &[x, gate, y] = inputs;
        let [x, y] = readable(&[x, y])?;
        let gate = self.rows(gate)?;
        let (batch, count, _) = x.size3()?;
        let z = x.f_empty_like()?;
        // SAFETY: see the type. The kernel writes `z`, of the size of `x`.
        unsafe {
            self.gate.launch(
                ceil(batch * count, self.layout.tokens()),
                &[
                    Argument::Tensor(&x),
                    Argument::Rows(&gate.tensor),
                    Argument::Tensor(&y),
                    Argument::Tensor(&z),
                    Argument::Int(batch * count),
                    Argument::Int(count),
                    Argument::Int(gate.stride),
                ],
            )
        }?;
        Ok(z)
    }

    /// The gradients of `gate` and `y`, from `gate`, `y` and the gradient of the result.
    pub(super) fn gate_backward(&self, inputs: &[&Tensor; 3]) -> autograd::Result<[Tensor; 2]> {
        let &[gate, y, gradient] = inputs;
        let [y, gradient] = readable(&[y, gradient])?;
        let gate = self.rows(gate)?;
        let parts = self.parts(&y)?;
        let (batch, _, width) = y.size3()?;
        let dy = y.f_empty_like()?;
        let sums = self.empty(&[batch, parts.parts, 1, width], Kind::Float)?;
        // SAFETY: see the type. The kernel writes `dy`, of the size of `y`, and one sum for each part.
        unsafe {
            self.gate_backward.launch(
                batch * parts.parts,
                &[
                    Argument::Tensor(&y),
                    Argument::Rows(&gate.tensor),
                    Argument::Tensor(&gradient),
                    Argument::Tensor(&dy),
                    Argument::Tensor(&sums),
                    Argument::Int(parts.count),
                    Argument::Int(parts.parts),
                    Argument::Int(parts.tokens),
                    Argument::Int(gate.stride),
                ],
            )
        }?;
        let dgate = self.empty(&[batch, 1, width], Kind::Float)?;
        self.sum_parts(&sums, &dgate, &parts)?;
        Ok([dgate.f_to_kind(self.condition)?, dy])
    }

    /// Sums `[B, parts, kinds, D]` over the parts to `[B, kinds, D]`.
    fn sum_parts(&self, sums: &Tensor, result: &Tensor, parts: &Parts) -> autograd::Result<()> {
        let (_, kinds, width) = result.size3()?;
        // SAFETY: both are float32, and `result` has the size of `sums` without the parts.
        unsafe {
            self.sum_parts.launch(
                parts.batch * kinds * ceil(width, cuda::BLOCK),
                &[
                    Argument::Tensor(sums),
                    Argument::Tensor(result),
                    Argument::Int(parts.parts),
                    Argument::Int(kinds),
                ],
            )
        }?;
        Ok(())
    }
}

fn program(condition: Kind, width: i64) -> Option<(Program, Layout)> {
    let name = match condition {
        Kind::Float => "float",
        Kind::BFloat16 => "bf16",
        _ => return None,
    };
    let layout = Layout::new(width, 4, HELD)?;
    let mut defines = layout.defines();
    defines.push(("CONDITION", name.to_owned()));
    let source = &MODULATION;
    Some((Program { source, defines }, layout))
}

fn readable<const N: usize>(inputs: &[&Tensor; N]) -> autograd::Result<[Tensor; N]> {
    let readable: Vec<Tensor> = inputs
        .iter()
        .map(|input| cuda::readable(input))
        .collect::<Result<_, _>>()?;
    readable
        .try_into()
        .map_err(|_| "the number of tensors changed".into())
}

fn ceil(count: i64, part: i64) -> i64 {
    (count + part - 1) / part
}

#[cfg(test)]
mod needs_nvrtc {
    use torch_ext::cuda::Architecture;

    use super::*;

    #[test]
    #[ignore = "needs NVRTC, which comes with the full set-up: `cargo xtask test --python`"]
    fn every_kernel_compiles_for_a100_and_h100() {
        for width in [33, 384, 768, 1152, 4096] {
            for condition in [Kind::Float, Kind::BFloat16] {
                for major in [8, 9] {
                    let architecture = Architecture { major, minor: 0 };
                    let (program, _) = program(condition, width).unwrap();
                    let code = cuda::compile(&program, architecture).unwrap();
                    assert_eq!(code[..4], *b"\x7fELF");
                }
            }
        }
    }
}
