use data::{Batch, Cursor};
use tch::{Device, Kind, Tensor};
use torch_ext::TorchError;

use crate::TrainError;

/// A batch of the data stream on the device that trains.
#[derive(Debug)]
pub struct DeviceBatch {
    /// Images, u8 `[B, 3, R, R]`.
    pub images: Tensor,
    /// Mean and standard deviation of the posterior over the images' latents, `[B, 2 C, h, w]`,
    /// where they are known; a trainer with a frozen autoencoder computes them otherwise.
    pub moments: Option<Tensor>,
    /// Classes, i64 `[B]`.
    pub labels: Tensor,
    /// Indices of the samples in the data set.
    pub ids: Vec<u64>,
    /// Whether an image is mirrored.
    pub flipped: Vec<bool>,
    /// Where the stream stands after this batch.
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

/// The images of a batch as a u8 tensor `[B, 3, R, R]` on `device`.
///
/// # Errors
/// There are more or fewer bytes than images; the device is out of memory.
pub fn images_to_device(batch: &Batch, device: Device) -> Result<Tensor, TrainError> {
    let side = i64::from(batch.resolution);
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

/// Copies to a device. To CUDA from page-locked memory and without waiting: what runs there next on the same stream
/// comes after the copy, and libtorch keeps the memory until then.
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
    fn bytes_that_are_not_the_images_are_refused() {
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
