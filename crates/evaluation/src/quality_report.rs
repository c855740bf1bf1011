//! The report of an evaluation of samples: a table to be read, and JSON.

use std::io::Write;
use std::path::Path;

use metrics::figures::{Figure, Figures};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

/// The results, as written to JSON. They contain no times, so that the same input yields the same bytes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct QualityReport {
    /// The samples.
    pub samples: SetReport,
    /// The reference that the samples are compared with.
    pub reference: SetReport,
    /// The network that computes the features.
    pub features: FeatureReport,
    /// The metrics; those that were not computed are omitted.
    pub results: Results,
    /// Limitations of the results, for the reader.
    pub warnings: Vec<String>,
}

/// A set of images.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SetReport {
    /// Its path, as named by the user.
    pub path: String,
    /// Number of images, if known.
    pub count: Option<usize>,
    /// Height and width of the images in pixels, if known.
    pub size: Option<(u32, u32)>,
}

/// The network that computes the features.
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

/// A figure of samples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// The figure.
    pub figure: Figure,
    /// Its value; the mean if there is a deviation.
    pub value: f64,
    /// The standard deviation over parts or subsets of the samples.
    pub deviation: Option<f64>,
}

/// The figures of samples in the order in which they were computed.
///
/// As JSON they are an object with the names of the figures, and `NAME_deviation` for deviations.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Results(Vec<Measured>);

impl Results {
    /// Adds a figure.
    pub(crate) fn add(&mut self, figure: Figure, value: f64, deviation: Option<f64>) {
        self.0.push(Measured {
            figure,
            value,
            deviation,
        });
    }

    /// The figures with their deviations.
    pub fn measured(&self) -> &[Measured] {
        &self.0
    }

    /// The values of the figures.
    pub fn figures(&self) -> Figures {
        let measured = self.0.iter();
        measured
            .map(|measured| (measured.figure, measured.value))
            .collect()
    }
}

impl Serialize for Results {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for measured in &self.0 {
            let name = measured.figure.name();
            map.serialize_entry(name, &measured.value)?;
            if let Some(deviation) = measured.deviation {
                map.serialize_entry(&format!("{name}_deviation"), &deviation)?;
            }
        }
        map.end()
    }
}

/// Formats a number with six decimals; a negative number that rounds to 0 has no sign.
fn six_decimals(value: f64) -> String {
    let text = format!("{value:.6}");
    match text.trim_start_matches(['-', '0', '.']) {
        "" => text.trim_start_matches('-').to_owned(),
        _ => text,
    }
}

impl QualityReport {
    /// Formats the results as a table with name, value and deviation.
    pub fn table(&self) -> String {
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
        for measured in self.results.measured() {
            let deviation = measured.deviation.map(|x| format!(" +- {x:.6}"));
            text.push_str(&format!(
                "{:18} {}{}\n",
                measured.figure.title(),
                six_decimals(measured.value),
                deviation.unwrap_or_default()
            ));
        }
        text
    }

    /// Writes the report as JSON. The file appears complete or not at all.
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
