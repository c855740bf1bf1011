//! Trains linear probes on a frozen encoder and scores them.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use data::{Dataset, evenly_spaced};
use encoders::Encoder;
use metrics::linear_probe::{ProbeOptions, linear_probe_until};
use ndarray::{Array1, Array2, Axis};
use tch::{Device, Kind, TchError, Tensor};
use training::{CheckpointError, Config, TrainError, images_to_device, read_tensors};

use crate::classes::ReferenceClasses;
use crate::error::EvaluationError;
use crate::features;
use crate::subset::{batches, limit};
use crate::tensors;

/// The images that a probe is trained on and scored on. If both are the same data set, every second image is held out.
/// Classes are those of the training set; the classes of held-out images are mapped to them by name.
#[derive(Clone, Copy)]
pub struct ProbeData<'a> {
    /// Images to train on.
    pub training: &'a Arc<dyn Dataset>,
    /// Images to score on.
    pub held_out: &'a Arc<dyn Dataset>,
    /// Maximum number of images of each; 0 means all.
    pub images: usize,
    /// Folder in which features are cached.
    pub cache: Option<&'a Path>,
}

/// Share of held-out images whose class a linear probe predicts, 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ProbeAccuracy {
    /// On mean-pooled patch tokens.
    pub patch: f64,
    /// On class tokens, if the encoder has them.
    pub class: Option<f64>,
}

/// Trains linear probes on an encoder's features, standardised with the statistics of the training images, and scores
/// them on held-out images. Returns `None` if the training set has fewer than two classes.
///
/// `identity` identifies the encoder's features by its file's checksum and the precision.
///
/// # Errors
/// An image cannot be read, the training set lacks a class of the held-out images, the encoder failed, a feature is not
/// finite, or `interrupted` was set.
pub fn probe(
    encoder: &dyn Encoder,
    identity: &str,
    data: ProbeData,
    config: &Config,
    device: Device,
    interrupted: &AtomicBool,
    mut progress: impl FnMut(usize, usize),
) -> Result<Option<ProbeAccuracy>, EvaluationError> {
    let classes = data.training.class_names().len();
    if classes < 2 {
        return Ok(None);
    }
    let names = ReferenceClasses::new(data.training.as_ref(), data.held_out.as_ref())?;
    let [training, held_out] = subsets(data);
    let total = training.indices.len() + held_out.indices.len();
    let mut done = 0;
    let mut features_of = |subset: &Subset| {
        let cached = data
            .cache
            .map(|folder| subset.cache_path(folder, encoder, identity, config));
        if let Some(path) = &cached
            && let Some(found) = read_cache(path)?
        {
            return Ok(found);
        }
        let features = extract(encoder, subset, config, device, interrupted, |count| {
            done += count;
            progress(done, total);
        })?;
        if let Some(path) = &cached {
            write_cache(path, &features);
        }
        Ok::<_, EvaluationError>(features)
    };
    let (training, mut held_out) = (features_of(&training)?, features_of(&held_out)?);
    // Cached labels are those of the held-out data set.
    for label in &mut held_out.labels {
        *label = names.training_label(*label)?;
    }
    let accuracy = |train: &Array2<f32>, test: &Array2<f32>| -> Result<f64, EvaluationError> {
        let scale = Standardisation::of(train);
        let (train, test) = (scale.apply(train), scale.apply(test));
        let options = ProbeOptions::default();
        let labels = training.labels.view();
        let probe = linear_probe_until(interrupted, train.view(), labels, classes, &options)?;
        Ok(probe.score(test.view(), held_out.labels.view())?.accuracy())
    };
    Ok(Some(ProbeAccuracy {
        patch: accuracy(&training.patch, &held_out.patch)?,
        class: match (&training.class, &held_out.class) {
            (Some(train), Some(test)) => Some(accuracy(train, test)?),
            _ => None,
        },
    }))
}

/// A subset of the images of a data set.
struct Subset<'a> {
    dataset: &'a Arc<dyn Dataset>,
    indices: Vec<u64>,
    /// Identifies the subset in the name of a cache file.
    name: String,
}

fn subsets(data: ProbeData) -> [Subset; 2] {
    let subset = |dataset, indices: Vec<u64>, suffix: &str| Subset {
        dataset,
        name: format!("{}{suffix}", indices.len()),
        indices,
    };
    if data.training.fingerprint() != data.held_out.fingerprint() {
        return [data.training, data.held_out].map(|dataset| {
            let count = limit(dataset, data.images);
            subset(dataset, evenly_spaced(count, dataset.len()), "")
        });
    }
    let count = limit(data.training, 2 * data.images);
    let both = evenly_spaced(count, data.training.len());
    [(0, "-even"), (1, "-odd")].map(|(first, suffix)| {
        let indices = both.iter().copied().skip(first).step_by(2).collect();
        subset(data.training, indices, suffix)
    })
}

impl Subset<'_> {
    fn cache_path(
        &self,
        folder: &Path,
        encoder: &dyn Encoder,
        identity: &str,
        config: &Config,
    ) -> PathBuf {
        let data = &config.data;
        let identity = identity.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        folder.join(format!(
            "probe-{}-{identity}-{}-{}-{}-{}.safetensors",
            encoder.spec().name,
            self.dataset.fingerprint(),
            self.name,
            data.resolution,
            format!("{:?}", data.background)
                .to_lowercase()
                .replace(|c: char| !c.is_ascii_alphanumeric(), ""),
        ))
    }
}

/// Features of images and their labels.
struct LabelledFeatures {
    /// Mean patch tokens `[N, D]`.
    patch: Array2<f32>,
    /// Class tokens `[N, D]`.
    class: Option<Array2<f32>>,
    /// Labels in the images' own data set, `[N]`.
    labels: Array1<i64>,
}

