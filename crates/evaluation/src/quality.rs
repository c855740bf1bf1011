//! Compares samples with a reference by several metrics in one pass.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use metrics::figures::Figure;
use metrics::npz::Statistics;
use metrics::quality::{
    InceptionScore, KidOptions, Moments, SampleMetric, Splits, frechet_distance, kid_until,
    precision_recall_until,
};

use crate::error::EvaluationError;
use crate::features::Extractor;
use crate::images::ImageSet;
use crate::measure::{PassOptions, PassResult, measure};
use crate::quality_report::{FeatureReport, QualityReport, Results, SetReport};
use crate::statistics::{Reference, ReferenceStatistics};
use terminal::interruptible::interruptible;

/// Parameters of the metrics.
#[derive(Debug, Clone)]
pub struct Scoring {
    /// Division of the samples into parts for the Inception score.
    pub splits: Splits,
    /// Number and size of the subsets of KID.
    pub kid: KidOptions,
    /// Number of nearest neighbours of precision and recall.
    pub neighbours: usize,
}

impl Default for Scoring {
    /// Parts of 5000 samples as in ADM, 100 subsets of 1000 for KID, and 3 neighbours.
    fn default() -> Self {
        Self {
            splits: Splits::Size(5000),
            kid: KidOptions::default(),
            neighbours: 3,
        }
    }
}

/// What to measure.
#[derive(Debug, Clone)]
pub struct QualityOptions {
    /// The metrics to compute. If empty, all metrics that need no features in memory and that the reference supports.
    pub metrics: Vec<SampleMetric>,
    /// Parameters of the metrics.
    pub scoring: Scoring,
    /// Folder in which statistics of reference images are cached.
    pub cache: PathBuf,
}

/// The images that a pass processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Reference images.
    Reference,
    /// Samples.
    Samples,
}

/// Compares samples with the reference `against`.
///
/// # Errors
/// As [`measure`] and [`Reference::statistics`]; a requested metric is not defined on the features, or the reference
/// lacks what it needs.
pub fn evaluate(
    images: &ImageSet,
    against: &Reference,
    extractor: &Extractor,
    options: &QualityOptions,
    interrupted: &AtomicBool,
    mut progress: impl FnMut(Stage, usize, usize),
) -> Result<QualityReport, EvaluationError> {
    let inception = extractor.inception().is_some();
    if let Some(&metric) = options
        .metrics
        .iter()
        .find(|metric| metric.needs_inception())
        && !inception
    {
        return Err(EvaluationError::NotAllowed {
            metric,
            reason: format!(
                "it is defined on Inception's features, not on those of {}",
                extractor.name()
            ),
        });
    }
    let mut metrics: BTreeSet<SampleMetric> = options.metrics.iter().copied().collect();
    if metrics.is_empty() {
        metrics.insert(SampleMetric::Frechet);
        if inception {
            metrics.extend([SampleMetric::Sfid, SampleMetric::InceptionScore]);
        }
    }
    let pass_options = pass_options(&metrics, &options.scoring);
    let reference = against.statistics(
        (pass_options.features, &options.cache),
        extractor,
        interrupted,
        |done, total| progress(Stage::Reference, done, total),
    )?;
    let mut warnings = Vec::new();
    let path = against.path();
    remove_unsupported(&mut metrics, options, &reference, path, &mut warnings)?;

    let mut done = 0;
    progress(Stage::Samples, done, images.len());
    let measured = measure(images, extractor, pass_options, interrupted, |count| {
        done += count;
        progress(Stage::Samples, done, images.len());
    })?;
    let results = results(
        &metrics,
        extractor,
        &reference,
        &measured,
        &options.scoring,
        interrupted,
    )?;
    if metrics.contains(&SampleMetric::Kid)
        && let Some(real) = &reference.features
    {
        warnings.extend(subset_warning(
            &options.scoring.kid,
            real.nrows(),
            images.len(),
        ));
    }
    warnings.extend(measured.score.as_ref().and_then(order_warning));
    let dimension = extractor.dimension();
    for (what, count) in [
        ("samples", Some(images.len())),
        ("reference images", reference.pooled.count),
    ] {
        if let Some(count) = count.filter(|&count| count <= dimension) {
            warnings.push(format!(
                "{count} {what} for {dimension} features: the covariance is singular and Frechet distances \
                 are too large; compare them only with distances from the same number of images"
            ));
        }
    }
    Ok(QualityReport {
        samples: SetReport {
            path: images.path().display().to_string(),
            count: Some(images.len()),
            size: Some(images.size()),
        },
        reference: SetReport {
            path: against.path().display().to_string(),
            count: reference.pooled.count,
            size: None,
        },
        features: FeatureReport {
            name: extractor.name().to_owned(),
            weights: extractor.weights().to_owned(),
            identity: extractor.identity().to_owned(),
            dimension,
        },
        results,
        warnings,
    })
}

/// A warning if the subsets of KID contain all images of one set or of both.
fn subset_warning(options: &KidOptions, real: usize, fake: usize) -> Option<String> {
    let size = options.size_for(real, fake);
    if size == real && size == fake {
        return Some(format!(
            "KID compares all {fake} samples with all {real} reference images once, so it has no deviation; \
             a deviation requires smaller subsets (--kid-subset-size)"
        ));
    }
    let whole = match (size == fake, size == real) {
        (true, _) => "samples",
        (_, true) => "reference images",
        _ => return None,
    };
    Some(format!(
        "each subset of KID contains all {size} {whole}, so its deviation reflects only the draws from the other \
         set; a --kid-subset-size below {size} draws from both sets"
    ))
}

