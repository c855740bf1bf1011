//! CUDA graphs: recorded work that is queued as a whole.

use std::mem::ManuallyDrop;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

use tch::{Device, Tensor};

use crate::ffi::{self, RawGraph, handles};
use crate::stream::Stream;
use crate::{TorchError, device};

/// Number of runs before a capture, in which libraries select algorithms and allocate workspaces. PyTorch's
/// documentation of whole-network capture uses the same number.
const WARM_UPS: usize = 3;

/// Whether beginning or ending a recording failed. libtorch's allocator then treats it as still in progress: it queries
/// it at each allocation, and refuses to start another recording or to release cached memory.
static BROKEN: AtomicBool = AtomicBool::new(false);

/// A CUDA graph: work that was recorded once and is queued as a whole, without the host's overhead per operator.
///
/// A replay runs the same kernels on the same memory. Tensors that the recorded work reads or writes must be kept
/// alive, and receive new contents in place. Tensors that it creates are in the graph's memory, and each replay
/// overwrites them. The recorded work must not draw random numbers, wait for the device, or copy from host memory
/// that is not page-locked.
#[derive(Debug)]
pub struct Graph {
    raw: *mut RawGraph,
    device: Device,
    pool_bytes: u64,
}

// SAFETY: libtorch ties a graph to a device, not to a thread; before it is returned, only `capture` uses it.
unsafe impl Send for Graph {}

impl Graph {
    /// Runs `body` three times to warm up, on a stream other than the current one of `device`, then records it
    /// once. Returns the graph and the result of the recorded run, whose tensors are computed by the first replay.
    ///
    /// Other threads may use the device meanwhile.
    ///
    /// # Errors
    /// `device` is not a CUDA device; errors of `body`; `body` runs work that cannot be recorded, after which this
    /// process cannot record graphs any more.
    pub fn capture<T, E: From<TorchError>>(
        device: Device,
        mut body: impl FnMut() -> Result<T, E>,
    ) -> Result<(Self, T), E> {
        if !device.is_cuda() {
            return Err(TorchError::Device(device).into());
        }
        if BROKEN.load(Ordering::Relaxed) {
            return Err(TorchError::Recording.into());
        }
        // A high-priority stream, since nothing else uses one: a stream of the normal pool could be in use by
        // another thread, whose work would be recorded too.
        let (main, side) = (Stream::current(device)?, Stream::with_priority(device)?);
        side.wait(&main.record()?)?;
        let captured = {
            let _on_side = side.enter()?;
            Self::capture_here(device, &mut body)
        };
        match captured {
            Ok(captured) => {
                main.wait(&side.record()?)?;
                Ok(captured)
            }
            Err(error) => {
                // The host waits for the warm-up runs. If `side` is still recording, an event of it that `main` waits
                // for would make `main` part of the recording.
                if let Err(error) = device::synchronize(device) {
                    tracing::debug!("error after a failed recording of a CUDA graph: {error}");
                }
                Err(error)
            }
        }
    }

    fn capture_here<T, E: From<TorchError>>(
        device: Device,
        body: &mut impl FnMut() -> Result<T, E>,
    ) -> Result<(Self, T), E> {
        for _ in 0..WARM_UPS {
            drop(body()?);
        }
        device::synchronize(device)?;
        // Releases the memory of the warm-up runs, since the graph allocates its own.
        device::empty_cache(device)?;
        let before = device::reserved_memory(device)?;
        let recording = Recording::begin(Self::new(device)?)?;
        let result = body();
        let ended = recording.end();
        let result = result?;
        let mut graph = ended?;
        // The graph's pool was empty, so that everything that it holds has been taken from the device meanwhile.
        graph.pool_bytes = device::reserved_memory(device)?.saturating_sub(before);
        Ok((graph, result))
    }

    fn new(device: Device) -> Result<Self, TorchError> {
        let mut raw = ptr::null_mut();
        // SAFETY: `raw` is valid for writes.
        ffi::check(unsafe { ffi::te_graph_new(&mut raw) })?;
        Ok(Self {
            raw,
            device,
            pool_bytes: 0,
        })
    }

