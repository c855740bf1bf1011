//! Streams: queues of work on a device that run concurrently.
//!
//! On a CUDA device, an operator only queues its work on the calling thread's current stream. Work on two
//! streams overlaps. An [`Event`] that one stream records and the other waits for orders it; the host does not
//! wait. On the CPU, an operator is done when it returns; streams of the CPU are accepted and do nothing.
//!
//! ```
//! use tch::{Device, Kind, Tensor};
//! use torch_ext::stream::Stream;
//!
//! # fn main() -> Result<(), torch_ext::TorchError> {
//! let device = torch_ext::device::resolve("auto")?;
//! let (main, side) = (Stream::current(device)?, Stream::from_pool(device)?);
//! let x = Tensor::ones([4], (Kind::Float, device));
//! side.wait(&main.record()?)?;
//! let y = {
//!     let _on_side = side.enter()?;
//!     &x + 1.0
//! };
//! main.wait(&side.record()?)?;
//! // `y` is used on `main`: `side` must not reuse its memory before that use is done.
//! main.keep(&y)?;
//! assert_eq!(y.sum(Kind::Float).double_value(&[]), 8.0);
//! # Ok(())
//! # }
//! ```

use std::ffi::c_int;
use std::marker::PhantomData;
use std::ptr;

use tch::{Device, Tensor};

use crate::TorchError;
use crate::ffi::{self, RawEvent};

/// A stream of a device. It may be used from any thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream {
    /// `None` on the CPU.
    queue: Option<Queue>,
}

/// A stream as libtorch numbers it. It belongs to libtorch, which never frees one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Queue {
    device: c_int,
    id: i64,
}

impl Stream {
    /// The stream on which this thread's operators run on `device`.
    ///
    /// # Errors
    /// The device is neither the CPU nor CUDA, or CUDA is not loaded.
    pub fn current(device: Device) -> Result<Self, TorchError> {
        Self::new(device, |device, id| {
            // SAFETY: `id` is valid for writes.
            unsafe { ffi::te_stream_current(device, id) }
        })
    }

    /// One of libtorch's 32 pooled streams besides the default one, assigned in rotation.
    ///
    /// # Errors
    /// As [`Stream::current`].
    pub fn from_pool(device: Device) -> Result<Self, TorchError> {
        Self::new(device, |device, id| {
            // SAFETY: `id` is valid for writes.
            unsafe { ffi::te_stream_from_pool(device, 0, id) }
        })
    }

    /// As [`Stream::from_pool`], but a high-priority stream.
    ///
    /// # Errors
    /// As [`Stream::current`].
    pub fn with_priority(device: Device) -> Result<Self, TorchError> {
        Self::new(device, |device, id| {
            // SAFETY: `id` is valid for writes.
            unsafe { ffi::te_stream_from_pool(device, 1, id) }
        })
    }

    fn new(device: Device, find: impl Fn(c_int, &mut i64) -> c_int) -> Result<Self, TorchError> {
        let number = ffi::device(device)?;
        if device == Device::Cpu {
            return Ok(Self { queue: None });
        }
        let mut id = 0;
        ffi::check(find(number, &mut id))?;
        let queue = Queue { device: number, id };
        Ok(Self { queue: Some(queue) })
    }

    /// Makes this the current stream of its device, and its device the current device, for this thread until
    /// the returned guard is dropped.
    ///
    /// # Errors
    /// libtorch failed.
    pub fn enter(self) -> Result<Entered, TorchError> {
        let mut entered = Entered {
            stream: None,
            device: None,
            _not_send: PhantomData,
        };
        if let Some(queue) = self.queue {
            let (mut device, mut id) = (0, 0);
            // SAFETY: `device` is valid for writes.
            ffi::check(unsafe { ffi::te_device_exchange(queue.device, &mut device) })?;
            entered.device = Some(device);
            // SAFETY: the id came from libtorch, for this device; `id` is valid for writes.
            ffi::check(unsafe { ffi::te_stream_exchange(queue.device, queue.id, &mut id) })?;
            entered.stream = Some(Queue { id, ..queue });
        }
        Ok(entered)
    }

    /// An event that completes when all work queued on this stream so far is done.
    ///
    /// # Errors
    /// The device failed, possibly in earlier work.
    pub fn record(self) -> Result<Event, TorchError> {
        let Some(queue) = self.queue else {
            return Ok(Event { raw: None });
        };
        let mut raw = ptr::null_mut();
        // SAFETY: the id came from libtorch, for this device; `raw` is valid for writes.
        ffi::check(unsafe { ffi::te_event_record(queue.device, queue.id, &mut raw) })?;
        Ok(Event { raw: Some(raw) })
    }

    /// Makes work that is queued on this stream from now on wait for `event`. The host does not wait.
    ///
    /// # Errors
    /// The event belongs to another type of device, or the device failed.
    pub fn wait(self, event: &Event) -> Result<(), TorchError> {
        match (self.queue, event.raw) {
            // SAFETY: the event is live until it is dropped; libtorch only reads it here.
            (Some(queue), Some(raw)) => {
                ffi::check(unsafe { ffi::te_event_wait(raw, queue.device, queue.id) })
            }
            _ => Ok(()),
        }
    }

