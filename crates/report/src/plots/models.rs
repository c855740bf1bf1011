//! Plots the change of the Frechet distance from the baseline by model and variant.

use metrics::figures::Figure;

use super::Plot;
use super::axis::{Axis, extent};
use super::canvas::{
    Align, BASELINE, DrawError, INK, Look, MUTED, Rect, SMALL, TEXT, picture, text_width,
};
use super::panel::Panel;
use super::recipes::Recipes;
use crate::comparison::{Group, change, mean};
use crate::figures::frechet;
use crate::number::signed;
use crate::run_folder::RunFolder;

/// Width of the plot, which fits on a phone.
const WIDTH: f64 = 350.0;
const TOP: f64 = 30.0;
const BELOW: f64 = 44.0;
/// Space for the mean to the right of the plotting area.
const VALUES: f64 = 52.0;
const ROW: f64 = 16.0;
/// Space between models.
const BETWEEN: f64 = 8.0;

/// A row of the plot.
struct Change<'a> {
    recipe: &'a str,
    /// In per cent, one per pair of cells.
    changes: Vec<f64>,
    mean: f64,
}

/// Draws the mean change of each recipe, and the range over encoders and seeds; `None` if fewer than two groups have a
/// cell with alignment and its baseline.
pub(super) fn plot(
    run: &RunFolder,
    groups: &[Group<'_>],
    recipes: &Recipes,
) -> Result<Option<Plot>, DrawError> {
    let frechet = frechet(run);
    let rows: Vec<(&Group<'_>, Vec<Change<'_>>)> = groups
        .iter()
        .map(|group| (group, changes(group, frechet)))
        .filter(|(_, changes)| !changes.is_empty())
        .collect();
    let all = rows.iter().flat_map(|(_, rows)| rows);
    let values = all.clone().flat_map(|row| row.changes.iter().copied());
    let Some(x) = Axis::linear(values.chain([0.0]), 4) else {
        return Ok(None);
    };
    if rows.len() < 2 {
        return Ok(None);
    }
    let shown: Vec<&str> = all.map(|row| row.recipe).collect();
    let names = rows.iter().map(|(group, _)| text_width(&group.label, TEXT));
    let left = names.fold(60.0, f64::max) + 18.0;
    let heights = rows
        .iter()
        .map(|(_, rows)| ROW * rows.len() as f64 + BETWEEN);
    let plot = Rect {
        x: left,
        y: TOP,
        width: (WIDTH - left - VALUES).max(100.0),
        height: heights.sum(),
    };
    let title = format!("Change of the {}", frechet.title());
    let size = (plot.right() + VALUES, plot.bottom() + BELOW);
    let svg = picture(size, &title, |canvas| {
        recipes.legend(canvas, (left, 12.0), &shown, None)?;
        let axes = Panel::draw(canvas, plot, (&x, &Axis::without_ticks()), false)?;
        let column = |change: f64| axes.pixel_at((change, 0.0)).0;
        let zero = column(0.0);
        canvas.line(&[(zero, plot.y), (zero, plot.bottom())], BASELINE, 1.2, 1.0)?;
        let mut top = plot.y + BETWEEN / 2.0;
        for (group, rows) in &rows {
            let middle = top + ROW * rows.len() as f64 / 2.0;
            let look = Look::new(TEXT, INK).align(Align::Right);
            canvas.text(&group.label, (left - 10.0, middle), look)?;
            for row in rows {
                let y = top + ROW / 2.0;
                let style = recipes.style(row.recipe);
                if let Some((low, high)) = extent(row.changes.iter().copied()) {
                    canvas.line(
                        &[(column(low), y), (column(high), y)],
                        style.colour,
                        1.6,
                        0.6,
                    )?;
                }
                canvas.marker((column(row.mean), y), style.marker, 4.4, style.colour, 1.0)?;
                let value = format!("{} %", signed(row.mean, 1));
                let look = Look::new(SMALL, style.colour);
                canvas.text(&value, (plot.right() + 6.0, y), look)?;
                top += ROW;
            }
            top += BETWEEN;
        }
        let look = Look::new(SMALL, MUTED).align(Align::Centre);
        let below = (size.0 / 2.0, plot.bottom() + 34.0);
        let axis = format!("change of {}, in %", frechet.title());
        canvas.text(&axis, below, look)
    })?;
    Ok(Some(Plot {
        file_stem: "change-by-model".to_owned(),
        title,
        caption: "Frechet distance of cells with alignment against the baseline without alignment of the same model and \
                  seed; to the left is better. Markers are means, lines the range over encoders and seeds."
            .to_owned(),
        svg,
    }))
}

/// The changes of each recipe of which a pair has finished.
fn changes<'a>(group: &Group<'a>, frechet: Figure) -> Vec<Change<'a>> {
    let pairs = group.pairs();
    let recipes = group.recipes().into_iter();
    recipes
        .filter_map(|recipe| {
            let changes: Vec<f64> = pairs
                .iter()
                .filter(|(cell, _)| cell.row.recipe == recipe)
                .filter_map(|(cell, baseline)| {
                    let from = baseline.row.finite(frechet)?;
                    let to = cell.row.finite(frechet)?;
                    change(from, to)
                })
                .collect();
            let mean = mean(changes.iter().copied())?.value;
            Some(Change {
                recipe,
                changes,
                mean,
            })
        })
        .collect()
}
