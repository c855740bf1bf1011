//! The operation on a CUDA device, by the kernels in `cosine.cu`.

use std::sync::Arc;

use tch::{Device, Kind, Tensor};
use torch_ext::autograd;
use torch_ext::cuda::{self, Argument, Kernels, Layout, Program, Source};

use super::Computed;
use super::kernel::ZScore;

static COSINE: Source = Source {
    name: "cosine.cu",
    text: include_str!("cosine.cu"),
};

/// Numbers of a token that a thread holds: two such arrays leave enough of the 128 registers that a
/// thread has when two blocks share a multiprocessor.
const HELD: i64 = 40;

/// The widest tokens: their statistics fit into the 48 KiB of memory that a block's threads share.
const WIDEST: i64 = 5120;

/// What the kernels are compiled for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) target: Kind,
    pub(super) projected: Kind,
    pub(super) zscore: bool,
    pub(super) width: i64,
}

impl Shape {
    /// `None` where there is no kernel.
    fn program(&self) -> Option<(Program, Layout)> {
        let [(target, bytes), (projected, other)] =
            [element(self.target)?, element(self.projected)?];
        let layout = Layout::new(self.width, bytes.max(other), HELD)?;
        if self.width > WIDEST {
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

/// Name and size of a dtype's numbers.
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
    kernels: Arc<Kernels>,
    layout: Layout,
    zscore: bool,
}

impl Cosine {
    /// `None` where there is no kernel, or it cannot be compiled and loaded; the latter is logged.
    pub(super) fn new(device: Device, shape: Shape) -> Option<Self> {
        Self::with(shape, |program| cuda::usable(device, program).ok_or(())).and_then(Result::ok)
    }

    /// On the CPU, for tests.
    #[cfg(test)]
    pub(super) fn emulated(shape: Shape) -> Option<Result<Self, cuda::CudaError>> {
        Self::with(shape, Kernels::emulate)
    }

    fn with<E>(
        shape: Shape,
        kernels: impl FnOnce(&Program) -> Result<Arc<Kernels>, E>,
    ) -> Option<Result<Self, E>> {
        let (program, layout) = shape.program()?;
        Some(kernels(&program).map(|kernels| Self {
            kernels,
            layout,
            zscore: shape.zscore,
        }))
    }

    /// The loss, a scalar, and the gradient of `projected` if one is `expected`.
    pub(super) fn cosines(
        &self,
        target: &Tensor,
        projected: &Tensor,
        norm: Option<ZScore>,
        expected: Option<f64>,
    ) -> Computed {
        let (target, projected) = (cuda::readable(target)?, cuda::readable(projected)?);
        let (batch, count, width) = target.size3()?;
        let device = self.kernels.device();
        let slope = -expected.unwrap_or_default() / (batch * count) as f64;
        let schedule = Schedule::new(self, batch, count, width);

        let loss = Tensor::f_empty([] as [i64; 0], (Kind::Float, device))?;
        let gradient = expected.map(|_| projected.f_empty_like()).transpose()?;
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
        self.kernels.launch(
            "cosine_loss",
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
                Argument::Int(schedule.tokens_of_tile),
                Argument::Int(schedule.lag),
                Argument::Float(alpha),
                Argument::Float(eps),
                Argument::Float(slope),
            ],
        )?;
        Ok((loss, gradient))
    }

    /// Multiplies `gradient` in place with `given / expected`, without waiting for the device to know
    /// `given`; no pass over it if that is 1.
    pub(super) fn rescale(
        &self,
        gradient: &Tensor,
        given: &Tensor,
        expected: f64,
    ) -> autograd::Result<()> {
        let vectors = gradient.numel() as i64 / self.layout.vector();
        let blocks = (vectors / cuda::BLOCK).clamp(1, 4 * self.kernels.resident_blocks());
        Ok(self.kernels.launch(
            "rescale",
            blocks,
            &[
                Argument::Tensor(gradient),
                Argument::Tensor(given),
                Argument::Double(expected),
                Argument::Int(vectors),
            ],
        )?)
    }
}

/// How the work is shared out; see `cosine.cu`.
#[derive(Debug)]
struct Schedule {
    blocks: i64,
    tokens_of_tile: i64,
    cosine_tiles: i64,
    lag: i64,
}

impl Schedule {
    fn new(cosine: &Cosine, batch: i64, count: i64, width: i64) -> Self {
        let resident = cosine.kernels.resident_blocks();
        let at_once = cosine.layout.tokens();
        // Some four tiles a block, so that all end at about the same time; larger ones load the
        // statistics less often.
        let rounds = (batch * count / at_once / (4 * resident)).clamp(1, 4);
        let tokens_of_tile = rounds * at_once;
        let cosine_tiles = ceil(count, tokens_of_tile);
        let vectors = width / cosine.layout.vector();
        let span = if cosine.layout.vector() == 1 { 32 } else { 8 };
        let (statistic_tiles, lag) = match cosine.zscore {
            true => {
                let tiles = ceil(vectors, span);
                (tiles, (ceil(resident, tiles + cosine_tiles) + 1).min(batch))
            }
            false => (0, 0),
        };
        Self {
            blocks: resident.min(batch * (statistic_tiles + cosine_tiles)),
            tokens_of_tile,
            cosine_tiles,
            lag,
        }
    }
}

fn or_null(tensor: &Option<Tensor>) -> Argument<'_> {
    tensor.as_ref().map_or(Argument::Null, Argument::Tensor)
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
        let kinds = [Kind::Float, Kind::BFloat16];
        let of_dtypes = kinds
            .into_iter()
            .flat_map(|t| kinds.map(|p| (t, p, true, 768)));
        let of_sizes = [(33, true), (384, false), (1152, true), (WIDEST, true)]
            .map(|(width, zscore)| (kinds[0], kinds[0], zscore, width));
        let half = [(kinds[1], kinds[1], true, WIDEST)];
        for (target, projected, zscore, width) in of_dtypes.chain(of_sizes).chain(half) {
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
