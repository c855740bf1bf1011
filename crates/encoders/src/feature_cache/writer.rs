//! Writes a cache shard by shard.

use std::fs;
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use files::{LeftoverScope, Lock, LockError};
use tch::{Device, Tensor};

use super::features::tokens_of;
use super::shard::{self, ShardBuffers};
use super::{CONTENTS_FILE, CacheError, CacheKey, CacheLayout, Contents, Features};
use crate::Tokens;

/// Writes a cache shard by shard. Several processes may write a cache at the same time, on several machines too: each
/// claims the shards that it writes.
///
/// ```
/// use encoders::feature_cache::{CacheKey, CacheLayout, CacheWriter, Claim, FeatureCache};
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
/// let writer = CacheWriter::open(folder, key.clone(), layout)?;
/// for samples in writer.missing()? {
///     // Another process may be writing this shard.
///     let Claim::Own(shard) = writer.claim(&samples)? else { continue };
///     let mut rows = writer.rows(&samples);
///     let (start, count) = (samples.start as i64, (samples.end - samples.start) as i64);
///     let tokens = encoder.encode(&images.narrow(0, start, count))?;
///     rows.put(samples.start, false, &tokens)?;
///     writer.write(rows, shard)?;
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
}

/// A claim of a shard; see [`CacheWriter::claim`].
#[derive(Debug)]
pub enum Claim {
    /// The shard is to be written by this process.
    Own(ClaimedShard),
    /// Another process is writing it. The error of its lock names the process.
    Held(LockError),
    /// It is written.
    Written,
}

/// The right to write a shard, until it is dropped.
#[derive(Debug)]
pub struct ClaimedShard {
    path: PathBuf,
    _lock: Lock,
}

impl CacheWriter {
    /// Starts a cache in `folder`, or resumes the existing one.
    ///
    /// # Errors
    /// The folder contains a cache with another key or layout, another process is just starting it, or it cannot be
    /// written.
    pub fn open(folder: &Path, key: CacheKey, layout: CacheLayout) -> Result<Self, CacheError> {
        fs::create_dir_all(folder).map_err(|source| CacheError::io("create", folder, source))?;
        let _lock = wait_for(&folder.join(".lock"))?;
        files::remove_leftovers(folder, LeftoverScope::Ended)
            .map_err(|source| CacheError::io("clean up", folder, source))?;
        let mut contents = Contents::new(key, layout);
        match Contents::read(folder)? {
            Some(found) => {
                let mut differences = found.key.differences(&contents.key);
                // An earlier run may have used another shard size. Its shards remain valid.
                contents.layout.shard_samples = found.layout.shard_samples;
                if found.layout != contents.layout {
                    differences.push(format!(
                        "they are stored as {}, expected {}",
                        describe(&found.layout),
                        describe(&contents.layout)
                    ));
                }
                if !differences.is_empty() {
                    return Err(CacheError::Mismatch {
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
        })
    }

    /// Claims the shard of `samples`, a range that [`missing`](Self::missing) returned.
    ///
    /// # Errors
    /// The folder cannot be written, or the shard exists but cannot be read.
    pub fn claim(&self, samples: &Range<u64>) -> Result<Claim, CacheError> {
        let shard = shard::path(&self.folder, &self.contents, samples);
        let name = shard.file_name().unwrap_or_default().to_string_lossy();
        let path = self.folder.join(format!(".{name}.lock"));
        let lock = match Lock::take(&path) {
            Ok(lock) => lock,
            Err(error @ LockError::Held { .. }) => return Ok(Claim::Held(error)),
            Err(error) => return Err(error.into()),
        };
        let claimed = ClaimedShard { path, _lock: lock };
        match self.contents.is_written(&self.folder, samples)? {
            true => {
                claimed.release();
                Ok(Claim::Written)
            }
            false => Ok(Claim::Own(claimed)),
        }
    }

    /// Description of the cache.
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// Returns the sample ranges of the shards still to be written, one range per shard. Damaged
    /// shards are included.
    ///
    /// # Errors
    /// A shard exists but cannot be read.
    pub fn missing(&self) -> Result<Vec<Range<u64>>, CacheError> {
        self.contents.missing(&self.folder)
    }

    /// Creates the empty rows of the shard of `samples`, a range that [`missing`](Self::missing)
    /// returned.
    pub fn rows(&self, samples: &Range<u64>) -> Rows {
        let count = (samples.end - samples.start) as usize;
        Rows {
            features: self.contents.key.features,
            model: self.contents.key.encoder.clone(),
            layout: self.contents.layout.clone(),
            buffers: ShardBuffers::new(&self.contents.layout, count),
            samples: samples.clone(),
        }
    }

    /// Writes a claimed shard atomically: its file appears complete or not at all.
    ///
    /// # Errors
    /// [`CacheError::DiskFull`], or another error of the file system. Shards that were written before
    /// are kept.
    pub fn write(&self, rows: Rows, claimed: ClaimedShard) -> Result<(), CacheError> {
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
            Ok(()) => {
                claimed.release();
                Ok(())
            }
            written => written,
        }
    }
}

impl ClaimedShard {
    /// Removes the file of the lock. Who waits for the removed file finds the shard written.
    fn release(self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!("{} stays: {error}", self.path.display());
        }
    }
}

/// Takes the lock that a process holds while it starts a cache.
fn wait_for(path: &Path) -> Result<Lock, LockError> {
    const LONGEST: Duration = Duration::from_secs(30);
    let start = Instant::now();
    loop {
        match Lock::take(path) {
            Err(error @ LockError::Held { .. })
                if !error.is_abandoned() && start.elapsed() < LONGEST =>
            {
                thread::sleep(Duration::from_millis(20));
            }
            outcome => return outcome,
        }
    }
}

fn write_contents(folder: &Path, contents: &Contents) -> Result<(), CacheError> {
    let path = folder.join(CONTENTS_FILE);
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

fn describe(layout: &CacheLayout) -> String {
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
            ", with mirrored images,"
        } else {
            ""
        },
        layout.device
    )
}

