//! Provides the statistics that samples are compared with, from a file or from images, and caches the latter.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use data::Background;
use files::{Lock, LockError};
use metrics::npz::{NpzError, ReferenceFile, Statistics, write_statistics};
use ndarray::Array2;

use crate::error::{EvaluationError, check_interrupted};
use crate::features::Extractor;
use crate::images::is_npz;
use crate::images::{ImageOptions, ImageSet};
use crate::measure::{PassOptions, measure};

/// Interval at which the lock of another process is checked.
const CHECK_EVERY: Duration = Duration::from_millis(100);

/// Name of the array of features in a cache file.
const FEATURES: &str = "features";

/// Statistics of real images.
pub struct ReferenceStatistics {
    /// Statistics of the pooled features.
    pub pooled: Statistics,
    /// Statistics of Inception's spatial features, if available.
    pub spatial: Option<Statistics>,
    /// Pooled features `[N, D]`, if they were requested and there are images.
    pub features: Option<Array2<f32>>,
    /// The cache file of the statistics; `None` if they were read from a file of the user.
    pub cache_file: Option<PathBuf>,
}

/// An opened reference that samples are compared with. Statistics are read, images are only listed.
pub struct Reference {
    path: PathBuf,
    content: Content,
}

enum Content {
    Images(ImageSet),
    Stored(Box<Stored>),
}

/// The contents of a file of statistics.
struct Stored {
    pooled: Statistics,
    spatial: Option<Statistics>,
    images: Option<ImageSet>,
}

impl Reference {
    /// Opens an `.npz` of statistics or images, a folder, or the `split` of a data set. The images of a folder or data
    /// set are cropped and resized to the size of `samples`, on `background`.
    ///
    /// # Errors
    /// The path has neither statistics nor images, or it is a folder or data set and the samples are not square.
    pub fn open(
        path: &Path,
        samples: &ImageSet,
        split: Option<String>,
        background: Background,
    ) -> Result<Self, EvaluationError> {
        let content = match is_npz(path) {
            true => Self::file(path)?,
            false => {
                let (height, width) = samples.size();
                if height != width {
                    return Err(EvaluationError::Size {
                        path: samples.path().to_owned(),
                        found: (height, width),
                        expected: (height, height),
                        way_out: "images of a folder can only be cropped to squares; use statistics as the \
                                  reference",
                    });
                }
                let options = ImageOptions {
                    split,
                    resolution: Some(height),
                    background,
                };
                Content::Images(ImageSet::open(path, &options)?)
            }
        };
        Ok(Self {
            path: path.to_owned(),
            content,
        })
    }

    /// Opens an `.npz` of statistics or images.
    ///
    /// # Errors
    /// The file has neither.
    pub fn of_file(path: &Path) -> Result<Self, EvaluationError> {
        Ok(Self {
            path: path.to_owned(),
            content: Self::file(path)?,
        })
    }

    fn file(path: &Path) -> Result<Content, EvaluationError> {
        let file = ReferenceFile::open(path)?;
        let (pooled, spatial) = (file.pooled()?, file.spatial()?);
        let images = match file.images()? {
            Some(_) => Some(ImageSet::open(path, &ImageOptions::default())?),
            None => None,
        };
        match (pooled, images) {
            (Some(pooled), images) => Ok(Content::Stored(Box::new(Stored {
                pooled,
                spatial,
                images,
            }))),
            (None, Some(images)) => Ok(Content::Images(images)),
            (None, None) => Err(EvaluationError::NoStatistics {
                path: path.to_owned(),
                found: file.names().join(", "),
            }),
        }
    }

    /// The path of the reference.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the statistics and, if `features` is set and there are images, the features of the images. Statistics of
    /// images are computed once and cached in the folder `cache`; a damaged cache file is written again.
    ///
    /// Computed statistics are rounded as in their file, so that later calls return the same bits.
    ///
    /// # Errors
    /// The statistics have another number of features than the network, an image cannot be read, or `interrupted` was
    /// set.
    pub fn statistics(
        &self,
        (features, cache): (bool, &Path),
        extractor: &Extractor,
        interrupted: &AtomicBool,
        progress: impl FnMut(usize, usize),
    ) -> Result<ReferenceStatistics, EvaluationError> {
        let Stored {
            pooled,
            spatial,
            images,
        } = match &self.content {
            Content::Images(images) => {
                return of_images(images, (features, cache), extractor, interrupted, progress);
            }
            Content::Stored(stored) => stored.as_ref(),
        };
        let dimension = extractor.dimension();
        check_width(&self.path, "mu", pooled.dimension(), dimension)?;
        if let (Some(spatial), Some((width, _))) = (spatial, extractor.inception()) {
            check_width(&self.path, "mu_s", spatial.dimension(), width)?;
        }
        let features = match images.as_ref().filter(|_| features) {
            Some(images) => {
                of_images(images, (true, cache), extractor, interrupted, progress)?.features
            }
            None => None,
        };
        Ok(ReferenceStatistics {
            pooled: pooled.clone(),
            spatial: spatial.clone(),
            features,
            cache_file: None,
        })
    }
}

fn check_width(
    path: &Path,
    name: &'static str,
    found: usize,
    expected: usize,
) -> Result<(), EvaluationError> {
    if found == expected {
        return Ok(());
    }
    Err(EvaluationError::Width {
        path: path.to_owned(),
        name,
        found,
        expected,
    })
}

