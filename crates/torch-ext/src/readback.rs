//! Copies from a device to the host that do not wait for later work.
//!
//! A plain copy to the host waits for all work that is in the stream when the copy is requested. A [`Readback`] is
//! queued right after the numbers are computed, so it precedes work that is queued later; only its reader waits:
//!
//! ```
//! use tch::{Kind, Tensor};
//! use torch_ext::readback::Readback;
//!
//! # fn main() -> Result<(), torch_ext::TorchError> {
//! let device = torch_ext::device::resolve("auto")?;
//! let loss = Tensor::ones([2], (Kind::Float, device));
//! let copy = Readback::begin(&loss)?;
//! let _later = Tensor::zeros([64, 64], (Kind::Float, device)).f_matmul(&Tensor::ones([64, 64], (Kind::Float, device)))?;
//! // This waits for the copy, but not for work that was queued after it.
//! assert_eq!(Vec::<f32>::try_from(copy.wait()?)?, [1.0, 1.0]);
//! # Ok(())
//! # }
//! ```

use tch::{Device, Tensor};

use crate::TorchError;
use crate::stream::{Event, Stream};

/// A copy to the host that may still be in progress.
#[derive(Debug)]
pub struct Readback {
    /// In page-locked memory if the source is on a GPU.
    host: Tensor,
    copied: Event,
}

impl Readback {
    /// Queues the copy on the calling thread's current stream, followed by an event. A CPU tensor is not copied:
    /// changes in place before [`Readback::wait`] are visible.
    ///
    /// # Errors
    /// The device failed, possibly in earlier work; page-locked memory is exhausted.
    pub fn begin(tensor: &Tensor) -> Result<Self, TorchError> {
        let (device, tensor) = (tensor.device(), tensor.f_detach()?);
        let host = match device {
            Device::Cpu => tensor,
            // For a non-blocking copy, libtorch returns page-locked memory.
            _ => tensor.f_to_device_(Device::Cpu, tensor.kind(), true, true)?,
        };
        Ok(Self {
            host,
            copied: Stream::current(device)?.record()?,
        })
    }

    /// Waits for the copy, and returns the CPU tensor.
    ///
    /// # Errors
    /// The device failed in work before the copy.
    pub fn wait(self) -> Result<Tensor, TorchError> {
        self.copied.wait()?;
        Ok(self.host)
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    #[test]
    fn a_copy_has_the_bits_of_its_source() {
        let tensor = Tensor::from_slice(&[0.1f32, f32::NAN, -0.0]);
        let back = Readback::begin(&tensor).unwrap().wait().unwrap();
        let bits = |tensor: &Tensor| -> Vec<u32> {
            let numbers = Vec::<f32>::try_from(tensor).unwrap();
            numbers.into_iter().map(f32::to_bits).collect()
        };
        assert_eq!(bits(&back), bits(&tensor));
    }

    #[test]
    fn on_a_gpu_the_copy_does_not_wait_for_later_work() {
        let device = Device::Cuda(0);
        if let Err(error) = crate::device::load_cuda() {
            eprintln!("skipped, since CUDA is not available: {error}");
            return;
        }
        let mut x = Tensor::ones([4], (Kind::Float, device));
        let copy = Readback::begin(&x).unwrap();
        // Later work changes the tensor in place.
        let _filled = x.fill_(2.0);
        let back = copy.wait().unwrap();
        assert!(back.is_pinned(device) && back.device() == Device::Cpu);
        assert_eq!(Vec::<f32>::try_from(back).unwrap(), [1.0; 4]);
    }
}
