//! What samples of a sweep's cells are measured by.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use data::{DataError, Dataset, seed};
use encoders::Inception;
use training::{Config, Quality, Trainer};

use super::quality::{Scoring, results, wanted};
use super::statistics::of_images;
use super::{
    BATCH, EvaluationError, Extractor, ImageSet, Metric, Pass, ReferenceStatistics, evenly_spaced,
    go_on,
};
use crate::encoder_bank::EncoderBank;

/// Samples drawn before they are measured: a trainer loads its autoencoder once for so many. A multiple of
/// [`BATCH`], so that `runner evaluate` of the same images gives the same bits.
const CHUNK: usize = 32 * BATCH;

/// Classes of samples, with the frequencies of `dataset`: those of images evenly spaced over it. In a random
/// order, as a data set is often sorted by class, and a part of the Inception score then has few of the classes.
fn sample_labels(dataset: &dyn Dataset, count: usize, seed: u64) -> Result<Vec<i64>, DataError> {
    let indices = evenly_spaced(count as u64, dataset.len());
    let order = seed::permutation(seed::derive(seed, "order of sample classes", &[]), count);
    order
        .into_iter()
        .filter_map(|place| indices.get(place as usize))
        .map(|&index| dataset.label(index))
        .collect()
}

/// How far judges have come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JudgeStage {
    /// Features of real images, so many of so many.
    Reference(usize, usize),
    /// Samples drawn, so many of so many.
    Samples(usize, usize),
    /// Features of samples, so many of so many.
    Features(usize, usize),
}

/// The networks that measure samples, each with what it finds in real images.
///
/// They are `evaluate.fd_encoder` and, where it is on the machine, Inception.
pub struct Judges {
    judges: Vec<Judge>,
    /// Classes of the samples, with the frequencies of the real images, in a random order.
    labels: Vec<i64>,
}

struct Judge {
    extractor: Extractor,
    metrics: BTreeSet<Metric>,
    reference: ReferenceStatistics,
}

impl Judges {
    /// The judges of `config`, which compare with images of `dataset`; statistics of these are kept in the
    /// folder `cache`. There are none without samples.
    ///
    /// # Errors
    /// A network's file is not what its sidecar says, an image cannot be read, or `interrupted` was set.
    pub fn load(
        bank: &EncoderBank,
        config: &Config,
        dataset: &Arc<dyn Dataset>,
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
                BTreeSet::from([Metric::Frechet]),
            ));
        }
        if !evaluate.inception.is_empty() && Inception::identity(bank.registry()).is_some() {
            let metrics = evaluate.inception.iter().copied().map(Metric::from);
            networks.push((Inception::NAMES[0], metrics.collect()));
        }
        let data = &config.data;
        for (name, metrics) in networks {
            go_on(interrupted)?;
            let extractor = Extractor::load(bank, name, data.resolution)?;
            let images = ImageSet::spaced(
                Arc::clone(dataset),
                evaluate.reference_images,
                data.resolution,
                data.background,
            );
            let features = wanted(&metrics, &Scoring::default()).features;
            let reference = of_images(
                &images,
                (features, cache),
                &extractor,
                interrupted,
                |done, total| progress(JudgeStage::Reference(done, total)),
            )?;
            judges.judges.push(Judge {
                extractor,
                metrics,
                reference,
            });
        }
        if !judges.judges.is_empty() {
            judges.labels = sample_labels(dataset.as_ref(), count, config.sample.seed)?;
        }
        Ok(judges)
    }

    /// What samples of the averaged weights are like: the first `sample.count`. Nothing without judges.
    ///
    /// # Errors
    /// A sample cannot be drawn, a feature is not finite, or `interrupted` was set.
    pub fn measure(
        &self,
        trainer: &Trainer,
        interrupted: &AtomicBool,
        mut progress: impl FnMut(JudgeStage),
    ) -> Result<Quality, EvaluationError> {
        let scoring = Scoring::default();
        let total = self.labels.len();
        let mut passes = self
            .judges
            .iter()
            .map(|judge| {
                let wanted = wanted(&judge.metrics, &scoring);
                Pass::new(&judge.extractor, wanted, total)
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
        let mut quality = Quality::default();
        for (judge, pass) in self.judges.iter().zip(passes) {
            let Judge {
                extractor,
                metrics,
                reference,
            } = judge;
            go_on(interrupted)?;
            let found = results(metrics, extractor, reference, &pass.finish()?, &scoring)?;
            match extractor.inception() {
                Some(_) => {
                    quality = Quality {
                        fid: found.fid,
                        sfid: found.sfid,
                        inception_score: found.inception_score,
                        precision: found.precision,
                        recall: found.recall,
                        kid: found.kid,
                        ..quality
                    }
                }
                None => quality.fd = found.fd,
            }
        }
        Ok(quality)
    }
}

#[cfg(test)]
mod tests {
    use data::Sample;

    use super::*;

    /// Images of four classes, sorted by class, with 1, 2, 3 and 4 tenths of the images.
    struct Sorted;

    impl Dataset for Sorted {
        fn name(&self) -> &str {
            "sorted"
        }

        fn len(&self) -> u64 {
            1000
        }

        fn class_names(&self) -> &[String] {
            &[]
        }

        fn read(&self, index: u64) -> Result<Sample, DataError> {
            Err(DataError::Index {
                dataset: "sorted".to_owned(),
                index,
                len: 1000,
            })
        }

        fn label(&self, index: u64) -> Result<i64, DataError> {
            let ends = [100, 300, 600, 1000];
            Ok(ends.iter().filter(|&&end| index >= end).count() as i64)
        }

        fn fingerprint(&self) -> &str {
            ""
        }
    }

    fn shares(labels: &[i64]) -> [f64; 4] {
        [0, 1, 2, 3].map(|class| {
            labels.iter().filter(|&&label| label == class).count() as f64 / labels.len() as f64
        })
    }

    #[test]
    fn samples_have_the_references_classes_in_a_random_order() {
        let labels = sample_labels(&Sorted, 500, 3).unwrap();
        assert_eq!(shares(&labels), [0.1, 0.2, 0.3, 0.4]);
        // Each fifth has all classes: 100 labels of share p have a deviation of at most 0.05.
        for part in labels.chunks(100) {
            for (share, expected) in shares(part).into_iter().zip([0.1, 0.2, 0.3, 0.4]) {
                assert!((share - expected).abs() < 0.2, "{:?}", shares(part));
                assert!(share > 0.0);
            }
        }
        assert_eq!(labels, sample_labels(&Sorted, 500, 3).unwrap());
        assert_ne!(labels, sample_labels(&Sorted, 500, 4).unwrap());
    }
}
