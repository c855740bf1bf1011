//! The fused cosine loss on a CUDA device, with the kernels of `cosine.cu`.

use tch::{Device, Kind, Tensor};
use torch_ext::cuda::{self, Argument, CudaError, Kernel, Kernels, Layout, Program, Source};
use torch_ext::{OnceMap, TorchError, autograd};

use super::settings::{LossAndGradient, ZScore};

static COSINE: Source = Source {
    name: "cosine.cu",
    text: include_str!("cosine.cu"),
};

/// Elements of a token that one thread holds in registers. A thread has 128 registers when two blocks
/// share a multiprocessor, and holds two such arrays.
const ELEMENTS_PER_THREAD: i64 = 40;

/// Largest supported token width, whose statistics fit into the 48 KiB of a block's shared memory.
const MAX_WIDTH: i64 = 5120;

/// The dtypes and sizes that the kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) target: Kind,
    pub(super) projected: Kind,
    pub(super) zscore: bool,
    pub(super) width: i64,
}

impl Shape {
    /// `None` if no kernel supports this shape.
    fn program(&self) -> Option<(Program, Layout)> {
        let [(target, target_bytes), (projected, projected_bytes)] =
            [element(self.target)?, element(self.projected)?];
        let element_bytes = target_bytes.max(projected_bytes);
        let layout = Layout::new(self.width, element_bytes, ELEMENTS_PER_THREAD)?;
        if self.width > MAX_WIDTH {
            return None;
        }
        let mut defines = layout.defines();
        defines.extend([
            ("TARGET", target.to_owned()),
            ("PROJECTED", projected.to_owned()),
            ("ZSCORE", i32::from(self.zscore).to_string()),
        ]);
        let source = &COSINE;
        Some((Program { source, defines }, layout))
    }
}

/// The CUDA type of a dtype, and its size in bytes.
fn element(kind: Kind) -> Option<(&'static str, i64)> {
    match kind {
        Kind::Float => Some(("float", 4)),
        Kind::BFloat16 => Some(("bf16", 2)),
        _ => None,
    }
}

/// The kernels for one [`Shape`].
#[derive(Debug)]
pub(super) struct Cosine {
    kernels: &'static Kernels,
    layout: Layout,
    width: i64,
    zscore: bool,
    cosine_loss: Kernel,
    rescale: Kernel,
}

/// The kernels for a device and a shape; `None` if they cannot be used.
type Resolved = OnceMap<(Device, Shape), Option<Cosine>>;

impl Cosine {
    /// `None` if no kernel supports `shape`, or if it cannot be compiled and loaded, which is logged.
    pub(super) fn on(device: Device, shape: Shape) -> Option<&'static Self> {
        static RESOLVED: Resolved = OnceMap::new();
        let cosine = RESOLVED.get_or_make((device, shape), || {
            let (program, layout) = shape.program()?;
            let kernels = Kernels::load(device, &program);
            let cosine = kernels.and_then(|kernels| Self::new(kernels, layout, shape));
            cuda::usable(device, cosine)
        });
        cosine.as_ref()
    }

    /// The kernels emulated on the CPU, for tests.
    #[cfg(test)]
    pub(super) fn emulated(shape: Shape) -> Option<&'static Self> {
        static RESOLVED: Resolved = OnceMap::new();
        let cosine = RESOLVED.get_or_make((Device::Cpu, shape), || {
            let (program, layout) = shape.program()?;
            // SAFETY: the source has no code that runs when it is loaded.
            let kernels = unsafe { Kernels::emulate(&program) }.unwrap();
            Some(Self::new(kernels, layout, shape).unwrap())
        });
        cosine.as_ref()
    }

    fn new(kernels: &'static Kernels, layout: Layout, shape: Shape) -> Result<Self, CudaError> {
        Ok(Self {
            kernels,
            layout,
            width: shape.width,
            zscore: shape.zscore,
            cosine_loss: kernels.kernel("cosine_loss")?,
            rescale: kernels.kernel("rescale")?,
        })
    }

    /// Returns the loss, a scalar, and, if `expected_grad` is `Some`, the gradient of `projected`.
    pub(super) fn cosines(
        &self,
        target: &Tensor,
        projected: &Tensor,
        norm: Option<ZScore>,
        expected_grad: Option<f64>,
    ) -> LossAndGradient {
        let (batch, count, width) = target.size3()?;
        if projected.size() != target.size() || width != self.width {
            return Err(TorchError::Shape {
                what: "tokens of the loss",
                found: projected.size(),
                expected: "that of the target, with the kernels' width",
            }
            .into());
        }
        let (target, projected) = (cuda::readable(target)?, cuda::readable(projected)?);
        let device = self.kernels.device();
        let slope = -expected_grad.unwrap_or_default() / (batch * count) as f64;
        let schedule = TileSchedule::new(self, batch, count, width);

        let loss = Tensor::f_empty([] as [i64; 0], (Kind::Float, device))?;
        let gradient = expected_grad
            .map(|_| projected.f_empty_like())
            .transpose()?;
        let statistics = match self.zscore {
            true => Some(Tensor::f_empty([2, batch, width], (Kind::Float, device))?),
            false => None,
        };
        let sums = Tensor::f_empty([batch, schedule.cosine_tiles], (Kind::Double, device))?;
        let counters = Tensor::f_zeros([2 + batch], (Kind::Int, device))?;
        let (shift, scale) = match &statistics {
            Some(both) => (Some(both.f_select(0, 0)?), Some(both.f_select(0, 1)?)),
            None => (None, None),
        };
        let ZScore { alpha, eps } = norm.unwrap_or(ZScore {
            alpha: 0.0,
            eps: 0.0,
        });
        // SAFETY: the sizes of the tokens are checked above. All other tensors were allocated above, in the sizes that
        // `cosine.cu` documents, and with a z-score the statistics are not null.
        unsafe {
            self.cosine_loss.launch(
                schedule.blocks,
                &[
                    Argument::Tensor(&target),
                    Argument::Tensor(&projected),
                    or_null(&gradient),
                    Argument::Tensor(&loss),
                    or_null(&shift),
                    or_null(&scale),
                    Argument::Tensor(&sums),
                    Argument::Tensor(&counters),
                    Argument::Int(batch),
                    Argument::Int(count),
                    Argument::Int(schedule.tokens_per_tile),
                    Argument::Int(schedule.lag),
                    Argument::Float(alpha),
                    Argument::Float(eps),
                    Argument::Float(slope),
                ],
            )
        }?;
        Ok((loss, gradient))
    }

    /// Multiplies `gradient` in place by `output_grad / expected_grad`, without waiting for the device.
    /// The kernel reads and writes nothing if the factor is 1.
    pub(super) fn rescale(
        &self,
        gradient: &Tensor,
        output_grad: &Tensor,
        expected_grad: f64,
    ) -> autograd::Result<()> {
        if output_grad.numel() != 1 {
            return Err(TorchError::Shape {
                what: "the gradient of the loss",
                found: output_grad.size(),
                expected: "[]",
            }
            .into());
        }
        let vectors = gradient.numel() as i64 / self.layout.vector();
        let blocks = (vectors / cuda::BLOCK).clamp(1, 4 * self.kernels.resident_blocks());
        // SAFETY: `gradient` has `vectors` whole vectors, is no other tensor's memory as a result of `cosines`, and
        // `output_grad` has one element.
        unsafe {
            self.rescale.launch(
                blocks,
                &[
                    Argument::Tensor(gradient),
                    Argument::Tensor(output_grad),
                    Argument::Double(expected_grad),
                    Argument::Int(vectors),
                ],
            )
        }?;
        Ok(())
    }
}

