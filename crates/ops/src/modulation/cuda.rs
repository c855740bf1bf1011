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
/// Passes check the sizes of their inputs ([`Modulation::sizes`]) and allocate the results in the sizes that the kernel
/// writes, so that their launches are sound. [`Kernel::launch`] checks devices and dtypes.
#[derive(Debug)]
pub(super) struct Modulation {
    device: Device,
    pub(super) width: i64,
    pub(super) layout: Layout,
    pub(super) condition: Kind,
    pub(super) norm_modulate: Kernel,
    pub(super) norm_modulate_backward: Kernel,
    pub(super) gate: Kernel,
    pub(super) gate_backward: Kernel,
    sum_parts: Kernel,
}

/// The kernels for a device, a dtype of modulation and a width of tokens; `None` if they cannot be used.
type Resolved = OnceMap<(Device, Kind, i64), Option<Modulation>>;

/// The division of an image's tokens among blocks, which keeps the number of partial sums small. It depends
/// only on shapes, and so do the bits of the result.
pub(super) struct Parts {
    batch: i64,
    pub(super) count: i64,
    pub(super) parts: i64,
    pub(super) tokens: i64,
}

/// A shift, scale or gate `[B, 1, D]`, and the number of elements from one of its rows to the next.
pub(super) struct Rows {
    pub(super) tensor: Tensor,
    pub(super) stride: i64,
}

impl Modulation {
    /// Returns `None` if there is no kernel, or if it cannot be compiled or loaded, which is logged.
    pub(super) fn on(device: Device, condition: Kind, width: i64) -> Option<&'static Self> {
        static RESOLVED: Resolved = OnceMap::new();
        let modulation = RESOLVED.get_or_make((device, condition, width), || {
            let (program, layout) = program(condition, width)?;
            let kernels = Kernels::load(device, &program);
            let modulation =
                kernels.and_then(|kernels| Self::new(kernels, layout, condition, width));
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
            Some(Self::new(kernels, layout, condition, width).unwrap())
        });
        modulation.as_ref()
    }

    fn new(
        kernels: &'static Kernels,
        layout: Layout,
        condition: Kind,
        width: i64,
    ) -> Result<Self, CudaError> {
        Ok(Self {
            device: kernels.device(),
            width,
            layout,
            condition,
            norm_modulate: kernels.kernel("norm_modulate")?,
            norm_modulate_backward: kernels.kernel("norm_modulate_backward")?,
            gate: kernels.kernel("gate")?,
            gate_backward: kernels.kernel("gate_backward")?,
            sum_parts: kernels.kernel("sum_parts")?,
        })
    }

    pub(super) fn empty(&self, size: &[i64], kind: Kind) -> autograd::Result<Tensor> {
        Ok(Tensor::f_empty(size, (kind, self.device))?)
    }

    /// `condition` `[B, 1, D]` as the kernels read it: in place if all its rows are contiguous and aligned to vectors.
    pub(super) fn rows(&self, condition: &Tensor) -> Result<Rows, TorchError> {
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

    /// Batch size and number of tokens of `tokens` `[B, T, D]`.
    ///
    /// # Errors
    /// The width is not that of the kernels; the size of `others` differs; the size of one of `conditions` is not
    /// `[B, 1, D]`.
    pub(super) fn sizes(
        &self,
        tokens: &Tensor,
        others: &[&Tensor],
        conditions: &[&Tensor],
    ) -> Result<(i64, i64), TorchError> {
        let refused = |tensor: &Tensor, expected| TorchError::Shape {
            what: "a tensor of the modulation",
            found: tensor.size(),
            expected,
        };
        let size = tokens.size();
        let (batch, count) = match *size.as_slice() {
            [batch, count, width] if width == self.width => (batch, count),
            _ => return Err(refused(tokens, "[B, T, D] with the kernels' D")),
        };
        if let Some(other) = others.iter().find(|other| other.size() != size) {
            return Err(refused(other, "that of the tokens, [B, T, D]"));
        }
        let row = [batch, 1, self.width];
        match conditions.iter().find(|condition| condition.size() != row) {
            Some(condition) => Err(refused(condition, "[B, 1, D]")),
            None => Ok((batch, count)),
        }
    }

    pub(super) fn parts(&self, x: &Tensor) -> autograd::Result<Parts> {
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

    /// Sums `[B, parts, kinds, D]` over the parts to `[B, kinds, D]`.
    pub(super) fn sum_parts(
        &self,
        sums: &Tensor,
        result: &Tensor,
        parts: &Parts,
    ) -> autograd::Result<()> {
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

pub(super) fn readable<const N: usize>(inputs: &[&Tensor; N]) -> autograd::Result<[Tensor; N]> {
    let readable: Vec<Tensor> = inputs
        .iter()
        .map(|input| cuda::readable(input))
        .collect::<Result<_, _>>()?;
    readable
        .try_into()
        .map_err(|_| "the number of tensors changed".into())
}

pub(super) fn ceil(count: i64, part: i64) -> i64 {
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