    /// Bytes of device memory that the graph occupies until it is dropped: the private pool of tensors that the recorded
    /// work creates, including those that have been freed since, whose memory each replay writes.
    ///
    /// It is the growth of [`device::reserved_memory`] during the recording. Memory that other threads take from the
    /// device meanwhile is included.
    pub fn pool_bytes(&self) -> u64 {
        self.pool_bytes
    }

    /// Queues the recorded work on the current stream.
    ///
    /// # Errors
    /// The device failed, possibly in earlier work.
    pub fn replay(&self) -> Result<(), TorchError> {
        // SAFETY: the graph is live until it is dropped, and its capture is complete.
        ffi::check(unsafe { ffi::te_graph_replay(self.raw) })
    }
}

/// A graph that may be known to the allocator. Dropping it ends the recording, also during a panic: otherwise the
/// stream would stay in recording mode.
///
/// `CUDAGraph::capture_begin` of libtorch 2.11 first gives the allocator a function that holds the address of the graph
/// (`beginAllocateToPool`), and then tells the stream to record, which may fail. `capture_end` first tells the stream to
/// stop, which may fail too, and then makes the allocator forget the function (`endAllocateToPool`). Neither cleans up
/// after a failure. The allocator calls the function at each allocation on any thread. A graph is therefore freed only
/// after `capture_end` has succeeded: the one point at which the allocator is known not to hold its address. On all other
/// paths it is leaked, a kilobyte, and no further recording starts ([`BROKEN`]).
struct Recording {
    graph: ManuallyDrop<Graph>,
}

impl Recording {
    fn begin(graph: Graph) -> Result<Self, TorchError> {
        // Before the call, so that an error of it takes the same path as any other end of a recording: if the stream has
        // started to record, it stops, and the graph is freed; if not, ending it fails, and the graph is leaked.
        let recording = Self {
            graph: ManuallyDrop::new(graph),
        };
        // SAFETY: the graph is live, and is not freed before the allocator has forgotten it; see the type.
        ffi::check(unsafe { ffi::te_graph_begin(recording.graph.raw) })?;
        Ok(recording)
    }

    fn end(self) -> Result<Graph, TorchError> {
        let mut this = ManuallyDrop::new(self);
        this.end_here()?;
        // SAFETY: taken once; `this` is never dropped.
        Ok(unsafe { ManuallyDrop::take(&mut this.graph) })
    }

    /// Ends the recording. On success, the graph may be freed.
    fn end_here(&mut self) -> Result<(), TorchError> {
        // SAFETY: the graph is live, and this is called once after `te_graph_begin`. If that has failed, the stream is
        // not recording and libtorch returns an error.
        let ended = ffi::check(unsafe { ffi::te_graph_end(self.graph.raw) });
        if ended.is_err() {
            BROKEN.store(true, Ordering::Relaxed);
        }
        ended
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        if self.end_here().is_ok() {
            // SAFETY: taken once, and not used after this; the allocator has forgotten the graph.
            drop(unsafe { ManuallyDrop::take(&mut self.graph) });
        }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // The graph's memory is reused, and a replay may still be using it.
        if let Err(error) = device::synchronize(self.device) {
            tracing::debug!("error before freeing a CUDA graph: {error}");
        }
        // SAFETY: created by `te_graph_new`, freed once.
        unsafe { ffi::te_graph_free(self.raw) }
    }
}

