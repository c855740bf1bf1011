//! Samples against a reference: every measure that was asked for, from one pass.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use metrics::npz::Statistics;
use metrics::quality::{
    InceptionScore, KidOptions, Moments, Splits, frechet_distance, kid_until,
    precision_recall_until,
};
use serde::Serialize;

use crate::error::EvaluationError;
use crate::features::Extractor;
use crate::images::ImageSet;
use crate::measure::{PassOptions, PassResult, measure};
use crate::metric::SampleMetric;
use crate::statistics::{Reference, ReferenceStatistics};
use console::interruptible::interruptible;

/// How measures are computed.
#[derive(Debug, Clone)]
pub struct Scoring {
    /// Parts of the Inception score.
    pub splits: Splits,
    /// Subsets of KID.
    pub kid: KidOptions,
    /// Neighbours of precision and recall.
    pub neighbours: usize,
}

impl Default for Scoring {
    /// ADM's parts of 5000 samples, KID's 100 subsets of 1000, 3 neighbours.
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
    /// Measures; without any those that need no features in memory and that the reference allows.
    pub metrics: Vec<SampleMetric>,
    /// How they are computed.
    pub scoring: Scoring,
    /// Folder where statistics of reference images are kept.
    pub cache: PathBuf,
}

/// The result, as it is written to JSON. Holds no times, so that the same input gives the same bytes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct QualityReport {
    /// The samples.
    pub samples: SetReport,
    /// What they were compared with.
    pub reference: SetReport,
    /// By which features.
    pub features: FeatureReport,
    /// The measures; those that were not computed are left out.
    pub results: Results,
    /// What to know when reading them.
    pub warnings: Vec<String>,
}

/// A set of images.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SetReport {
    /// As it was named.
    pub path: String,
    /// Number of images, where it is known.
    pub count: Option<usize>,
    /// Height and width in pixels, of images.
    pub size: Option<(u32, u32)>,
}

/// A network.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FeatureReport {
    /// Its name.
    pub name: String,
    /// Its weights.
    pub weights: String,
    /// SHA-256 of its file, or a version.
    pub identity: String,
    /// Number of pooled features.
    pub dimension: usize,
}

/// The figures.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Results {
    /// Frechet distance of Inception's pooled features.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fid: Option<f64>,
    /// Frechet distance of Inception's spatial features.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sfid: Option<f64>,
    /// Frechet distance of an encoder's mean tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fd: Option<f64>,
    /// Inception score, mean over parts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inception_score: Option<f64>,
    /// Its deviation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inception_score_deviation: Option<f64>,
    /// Kernel inception distance, mean over subsets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kid: Option<f64>,
    /// Its deviation; none where each subset is all of both sets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kid_deviation: Option<f64>,
    /// Share of samples among real images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub precision: Option<f64>,
    /// Share of real images among samples.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recall: Option<f64>,
    /// Real balls around a sample, over the neighbours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub density: Option<f64>,
    /// Share of real balls with a sample.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub coverage: Option<f64>,
}

/// Which images a pass goes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The reference's.
    Reference,
    /// The samples.
    Samples,
}

/// Measures samples against the reference `against`.
///
/// # Errors
/// As [`measure`] and [`Reference::statistics`]; a measure that was asked for and that features or reference do not
/// allow.
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
                "it is of Inception's features, not of {}'s",
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
    check(&mut metrics, options, &reference, path, &mut warnings)?;

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
                 come out too large; compare only with figures of as many"
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

/// What to know of a KID whose subsets do not differ in both sets.
fn subset_warning(options: &KidOptions, real: usize, fake: usize) -> Option<String> {
    let size = options.size_for(real, fake);
    if size == real && size == fake {
        return Some(format!(
            "KID compares all {fake} samples with all {real} reference images, once: there is no deviation, \
             which needs subsets (--kid-subset-size) of fewer than that"
        ));
    }
    let whole = match (size == fake, size == real) {
        (true, _) => "samples",
        (_, true) => "reference images",
        _ => return None,
    };
    Some(format!(
        "each subset of KID holds all {size} {whole}: its deviation is that of draws from the other set alone; \
         --kid-subset-size below {size} draws from both"
    ))
}

/// Samples sorted by class have few classes in each part of the Inception score.
fn order_warning(score: &InceptionScore) -> Option<String> {
    let shuffled = score.shuffled.filter(|_| score.is_biased_by_order())?;
    Some(format!(
        "the samples are not in a random order, they may be sorted by class: the Inception score is {:.3} over \
         {} parts in the order of the samples, and {:.3} in a random order; shuffle them, or give a \
         --split-size that holds all",
        score.mean,
        score.parts.len(),
        shuffled.mean
    ))
}

