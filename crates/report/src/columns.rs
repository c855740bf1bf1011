//! Describes the numeric columns of `results.csv` for the report.

use crate::results::ResultRow;

use super::run_folder::RunFolder;

/// Which values of a column are better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Better {
    Lower,
    Higher,
    /// The value describes the cell and is not optimised.
    Neither,
}

/// A numeric column.
#[derive(Debug, Clone, Copy)]
pub(super) struct Column {
    /// The name in `results.csv`.
    pub name: &'static str,
    /// The name on axes and in sentences.
    pub title: &'static str,
    pub better: Better,
    get: fn(&ResultRow) -> Option<f64>,
}

impl Column {
    /// The value of `row`, if it is present and finite.
    pub fn of(&self, row: &ResultRow) -> Option<f64> {
        (self.get)(row).filter(|value| value.is_finite())
    }

    /// Returns whether `left` is better than `right`.
    pub fn improves(&self, left: f64, right: f64) -> bool {
        match self.better {
            Better::Lower => left < right,
            Better::Higher => left > right,
            Better::Neither => false,
        }
    }
}

macro_rules! column {
    ($field:ident, $title:literal, $better:ident) => {
        Column {
            name: stringify!($field),
            title: $title,
            better: Better::$better,
            get: |row| row.$field,
        }
    };
}

pub(super) const DENOISING_LOSS: Column = column!(denoising_loss, "denoising loss", Lower);
const FID: Column = column!(fid, "FID", Lower);
const FD: Column = column!(fd, "Frechet distance", Lower);

const LDS: Column = column!(lds, "LDS, local against distant similarity", Higher);
const CDS: Column = column!(cds, "CDS, correlation decay slope", Higher);
const SRSS: Column = column!(srss, "SRSS, semantic-region self-similarity", Higher);
const RMSC: Column = column!(rmsc, "RMSC, RMS spatial contrast", Higher);
const LINEAR_PROBE: Column = column!(linear_probe, "linear probe accuracy", Higher);

/// All numeric columns after `seed`, in the order of the file. No direction is better for alignment losses, because their
/// level depends on the encoder.
pub(super) const COLUMNS: [Column; 17] = [
    Column {
        name: "steps",
        title: "steps",
        better: Better::Neither,
        get: |row| row.steps.map(|steps| steps as f64),
    },
    DENOISING_LOSS,
    column!(alignment_loss, "alignment loss", Neither),
    FID,
    column!(sfid, "sFID", Lower),
    column!(inception_score, "inception score", Higher),
    column!(precision, "precision", Higher),
    column!(recall, "recall", Higher),
    column!(kid, "KID", Lower),
    FD,
    LDS,
    CDS,
    SRSS,
    RMSC,
    LINEAR_PROBE,
    column!(steps_per_s, "steps per second", Higher),
    column!(peak_memory_mib, "peak memory, MiB", Lower),
];

/// Properties of an encoder that may predict the quality of the generator, in the paper's order.
pub(super) const ENCODER_METRICS: [Column; 5] = [LINEAR_PROBE, LDS, CDS, SRSS, RMSC];

/// The encoder metrics that are known before training.
pub(super) const SPATIAL_METRICS: [Column; 4] = [LDS, CDS, SRSS, RMSC];

/// The Frechet distance that more cells have, `fid` or `fd`; `fid` if both are equally common.
pub(super) fn frechet(run: &RunFolder) -> Column {
    let count = |column: &Column| {
        let cells = run.cells.iter();
        cells.filter(|cell| column.of(&cell.row).is_some()).count()
    };
    if count(&FID) > 0 && count(&FID) >= count(&FD) {
        FID
    } else {
        FD
    }
}

/// The features that [`frechet`] is computed on, if they are the same for all cells.
pub(super) fn frechet_features(run: &RunFolder, column: &Column) -> Option<String> {
    if column.name == FID.name {
        return Some("Inception".to_owned());
    }
    let mut encoders = run
        .cells
        .iter()
        .filter(|cell| column.of(&cell.row).is_some())
        .map(|cell| cell.row.fd_encoder.as_str())
        .filter(|encoder| !encoder.is_empty());
    let first = encoders.next()?;
    encoders
        .all(|encoder| encoder == first)
        .then(|| first.to_owned())
}