/// Sets the gradients of `params` to `grads`, in pairs; an undefined tensor removes the gradient. A replay of a
/// backward pass writes the memory of the gradients but does not attach them to the parameters.
///
/// # Errors
/// The lengths of the lists differ.
pub fn set_grads(params: &[Tensor], grads: &[Tensor]) -> Result<(), TorchError> {
    if params.len() != grads.len() {
        return Err(TorchError::Length {
            what: "setting gradients",
            left: params.len(),
            right: grads.len(),
        });
    }
    // SAFETY: both lists have the passed length and live for the call.
    ffi::check(unsafe {
        ffi::te_set_grads(
            handles(params).as_ptr(),
            handles(grads).as_ptr(),
            params.len(),
        )
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs::File;

    use object::read::elf::ElfFile64;
    use object::{Endianness, Object, ObjectSymbol, ReadCache};
    use tch::Kind;

    use super::*;

    mod needs_cuda {
        use super::*;

        #[test]
        #[ignore = "needs a CUDA device: `cargo xtask test --cuda`"]
        fn a_graph_replays_recorded_work_on_new_contents() {
            let gpu = Device::Cuda(0);
            device::load_cuda().unwrap();
            let mut x = Tensor::ones([4], (Kind::Float, gpu));
            let weight = (Tensor::ones([4], (Kind::Float, gpu)) * 2.0).set_requires_grad(true);
            let weights = [weight.shallow_clone()];
            let (graph, loss) = Graph::capture(gpu, || {
                crate::optim::clear_grads(&weights)?;
                let loss = x.f_mul(&weight)?.f_square()?.f_sum(Kind::Float)?;
                loss.f_backward()?;
                Ok::<_, TorchError>(loss.detach())
            })
            .unwrap();
            // Loss, gradient and intermediate tensors, in whole segments of the allocator.
            assert!(graph.pool_bytes() >= 2 << 20, "{}", graph.pool_bytes());
            let grads = [weight.grad()];
            for scale in [1.0, 3.0] {
                x.copy_(&Tensor::from_slice(&[scale; 4]));
                crate::optim::clear_grads(&weights).unwrap();
                graph.replay().unwrap();
                set_grads(&weights, &grads).unwrap();
                assert_eq!(loss.double_value(&[]), 16.0 * scale * scale);
                assert_eq!(weight.grad().double_value(&[0]), 4.0 * scale * scale);
            }
            unrecordable_work_is_an_error_and_leaves_the_device_usable(gpu);
        }
    }

    /// After this, no graph can be recorded in this process, so it runs at the end of the only test that records.
    fn unrecordable_work_is_an_error_and_leaves_the_device_usable(gpu: Device) {
        let x = Tensor::ones([4], (Kind::Float, gpu));
        let mut runs = 0;
        let mut waits = || {
            Graph::capture(gpu, || {
                runs += 1;
                // Waiting for the device is allowed only in the warm-up runs.
                x.f_sum(Kind::Float)?.f_double_value(&[])?;
                Ok::<_, TorchError>(())
            })
        };
        assert!(waits().is_err());
        let again = waits().unwrap_err().to_string();
        assert!(again.contains("after a failed recording"), "{again}");
        assert_eq!(runs, WARM_UPS + 1);
        assert_eq!((&x + 1.0).sum(Kind::Float).double_value(&[]), 8.0);
    }

    #[test]
    fn libtorch_exports_the_functions_that_the_shim_looks_up() {
        assert!(device::reserved_memory(Device::Cpu).is_err());
        assert!(matches!(
            Graph::capture(Device::Cpu, || Ok::<_, TorchError>(())),
            Err(TorchError::Device(Device::Cpu))
        ));
        let source = include_str!("../../cpp/graph.cpp");
        let names = source.split("find(\"").skip(1);
        let names: BTreeSet<&str> = names.filter_map(|rest| rest.split('"').next()).collect();
        assert_eq!(names.len(), 5);

        // The file is read, not loaded: the lean set-up has the file, but not the libraries that it needs.
        let library = device::library_dir().unwrap().join("libtorch_cuda.so");
        let Ok(file) = File::open(&library) else {
            // A libtorch that was built without CUDA.
            assert!(device::load_cuda().is_err(), "{}", library.display());
            return;
        };
        let contents = ReadCache::new(file);
        let elf = ElfFile64::<Endianness, _>::parse(&contents).unwrap();
        let mut missing = names;
        for symbol in elf.dynamic_symbols() {
            if symbol.is_definition() {
                missing.remove(symbol.name().unwrap());
            }
        }
        assert!(missing.is_empty(), "{missing:?} in {}", library.display());
    }

    #[test]
    fn gradients_are_set_and_removed() {
        let weight = Tensor::ones([2], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let grad = Tensor::from_slice(&[3f32, 4.0]);
        let weights = [weight.shallow_clone()];
        set_grads(&weights, &[grad.shallow_clone()]).unwrap();
        assert_eq!(weight.grad(), grad);
        set_grads(&weights, &[Tensor::new()]).unwrap();
        assert!(!weight.grad().defined());
        assert!(matches!(
            set_grads(&weights, &[]),
            Err(TorchError::Length {
                left: 1,
                right: 0,
                ..
            })
        ));
    }
}
