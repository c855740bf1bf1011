//! Linear probing of a frozen encoder.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use data::Dataset;
use encoders::Encoder;
use metrics::linear_probe::{ProbeOptions, linear_probe_until};
use ndarray::{Array1, Array2, Axis};
use tch::{Device, Kind, TchError, Tensor};
use training::{CheckpointError, Config, TrainError, images_to_device, read_tensors};

use crate::classes::ReferenceClasses;
use crate::error::EvaluationError;
use crate::features;
use crate::subset::{batches, evenly_spaced, limit};
use crate::tensors;

/// Where a probe is trained and where it is scored. Where both are the same images, every second one is
/// held out. Classes are those of the training set; those of the images to score on are found among them by name.
#[derive(Clone, Copy)]
pub struct ProbeData<'a> {
    /// Images to train on.
    pub training: &'a Arc<dyn Dataset>,
    /// Images to score on.
    pub held_out: &'a Arc<dyn Dataset>,
    /// At most so many of each.
    pub images: usize,
    /// Folder where features are kept.
    pub cache: Option<&'a Path>,
}

/// Share of held-out images whose class a linear probe predicts, 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ProbeAccuracy {
    /// On mean-pooled patch tokens.
    pub patch: f64,
    /// On class tokens, where the encoder has one.
    pub class: Option<f64>,
}

/// Trains linear probes on an encoder's features, standardised by the training images, and scores them on
/// images held out. `None` where the data has fewer than two classes.
///
/// `identity` says what the encoder's features are: its file's checksum, and the precision.
///
/// # Errors
/// An image cannot be read, a class held out is none of the training set's, the encoder failed, a feature is not
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
    let [training, held_out] = parts(data);
    let total = training.indices.len() + held_out.indices.len();
    let mut done = 0;
    let mut features_of = |part: &Part| {
        let cached = data
            .cache
            .map(|folder| part.cache(folder, encoder, identity, config));
        if let Some(path) = &cached
            && let Some(found) = read_cache(path)?
        {
            return Ok(found);
        }
        let features = extract(encoder, part, config, device, interrupted, |count| {
            done += count;
            progress(done, total);
        })?;
        if let Some(path) = &cached {
            write_cache(path, &features);
        }
        Ok::<_, EvaluationError>(features)
    };
    let (training, mut held_out) = (features_of(&training)?, features_of(&held_out)?);
    // Kept features have the numbers of their own data set.
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

/// Some images of a data set.
struct Part<'a> {
    dataset: &'a Arc<dyn Dataset>,
    indices: Vec<u64>,
    /// Which they are, for the name of a file.
    name: String,
}

fn parts(data: ProbeData) -> [Part; 2] {
    let part = |dataset, indices: Vec<u64>, suffix: &str| Part {
        dataset,
        name: format!("{}{suffix}", indices.len()),
        indices,
    };
    if data.training.fingerprint() != data.held_out.fingerprint() {
        return [data.training, data.held_out].map(|dataset| {
            let count = limit(dataset, data.images);
            part(dataset, evenly_spaced(count, dataset.len()), "")
        });
    }
    let count = limit(data.training, 2 * data.images);
    let both = evenly_spaced(count, data.training.len());
    [(0, "-even"), (1, "-odd")].map(|(first, suffix)| {
        let indices = both.iter().copied().skip(first).step_by(2).collect();
        part(data.training, indices, suffix)
    })
}

impl Part<'_> {
    fn cache(
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

/// Features of images with their classes.
struct Labelled {
    /// Mean patch tokens `[N, D]`.
    patch: Array2<f32>,
    /// Class tokens `[N, D]`.
    class: Option<Array2<f32>>,
    /// `[N]`.
    labels: Array1<i64>,
}

fn extract(
    encoder: &dyn Encoder,
    part: &Part,
    config: &Config,
    device: Device,
    interrupted: &AtomicBool,
    mut progress: impl FnMut(usize),
) -> Result<Labelled, EvaluationError> {
    let (mut patch, mut class, mut labels) = (Vec::new(), Vec::new(), Vec::new());
    for batch in batches(part.dataset, &part.indices, config) {
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
    Ok(Labelled {
        patch: tensors::array2(&Tensor::f_cat(&patch, 0)?)?,
        class: match class.is_empty() {
            true => None,
            false => Some(tensors::array2(&Tensor::f_cat(&class, 0)?)?),
        },
        labels: labels.into(),
    })
}

/// Mean and deviation of each feature.
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
        // A feature that never changes says nothing, and stays 0.
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

/// The features that are kept at `path`; `None` if there are none, or if the file is damaged, which is warned of.
fn read_cache(path: &Path) -> Result<Option<Labelled>, EvaluationError> {
    let damaged = |reason: &str| {
        tracing::warn!(
            "features of the linear probe are computed again: {}: {reason}",
            path.display()
        );
    };
    let found = match read_tensors(path) {
        Ok(tensors) => labelled(&tensors),
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
        damaged("it does not hold features with their labels");
    }
    Ok(found)
}

fn labelled(tensors: &[(String, Tensor)]) -> Option<Labelled> {
    let find = |wanted: &str| {
        let found = tensors.iter().find(|(name, _)| name == wanted);
        found.map(|(_, tensor)| tensor)
    };
    let features = Labelled {
        patch: tensors::array2(find("patch")?).ok()?,
        class: find("class").and_then(|class| tensors::array2(class).ok()),
        labels: Vec::<i64>::try_from(find("labels")?).ok()?.into(),
    };
    let complete = features.patch.nrows() == features.labels.len() && !features.labels.is_empty();
    complete.then_some(features)
}

/// A cache that cannot be written costs time, not the result.
fn write_cache(path: &Path, features: &Labelled) {
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
        tracing::warn!("features of the linear probe are not kept: {error}");
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
    fn only_damage_makes_kept_features_be_computed_again() {
        let folder = tempfile::tempdir().unwrap();
        let kept = folder.path().join("probe.safetensors");
        assert!(read_cache(&kept).unwrap().is_none());
        let features = Labelled {
            patch: arr2(&[[1.0, 5.0], [3.0, 5.0]]),
            class: None,
            labels: vec![0, 1].into(),
        };
        write_cache(&kept, &features);
        assert_eq!(read_cache(&kept).unwrap().unwrap().patch, features.patch);
        std::fs::write(&kept, "rubbish").unwrap();
        assert!(read_cache(&kept).unwrap().is_none());
        // A folder there cannot be read as a file: an error of the system, not damage.
        std::fs::remove_file(&kept).unwrap();
        std::fs::create_dir(&kept).unwrap();
        assert!(read_cache(&kept).is_err());
    }
}
