use std::fs;
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use files::{LeftoverScope, Lock};
use tch::{Device, Tensor};

use super::features::tokens_of;
use super::shard::Buffers;
use super::{CONTENTS, CacheError, CacheKey, CacheLayout, Contents, Features};
use crate::Tokens;

/// Fills a cache, shard by shard. Only one process can write a cache at a time.
///
/// ```
/// use encoders::feature_cache::{CacheKey, CacheLayout, CacheWriter, FeatureCache};
/// use encoders::{LoadOptions, Precision, Registry};
/// use tch::{Device, Kind, Tensor};
///
/// let registry = Registry::new(&[]);
/// let encoder = registry.load("hog", &LoadOptions::default())?;
/// let images = Tensor::randint(256, [3, 3, 64, 64], (Kind::Uint8, Device::Cpu));
/// let identity = registry.identity("hog", 64)?.unwrap();
/// let key = CacheKey {
///     data: "three random images".to_owned(),
///     samples: 3,
///     resolution: 64,
///     ..CacheKey::of_encoder(encoder.spec(), identity, Precision::Fp32)
/// };
/// let layout = CacheLayout::of_encoder(encoder.spec(), Precision::Fp16, false, "cpu", 1 << 20);
///
/// # let folder = tempfile::tempdir()?;
/// # let folder = folder.path();
/// let mut writer = CacheWriter::open(folder, key.clone(), layout)?;
/// for samples in writer.missing()? {
///     let mut rows = writer.rows(&samples);
///     let (start, count) = (samples.start as i64, (samples.end - samples.start) as i64);
///     let tokens = encoder.encode(&images.narrow(0, start, count))?;
///     rows.put(samples.start, false, &tokens)?;
///     writer.write(rows)?;
/// }
/// let mut cache = FeatureCache::open(folder, &key, false)?;
/// let tokens = cache.tokens(&[2, 0], &[false, false], Device::Cpu)?;
/// assert_eq!(tokens.patch.size(), [2, 256, 128]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct CacheWriter {
    folder: PathBuf,
    contents: Contents,
    _lock: Lock,
}

impl CacheWriter {
    /// Starts a cache in `folder`, or goes on with the one that is there.
    ///
    /// # Errors
    /// The folder holds a cache of something else or of another layout, another process writes it,
    /// or it cannot be written.
    pub fn open(folder: &Path, key: CacheKey, layout: CacheLayout) -> Result<Self, CacheError> {
        fs::create_dir_all(folder).map_err(|source| CacheError::io("create", folder, source))?;
        let lock = Lock::take(&folder.join(".lock"))?;
        files::remove_leftovers(folder, LeftoverScope::EndedOrUnknown)
            .map_err(|source| CacheError::io("clean up", folder, source))?;
        let mut contents = Contents::new(key, layout);
        match Contents::read(folder)? {
            Some(found) => {
                let mut differences = found.key.differences(&contents.key);
                // An earlier run may have chosen another size of shards, which is no reason to
                // throw them away.
                contents.layout.shard_samples = found.layout.shard_samples;
                if found.layout != contents.layout {
                    differences.push(format!(
                        "they are stored as {} there and {} here",
                        described(&found.layout),
                        described(&contents.layout)
                    ));
                }
                if !differences.is_empty() {
                    return Err(CacheError::Other {
                        features: contents.key.features,
                        folder: folder.to_owned(),
                        differences,
                    });
                }
            }
            None => write_contents(folder, &contents)?,
        }
        Ok(Self {
            folder: folder.to_owned(),
            contents,
            _lock: lock,
        })
    }

    /// What the cache is of.
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// Samples of the shards that are still to be written, a range each. A shard that is damaged
    /// is among them.
    ///
    /// # Errors
    /// A shard is there and cannot be read.
    pub fn missing(&self) -> Result<Vec<Range<u64>>, CacheError> {
        self.contents.missing(&self.folder)
    }

    /// Rows for the shard of `samples`, one of [`missing`](Self::missing), without tokens yet.
    pub fn rows(&self, samples: &Range<u64>) -> Rows {
        let count = (samples.end - samples.start) as usize;
        Rows {
            features: self.contents.key.features,
            model: self.contents.key.encoder.clone(),
            layout: self.contents.layout.clone(),
            buffers: Buffers::new(&self.contents.layout, count),
            samples: samples.clone(),
        }
    }

    /// Writes a shard. It appears complete or not at all.
    ///
    /// # Errors
    /// [`CacheError::DiskFull`], or the file system refuses; the shards written before stay.
    pub fn write(&mut self, rows: Rows) -> Result<(), CacheError> {
        let written = rows
            .buffers
            .write(&self.folder, &self.contents, &rows.samples);
        match written {
            Err(CacheError::Io { path, source, .. }) if is_full(&source) => {
                let (total, written) = self.contents.progress(&self.folder)?;
                Err(CacheError::DiskFull {
                    path,
                    written,
                    total,
                })
            }
            written => written,
        }
    }
}

