//! The sweep on a CUDA device, with the kernels of `update.cu`. It takes three launches for any number of weights,
//! and reads nothing back to the host.

use std::cell::RefCell;

use tch::{Device, Kind, Tensor};
use torch_ext::cuda::{self, Argument, BLOCK, CudaError, Kernel, Kernels, Layout, Program, Source};
use torch_ext::{OnceMap, TorchError, autograd};

use super::operands::{CHUNK, Factors, Operands, Update};

static UPDATE: Source = Source {
    name: "update.cu",
    text: include_str!("update.cu"),
};

/// Number of elements that a thread reads at once.
const VECTOR: i64 = 4;

/// The addresses of all operands, in a table on the device. The table is copied to the device only when an address
/// has changed since the previous step. This is rare, since the allocator usually reuses the same memory for
/// gradients.
#[derive(Debug, Default)]
pub struct PointerTable {
    cached: RefCell<Option<Cached>>,
}

#[derive(Debug)]
struct Cached {
    rows: Vec<Row>,
    /// int64 `[weights, 8]`.
    on_device: Tensor,
    /// int32 `[chunks, 2]`: for each chunk the index of its weight, and its index within the weight.
    chunks: Tensor,
}

/// The struct `Row` of `update.cu`.
type Row = [i64; 8];

