//! Which measures of samples there are.

use std::fmt;
use std::str::FromStr;

use training::InceptionMetric;

/// A measure of samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SampleMetric {
    /// Frechet distance of the pooled features; of Inception's it is the FID.
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

    /// Whether it is of Inception's features only.
    pub(crate) fn needs_inception(self) -> bool {
        matches!(self, Self::Sfid | Self::InceptionScore)
    }

    /// Whether it needs the features of single images.
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
            format!("no such measure; there are {}", names.join(", "))
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
