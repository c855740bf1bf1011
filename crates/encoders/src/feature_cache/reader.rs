//! Reads the features of a complete cache.

use std::path::{Path, PathBuf};

use tch::{Device, Kind, Tensor};

use super::features::moments_of;
use super::shard::{self, MappedShard};
use super::{CacheError, CacheKey, CacheLayout, Contents};
use crate::Tokens;

/// A complete cache, mapped into memory.
#[derive(Debug)]
pub struct FeatureCache {
    folder: PathBuf,
    contents: Contents,
    shards: Vec<MappedShard>,
    /// For each shard and row: whether the checksum was verified.
    checked: Vec<Vec<bool>>,
    row_buffer: Vec<u8>,
}

impl FeatureCache {
    /// Opens the cache in `folder`. Its key must equal `key`, and it must contain the mirrored images
    /// if `mirrored`.
    ///
    /// # Errors
    /// There is no cache, its key differs, it is not complete, or a shard is damaged.
    pub fn open(folder: &Path, key: &CacheKey, mirrored: bool) -> Result<Self, CacheError> {
        let contents = Contents::read(folder)?;
        let contents = contents.ok_or_else(|| CacheError::Absent {
            folder: folder.to_owned(),
            features: key.features,
        })?;
        let mut differences = contents.key.differences(key);
        if mirrored && !contents.layout.mirrored {
            let noun = key.features.noun();
            differences.push(format!(
                "it has no {noun} of mirrored images, and data.flip is on"
            ));
        }
        if !differences.is_empty() {
            return Err(CacheError::Mismatch {
                features: key.features,
                folder: folder.to_owned(),
                differences,
            });
        }
        let mut shards = Vec::new();
        for samples in contents.shards() {
            let path = shard::path(folder, &contents, &samples);
            let exists = path
                .try_exists()
                .map_err(|source| CacheError::io("read", &path, source))?;
            if !exists {
                let (total, written) = contents.progress(folder)?;
                return Err(CacheError::Incomplete {
                    features: key.features,
                    folder: folder.to_owned(),
                    written,
                    total,
                });
            }
            shards.push(MappedShard::open(path, &contents, &samples)?);
        }
        Ok(Self {
            folder: folder.to_owned(),
            checked: shards
                .iter()
                .map(|shard| vec![false; shard.crc32.len()])
                .collect(),
            row_buffer: Vec::new(),
            contents,
            shards,
        })
    }

    /// Storage format of the features.
    pub fn layout(&self) -> &CacheLayout {
        &self.contents.layout
    }

    /// Source of the features.
    pub fn key(&self) -> &CacheKey {
        &self.contents.key
    }

    /// Returns the samples that could not be read when the cache was written.
    pub fn absent(&self) -> impl Iterator<Item = u64> {
        let first = |shard: usize| shard as u64 * self.contents.layout.shard_samples;
        let shards = self.shards.iter().enumerate();
        shards.flat_map(move |(index, shard)| {
            let rows = (first(index)..).zip(&shard.present);
            rows.filter(|(_, present)| **present == 0)
                .map(|(sample, _)| sample)
        })
    }

    /// Returns the tokens of the samples `ids`, float32 on `device`: the encoder's tokens rounded to
    /// the stored dtype. `mirrored` selects the mirrored image for each sample; a missing entry
    /// means false.
    ///
    /// # Errors
    /// A sample is not in the cache, its checksum is wrong, or the device runs out of memory.
    pub fn tokens(
        &mut self,
        ids: &[u64],
        mirrored: &[bool],
        device: Device,
    ) -> Result<Tokens, CacheError> {
        let mut patch = Vec::with_capacity(ids.len());
        let mut class = Vec::new();
        for (index, &sample) in ids.iter().enumerate() {
            let mirrored = mirrored.get(index).copied().unwrap_or(false);
            let (shard, row) = self.locate(sample, mirrored)?;
            self.verify_checksum(shard, row, sample)?;
            let shard = &self.shards[shard];
            patch.push(shard.patch.f_select(0, row as i64)?);
            if let Some(tokens) = &shard.class {
                class.push(tokens.f_select(0, row as i64)?);
            }
        }
        let join = |rows: &[Tensor]| {
            Tensor::f_stack(rows, 0)?
                .f_to_device(device)?
                .f_to_kind(Kind::Float)
        };
        Ok(Tokens {
            patch: join(&patch)?,
            class: match class.is_empty() {
                true => None,
                false => Some(join(&class)?),
            },
        })
    }

    /// Returns the moments `[B, 2 C, h, w]` of the samples `ids`, means and standard deviations; see
    /// [`tokens`](Self::tokens).
    ///
    /// # Errors
    /// As [`tokens`](Self::tokens).
    pub fn moments(
        &mut self,
        ids: &[u64],
        mirrored: &[bool],
        device: Device,
    ) -> Result<Tensor, CacheError> {
        let tokens = self.tokens(ids, mirrored, device)?;
        Ok(moments_of(&tokens, self.contents.layout.grid)?)
    }

    /// Returns the shard of a sample and the row of its variant in that shard.
    fn locate(&self, sample: u64, mirrored: bool) -> Result<(usize, usize), CacheError> {
        let no_features = |reason: &str| CacheError::NoFeatures {
            features: self.contents.key.features,
            folder: self.folder.clone(),
            sample,
            reason: reason.to_owned(),
        };
        let layout = &self.contents.layout;
        let shard = (sample / layout.shard_samples) as usize;
        let index = (sample % layout.shard_samples) as usize;
        match self
            .shards
            .get(shard)
            .and_then(|shard| shard.present.get(index))
        {
            None => Err(no_features("it has fewer samples")),
            Some(0) => Err(no_features(
                "it could not be read when the cache was written",
            )),
            Some(_) if mirrored && !layout.mirrored => {
                Err(no_features("it does not contain mirrored images"))
            }
            Some(_) => Ok((
                shard,
                index * layout.variants() as usize + usize::from(mirrored),
            )),
        }
    }

    /// Verifies the checksum of a row when it is first read.
    fn verify_checksum(&mut self, shard: usize, row: usize, sample: u64) -> Result<(), CacheError> {
        if self.checked[shard][row] {
            return Ok(());
        }
        let mapped = &self.shards[shard];
        let mut sum = crc32fast::Hasher::new();
        for tokens in [Some(&mapped.patch), mapped.class.as_ref()] {
            let Some(tokens) = tokens else { continue };
            let values = tokens.f_select(0, row as i64)?;
            let numel = values.numel();
            self.row_buffer
                .resize(numel * values.kind().elt_size_in_bytes(), 0);
            values.f_copy_data_u8(&mut self.row_buffer, numel)?;
            sum.update(&self.row_buffer);
        }
        if i64::from(sum.finalize()) != mapped.crc32[row] {
            return Err(CacheError::Damaged {
                path: mapped.path.clone(),
                reason: format!("the checksum of sample {sample} is wrong"),
            });
        }
        self.checked[shard][row] = true;
        Ok(())
    }
}