impl PointerTable {
    /// Like [`update_weights`](super::update_weights), for operands that kernels take.
    ///
    /// # Safety
    /// As [`PointerTable::launch`].
    pub(super) unsafe fn sweep(
        &self,
        device: Device,
        weights: &[Operands<'_>],
        update: &Update<'_>,
    ) -> Result<Option<Tensor>, TorchError> {
        let kernels = UpdateKernels::on(device);
        let Some(kernels) = kernels.filter(|_| weights.iter().all(is_aligned)) else {
            return Ok(None);
        };
        // SAFETY: the caller's promise; the addresses are aligned, as checked above.
        unsafe { self.launch(kernels, weights, update) }.map(Some)
    }

    /// The sweep with `kernels`.
    ///
    /// # Safety
    /// The operands of each weight are dense tensors on the device of the kernels, in the size of the weight and in the
    /// dtypes of [`Operands`]; all but the gradients are contiguous and aligned to 16 bytes. There are at most
    /// [`AVERAGES`](super::AVERAGES) averages.
    pub(super) unsafe fn launch(
        &self,
        kernels: &UpdateKernels,
        weights: &[Operands<'_>],
        update: &Update<'_>,
    ) -> Result<Tensor, TorchError> {
        let device = kernels.device;
        let gradients = weights
            .iter()
            .map(|operands| cuda::readable(&operands.gradient))
            .collect::<Result<Vec<_>, _>>()?;
        let rows: Vec<Row> = weights
            .iter()
            .zip(&gradients)
            .map(|(operands, gradient)| row(operands, gradient))
            .collect();
        let mut cached = self.cached.borrow_mut();
        let cached = match &mut *cached {
            Some(cached) if cached.rows == rows => cached,
            other => other.insert(Cached::new(rows, device)?),
        };

        let count = cached.chunks.size()[0];
        let sums = Tensor::f_empty([count], (Kind::Float, device))?;
        let norm = Tensor::f_empty([2], (Kind::Float, device))?;
        let (rows, chunks) = (
            Argument::Tensor(&cached.on_device),
            Argument::Tensor(&cached.chunks),
        );
        // SAFETY: the rows hold the addresses of tensors that are borrowed until the end of this function or, for
        // gradients, owned by it. By contract they have the right dtypes and sizes, and `Cached::new` checks that those
        // which are written share no memory. `chunks` divides them, and `sums` has one element for each chunk.
        unsafe {
            let arguments = [rows, chunks, Argument::Tensor(&sums)];
            kernels.squared_norms.launch(count, &arguments)
        }?;
        // SAFETY: `sums` has `count` elements, and `norm` two.
        unsafe {
            kernels.total_norm.launch(
                1,
                &[
                    Argument::Tensor(&sums),
                    Argument::Tensor(&norm),
                    Argument::Int(count),
                    Argument::Float(update.max_norm),
                ],
            )
        }?;
        let factors = Factors::new(update);
        let mut arguments = vec![rows, chunks, Argument::Tensor(&norm)];
        let adamw = [
            factors.first,
            factors.keep_second,
            factors.second,
            factors.second_correction,
            factors.eps,
            factors.decay,
            factors.rate,
        ];
        let averages = factors.averages.iter().flat_map(|&(keep, add)| [keep, add]);
        arguments.extend(
            adamw
                .into_iter()
                .chain(averages)
                .map(|factor| Argument::Float(f64::from(factor))),
        );
        // SAFETY: as for the first kernel; the factors follow in the order of the parameters.
        unsafe { kernels.update.launch(count, &arguments) }?;
        for operands in weights {
            for tensor in changed(operands) {
                autograd::bump_version(tensor)?;
            }
        }
        Ok(norm.f_get(0)?)
    }
}

impl Cached {
    fn new(rows: Vec<Row>, device: Device) -> Result<Self, TorchError> {
        if shares_memory(&rows) {
            let reason = "shares memory with another tensor that a kernel changes";
            return Err(TorchError::Memory(reason.to_owned()));
        }
        let mut chunks = Vec::new();
        for (index, row) in rows.iter().enumerate() {
            let count = (row[7] as usize).div_ceil(CHUNK);
            chunks.extend((0..count).flat_map(|chunk| [index as i32, chunk as i32]));
        }
        // The copies are non-blocking, so that the host does not wait for earlier work of the device.
        let send = |tensor: Tensor, kind| tensor.f_to_device_(device, kind, true, false);
        Ok(Self {
            on_device: send(Tensor::f_from_slice(rows.as_flattened())?, Kind::Int64)?,
            chunks: send(Tensor::f_from_slice(&chunks)?.f_view([-1, 2])?, Kind::Int)?,
            rows,
        })
    }
}

/// Whether memory that the sweep writes is also that of another operand.
fn shares_memory(rows: &[Row]) -> bool {
    // Address of the first byte and of the byte after the last, and whether it is written.
    let mut ranges: Vec<(i64, i64, bool)> = Vec::new();
    for &[gradient, weight, first, second, average, other, copy, count] in rows {
        // Gradients are bfloat16 if there is a copy.
        let narrow = if copy == 0 { 4 } else { 2 };
        ranges.push((gradient, gradient + narrow * count, false));
        for state in [weight, first, second, average, other] {
            ranges.push((state, state + 4 * count, true));
        }
        ranges.push((copy, copy + 2 * count, true));
    }
    ranges.retain(|&(start, end, _)| start != 0 && start < end);
    ranges.sort_unstable();
    let (mut read_until, mut written_until) = (0, 0);
    ranges.into_iter().any(|(start, end, written)| {
        let shared = start < written_until || (written && start < read_until);
        match written {
            true => written_until = written_until.max(end),
            false => read_until = read_until.max(end),
        }
        shared
    })
}

/// Returns the tensors that a sweep changes.
fn changed<'a>(operands: &'a Operands<'_>) -> impl Iterator<Item = &'a Tensor> {
    let state = [operands.weight, operands.exp_avg, operands.exp_avg_sq];
    let averages = operands.averages.iter().copied();
    state.into_iter().chain(averages).chain(operands.copy)
}

fn is_aligned(operands: &Operands<'_>) -> bool {
    changed(operands).all(|tensor| tensor.data_ptr().addr().is_multiple_of(16))
}

fn row(operands: &Operands<'_>, gradient: &Tensor) -> Row {
    let address = |tensor: &Tensor| tensor.data_ptr().addr() as i64;
    let average = |index: usize| operands.averages.get(index).map_or(0, |&a| address(a));
    [
        address(gradient),
        address(operands.weight),
        address(operands.exp_avg),
        address(operands.exp_avg_sq),
        average(0),
        average(1),
        operands.copy.map_or(0, address),
        operands.weight.numel() as i64,
    ]
}

/// The kernels of `update.cu` on one device.
#[derive(Debug)]
pub(super) struct UpdateKernels {
    device: Device,
    squared_norms: Kernel,
    total_norm: Kernel,
    update: Kernel,
}

impl UpdateKernels {
    /// Returns `None` if the kernels cannot be compiled or loaded, which is logged.
    fn on(device: Device) -> Option<&'static Self> {
        static RESOLVED: OnceMap<Device, Option<UpdateKernels>> = OnceMap::new();
        let kernels = RESOLVED.get_or_make(device, || {
            let kernels = Kernels::load(device, &program()?).and_then(Self::new);
            cuda::usable(device, kernels)
        });
        kernels.as_ref()
    }

    /// The kernels emulated on the CPU, for tests.
    #[cfg(test)]
    pub(super) fn emulated() -> &'static Self {
        static RESOLVED: OnceMap<(), UpdateKernels> = OnceMap::new();
        RESOLVED.get_or_make((), || {
            // SAFETY: the source has no code that runs when it is loaded.
            let kernels = unsafe { Kernels::emulate(&program().unwrap()) }.unwrap();
            Self::new(kernels).unwrap()
        })
    }

    fn new(kernels: &'static Kernels) -> Result<Self, CudaError> {
        Ok(Self {
            device: kernels.device(),
            squared_norms: kernels.kernel("squared_norms")?,
            total_norm: kernels.kernel("total_norm")?,
            update: kernels.kernel("update")?,
        })
    }
}

fn program() -> Option<Program> {
    // All threads of a block read one vector each.
    let mut defines = Layout::new(VECTOR * BLOCK, 4, VECTOR)?.defines();
    defines.push(("CHUNK", CHUNK.to_string()));
    let source = &UPDATE;
    Some(Program { source, defines })
}

#[cfg(test)]
mod needs_nvrtc {
    use torch_ext::cuda::Architecture;

    use super::*;

    #[test]
    #[ignore = "needs NVRTC, which comes with the full set-up: `cargo xtask test --python`"]
    fn every_kernel_compiles_for_a100_and_h100() {
        for major in [8, 9] {
            let architecture = Architecture { major, minor: 0 };
            let code = cuda::compile(&program().unwrap(), architecture).unwrap();
            assert_eq!(code[..4], *b"\x7fELF");
        }
    }
}
