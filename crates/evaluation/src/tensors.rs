//! Converts libtorch's tensors to ndarray's arrays.

use ndarray::{Array2, Array3, Array4};
use tch::{Device, Kind, TchError, Tensor};

fn shape_error(tensor: &Tensor) -> TchError {
    TchError::Shape(format!("unexpected shape {:?}", tensor.size()))
}

fn sides<const N: usize>(tensor: &Tensor) -> Result<[usize; N], TchError> {
    let size: Vec<usize> = tensor
        .size()
        .iter()
        .map(|&side| usize::try_from(side).unwrap_or(0))
        .collect();
    size.try_into().map_err(|_| shape_error(tensor))
}

fn floats(tensor: &Tensor) -> Result<Vec<f32>, TchError> {
    let tensor = tensor
        .f_to_device(Device::Cpu)?
        .f_to_kind(Kind::Float)?
        .f_contiguous()?
        .f_flatten(0, -1)?;
    Vec::<f32>::try_from(tensor)
}

/// Converts a tensor `[N, D]` to a float32 array.
pub(crate) fn array2(tensor: &Tensor) -> Result<Array2<f32>, TchError> {
    let [rows, columns] = sides(tensor)?;
    Array2::from_shape_vec((rows, columns), floats(tensor)?).map_err(|_| shape_error(tensor))
}

/// Converts a tensor `[B, T, D]` to a float32 array.
pub(crate) fn array3(tensor: &Tensor) -> Result<Array3<f32>, TchError> {
    let [batch, tokens, width] = sides(tensor)?;
    Array3::from_shape_vec((batch, tokens, width), floats(tensor)?).map_err(|_| shape_error(tensor))
}

/// Converts images, u8 `[N, 3, H, W]`, to an array.
///
/// # Errors
/// The tensor has another shape or dtype.
pub fn images(tensor: &Tensor) -> Result<Array4<u8>, TchError> {
    let [count, channels, height, width] = sides(tensor)?;
    let tensor = tensor.f_to_device(Device::Cpu)?.f_contiguous()?;
    let bytes = Vec::<u8>::try_from(tensor.f_flatten(0, -1)?)?;
    Array4::from_shape_vec((count, channels, height, width), bytes)
        .map_err(|_| shape_error(&tensor))
}