/// The division of the work into tiles and blocks; see `cosine.cu`.
#[derive(Debug)]
struct TileSchedule {
    blocks: i64,
    tokens_per_tile: i64,
    /// Cosine tiles per image.
    cosine_tiles: i64,
    lag: i64,
}

impl TileSchedule {
    fn new(cosine: &Cosine, batch: i64, count: i64, width: i64) -> Self {
        let resident = cosine.kernels.resident_blocks();
        let tokens_per_round = cosine.layout.tokens();
        // About four tiles per block, so that all blocks end at about the same time. Larger tiles load
        // the statistics less often.
        let rounds = (batch * count / tokens_per_round / (4 * resident)).clamp(1, 4);
        let tokens_per_tile = rounds * tokens_per_round;
        let cosine_tiles = ceil_div(count, tokens_per_tile);
        let vectors = width / cosine.layout.vector();
        let span = if cosine.layout.vector() == 1 { 32 } else { 8 };
        let (statistic_tiles, lag) = match cosine.zscore {
            true => {
                let tiles = ceil_div(vectors, span);
                let lag = ceil_div(resident, tiles + cosine_tiles) + 1;
                (tiles, lag.min(batch))
            }
            false => (0, 0),
        };
        Self {
            blocks: resident.min(batch * (statistic_tiles + cosine_tiles)),
            tokens_per_tile,
            cosine_tiles,
            lag,
        }
    }
}

fn or_null(tensor: &Option<Tensor>) -> Argument<'_> {
    tensor.as_ref().map_or(Argument::Null, Argument::Tensor)
}

fn ceil_div(count: i64, part: i64) -> i64 {
    (count + part - 1) / part
}

#[cfg(test)]
mod needs_nvrtc {
    use torch_ext::cuda::Architecture;

    use super::*;

    #[test]
    #[ignore = "needs NVRTC, which comes with the full set-up: `cargo xtask test --python`"]
    fn every_kernel_compiles_for_a100_and_h100() {
        let kinds = [Kind::Float, Kind::BFloat16];
        let dtype_pairs = kinds
            .into_iter()
            .flat_map(|t| kinds.map(|p| (t, p, true, 768)));
        let sizes = [(33, true), (384, false), (1152, true), (MAX_WIDTH, true)]
            .map(|(width, zscore)| (kinds[0], kinds[0], zscore, width));
        let widest_bf16 = [(kinds[1], kinds[1], true, MAX_WIDTH)];
        for (target, projected, zscore, width) in dtype_pairs.chain(sizes).chain(widest_bf16) {
            let shape = Shape {
                target,
                projected,
                zscore,
                width,
            };
            let (program, _) = shape.program().unwrap();
            for major in [8, 9] {
                let architecture = Architecture { major, minor: 0 };
                let code = cuda::compile(&program, architecture).unwrap();
                assert_eq!(code[..4], *b"\x7fELF");
            }
        }
    }
}
