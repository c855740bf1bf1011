use std::collections::HashMap;

use encoders::{Encoder, EncoderError};
use tch::{Device, Tensor};
use training::{Config, DeviceBatch};

/// The encoders of a cohort. Where the tokens of the whole data set fit into memory, each image
/// is encoded once and its tokens are kept.
pub(crate) struct TokenSource {
    encoders: Vec<Box<dyn Encoder>>,
    /// Tokens of each encoder for one image, `[1, T, D]`, by sample and mirroring.
    kept: Option<HashMap<(u64, bool), Vec<Tensor>>>,
}

impl TokenSource {
    pub(crate) fn new(
        encoders: Vec<Box<dyn Encoder>>,
        config: &Config,
        images: u64,
        device: Device,
    ) -> Self {
        let floats: u64 = encoders
            .iter()
            .map(|encoder| (encoder.spec().grid.tokens() * encoder.spec().width) as u64)
            .sum();
        let variants = if config.data.flip { 2 } else { 1 };
        let bytes = images.saturating_mul(variants).saturating_mul(4 * floats);
        let fits = bytes <= config.data.token_memory_mib.saturating_mul(1 << 20);
        let keeps = fits && device == Device::Cpu && !encoders.is_empty();
        Self {
            encoders,
            kept: keeps.then(HashMap::new),
        }
    }

    pub(crate) fn encoders(&self) -> &[Box<dyn Encoder>] {
        &self.encoders
    }

    /// Each encoder's patch tokens of a batch, `[B, T, D]`.
    pub(crate) fn tokens(&mut self, batch: &DeviceBatch) -> Result<Vec<Tensor>, EncoderError> {
        let Some(kept) = &mut self.kept else {
            return encode(&self.encoders, &batch.images);
        };
        let keys: Vec<(u64, bool)> = batch
            .ids
            .iter()
            .copied()
            .zip(batch.flipped.iter().copied())
            .collect();
        let new: Vec<i64> = (0..keys.len())
            .filter(|&index| !kept.contains_key(&keys[index]))
            .map(|index| index as i64)
            .collect();
        if !new.is_empty() {
            let images = batch
                .images
                .f_index_select(0, &Tensor::f_from_slice(&new)?)?;
            let tokens = encode(&self.encoders, &images)?;
            for (row, &index) in new.iter().enumerate() {
                // Copied: a view would keep the whole batch alive.
                let row = Tensor::f_from_slice(&[row as i64])?;
                let own = tokens
                    .iter()
                    .map(|tokens| tokens.f_index_select(0, &row))
                    .collect::<Result<Vec<_>, _>>()?;
                kept.insert(keys[index as usize], own);
            }
        }
        (0..self.encoders.len())
            .map(|encoder| {
                let parts: Vec<&Tensor> = keys
                    .iter()
                    .filter_map(|key| kept.get(key)?.get(encoder))
                    .collect();
                Ok(Tensor::f_cat(&parts, 0)?)
            })
            .collect()
    }
}

fn encode(encoders: &[Box<dyn Encoder>], images: &Tensor) -> Result<Vec<Tensor>, EncoderError> {
    encoders
        .iter()
        .map(|encoder| Ok(encoder.encode(images)?.patch))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use encoders::{LoadOptions, Registry};
    use tch::Kind;

    use super::*;

    fn source(name: &str, memory: u64) -> TokenSource {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../experiments/encoders");
        let encoder = Registry::new(&[folder]).load(name, &LoadOptions::default());
        let mut config = Config::default();
        config.data.token_memory_mib = memory;
        TokenSource::new(vec![encoder.unwrap()], &config, 16, Device::Cpu)
    }

    fn batch(all: &Tensor, ids: &[u64]) -> DeviceBatch {
        let rows: Vec<i64> = ids.iter().map(|&id| id as i64).collect();
        DeviceBatch {
            images: all.index_select(0, &Tensor::from_slice(&rows)),
            labels: Tensor::zeros([ids.len() as i64], (Kind::Int64, Device::Cpu)),
            ids: ids.to_vec(),
            flipped: vec![false; ids.len()],
            cursor: data::Cursor::default(),
        }
    }

    #[test]
    fn kept_tokens_are_those_of_encoding_again_to_the_bit() {
        let all = Tensor::randint(256, [16, 3, 32, 32], (Kind::Uint8, Device::Cpu));
        for name in ["hog", "sift", "efficientnet-lite0"] {
            let (mut keeping, mut encoding) = (source(name, 64), source(name, 0));
            assert!(keeping.kept.is_some() && encoding.kept.is_none());
            // Overlapping batches of several sizes: what is new comes in other company each time.
            for ids in [
                &[0, 1, 2, 3, 4, 5, 6][..],
                &[6, 7, 2],
                &[9, 0, 8, 3, 15],
                &[14, 13],
            ] {
                let batch = batch(&all, ids);
                let kept = keeping.tokens(&batch).unwrap();
                assert_eq!(kept, encoding.tokens(&batch).unwrap(), "{name} {ids:?}");
            }
            assert_eq!(keeping.kept.unwrap().len(), 13);
        }
    }
}
