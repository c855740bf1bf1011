//! Measures the samples of a training run with the networks that its configuration names.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use data::{Dataset, evenly_spaced, seed};
use encoders::Inception;
use metrics::figures::Figures;
use metrics::quality::SampleMetric;
use training::{Config, Trainer};

use crate::classes::ReferenceClasses;
use crate::encoder_bank::EncoderBank;
use crate::error::{EvaluationError, check_interrupted};
use crate::features::Extractor;
use crate::images::ImageSet;
use crate::measure::FeaturePass;
use crate::quality::{Scoring, obstacle, pass_options, results};
use crate::statistics::{Reference, ReferenceStatistics, of_images};
use crate::subset::BATCH;

/// Samples that are drawn before they are measured; a trainer loads its autoencoder once per chunk. A multiple of
/// [`BATCH`], so that `runner evaluate` on the same images computes the same bits.
const CHUNK: usize = 32 * BATCH;

/// The training labels of `count` samples, taken from evenly spaced images of `reference` so that the class frequencies
/// match. They are shuffled: data sets are often sorted by class, and each part of the Inception score would then have
/// only a few of the classes.
fn sample_labels(
    reference: &dyn Dataset,
    classes: &ReferenceClasses,
    count: usize,
    seed: u64,
) -> Result<Vec<i64>, EvaluationError> {
    let indices = evenly_spaced(count as u64, reference.len());
    let order = seed::permutation(seed::derive(seed, "order of sample classes", &[]), count);
    order
        .into_iter()
        .filter_map(|place| indices.get(place as usize))
        .map(|&index| classes.training_label(reference.label(index)?))
        .collect()
}

/// The progress of [`Judges`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JudgeStage {
    /// Features of real images: computed, total.
    Reference(usize, usize),
    /// Samples: drawn, total.
    Samples(usize, usize),
    /// Features of samples: computed, total.
    Features(usize, usize),
}

/// The networks that measure samples, each with its statistics of real images.
///
/// They are `evaluate.fd_encoder` and, if `evaluate.inception` requests metrics and it is installed, Inception.
pub struct Judges {
    judges: Vec<Judge>,
    /// The classes of the samples, with the frequencies of the real images, in a random order.
    labels: Vec<i64>,
}

struct Judge {
    extractor: Extractor,
    metrics: BTreeSet<SampleMetric>,
    reference: ReferenceStatistics,
}

impl Judges {
    /// Loads the networks of `config`, which compare samples with images of `reference`, and computes or reads the
    /// statistics of these images, which are cached in the folder `cache`. Inception compares with `evaluate.reference`
    /// instead, if it is set. Loads nothing if `sample.count` is 0.
    ///
    /// # Errors
    /// A network's file does not match its sidecar, an image cannot be read, `reference` has a class that
    /// `training` lacks, or `interrupted` was set.
    pub fn load(
        bank: &EncoderBank,
        config: &Config,
        [training, reference]: [&Arc<dyn Dataset>; 2],
        cache: &Path,
        interrupted: &AtomicBool,
        mut progress: impl FnMut(JudgeStage),
    ) -> Result<Self, EvaluationError> {
        let (evaluate, count) = (&config.evaluate, config.sample.count);
        let mut judges = Self {
            judges: Vec::new(),
            labels: Vec::new(),
        };
        if count == 0 {
            return Ok(judges);
        }
        let mut networks = Vec::new();
        if !evaluate.fd_encoder.is_empty() {
            networks.push((
                evaluate.fd_encoder.as_str(),
                BTreeSet::from([SampleMetric::Frechet]),
            ));
        }
        if !evaluate.inception.is_empty() && Inception::identity(bank.registry())?.is_some() {
            let metrics = evaluate.inception.iter().copied().collect();
            networks.push((Inception::NAMES[0], metrics));
        }
        let data = &config.data;
        for (name, mut metrics) in networks {
            check_interrupted(interrupted)?;
            let extractor = Extractor::load(bank, name, data.resolution, interrupted)?;
            let features = pass_options(&metrics, &Scoring::default()).features;
            let mut progress = |done, total| progress(JudgeStage::Reference(done, total));
            let published = extractor.inception().is_some() && !evaluate.reference.is_empty();
            let statistics = match published {
                true => {
                    let reference = Reference::of_file(&evaluate.reference)?;
                    let cache = (features, cache);
                    reference.statistics(cache, &extractor, interrupted, &mut progress)?
                }
                false => {
                    let images = ImageSet::spaced(
                        Arc::clone(reference),
                        evaluate.reference_images,
                        data.resolution,
                        data.background,
                    );
                    let cache = (features, cache);
                    of_images(&images, cache, &extractor, interrupted, &mut progress)?
                }
            };
            if published {
                let path = &evaluate.reference;
                metrics.retain(|&metric| {
                    let obstacle = obstacle(metric, &statistics, path);
                    if let Some(reason) = &obstacle {
                        tracing::warn!("{metric} is left empty: `evaluate.reference`: {reason}");
                    }
                    obstacle.is_none()
                });
            }
            judges.judges.push(Judge {
                extractor,
                metrics,
                reference: statistics,
            });
        }
        if !judges.judges.is_empty() {
            let classes = ReferenceClasses::new(training.as_ref(), reference.as_ref())?;
            judges.labels = sample_labels(reference.as_ref(), &classes, count, config.sample.seed)?;
        }
        Ok(judges)
    }

