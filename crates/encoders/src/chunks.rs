//! Division of batches into forward passes.

use tch::{Device, TchError, Tensor};

/// Images per forward pass on the CPU. The activations of more images do not fit into the CPU's cache and take more time
/// per image. The number is always the same, so that the result for an image is bit-identical whatever the batch size.
const CPU_CHUNK: i64 = 4;

/// Images of a batch that pass through a network together.
#[derive(Debug)]
pub(crate) struct Chunk {
    /// `[B, ...]`: images of the batch, then padding.
    pub(crate) images: Tensor,
    /// Number of images of the batch.
    count: i64,
}

impl Chunk {
    /// Removes the padding from a result with a row per image. A result with another number of rows is returned as it is.
    ///
    /// # Errors
    /// libtorch failed.
    pub(crate) fn without_padding(&self, result: &Tensor) -> Result<Tensor, TchError> {
        let rows = result.size().first().copied();
        match rows == self.images.size().first().copied() {
            true => result.f_narrow(0, 0, self.count),
            false => Ok(result.shallow_clone()),
        }
    }
}

/// Divides images `[B, ...]` into forward passes: on the CPU of four images each, where copies of an image fill the last
/// pass; elsewhere of all images.
pub(crate) fn chunks(images: &Tensor) -> impl Iterator<Item = Result<Chunk, TchError>> {
    let batch = images.size().first().copied().unwrap_or(0);
    let size = match images.device() {
        Device::Cpu => CPU_CHUNK,
        _ => batch.max(1),
    };
    (0..batch).step_by(size as usize).map(move |start| {
        let count = size.min(batch - start);
        let mut chunk = images.f_narrow(0, start, count)?;
        if count < size {
            let mut padded = chunk.size();
            padded[0] = size - count;
            let padding = chunk.f_narrow(0, 0, 1)?.f_expand(padded, false)?;
            chunk = Tensor::f_cat(&[chunk, padding], 0)?;
        }
        Ok(Chunk {
            images: chunk,
            count,
        })
    })
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::chunks;

    #[test]
    fn chunks_are_of_one_size_and_together_the_batch() {
        let images = Tensor::arange(18, (Kind::Float, Device::Cpu)).view([9, 2]);
        let chunks: Vec<_> = chunks(&images).map(Result::unwrap).collect();
        let sizes: Vec<_> = chunks.iter().map(|chunk| chunk.images.size()).collect();
        assert_eq!(sizes, [[4, 2]; 3]);
        let parts: Vec<_> = chunks
            .iter()
            .map(|chunk| chunk.without_padding(&chunk.images).unwrap())
            .collect();
        assert_eq!(Tensor::cat(&parts, 0), images);
        // A module that merges images is refused by the check of its output, not here.
        let merged = images.narrow(0, 0, 1);
        assert_eq!(chunks[2].without_padding(&merged).unwrap(), merged);
    }
}