/// The figures that a pass and the reference give.
///
/// # Errors
/// Too few images for a measure, or `interrupted` was set.
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
                match extractor.inception() {
                    Some(_) => results.fid = Some(distance),
                    None => results.fd = Some(distance),
                }
            }
            SampleMetric::Sfid => {
                if let (Some(real), Some(fake)) = (&reference.spatial, &measured.spatial) {
                    results.sfid = Some(distance(real, fake, interrupted)?);
                }
            }
            SampleMetric::InceptionScore => {
                if let Some(score) = &measured.score {
                    results.inception_score = Some(score.mean);
                    results.inception_score_deviation = Some(score.deviation);
                }
            }
            SampleMetric::Kid => {
                if let (Some(real), Some(fake)) = (&reference.features, &measured.features) {
                    let kid = kid_until(interrupted, real.view(), fake.view(), &scoring.kid)?;
                    results.kid = Some(kid.mean);
                    results.kid_deviation = kid.deviation;
                }
            }
            SampleMetric::PrecisionRecall => {
                if let (Some(real), Some(fake)) = (&reference.features, &measured.features) {
                    let found = precision_recall_until(
                        interrupted,
                        real.view(),
                        fake.view(),
                        scoring.neighbours,
                    )?;
                    results.precision = Some(found.precision);
                    results.recall = Some(found.recall);
                    results.density = Some(found.density);
                    results.coverage = Some(found.coverage);
                }
            }
        }
    }
    Ok(results)
}

/// What a pass must keep for `metrics`.
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
    // Its eigendecompositions cannot be interrupted.
    let distance = interruptible(interrupted, move || frechet_distance(&real, &fake));
    Ok(distance.ok_or(EvaluationError::Interrupted)??)
}

/// Takes away what the reference does not allow; an error if it was asked for.
fn check(
    metrics: &mut BTreeSet<SampleMetric>,
    options: &QualityOptions,
    reference: &ReferenceStatistics,
    path: &Path,
    warnings: &mut Vec<String>,
) -> Result<(), EvaluationError> {
    let reason = |metric: SampleMetric| match metric {
        SampleMetric::Sfid if reference.spatial.is_none() => Some(format!(
            "{} has no statistics of spatial features (mu_s, sigma_s)",
            path.display()
        )),
        SampleMetric::Kid | SampleMetric::PrecisionRecall if reference.features.is_none() => {
            Some(format!(
                "it compares single images, and {} has statistics only; give a folder, a data set, or an .npz with \
             arr_0",
                path.display()
            ))
        }
        _ => None,
    };
    for metric in metrics.clone() {
        let Some(reason) = reason(metric) else {
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

/// Six digits behind the point; a negative number that rounds to 0 has no sign.
fn six_digits(value: f64) -> String {
    let text = format!("{value:.6}");
    match text.trim_start_matches(['-', '0', '.']) {
        "" => text.trim_start_matches('-').to_owned(),
        _ => text,
    }
}

impl QualityReport {
    /// The figures as lines of a table, name, value and deviation.
    pub fn table(&self) -> String {
        let results = &self.results;
        let rows = [
            ("FID", results.fid, None),
            ("sFID", results.sfid, None),
            ("Frechet distance", results.fd, None),
            (
                "Inception score",
                results.inception_score,
                results.inception_score_deviation,
            ),
            ("KID", results.kid, results.kid_deviation),
            ("precision", results.precision, None),
            ("recall", results.recall, None),
            ("density", results.density, None),
            ("coverage", results.coverage, None),
        ];
        let count = |set: &SetReport| match set.count {
            Some(count) => format!("{} ({count})", set.path),
            None => set.path.clone(),
        };
        let mut text = format!(
            "{:18} {}\n{:18} {}\n{:18} {} ({})\n",
            "samples",
            count(&self.samples),
            "reference",
            count(&self.reference),
            "features",
            self.features.name,
            self.features.dimension,
        );
        for (name, value, deviation) in rows {
            let Some(value) = value else { continue };
            let deviation = deviation.map(|x| format!(" +- {x:.6}")).unwrap_or_default();
            text.push_str(&format!("{name:18} {}{deviation}\n", six_digits(value)));
        }
        text
    }

    /// Writes the report as JSON, whole or not at all.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        files::write(path, |file| {
            serde_json::to_writer_pretty(&mut *file, self)?;
            file.write_all(b"\n")
        })
    }
}
