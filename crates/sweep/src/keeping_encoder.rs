//! An encoder that encodes each image once.

use std::collections::HashMap;
use std::sync::Mutex;

use encoders::{Encoder, EncoderError, EncoderSpec, Tokens};
use tch::{Kind, TchError, Tensor};

use crate::mutex::lock;

/// An encoder on the CPU that keeps the tokens of the images that it has encoded, and returns them when an image comes
/// again. The bits are those of the encoder, whose tokens of an image do not depend on the rest of the batch.
#[derive(Debug)]
pub(crate) struct KeepingEncoder {
    encoder: Box<dyn Encoder>,
    /// Maximum size of `kept` in bytes. Images beyond it are encoded each time.
    limit: usize,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    /// By the bytes of the image. A mirrored image is another image.
    tokens: HashMap<Box<[u8]>, Tokens>,
    bytes: usize,
}

impl KeepingEncoder {
    pub(crate) fn new(encoder: Box<dyn Encoder>, limit: usize) -> Self {
        Self {
            encoder,
            limit,
            kept: Mutex::default(),
        }
    }

    /// Number of images whose tokens are kept.
    #[cfg(test)]
    pub(crate) fn images(&self) -> usize {
        lock(&self.kept).tokens.len()
    }
}

impl Encoder for KeepingEncoder {
    fn spec(&self) -> &EncoderSpec {
        self.encoder.spec()
    }

    fn encode(&self, images: &Tensor) -> Result<Tokens, EncoderError> {
        let batch = images.size().first().copied().unwrap_or(0);
        if images.f_kind()? != Kind::Uint8 || images.dim() != 4 || images.numel() == 0 {
            // The encoder says what is wrong with them.
            return self.encoder.encode(images);
        }
        let pixels = Vec::<u8>::try_from(images.f_flatten(0, -1)?)?;
        let keys: Vec<&[u8]> = pixels.chunks_exact(pixels.len() / batch as usize).collect();
        let mut kept = lock(&self.kept);
        // Rows of the images to encode, each image once, and the place of each image among them.
        let mut rows = Vec::new();
        let mut places: HashMap<&[u8], i64> = HashMap::new();
        for (row, &key) in keys.iter().enumerate() {
            if !kept.tokens.contains_key(key) && !places.contains_key(key) {
                places.insert(key, rows.len() as i64);
                rows.push(row as i64);
            }
        }
        let encoded = match rows.is_empty() {
            true => None,
            false => {
                let new = images.f_index_select(0, &Tensor::f_from_slice(&rows)?)?;
                Some(self.encoder.encode(&new)?)
            }
        };
        let (mut patch, mut class) = (Vec::new(), Vec::new());
        for &key in &keys {
            let of_image = match (kept.tokens.get(key), &encoded, places.get(key)) {
                (Some(found), ..) => row_of(found, 0)?,
                (None, Some(encoded), Some(&place)) => row_of(encoded, place)?,
                // Each image is either kept or encoded.
                (None, ..) => continue,
            };
            patch.push(of_image.patch);
            class.extend(of_image.class);
        }
        if let Some(encoded) = &encoded {
            for (key, place) in places {
                kept.keep(key, &row_of(encoded, place)?, self.limit)?;
            }
        }
        Ok(Tokens {
            patch: Tensor::f_cat(&patch, 0)?,
            class: match class.is_empty() {
                true => None,
                false => Some(Tensor::f_cat(&class, 0)?),
            },
        })
    }
}

impl Kept {
    /// Keeps a copy of the tokens of an image, `[1, T, D]`, if they fit into `limit` bytes. A view would keep the tokens
    /// of the whole batch in memory.
    fn keep(&mut self, key: &[u8], tokens: &Tokens, limit: usize) -> Result<(), TchError> {
        let floats = tokens.patch.numel() + tokens.class.as_ref().map_or(0, Tensor::numel);
        let bytes = key.len() + floats * size_of::<f32>();
        if self.bytes + bytes > limit {
            return Ok(());
        }
        let copy = |tensor: &Tensor| {
            let mut copy = tensor.f_empty_like()?;
            copy.f_copy_(tensor)?;
            Ok::<_, TchError>(copy)
        };
        let copy = Tokens {
            patch: copy(&tokens.patch)?,
            class: tokens.class.as_ref().map(copy).transpose()?,
        };
        self.tokens.insert(key.into(), copy);
        self.bytes += bytes;
        Ok(())
    }
}

/// The tokens of image `row`, as views with a batch of one.
fn row_of(tokens: &Tokens, row: i64) -> Result<Tokens, TchError> {
    let narrow = |tensor: &Tensor| tensor.f_narrow(0, row, 1);
    Ok(Tokens {
        patch: narrow(&tokens.patch)?,
        class: tokens.class.as_ref().map(narrow).transpose()?,
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use encoders::{LoadOptions, Registry};
    use tch::Device;

    use super::*;

    fn load(name: &str) -> Box<dyn Encoder> {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../experiments/encoders");
        let encoder = Registry::new(&[folder]).load(name, &LoadOptions::default());
        encoder.unwrap()
    }

    fn images(all: &Tensor, ids: &[i64]) -> Tensor {
        all.index_select(0, &Tensor::from_slice(ids))
    }

    #[test]
    fn kept_tokens_are_bitwise_equal_to_newly_encoded_ones() {
        let all = Tensor::randint(256, [16, 3, 32, 32], (Kind::Uint8, Device::Cpu));
        for name in ["hog", "sift", "efficientnet-lite0"] {
            let encoder = load(name);
            let keeping = KeepingEncoder::new(load(name), 1 << 30);
            // Overlapping batches of several sizes, so that new images are encoded in batches of other sizes, and the same
            // image twice in a batch.
            for ids in [
                &[0, 1, 2, 3, 4, 5, 6][..],
                &[6, 7, 2],
                &[9, 0, 8, 3, 15, 9],
                &[14, 13],
                &[2, 14],
            ] {
                let images = images(&all, ids);
                let kept = keeping.encode(&images).unwrap().patch;
                assert_eq!(
                    kept,
                    encoder.encode(&images).unwrap().patch,
                    "{name} {ids:?}"
                );
            }
            assert_eq!(keeping.images(), 13);
        }
    }

    #[test]
    fn no_more_is_kept_than_fits() {
        let all = Tensor::randint(256, [8, 3, 32, 32], (Kind::Uint8, Device::Cpu));
        let encoder = load("pixels");
        let spec = encoder.spec();
        let image = 3 * 32 * 32 + 4 * spec.grid.tokens() * spec.width;
        let keeping = KeepingEncoder::new(load("pixels"), 3 * image + 1);
        for _ in 0..2 {
            let tokens = keeping.encode(&all).unwrap().patch;
            assert_eq!(tokens, encoder.encode(&all).unwrap().patch);
            assert_eq!(keeping.images(), 3);
        }
    }

    #[test]
    fn wrong_images_are_refused_as_by_the_encoder() {
        let keeping = KeepingEncoder::new(load("pixels"), 1 << 30);
        for images in [
            Tensor::zeros([2, 3, 32, 32], (Kind::Float, Device::Cpu)),
            Tensor::zeros([1, 4, 32, 32], (Kind::Uint8, Device::Cpu)),
            Tensor::zeros([6], (Kind::Uint8, Device::Cpu)),
        ] {
            let expected = load("pixels").encode(&images).unwrap_err().to_string();
            assert_eq!(keeping.encode(&images).unwrap_err().to_string(), expected);
        }
    }
}