fn write_contents(folder: &Path, contents: &Contents) -> Result<(), CacheError> {
    let path = folder.join(CONTENTS);
    let written = serde_json::to_vec_pretty(contents)
        .map_err(io::Error::from)
        .and_then(|text| files::write(&path, |file| file.write_all(&text)));
    written.map_err(|source| CacheError::io("write", &path, source))
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

fn described(layout: &CacheLayout) -> String {
    let [height, width] = layout.grid.into();
    format!(
        "{} [{height} x {width}, {}]{}{} from {}",
        layout.stored.name(),
        layout.width,
        if layout.class_token {
            " with class token"
        } else {
            ""
        },
        if layout.mirrored {
            ", both ways round,"
        } else {
            ""
        },
        layout.device
    )
}

/// The rows of a shard that is being filled. A sample for which nothing is [put](Self::put) stays
/// without tokens.
#[derive(Debug)]
pub struct Rows {
    features: Features,
    model: String,
    layout: CacheLayout,
    samples: Range<u64>,
    buffers: Buffers,
}

impl Rows {
    /// Puts the tokens of consecutive samples from `first`, of the images as they are or
    /// `mirrored`.
    ///
    /// # Errors
    /// Tokens that are NaN or infinite, also because the cache's dtype cannot hold them; tokens of
    /// another shape than the layout's, or of samples that are not in this shard.
    pub fn put(&mut self, first: u64, mirrored: bool, tokens: &Tokens) -> Result<(), CacheError> {
        let problem = |sample: u64, problem: String| CacheError::Features {
            model: format!("{} {}", self.features.model(), self.model),
            sample,
            problem,
        };
        let noun = self.features.noun();
        let layout = &self.layout;
        let count = tokens.patch.size().first().copied().unwrap_or(0) as u64;
        let (tokens_each, width) = (layout.grid.tokens() as i64, layout.width as i64);
        let fits = tokens.patch.size() == [count as i64, tokens_each, width]
            && tokens.class.is_some() == layout.class_token
            && tokens
                .class
                .as_ref()
                .is_none_or(|class| class.size() == [count as i64, width])
            && (!mirrored || layout.mirrored)
            && first >= self.samples.start
            && first + count <= self.samples.end;
        if !fits {
            let found = tokens.patch.size();
            return Err(problem(
                first,
                format!("{noun} {found:?} have no place here"),
            ));
        }
        let patch = stored(&tokens.patch, layout)?;
        let class = match &tokens.class {
            Some(class) => Some(stored(class, layout)?),
            None => None,
        };
        let (variants, variant) = (layout.variants() as usize, usize::from(mirrored));
        let (patch_bytes, class_bytes) = (layout.patch_bytes(), layout.class_bytes());
        for index in 0..count {
            let sample = first + index;
            let at = (sample - self.samples.start) as usize;
            let row = at * variants + variant;
            let mut sum = crc32fast::Hasher::new();
            for (tensor, original, bytes, buffer) in [
                (
                    Some(&patch),
                    Some(&tokens.patch),
                    patch_bytes,
                    &mut self.buffers.patch,
                ),
                (
                    class.as_ref(),
                    tokens.class.as_ref(),
                    class_bytes,
                    &mut self.buffers.class,
                ),
            ] {
                let (Some(tensor), Some(original)) = (tensor, original) else {
                    continue;
                };
                let one = tensor.f_select(0, index as i64)?;
                if !bool::try_from(one.f_isfinite()?.f_all()?)? {
                    let original = original.f_select(0, index as i64)?;
                    let text = match bool::try_from(original.f_isfinite()?.f_all()?)? {
                        true => format!(
                            "its {noun} are beyond the range of {}; store them as bf16 or fp32",
                            layout.stored.name()
                        ),
                        false => format!("its {noun} hold NaN or infinite values"),
                    };
                    return Err(problem(sample, text));
                }
                let place = &mut buffer[row * bytes..(row + 1) * bytes];
                one.f_copy_data_u8(place, one.numel())?;
                sum.update(place);
            }
            self.buffers.crc32[row] = sum.finalize();
            self.buffers.present[at] = 1;
        }
        Ok(())
    }

    /// Puts the moments `[B, 2 C, h, w]` of consecutive samples, as [`put`](Self::put) does tokens.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub fn put_moments(
        &mut self,
        first: u64,
        mirrored: bool,
        moments: &Tensor,
    ) -> Result<(), CacheError> {
        let [height, width] = self.layout.grid.into();
        let size = moments.size();
        if size.len() != 4 || size[2..] != [height as i64, width as i64] {
            return Err(CacheError::Features {
                model: format!("{} {}", self.features.model(), self.model),
                sample: first,
                problem: format!("moments {size:?} have no place here"),
            });
        }
        self.put(first, mirrored, &tokens_of(moments)?)
    }
}

/// As the cache stores it: contiguous, on the CPU.
fn stored(tensor: &Tensor, layout: &CacheLayout) -> Result<Tensor, CacheError> {
    Ok(tensor
        .f_to_kind(layout.stored.kind())?
        .f_to_device(Device::Cpu)?
        .f_contiguous()?)
}
