//! Names the metrics that compare samples with real images.

use std::fmt;
use std::str::FromStr;

use training::InceptionMetric;

/// A metric of generated samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SampleMetric {
    /// Frechet distance of the pooled features; on Inception's features it is the FID.
    Frechet,
    /// Frechet distance of Inception's spatial features.
    Sfid,
    /// Inception score.
    InceptionScore,
    /// Kernel inception distance.
    Kid,
    /// Improved precision and recall, density and coverage.
    PrecisionRecall,
}

impl SampleMetric {
    const NAMES: [(&'static str, Self); 6] = [
        ("fid", Self::Frechet),
        ("fd", Self::Frechet),
        ("sfid", Self::Sfid),
        ("inception-score", Self::InceptionScore),
        ("kid", Self::Kid),
        ("precision-recall", Self::PrecisionRecall),
    ];

    /// Returns whether the metric is defined on Inception's features only.
    pub(crate) fn needs_inception(self) -> bool {
        matches!(self, Self::Sfid | Self::InceptionScore)
    }

    /// Returns whether the metric needs the features of individual images.
    pub(crate) fn needs_features(self) -> bool {
        matches!(self, Self::Kid | Self::PrecisionRecall)
    }
}

impl FromStr for SampleMetric {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::NAMES.iter().find(|(name, _)| *name == text);
        known.map(|&(_, metric)| metric).ok_or_else(|| {
            let names = Self::NAMES.map(|(name, _)| name);
            format!("unknown metric; expected one of {}", names.join(", "))
        })
    }
}

impl fmt::Display for SampleMetric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = Self::NAMES.iter().find(|(_, metric)| metric == self);
        f.write_str(known.map_or("", |(name, _)| name))
    }
}

impl From<InceptionMetric> for SampleMetric {
    fn from(metric: InceptionMetric) -> Self {
        match metric {
            InceptionMetric::Fid => Self::Frechet,
            InceptionMetric::Sfid => Self::Sfid,
            InceptionMetric::InceptionScore => Self::InceptionScore,
            InceptionMetric::Kid => Self::Kid,
            InceptionMetric::PrecisionRecall => Self::PrecisionRecall,
        }
    }
}
