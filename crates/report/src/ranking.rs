//! Ranks encoders by the spatial structure of their tokens: a prediction, before any training, of the best alignment
//! target.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::Path;

use metrics::figures::{Figure, Kind};
use metrics::spatial::SpatialMetrics;
use serde::{Deserialize, Serialize};

use super::words::alternatives;

/// Parses the name of a figure of [`Kind::Spatial`], of which higher values mean more spatial structure.
///
/// # Errors
/// The allowed names, if `name` is none of them.
pub fn spatial_metric(name: &str) -> Result<Figure, String> {
    let metrics = || Figure::of_kind(Kind::Spatial);
    metrics()
        .find(|metric| metric.name() == name)
        .ok_or_else(|| format!("expected {}", alternatives(metrics().map(Figure::name))))
}

/// A ranking of encoders, and the images that it was measured on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ranking {
    /// The figure that determines the order.
    pub by: Figure,
    /// The data set.
    pub data: String,
    /// The fingerprint of the data set.
    pub fingerprint: String,
    /// Number of images that were used.
    pub images: usize,
    /// Side of the images in pixels.
    pub resolution: u32,
    /// Best first; encoders without the metric last.
    pub encoders: Vec<Ranked>,
}

/// The metrics and ranks of one encoder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ranked {
    /// Name of the encoder.
    pub encoder: String,
    /// Its spatial metrics.
    #[serde(flatten)]
    pub metrics: SpatialMetrics,
    /// Its rank by each metric, from 1; equal values share the better rank.
    pub places: BTreeMap<Figure, usize>,
}

impl Ranking {
    /// Ranks the `measured` encoders, given as name and metrics, by `by`.
    pub fn new(
        by: Figure,
        (data, fingerprint): (&str, &str),
        images: usize,
        resolution: u32,
        measured: Vec<(String, SpatialMetrics)>,
    ) -> Self {
        let place = |metric: Figure, metrics: &SpatialMetrics| {
            let own = metrics.figures().get(metric)?;
            let others = measured.iter();
            let others = others.filter_map(|(_, other)| other.figures().get(metric));
            Some(1 + others.filter(|other| *other > own).count())
        };
        let mut encoders: Vec<Ranked> = measured
            .iter()
            .map(|(encoder, metrics)| Ranked {
                encoder: encoder.clone(),
                metrics: *metrics,
                places: Figure::of_kind(Kind::Spatial)
                    .filter_map(|metric| Some((metric, place(metric, metrics)?)))
                    .collect(),
            })
            .collect();
        encoders.sort_by_key(|ranked| ranked.place(by).unwrap_or(usize::MAX));
        Self {
            by,
            data: data.to_owned(),
            fingerprint: fingerprint.to_owned(),
            images,
            resolution,
            encoders,
        }
    }

    /// Formats the ranking as a table; the rank by each metric is in parentheses.
    pub fn table(&self) -> String {
        let name = |ranked: &Ranked| ranked.encoder.len();
        let width = self.encoders.iter().map(name).max().unwrap_or(0).max(7);
        // Writing to a String cannot fail.
        let mut text = format!("place  {:width$}", "encoder");
        for metric in Figure::of_kind(Kind::Spatial) {
            let mark = if metric == self.by { "*" } else { "" };
            let _infallible = write!(text, "  {:>12}", format!("{metric}{mark}"));
        }
        for ranked in &self.encoders {
            let place = ranked.place(self.by).map(|place| place.to_string());
            let place = place.unwrap_or_else(|| "-".to_owned());
            let _infallible = write!(text, "\n{place:>5}  {:width$}", ranked.encoder);
            for metric in Figure::of_kind(Kind::Spatial) {
                let figure = match (ranked.metrics.figures().get(metric), ranked.place(metric)) {
                    (Some(value), Some(place)) => format!("{value:.4} ({place})"),
                    _ => "-".to_owned(),
                };
                let _infallible = write!(text, "  {figure:>12}");
            }
        }
        text
    }

    /// Writes the ranking as JSON. The file appears complete or not at all.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        files::write(path, |file| {
            serde_json::to_writer_pretty(&mut *file, self)?;
            file.write_all(b"\n")
        })
    }

    /// The value of a spatial metric for an encoder.
    pub(crate) fn value(&self, encoder: &str, metric: Figure) -> Option<f64> {
        let mut encoders = self.encoders.iter();
        let ranked = encoders.find(|ranked| ranked.encoder == encoder)?;
        ranked.metrics.figures().get(metric)
    }
}

impl Ranked {
    /// The rank of the encoder by a metric.
    pub fn place(&self, metric: Figure) -> Option<usize> {
        self.places.get(&metric).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranking(by: Figure) -> Ranking {
        let metrics = |lds, srss| SpatialMetrics {
            lds,
            cds: 1.0,
            srss,
            rmsc: -lds,
        };
        let measured = vec![
            ("low".to_owned(), metrics(0.1, Some(0.5))),
            ("high".to_owned(), metrics(0.3, None)),
            ("middle".to_owned(), metrics(0.2, Some(0.7))),
        ];
        Ranking::new(by, ("data", "hash"), 3, 64, measured)
    }

    fn order(by: Figure) -> Vec<String> {
        let encoders = ranking(by).encoders.into_iter();
        encoders.map(|ranked| ranked.encoder).collect()
    }

    #[test]
    fn more_structure_ranks_first_and_a_missing_metric_last() {
        assert_eq!(order(Figure::Lds), ["high", "middle", "low"]);
        assert_eq!(order(Figure::Rmsc), ["low", "middle", "high"]);
        assert_eq!(order(Figure::Srss), ["middle", "low", "high"]);
        // Encoders with equal values keep their order.
        assert_eq!(order(Figure::Cds), ["low", "high", "middle"]);
        let ranking = ranking(Figure::Lds);
        assert_eq!(ranking.encoders[2].place(Figure::Cds), Some(1));
        assert_eq!(ranking.encoders[0].place(Figure::Srss), None);
    }

    #[test]
    fn only_spatial_metrics_can_be_ranked_by() {
        assert_eq!(spatial_metric("cds"), Ok(Figure::Cds));
        for name in ["fid", "LDS", ""] {
            let expected = "expected lds, cds, srss or rmsc".to_owned();
            assert_eq!(spatial_metric(name), Err(expected));
        }
    }

    #[test]
    fn the_table_marks_the_metric_that_determines_the_order() {
        let table = ranking(Figure::Srss).table();
        let lines: Vec<&str> = table.lines().collect();
        assert!(lines[0].contains("srss*") && !lines[0].contains("lds*"));
        assert!(lines[1].contains("middle") && lines[1].contains("0.7000 (1)"));
        assert!(lines[3].trim_start().starts_with("-  high"));
    }

    #[test]
    fn a_written_ranking_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ranking.json");
        let ranking = ranking(Figure::Lds);
        ranking.write(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(serde_json::from_str::<Ranking>(&text).unwrap(), ranking);
        assert_eq!(ranking.value("middle", Figure::Srss), Some(0.7));
        assert_eq!(ranking.value("high", Figure::Srss), None);
        assert_eq!(ranking.value("other", Figure::Lds), None);
    }
}
