use std::path::{Path, PathBuf};

use tch::{Device, Kind, Tensor};

use super::features::moments_of;
use super::shard::{self, Mapped};
use super::{CacheError, CacheKey, CacheLayout, Contents};
use crate::Tokens;

/// A complete cache, mapped into memory.
#[derive(Debug)]
pub struct FeatureCache {
    folder: PathBuf,
    contents: Contents,
    shards: Vec<Mapped>,
    /// Whether a row's checksum was found right, by shard.
    checked: Vec<Vec<bool>>,
    row: Vec<u8>,
}

impl FeatureCache {
    /// Opens the cache in `folder`, which must be of `key`, and hold the mirrored images if
    /// `mirrored`.
    ///
    /// # Errors
    /// There is no cache, it is of something else, it is not complete, or a shard is damaged.
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
            return Err(CacheError::Other {
                features: key.features,
                folder: folder.to_owned(),
                differences,
            });
        }
        let mut shards = Vec::new();
        for samples in contents.shards() {
            let path = shard::path(folder, &contents, &samples);
            let is_there = path
                .try_exists()
                .map_err(|source| CacheError::io("read", &path, source))?;
            if !is_there {
                let (total, written) = contents.progress(folder)?;
                return Err(CacheError::Incomplete {
                    features: key.features,
                    folder: folder.to_owned(),
                    written,
                    total,
                });
            }
            shards.push(Mapped::open(path, &contents, &samples)?);
        }
        Ok(Self {
            folder: folder.to_owned(),
            checked: shards
                .iter()
                .map(|shard| vec![false; shard.crc32.len()])
                .collect(),
            row: Vec::new(),
            contents,
            shards,
        })
    }

    /// How the tokens are stored.
    pub fn layout(&self) -> &CacheLayout {
        &self.contents.layout
    }

    /// What the tokens are of.
    pub fn key(&self) -> &CacheKey {
        &self.contents.key
    }

    /// Tokens of the samples `ids`, mirrored where `mirrored` says so: what the encoder gives for
    /// those images, rounded to the dtype that they are stored in.
    ///
    /// # Errors
    /// A sample that is not in the cache, or whose checksum is wrong; the device has no memory.
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
            let (shard, row) = self.find(sample, mirrored)?;
            self.check(shard, row, sample)?;
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

    /// Moments `[B, 2 C, h, w]` of the samples `ids`, mean and standard deviation, as
    /// [`tokens`](Self::tokens) gives tokens.
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

    /// Shard and row of a sample.
    fn find(&self, sample: u64, mirrored: bool) -> Result<(usize, usize), CacheError> {
        let none = |reason: &str| CacheError::Nothing {
            features: self.contents.key.features,
            folder: self.folder.clone(),
            sample,
            reason: reason.to_owned(),
        };
        let layout = &self.contents.layout;
        let shard = (sample / layout.shard_samples) as usize;
        let at = (sample % layout.shard_samples) as usize;
        match self
            .shards
            .get(shard)
            .and_then(|shard| shard.present.get(at))
        {
            None => Err(none("it has fewer samples")),
            Some(0) => Err(none("it could not be read when the cache was made")),
            Some(_) if mirrored && !layout.mirrored => {
                Err(none("only images that are not mirrored are in it"))
            }
            Some(_) => Ok((
                shard,
                at * layout.variants() as usize + usize::from(mirrored),
            )),
        }
    }

    /// Checks a row's checksum when it is first read.
    fn check(&mut self, shard: usize, row: usize, sample: u64) -> Result<(), CacheError> {
        if self.checked[shard][row] {
            return Ok(());
        }
        let mapped = &self.shards[shard];
        let mut sum = crc32fast::Hasher::new();
        for tokens in [Some(&mapped.patch), mapped.class.as_ref()] {
            let Some(tokens) = tokens else { continue };
            let one = tokens.f_select(0, row as i64)?;
            let numel = one.numel();
            self.row.resize(numel * one.kind().elt_size_in_bytes(), 0);
            one.f_copy_data_u8(&mut self.row, numel)?;
            sum.update(&self.row);
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
