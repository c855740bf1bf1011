//! Chooses the figures that the report compares.

use metrics::figures::{Figure, Kind};

use super::run_folder::RunFolder;

/// Properties of an encoder that may predict the quality of the generator, in the paper's order.
pub(super) fn encoder_metrics() -> impl Iterator<Item = Figure> + Clone {
    Figure::of_kind(Kind::Probe).chain(Figure::of_kind(Kind::Spatial))
}

/// The Frechet distance that more cells have, `fid` or `fd`; `fid` if both are equally common.
pub(super) fn frechet(run: &RunFolder) -> Figure {
    let count = |figure: Figure| {
        let cells = run.cells.iter();
        cells
            .filter(|cell| cell.row.finite(figure).is_some())
            .count()
    };
    if count(Figure::Fid) > 0 && count(Figure::Fid) >= count(Figure::Fd) {
        Figure::Fid
    } else {
        Figure::Fd
    }
}

/// The features that [`frechet`] is computed on, if they are the same for all cells.
pub(super) fn frechet_features(run: &RunFolder, frechet: Figure) -> Option<String> {
    if frechet == Figure::Fid {
        return Some("Inception".to_owned());
    }
    let mut encoders = run
        .cells
        .iter()
        .filter(|cell| cell.row.finite(frechet).is_some())
        .map(|cell| cell.row.fd_encoder.as_str())
        .filter(|encoder| !encoder.is_empty());
    let first = encoders.next()?;
    encoders
        .all(|encoder| encoder == first)
        .then(|| first.to_owned())
}
