//! Copies batches to the training device.

use data::{Batch, Cursor};
use tch::{Device, Kind, Tensor};
use torch_ext::TorchError;

use crate::TrainError;

/// A batch of the data stream, on the training device.
#[derive(Debug)]
pub struct DeviceBatch {
    /// Images, u8 `[B, 3, R, R]`; `[B, 3, 0, 0]` if everything that is computed from them is cached.
    pub images: Tensor,
    /// Mean and standard deviation of the posterior over the images' latents, `[B, 2 C, h, w]`. If it
    /// is `None`, a trainer with a frozen autoencoder computes them.
    pub moments: Option<Tensor>,
    /// Classes, i64 `[B]`.
    pub labels: Tensor,
    /// Indices of the samples in the data set.
    pub ids: Vec<u64>,
    /// Whether each image is mirrored.
    pub flipped: Vec<bool>,
    /// Position of the stream after this batch.
    pub cursor: Cursor,
}

impl DeviceBatch {
    /// Copies a batch to `device`.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn new(batch: Batch, device: Device) -> Result<Self, TrainError> {
        Ok(Self {
            images: images_to_device(&batch, device)?,
            moments: None,
            labels: to_device(&Tensor::f_from_slice(&batch.labels)?, device)?,
            cursor: batch.cursor,
            ids: batch.ids,
            flipped: batch.flipped,
        })
    }
}

/// Copies the images of a batch to `device`, as a u8 tensor `[B, 3, R, R]`, or `[B, 3, 0, 0]` if it has none.
///
/// # Errors
/// The number of bytes does not fit the batch's shape; the device is out of memory.
pub fn images_to_device(batch: &Batch, device: Device) -> Result<Tensor, TrainError> {
    let side = match batch.images.is_empty() {
        true => 0,
        false => i64::from(batch.resolution),
    };
    let shape = [batch.len() as i64, 3, side, side];
    let (found, expected) = (batch.images.len(), shape.iter().product::<i64>() as usize);
    if found != expected {
        let what = "the images of a batch";
        return Err(TorchError::Bytes {
            what,
            found,
            expected,
        }
        .into());
    }
    let images = Tensor::f_from_data_size(&batch.images, &shape, Kind::Uint8)?;
    to_device(&images, device)
}

/// Copies a tensor to a device. A copy to CUDA is asynchronous, from page-locked memory: later work on the same
/// stream waits for it, and libtorch keeps the memory until then.
fn to_device(tensor: &Tensor, device: Device) -> Result<Tensor, TrainError> {
    if !device.is_cuda() {
        return Ok(tensor.f_to_device(device)?);
    }
    let pinned = tensor.f_pin_memory(device)?;
    Ok(pinned.f_to_device_(device, tensor.kind(), true, false)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_number_of_image_bytes_is_refused() {
        let batch = Batch {
            images: vec![0; 2 * 3 * 4 * 4 - 1],
            masks: None,
            labels: vec![0; 2],
            ids: vec![0, 1],
            flipped: vec![false; 2],
            resolution: 4,
            cursor: Cursor::default(),
        };
        let error = images_to_device(&batch, Device::Cpu).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("95 bytes instead of 96"), "{error}");
    }
}
