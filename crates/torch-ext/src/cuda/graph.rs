use std::mem::ManuallyDrop;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

use tch::{Device, Tensor};

use crate::ffi::{self, RawGraph, handles};
use crate::stream::Stream;
use crate::{TorchError, device};

/// Runs before a capture, in which libraries choose their algorithms and take their workspaces; PyTorch's
/// documentation of whole-network capture has as many.
const WARM_UPS: usize = 3;

/// Whether a recording could not be ended as it should. libtorch's allocator then takes it for one that still
/// goes on: it asks it about each allocation, and refuses to begin another or to give back what it keeps.
static BROKEN: AtomicBool = AtomicBool::new(false);

/// Work that was recorded once and is queued as a whole, without the host's cost of each operator (a CUDA
/// graph).
///
/// A replay runs the same kernels on the same memory. The tensors that were read or written must be kept, and
/// be given new contents in place; those that were made are in memory of the graph, and each
/// replay writes them anew. Nothing in it may be drawn at random, wait for the device, or copy from host memory
/// that is not page-locked.
#[derive(Debug)]
pub struct Graph {
    raw: *mut RawGraph,
    device: Device,
}

// SAFETY: libtorch ties a graph to a device and to no thread; only `capture` uses it before it is given out.
unsafe impl Send for Graph {}

impl Graph {
    /// Runs `body` a few times on a stream beside the current one of `device`, then records it once more;
    /// gives back what the recorded run returned, whose contents the first replay makes.
    ///
    /// Other threads may use the device meanwhile.
    ///
    /// # Errors
    /// `device` is not a CUDA device; `body`'s own; it did what cannot be recorded, after which this process
    /// cannot record anything more.
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
        // Of high priority, as no other stream here is: one from the pool that others take theirs from could
        // be another thread's, whose work would be recorded too.
        let (main, side) = (Stream::current(device)?, Stream::with_priority(device)?);
        side.wait(&main.record()?)?;
        let captured = {
            let _on_side = side.enter()?;
            Self::capture_here(device, &mut body)
        };
        main.wait(&side.record()?)?;
        captured
    }

    fn capture_here<T, E: From<TorchError>>(
        device: Device,
        body: &mut impl FnMut() -> Result<T, E>,
    ) -> Result<(Self, T), E> {
        for _ in 0..WARM_UPS {
            drop(body()?);
        }
        device::synchronize(device)?;
        // What the warm-up took is free for the graph, which takes memory of its own.
        device::empty_cache(device)?;
        let mut raw = ptr::null_mut();
        // SAFETY: `raw` is valid for writes.
        ffi::check(unsafe { ffi::te_graph_new(&mut raw) })?;
        let graph = Self { raw, device };
        let recording = Recording::begin(graph)?;
        let made = body();
        let ended = recording.end();
        let made = made?;
        Ok((ended?, made))
    }

    /// Queues the work on the current stream.
    ///
    /// # Errors
    /// The device failed, perhaps in earlier work.
    pub fn replay(&self) -> Result<(), TorchError> {
        // SAFETY: the graph is live until it is dropped, and was captured whole.
        ffi::check(unsafe { ffi::te_graph_replay(self.raw) })
    }
}

/// A graph that is being recorded. It is ended in any case, also by a panic: the stream would stay in
/// recording.
struct Recording {
    graph: ManuallyDrop<Graph>,
}

impl Recording {
    fn begin(graph: Graph) -> Result<Self, TorchError> {
        // SAFETY: the graph is live.
        ffi::check(unsafe { ffi::te_graph_begin(graph.raw) })?;
        Ok(Self {
            graph: ManuallyDrop::new(graph),
        })
    }

    fn end(self) -> Result<Graph, TorchError> {
        let mut this = ManuallyDrop::new(self);
        this.end_here()?;
        // SAFETY: taken once; `this` is never dropped.
        Ok(unsafe { ManuallyDrop::take(&mut this.graph) })
    }

    /// On an error the graph is never freed: the allocator goes on asking it.
    fn end_here(&mut self) -> Result<(), TorchError> {
        // SAFETY: the graph is live, and recording since `begin`; both callers come here once.
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
            // SAFETY: taken once, and not used after this.
            drop(unsafe { ManuallyDrop::take(&mut self.graph) });
        }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // Its memory goes to others, and a replay may still be using it.
        if let Err(error) = device::synchronize(self.device) {
            tracing::debug!("a CUDA graph is dropped: {error}");
        }
        // SAFETY: made by `te_graph_new`, freed once.
        unsafe { ffi::te_graph_free(self.raw) }
    }
}

/// Makes `grads` the gradients of `params`, in pairs; an undefined tensor is none. A replay of a backward pass
/// writes the gradients' memory, but leaves no trace of it in the parameters.
///
/// # Errors
/// Lists of different lengths.
pub fn set_grads(params: &[Tensor], grads: &[Tensor]) -> Result<(), TorchError> {
    if params.len() != grads.len() {
        return Err(TorchError::Length {
            what: "setting gradients",
            left: params.len(),
            right: grads.len(),
        });
    }
    // SAFETY: both lists have the length given and live for the call.
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
        fn a_graph_replays_what_it_recorded_on_new_contents() {
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
            let grads = [weight.grad()];
            for scale in [1.0, 3.0] {
                x.copy_(&Tensor::from_slice(&[scale; 4]));
                crate::optim::clear_grads(&weights).unwrap();
                graph.replay().unwrap();
                set_grads(&weights, &grads).unwrap();
                assert_eq!(loss.double_value(&[]), 16.0 * scale * scale);
                assert_eq!(weight.grad().double_value(&[0]), 4.0 * scale * scale);
            }
            what_cannot_be_recorded_is_an_error_and_leaves_the_device_usable(gpu);
        }
    }

    /// After this no graph can be recorded in the process, so it comes last in the one test that records.
    fn what_cannot_be_recorded_is_an_error_and_leaves_the_device_usable(gpu: Device) {
        let x = Tensor::ones([4], (Kind::Float, gpu));
        let mut runs = 0;
        let mut waits = || {
            Graph::capture(gpu, || {
                runs += 1;
                // To wait for the device is fine in the warm-up only.
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
    fn libtorch_has_the_functions_that_are_looked_up() {
        assert!(matches!(
            Graph::capture(Device::Cpu, || Ok::<_, TorchError>(())),
            Err(TorchError::Device(Device::Cpu))
        ));
        let source = include_str!("../../cpp/graph.cpp");
        let names = source.split("find(\"").skip(1);
        let names: BTreeSet<&str> = names.filter_map(|rest| rest.split('"').next()).collect();
        assert_eq!(names.len(), 5);

        // Read, not loaded: the lean set-up has the file, but not the libraries that it needs.
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
    fn gradients_are_set_and_taken_away() {
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
