//! Copies from a device to the host that nothing waits for but their reader.
//!
//! A plain copy to the host is queued behind all the work that the stream holds when it is asked for, and the host
//! waits for that. Begun where the numbers are made, the copy comes before what is queued later:
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
//! // It waits for the copy, and not for what was queued after it.
//! assert_eq!(Vec::<f32>::try_from(copy.wait()?)?, [1.0, 1.0]);
//! # Ok(())
//! # }
//! ```

use tch::{Device, Tensor};

use crate::TorchError;
use crate::stream::{Event, Stream};

/// A copy on its way to the host.
#[derive(Debug)]
pub struct Readback {
    /// In page-locked memory where it comes from a GPU.
    host: Tensor,
    copied: Event,
}

impl Readback {
    /// Queues the copy on the calling thread's current stream, and an event behind it. A tensor on the CPU is not
    /// copied: what changes it in place before [`Readback::wait`] is seen.
    ///
    /// # Errors
    /// The device failed, perhaps in earlier work; there is no page-locked memory left.
    pub fn begin(tensor: &Tensor) -> Result<Self, TorchError> {
        let (device, tensor) = (tensor.device(), tensor.f_detach()?);
        let host = match device {
            Device::Cpu => tensor,
            // Without blocking, libtorch takes page-locked memory for what it returns.
            _ => tensor.f_to_device_(Device::Cpu, tensor.kind(), true, true)?,
        };
        Ok(Self {
            host,
            copied: Stream::current(device)?.record()?,
        })
    }

    /// The tensor on the CPU, once its copy is done.
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
    fn a_copy_has_the_bits_that_were_there() {
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
            eprintln!("no copy was tried on a GPU: {error}");
            return;
        }
        let mut x = Tensor::ones([4], (Kind::Float, device));
        let copy = Readback::begin(&x).unwrap();
        // Later work, which changes the tensor in place.
        let _filled = x.fill_(2.0);
        let back = copy.wait().unwrap();
        assert!(back.is_pinned(device) && back.device() == Device::Cpu);
        assert_eq!(Vec::<f32>::try_from(back).unwrap(), [1.0; 4]);
    }
}
