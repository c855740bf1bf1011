//! The results of a sweep, one row per cell, and their file `results.csv`.

mod column;
mod csv_file;

use metrics::figures::{Figure, Figures};
use serde::{Deserialize, Serialize};

pub use column::Column;
pub use csv_file::{ResultsError, read_csv, write_csv};

/// The status of a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Trained and evaluated.
    Done,
    /// Stopped by an error, which [`ResultRow::reason`] states.
    Failed,
    /// Not started, because a file that it needs is not installed.
    Skipped,
    /// The result has other settings, data or encoders than the plan; [`ResultRow::reason`] states the difference. It is
    /// not compared with other results.
    Stale,
}

impl Status {
    /// The word in the `status` column.
    pub fn name(self) -> &'static str {
        match self {
            Status::Done => "done",
            Status::Failed => "failed",
            Status::Skipped => "skipped",
            Status::Stale => "stale",
        }
    }
}

/// One cell of a sweep. Texts that do not apply are empty.
#[derive(Debug, Clone, PartialEq)]
pub struct ResultRow {
    /// Readable id, which is also the name of the cell's folder: `sit-xs4.irepa.hog.s0`.
    pub cell: String,
    /// Status of the cell.
    pub status: Status,
    /// Encoder that the cell aligns to; `none` or empty for the baseline.
    pub encoder: String,
    /// `irepa`, `repa`, ..., or `none` for the baseline without alignment.
    pub recipe: String,
    /// Denoiser, such as `sit-xs4`.
    pub model: String,
    /// Training variant, such as `velocity` or `meanflow`.
    pub variant: String,
    /// Seed of the cell.
    pub seed: u64,
    /// Optimiser steps completed.
    pub steps: Option<u64>,
    /// Encoder on whose features [`Figure::Fd`] is computed.
    pub fd_encoder: String,
    /// The figures. Only those of [`File::Results`](metrics::figures::File::Results) have a column.
    pub figures: Figures,
    /// Why the cell failed, was skipped or is stale.
    pub reason: String,
}

impl ResultRow {
    /// A row that contains only the id and the status of a cell.
    pub fn empty(cell: &str, status: Status) -> Self {
        Self {
            cell: cell.to_owned(),
            status,
            encoder: String::new(),
            recipe: String::new(),
            model: String::new(),
            variant: String::new(),
            seed: 0,
            steps: None,
            fd_encoder: String::new(),
            figures: Figures::default(),
            reason: String::new(),
        }
    }

    /// The value of a figure.
    pub fn get(&self, figure: Figure) -> Option<f64> {
        self.figures.get(figure)
    }

    /// The value of a figure, if it is finite.
    pub(crate) fn finite(&self, figure: Figure) -> Option<f64> {
        self.get(figure).filter(|value| value.is_finite())
    }

    /// Returns whether the cell trains without alignment: its recipe is `none` or empty.
    pub fn is_baseline(&self) -> bool {
        self.recipe.is_empty() || self.recipe == "none"
    }
}