    /// Draws the first `sample.count` samples of the averaged weights and measures them. No figures are returned if no
    /// network was loaded.
    ///
    /// # Errors
    /// A sample cannot be drawn, a feature is not finite, or `interrupted` was set.
    pub fn measure(
        &self,
        trainer: &Trainer,
        interrupted: &AtomicBool,
        mut progress: impl FnMut(JudgeStage),
    ) -> Result<Figures, EvaluationError> {
        let scoring = Scoring::default();
        let total = self.labels.len();
        let mut passes = self
            .judges
            .iter()
            .map(|judge| {
                let options = pass_options(&judge.metrics, &scoring);
                FeaturePass::new(&judge.extractor, options, total)
            })
            .collect::<Result<Vec<_>, _>>()?;
        let mut first = 0;
        for labels in self.labels.chunks(CHUNK) {
            let samples = trainer.sample_until(interrupted, first as u64, labels, |done| {
                progress(JudgeStage::Samples(first + done, total));
            })?;
            for start in (0..labels.len()).step_by(BATCH) {
                let length = BATCH.min(labels.len() - start);
                let batch = samples.f_narrow(0, start as i64, length as i64)?;
                for pass in &mut passes {
                    pass.push(&batch, interrupted)?;
                }
                progress(JudgeStage::Features(first + start + length, total));
            }
            first += labels.len();
        }
        let mut quality = Figures::default();
        for (judge, pass) in self.judges.iter().zip(passes) {
            let Judge {
                extractor,
                metrics,
                reference,
            } = judge;
            check_interrupted(interrupted)?;
            let computed = results(
                metrics,
                extractor,
                reference,
                &pass.finish()?,
                &scoring,
                interrupted,
            )?;
            quality.extend(computed.figures().iter());
        }
        Ok(quality)
    }
}

#[cfg(test)]
mod tests {
    use data::{DataError, Sample};

    use super::*;

    /// A thousand images sorted by class; the four classes have 1, 2, 3 and 4 tenths of them.
    struct Sorted(Vec<String>);

    impl Sorted {
        fn new(names: &[&str]) -> Self {
            Self(names.iter().map(|name| (*name).to_owned()).collect())
        }

        fn labels(&self, training: &[&str], seed: u64) -> Vec<i64> {
            let classes = ReferenceClasses::new(&Self::new(training), self).unwrap();
            sample_labels(self, &classes, 500, seed).unwrap()
        }
    }

    impl Dataset for Sorted {
        fn name(&self) -> &str {
            "sorted"
        }

        fn len(&self) -> u64 {
            1000
        }

        fn class_names(&self) -> &[String] {
            &self.0
        }

        fn read(&self, index: u64) -> Result<Sample, DataError> {
            Err(DataError::Index {
                dataset: "sorted".to_owned(),
                index,
                len: 1000,
            })
        }

        fn label(&self, index: u64) -> Result<i64, DataError> {
            let ends = [100, 300, 600];
            Ok(ends.iter().filter(|&&end| index >= end).count() as i64)
        }

        fn fingerprint(&self) -> &str {
            ""
        }
    }

    fn share(labels: &[i64], class: i64) -> f64 {
        let count = labels.iter().filter(|&&label| label == class).count();
        count as f64 / labels.len() as f64
    }

    const NAMES: [&str; 4] = ["ant", "bee", "cat", "dog"];

    #[test]
    fn samples_have_the_class_frequencies_of_the_reference_in_a_random_order() {
        let labels = Sorted::new(&NAMES).labels(&NAMES, 3);
        for (class, expected) in [0.1, 0.2, 0.3, 0.4].into_iter().enumerate() {
            assert_eq!(share(&labels, class as i64), expected);
            // Every chunk of 100 has all classes: the share of a class has a standard deviation of at most 0.05.
            for part in labels.chunks(100) {
                let share = share(part, class as i64);
                assert!(share > 0.0 && (share - expected).abs() < 0.2, "{share}");
            }
        }
        assert_eq!(labels, Sorted::new(&NAMES).labels(&NAMES, 3));
        assert_ne!(labels, Sorted::new(&NAMES).labels(&NAMES, 4));
    }

    #[test]
    fn reference_classes_are_mapped_to_training_labels() {
        let reference = Sorted::new(&NAMES);
        let labels = reference.labels(&["dog", "ape", "cat", "bee", "ant"], 3);
        let shares = [0, 1, 2, 3, 4].map(|class| share(&labels, class));
        assert_eq!(shares, [0.4, 0.0, 0.3, 0.2, 0.1]);
        // A model with one class draws every sample from it.
        assert_eq!(share(&reference.labels(&["all"], 3), 0), 1.0);
        let flat = ReferenceClasses::new(&reference, &Sorted::new(&["all"]));
        assert!(flat.is_err());
    }
}