/// Returns the statistics of images and, if `keep_features` is set, their features. Both are cached in the folder `cache`.
pub(crate) fn of_images(
    images: &ImageSet,
    (keep_features, cache): (bool, &Path),
    extractor: &Extractor,
    interrupted: &AtomicBool,
    mut progress: impl FnMut(usize, usize),
) -> Result<ReferenceStatistics, EvaluationError> {
    let cache_file = cache_path(cache, images, extractor);
    if let Some(found) = read_cache(&cache_file, keep_features, extractor)? {
        return Ok(found);
    }
    // Another process may be computing them.
    let _lock = lock_cache(&cache_file, interrupted)?;
    if let Some(found) = read_cache(&cache_file, keep_features, extractor)? {
        return Ok(found);
    }
    let options = PassOptions {
        splits: None,
        features: keep_features,
    };
    let (mut done, total) = (0, images.len());
    progress(done, total);
    let measured = measure(images, extractor, options, interrupted, |count| {
        done += count;
        progress(done, total);
    })?;
    let spatial = measured
        .spatial
        .as_ref()
        .map(Statistics::from_moments)
        .transpose()?;
    let found = ReferenceStatistics {
        pooled: Statistics::from_moments(&measured.pooled)?,
        spatial,
        features: measured.features,
        cache_file: Some(cache_file),
    };
    write_cache(&found);
    Ok(found)
}

/// Waits until no other process computes the content of a cache file. Returns `None` if its folder cannot be used or the
/// lock may never be released: then the content is computed by each process.
fn lock_cache(path: &Path, interrupted: &AtomicBool) -> Result<Option<Lock>, EvaluationError> {
    if let Some(folder) = path.parent()
        && std::fs::create_dir_all(folder).is_err()
    {
        return Ok(None);
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let lock = path.with_file_name(format!(".{name}.lock"));
    loop {
        match Lock::take(&lock) {
            Ok(lock) => return Ok(Some(lock)),
            Err(error @ LockError::Held { .. }) if !error.is_by_file() => {
                check_interrupted(interrupted)?;
                thread::sleep(CHECK_EVERY);
            }
            Err(_) => return Ok(None),
        }
    }
}

/// The cache file. Its name identifies what it depends on: the network, the images and their size.
fn cache_path(cache: &Path, images: &ImageSet, extractor: &Extractor) -> PathBuf {
    let identity: String = extractor.identity().chars().take(16).collect();
    cache.join(format!(
        "{}-{identity}-{}.npz",
        extractor.name(),
        images.identity()
    ))
}

/// Reads the statistics that are cached at `path`; `None` if there is no file, or if it is damaged or incomplete.
fn read_cache(
    path: &Path,
    features: bool,
    extractor: &Extractor,
) -> Result<Option<ReferenceStatistics>, EvaluationError> {
    let read = || -> Result<ReferenceStatistics, EvaluationError> {
        let file = ReferenceFile::open(path)?;
        let pooled = file.pooled()?;
        Ok(ReferenceStatistics {
            pooled: pooled.ok_or_else(|| EvaluationError::NoStatistics {
                path: path.to_owned(),
                found: file.names().join(", "),
            })?,
            spatial: file.spatial()?,
            features: match features {
                true => file.features(FEATURES)?,
                false => None,
            },
            cache_file: Some(path.to_owned()),
        })
    };
    let exists = path.try_exists().map_err(|source| NpzError::Io {
        action: "look for",
        path: path.to_owned(),
        source,
    })?;
    if !exists {
        return Ok(None);
    }
    match read() {
        Ok(found) => {
            let complete = found.pooled.dimension() == extractor.dimension()
                && found.spatial.is_some() == extractor.inception().is_some()
                && found.features.is_some() == features;
            Ok(complete.then_some(found))
        }
        Err(EvaluationError::Npz(error)) if !error.is_damage() => Err(error.into()),
        Err(error) => {
            tracing::warn!("cached statistics are computed again: {error}");
            Ok(None)
        }
    }
}

/// Writes the cache. A failure is only a warning, because it costs time but not the result.
fn write_cache(found: &ReferenceStatistics) {
    let Some(path) = &found.cache_file else {
        return;
    };
    let features: Vec<(&str, &Array2<f32>)> =
        found.features.iter().map(|f| (FEATURES, f)).collect();
    let written = path
        .parent()
        .map_or(Ok(()), std::fs::create_dir_all)
        .map_err(|error| error.to_string())
        .and_then(|()| {
            write_statistics(path, &found.pooled, found.spatial.as_ref(), &features)
                .map_err(|error| error.to_string())
        });
    if let Err(error) = written {
        tracing::warn!("statistics of the reference are not cached: {error}");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn a_cache_file_that_another_process_computes_is_awaited() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("reference/a.npz");
        let interrupted = AtomicBool::new(false);
        let held = lock_cache(&path, &interrupted).unwrap().unwrap();
        thread::scope(|scope| {
            let waiting =
                scope.spawn(|| lock_cache(&path, &interrupted).map(|lock| lock.is_some()));
            thread::sleep(3 * CHECK_EVERY);
            assert!(!waiting.is_finished());
            drop(held);
            assert!(waiting.join().unwrap().unwrap());
        });
        let _held = lock_cache(&path, &interrupted).unwrap();
        interrupted.store(true, Ordering::Relaxed);
        assert!(matches!(
            lock_cache(&path, &interrupted),
            Err(EvaluationError::Interrupted)
        ));
    }

    #[test]
    fn without_a_usable_folder_there_is_no_lock() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let interrupted = AtomicBool::new(false);
        assert!(
            lock_cache(&file.join("a.npz"), &interrupted)
                .unwrap()
                .is_none()
        );
    }
}