    /// Records that a tensor from another stream is used on this one: its memory is not reused before the work
    /// that is queued on this stream when the tensor is freed (`torch.Tensor.record_stream`).
    ///
    /// # Errors
    /// The tensor is not on this stream's device.
    pub fn keep(self, tensor: &Tensor) -> Result<(), TorchError> {
        let Some(queue) = self.queue else {
            return Ok(());
        };
        // SAFETY: see `ffi.rs` for the tensor; the id came from libtorch, for this device.
        ffi::check(unsafe { ffi::te_record_stream(tensor.as_ptr(), queue.device, queue.id) })
    }
}

/// A guard for the current stream and device of a thread. The previous stream and device are restored when it
/// is dropped.
#[derive(Debug)]
pub struct Entered {
    /// The previous stream of the same device.
    stream: Option<Queue>,
    /// The previous device.
    device: Option<c_int>,
    // The current stream is thread-local: the guard must be dropped on the thread that created it.
    _not_send: PhantomData<*const ()>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        // A failure cannot be reported here.
        if let Some(queue) = self.stream {
            let mut replaced = 0;
            // SAFETY: the id came from libtorch, for this device.
            unsafe { ffi::te_stream_exchange(queue.device, queue.id, &mut replaced) };
        }
        if let Some(device) = self.device {
            let mut replaced = 0;
            // SAFETY: the device was the current one; `replaced` is valid for writes.
            unsafe { ffi::te_device_exchange(device, &mut replaced) };
        }
    }
}

/// A point in a stream's queue of work.
#[derive(Debug)]
pub struct Event {
    /// `None` on the CPU, where all queued work is done.
    raw: Option<*mut RawEvent>,
}

impl Event {
    /// Makes the calling thread wait until the event completes.
    ///
    /// # Errors
    /// The device failed in work before the event.
    pub fn wait(&self) -> Result<(), TorchError> {
        match self.raw {
            // SAFETY: the event is live until it is dropped; libtorch only reads it here.
            Some(raw) => ffi::check(unsafe { ffi::te_event_synchronize(raw) }),
            None => Ok(()),
        }
    }
}

// SAFETY: a CUDA event is tied to a device, not to a thread, and is accessed only through `self`.
unsafe impl Send for Event {}

impl Drop for Event {
    fn drop(&mut self) {
        if let Some(raw) = self.raw {
            // SAFETY: created by `te_event_record`, freed once. Streams that wait for it continue to wait.
            unsafe { ffi::te_event_free(raw) }
        }
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    #[test]
    fn cpu_streams_are_equal_and_do_nothing() {
        let (main, side) = (
            Stream::current(Device::Cpu).unwrap(),
            Stream::from_pool(Device::Cpu).unwrap(),
        );
        assert_eq!(main, side);
        let _entered = side.enter().unwrap();
        main.wait(&side.record().unwrap()).unwrap();
        main.keep(&Tensor::zeros([2], (Kind::Float, Device::Cpu)))
            .unwrap();
        assert!(Stream::current(Device::Mps).is_err());
        // No test in this process has loaded CUDA.
        let cuda = Device::Cuda(0);
        assert!(Stream::current(cuda).is_err() && Stream::from_pool(cuda).is_err());
    }

    mod needs_cuda {
        use super::*;

        #[test]
        #[ignore = "needs a CUDA device: `cargo xtask test --cuda`"]
        fn a_waiting_stream_starts_after_the_event() {
            let device = Device::Cuda(0);
            crate::device::load_cuda().unwrap();
            let (main, side) = (
                Stream::current(device).unwrap(),
                Stream::from_pool(device).unwrap(),
            );
            assert_ne!(main, side);
            let x = Tensor::ones([2048, 2048], (Kind::Float, device)) / 2048.0;
            let mut kept = Vec::new();
            for round in 0..20 {
                side.wait(&main.record().unwrap()).unwrap();
                let made = {
                    let _entered = side.enter().unwrap();
                    assert_eq!(Stream::current(device).unwrap(), side);
                    // Long enough that a stream that did not wait would read too early.
                    (0..10).fold(x.shallow_clone(), |y, _| y.matmul(&x)) * f64::from(round)
                };
                assert_eq!(Stream::current(device).unwrap(), main);
                let event = side.record().unwrap();
                main.wait(&event).unwrap();
                main.keep(&made).unwrap();
                drop(event);
                kept.push(made.mean(Kind::Float) * 2048.0);
                // Its memory may be reused in the next round only after `main` has read it.
                drop(made);
            }
            for (round, mean) in kept.iter().enumerate() {
                let found = mean.double_value(&[]);
                assert!(
                    (found - round as f64).abs() < 1e-3 * (1.0 + round as f64),
                    "{round}: {found}"
                );
            }
        }
    }
}