fn extract(
    encoder: &dyn Encoder,
    subset: &Subset,
    config: &Config,
    device: Device,
    interrupted: &AtomicBool,
    mut progress: impl FnMut(usize),
) -> Result<LabelledFeatures, EvaluationError> {
    let (mut patch, mut class, mut labels) = (Vec::new(), Vec::new(), Vec::new());
    for batch in batches(subset.dataset, &subset.indices, config) {
        let batch = batch?;
        let images = images_to_device(&batch, device)?;
        let tokens = features::encode(encoder, &images, device, interrupted)?;
        let pooled = tokens.patch.f_mean_dim(1, false, Kind::Float)?;
        patch.push(pooled.f_to_device(Device::Cpu)?);
        if let Some(token) = tokens.class {
            class.push(token.f_to_kind(Kind::Float)?.f_to_device(Device::Cpu)?);
        }
        labels.extend_from_slice(&batch.labels);
        progress(batch.len());
    }
    Ok(LabelledFeatures {
        patch: tensors::array2(&Tensor::f_cat(&patch, 0)?)?,
        class: match class.is_empty() {
            true => None,
            false => Some(tensors::array2(&Tensor::f_cat(&class, 0)?)?),
        },
        labels: labels.into(),
    })
}

/// Mean and standard deviation of each feature.
struct Standardisation {
    mean: Array1<f64>,
    deviation: Array1<f64>,
}

impl Standardisation {
    fn of(features: &Array2<f32>) -> Self {
        let features = features.mapv(f64::from);
        let mean = features
            .mean_axis(Axis(0))
            .unwrap_or_else(|| Array1::zeros(features.ncols()));
        // A constant feature carries no information and becomes 0.
        let deviation = features
            .std_axis(Axis(0), 0.0)
            .mapv(|deviation| if deviation > 0.0 { deviation } else { 1.0 });
        Self { mean, deviation }
    }

    fn apply(&self, features: &Array2<f32>) -> Array2<f32> {
        let centred = features.mapv(f64::from) - &self.mean;
        (centred / &self.deviation).mapv(|value| value as f32)
    }
}

/// Reads the features that are cached at `path`. Returns `None` if there is no file, or, with a warning, if it is damaged.
fn read_cache(path: &Path) -> Result<Option<LabelledFeatures>, EvaluationError> {
    let damaged = |reason: &str| {
        tracing::warn!(
            "features for the linear probe are computed again: {}: {reason}",
            path.display()
        );
    };
    let found = match read_tensors(path) {
        Ok(tensors) => features_from(&tensors),
        Err(CheckpointError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(None);
        }
        Err(error) if error.is_damage() => {
            damaged(&error.to_string());
            return Ok(None);
        }
        Err(error) => return Err(TrainError::from(error).into()),
    };
    if found.is_none() {
        damaged("it does not contain features with their labels");
    }
    Ok(found)
}

fn features_from(tensors: &[(String, Tensor)]) -> Option<LabelledFeatures> {
    let find = |wanted: &str| {
        let found = tensors.iter().find(|(name, _)| name == wanted);
        found.map(|(_, tensor)| tensor)
    };
    let features = LabelledFeatures {
        patch: tensors::array2(find("patch")?).ok()?,
        class: find("class").and_then(|class| tensors::array2(class).ok()),
        labels: Vec::<i64>::try_from(find("labels")?).ok()?.into(),
    };
    let complete = features.patch.nrows() == features.labels.len() && !features.labels.is_empty();
    complete.then_some(features)
}

/// Writes the cache. A failure is only a warning, because it costs time but not the result.
fn write_cache(path: &Path, features: &LabelledFeatures) {
    let matrix = |name: &str, matrix: &Array2<f32>| -> Result<(String, Tensor), TchError> {
        let (rows, columns) = matrix.dim();
        let flat: Vec<f32> = matrix.iter().copied().collect();
        let tensor = Tensor::f_from_slice(&flat)?.f_view([rows as i64, columns as i64])?;
        Ok((name.to_owned(), tensor))
    };
    let written = (|| {
        let mut tensors = vec![matrix("patch", &features.patch)?];
        if let Some(class) = &features.class {
            tensors.push(matrix("class", class)?);
        }
        let labels = features.labels.to_vec();
        tensors.push(("labels".to_owned(), Tensor::f_from_slice(&labels)?));
        training::write_tensors(path, &tensors)
    })();
    if let Err(error) = written {
        tracing::warn!("features for the linear probe are not cached: {error}");
    }
}

#[cfg(test)]
mod tests {
    use ndarray::arr2;

    use super::*;

    #[test]
    fn standardised_features_have_mean_0_and_deviation_1() {
        let features = arr2(&[[1.0, 5.0], [3.0, 5.0]]);
        let scaled = Standardisation::of(&features).apply(&features);
        assert_eq!(scaled, arr2(&[[-1.0, 0.0], [1.0, 0.0]]));
    }

    #[test]
    fn only_damaged_caches_are_ignored() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("probe.safetensors");
        assert!(read_cache(&cache).unwrap().is_none());
        let features = LabelledFeatures {
            patch: arr2(&[[1.0, 5.0], [3.0, 5.0]]),
            class: None,
            labels: vec![0, 1].into(),
        };
        write_cache(&cache, &features);
        assert_eq!(read_cache(&cache).unwrap().unwrap().patch, features.patch);
        std::fs::write(&cache, "rubbish").unwrap();
        assert!(read_cache(&cache).unwrap().is_none());
        // Reading a folder as a file fails with a system error, which is not damage.
        std::fs::remove_file(&cache).unwrap();
        std::fs::create_dir(&cache).unwrap();
        assert!(read_cache(&cache).is_err());
    }
}