/// A warning if the order of the samples biases the Inception score: if they are sorted by class, each part has only a
/// few classes.
fn order_warning(score: &InceptionScore) -> Option<String> {
    let shuffled = score.shuffled.filter(|_| score.is_biased_by_order())?;
    Some(format!(
        "the samples are not in a random order and may be sorted by class: the Inception score is {:.3} over \
         {} parts in the order of the samples, and {:.3} in a random order; shuffle the samples, or set \
         --split-size so that one part contains all of them",
        score.mean,
        score.parts.len(),
        shuffled.mean
    ))
}

/// Computes the metrics from the results of a pass and the statistics of the reference.
///
/// # Errors
/// There are too few images for a metric, or `interrupted` was set.
pub(crate) fn results(
    metrics: &BTreeSet<SampleMetric>,
    extractor: &Extractor,
    reference: &ReferenceStatistics,
    measured: &PassResult,
    scoring: &Scoring,
    interrupted: &AtomicBool,
) -> Result<Results, EvaluationError> {
    let mut results = Results::default();
    for &metric in metrics {
        match metric {
            SampleMetric::Frechet => {
                let distance = distance(&reference.pooled, &measured.pooled, interrupted)?;
                let figure = match extractor.inception() {
                    Some(_) => Figure::Fid,
                    None => Figure::Fd,
                };
                results.add(figure, distance, None);
            }
            SampleMetric::Sfid => {
                if let (Some(real), Some(fake)) = (&reference.spatial, &measured.spatial) {
                    results.add(Figure::Sfid, distance(real, fake, interrupted)?, None);
                }
            }
            SampleMetric::InceptionScore => {
                if let Some(score) = &measured.score {
                    results.add(Figure::InceptionScore, score.mean, Some(score.deviation));
                }
            }
            SampleMetric::Kid => {
                if let (Some(real), Some(fake)) = (&reference.features, &measured.features) {
                    let kid = kid_until(interrupted, real.view(), fake.view(), &scoring.kid)?;
                    // Without a deviation if every subset contains all images of both sets.
                    results.add(Figure::Kid, kid.mean, kid.deviation);
                }
            }
            SampleMetric::PrecisionRecall => {
                if let (Some(real), Some(fake)) = (&reference.features, &measured.features) {
                    let manifold = precision_recall_until(
                        interrupted,
                        real.view(),
                        fake.view(),
                        scoring.neighbours,
                    )?;
                    results.add(Figure::Precision, manifold.precision, None);
                    results.add(Figure::Recall, manifold.recall, None);
                    results.add(Figure::Density, manifold.density, None);
                    results.add(Figure::Coverage, manifold.coverage, None);
                }
            }
        }
    }
    Ok(results)
}

/// What a pass must compute for `metrics`.
pub(crate) fn pass_options(metrics: &BTreeSet<SampleMetric>, scoring: &Scoring) -> PassOptions {
    PassOptions {
        splits: metrics
            .contains(&SampleMetric::InceptionScore)
            .then_some(scoring.splits),
        features: metrics.iter().any(|metric| metric.needs_features()),
    }
}

fn distance(
    real: &Statistics,
    fake: &Moments,
    interrupted: &AtomicBool,
) -> Result<f64, EvaluationError> {
    let (real, fake) = (real.moments()?, fake.clone());
    // The eigendecompositions of the distance cannot read the flag themselves.
    let distance = interruptible(interrupted, move || frechet_distance(&real, &fake));
    Ok(distance.ok_or(EvaluationError::Interrupted)??)
}

/// Why a reference does not support a metric; `None` if it does.
pub(crate) fn obstacle(
    metric: SampleMetric,
    reference: &ReferenceStatistics,
    path: &Path,
) -> Option<String> {
    match metric {
        SampleMetric::Sfid if reference.spatial.is_none() => Some(format!(
            "{} has no statistics of spatial features (mu_s, sigma_s)",
            path.display()
        )),
        SampleMetric::Kid | SampleMetric::PrecisionRecall if reference.features.is_none() => {
            Some(format!(
                "it compares individual images, but {} contains only statistics; use a folder, a data set or an \
                 .npz with arr_0",
                path.display()
            ))
        }
        _ => None,
    }
}

/// Removes the metrics that the reference does not support, with a warning; it is an error if one was requested.
fn remove_unsupported(
    metrics: &mut BTreeSet<SampleMetric>,
    options: &QualityOptions,
    reference: &ReferenceStatistics,
    path: &Path,
    warnings: &mut Vec<String>,
) -> Result<(), EvaluationError> {
    for metric in metrics.clone() {
        let Some(reason) = obstacle(metric, reference, path) else {
            continue;
        };
        if options.metrics.contains(&metric) {
            return Err(EvaluationError::NotAllowed { metric, reason });
        }
        warnings.push(format!("{metric} is not computed: {reason}"));
        metrics.remove(&metric);
    }
    Ok(())
}
