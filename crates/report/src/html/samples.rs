//! The newest samples of each cell.

use maud::{Markup, html};
use metrics::figures::Figure;

use super::image;
use crate::figures::frechet;
use crate::number::short;
use crate::results::{ResultRow, Status};
use crate::run_folder::RunFolder;

/// Sample grids wider than this, in pixels, take half the page each.
const WIDE: u32 = 800;

/// One picture per cell that has samples; empty if there are none.
pub(super) fn section(run: &RunFolder) -> Markup {
    let samples = run.cells.iter().filter_map(|cell| cell.sample.as_ref());
    let Some(width) = samples.map(|sample| sample.width).max() else {
        return Markup::default();
    };
    let figures = [frechet(run), Figure::DenoisingLoss];
    html! {
        p.note { "The newest samples of each cell." }
        div.samples.wide[width > WIDE] {
            @for cell in &run.cells {
                @if let Some(sample) = &cell.sample {
                    figure {
                        (image(sample, &format!("Samples of {}", cell.row.cell)))
                        figcaption {
                            strong { (cell.row.cell) } (status(&cell.row)) br;
                            @for (figure, value) in values(&cell.row, figures) {
                                (figure.title()) " " (short(value)) br;
                            }
                            (sample.file_name)
                        }
                    }
                }
            }
        }
    }
}

fn values(row: &ResultRow, figures: [Figure; 2]) -> impl Iterator<Item = (Figure, f64)> {
    let figures = figures.into_iter();
    figures.filter_map(|figure| Some((figure, row.finite(figure)?)))
}

fn status(row: &ResultRow) -> &'static str {
    match row.status {
        Status::Done => "",
        Status::Failed => " (failed)",
        Status::Skipped => " (skipped)",
        Status::Stale => " (stale)",
    }
}