/// The rows of a shard that is being filled. A sample whose tokens are never [put](Self::put) is
/// stored as absent.
#[derive(Debug)]
pub struct Rows {
    features: Features,
    model: String,
    layout: CacheLayout,
    samples: Range<u64>,
    buffers: ShardBuffers,
}

impl Rows {
    /// Puts the tokens of consecutive samples that start at `first`. `mirrored` tells whether they are
    /// of the mirrored images.
    ///
    /// # Errors
    /// Tokens are NaN or infinite, before or after the cast to the stored dtype; their shape does not
    /// match the layout; or a sample is not in this shard.
    pub fn put(&mut self, first: u64, mirrored: bool, tokens: &Tokens) -> Result<(), CacheError> {
        let invalid = |sample: u64, problem: String| CacheError::InvalidFeatures {
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
            return Err(invalid(
                first,
                format!("{noun} of shape {found:?} do not fit into this shard"),
            ));
        }
        let patch = to_stored(&tokens.patch, layout)?;
        let class = match &tokens.class {
            Some(class) => Some(to_stored(class, layout)?),
            None => None,
        };
        let (variants, variant) = (layout.variants() as usize, usize::from(mirrored));
        let (patch_bytes, class_bytes) = (layout.patch_bytes(), layout.class_bytes());
        for index in 0..count {
            let sample = first + index;
            let position = (sample - self.samples.start) as usize;
            let row = position * variants + variant;
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
                let values = tensor.f_select(0, index as i64)?;
                if !bool::try_from(values.f_isfinite()?.f_all()?)? {
                    let original = original.f_select(0, index as i64)?;
                    let text = match bool::try_from(original.f_isfinite()?.f_all()?)? {
                        true => format!(
                            "its {noun} are beyond the range of {}; store them as bf16 or fp32",
                            layout.stored.name()
                        ),
                        false => format!("its {noun} contain NaN or infinite values"),
                    };
                    return Err(invalid(sample, text));
                }
                let row_bytes = &mut buffer[row * bytes..(row + 1) * bytes];
                values.f_copy_data_u8(row_bytes, values.numel())?;
                sum.update(row_bytes);
            }
            self.buffers.crc32[row] = sum.finalize();
            self.buffers.present[position] = 1;
        }
        Ok(())
    }

    /// Puts the moments `[B, 2 C, h, w]` of consecutive samples; see [`put`](Self::put).
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
            return Err(CacheError::InvalidFeatures {
                model: format!("{} {}", self.features.model(), self.model),
                sample: first,
                problem: format!("moments of shape {size:?} do not fit into this cache"),
            });
        }
        self.put(first, mirrored, &tokens_of(moments)?)
    }
}

/// Casts a tensor to the stored dtype; the result is contiguous and on the CPU.
fn to_stored(tensor: &Tensor, layout: &CacheLayout) -> Result<Tensor, CacheError> {
    Ok(tensor
        .f_to_kind(layout.stored.kind())?
        .f_to_device(Device::Cpu)?
        .f_contiguous()?)
}
