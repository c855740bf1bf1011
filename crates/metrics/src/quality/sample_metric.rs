//! Names the metrics of samples that can be requested.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A metric of generated samples, which yields one or more figures of
/// [`Kind::Quality`](crate::figures::Kind::Quality).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SampleMetric {
    /// Frechet distance of the pooled features; on Inception's features it is the FID.
    #[serde(rename = "fid")]
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
    pub fn needs_inception(self) -> bool {
        matches!(self, Self::Sfid | Self::InceptionScore)
    }

    /// Returns whether the metric needs the features of individual images.
    pub fn needs_features(self) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_and_arguments_use_the_same_names() {
        for (name, metric) in SampleMetric::NAMES {
            assert_eq!(name.parse(), Ok(metric));
            let text = serde_json::to_string(&metric).unwrap();
            assert_eq!(text, format!("\"{metric}\""));
            assert_eq!(serde_json::from_str::<SampleMetric>(&text).unwrap(), metric);
        }
        assert_eq!(SampleMetric::Frechet.to_string(), "fid");
        assert!(
            "FID"
                .parse::<SampleMetric>()
                .unwrap_err()
                .contains("precision-recall")
        );
    }
}
