//! Plots the denoising loss of all cells of a group over training, and the Frechet distance if it was measured during
//! training.

use super::axis::{Axis, extent};
use super::canvas::{Align, DrawError, INK, Look, MUTED, Rect, SMALL, TEXT, picture, text_width};
use super::labels::spread;
use super::panel::Panel;
use super::recipes::Recipes;
use super::{Plot, STEP_TITLE, WIDTH};
use crate::comparison::Group;
use crate::curve::{Curve, denoising_loss, distance, smooth, thin};
use crate::distinct::distinct;
use crate::number::{plain, short};
use crate::results::Status;
use crate::run_folder::Cell;

const LEFT: f64 = 66.0;
const TOP: f64 = 34.0;
const BELOW: f64 = 46.0;
const GAP: f64 = 13.5;
const POINTS: usize = 250;
/// With more curves than this, raw curves are omitted because they would cover the smoothed ones.
const MAX_RAW_CURVES: usize = 16;
/// The first fraction of training, which is ignored for the range of the vertical axis.
const START: f64 = 0.2;

struct Line<'a> {
    cell: &'a Cell,
    raw: Curve,
    smooth: Curve,
}

/// The quantity that is plotted.
pub(super) struct Quantity {
    file_stem: &'static str,
    title: &'static str,
    /// [`Quantity::title`] in a sentence.
    name: &'static str,
    curve: fn(&Cell) -> Curve,
    /// Whether the values are noisy; they are then smoothed, and drawn in front of the raw curves.
    noisy: bool,
}

pub(super) const LOSS: Quantity = Quantity {
    file_stem: "denoising-loss",
    title: "Denoising loss",
    name: "denoising loss",
    curve: denoising_loss,
    noisy: true,
};

pub(super) const DISTANCE: Quantity = Quantity {
    file_stem: "distance",
    title: "Frechet distance during training",
    name: "Frechet distance",
    curve: distance,
    noisy: false,
};

/// Draws one line per cell; `None` if no cell has logged the quantity at least twice.
pub(super) fn plot(
    quantity: &Quantity,
    group: &Group<'_>,
    recipes: &Recipes,
) -> Result<Option<Plot>, DrawError> {
    let mut lines: Vec<Line<'_>> = group
        .cells
        .iter()
        .map(|cell| {
            let raw = (quantity.curve)(cell);
            let smooth = match quantity.noisy {
                true => smooth(&raw, group.last_step()),
                false => raw.clone(),
            };
            Line { cell, raw, smooth }
        })
        .filter(|line| line.raw.len() > 1)
        .collect();
    // The baseline is drawn last, on top of the other lines.
    lines.sort_by_key(|line| line.cell.row.is_baseline());
    let last = lines.iter().filter_map(|line| line.raw.last());
    let Some(x) = Axis::from_zero(last.map(|(step, _)| *step), 6) else {
        return Ok(None);
    };
    let Some((y, cut)) = value_axis(&lines, x.high()) else {
        return Ok(None);
    };

    let labels = labels(&lines);
    let right = labels
        .iter()
        .map(|label| text_width(&label.text, SMALL))
        .fold(40.0, f64::max)
        + 30.0;
    let height = (GAP * labels.len() as f64).clamp(360.0, 1200.0);
    let plot = Rect {
        x: LEFT,
        y: TOP,
        width: WIDTH - LEFT - right,
        height,
    };
    let description = format!("{} against training step, {}", quantity.title, group.label);
    let raw_behind = quantity.noisy && lines.len() <= MAX_RAW_CURVES;
    let svg = picture((WIDTH, TOP + height + BELOW), &description, |canvas| {
        let panel = Panel::draw(canvas, plot, (&x, &y), true)?;
        if raw_behind {
            for line in &lines {
                let colour = recipes.style(&line.cell.row.recipe).colour;
                panel.curve(&thin(&line.raw, POINTS), colour, 0.7, 0.16)?;
            }
        }
        for line in &lines {
            let width = match line.cell.row.is_baseline() {
                true => 2.4,
                false if lines.len() <= MAX_RAW_CURVES => 1.5,
                false => 0.8,
            };
            let colour = recipes.style(&line.cell.row.recipe).colour;
            panel.curve(&thin(&line.smooth, POINTS), colour, width, 1.0)?;
        }
        let wanted: Vec<f64> = labels.iter().map(|label| panel.row(label.value)).collect();
        let rows = spread(&wanted, GAP, plot.y + 4.0, plot.bottom() - 4.0);
        for ((label, wanted), row) in labels.iter().zip(&wanted).zip(rows) {
            let colour = recipes.style(label.recipe).colour;
            let end = panel.pixel_at((label.step, label.value)).0;
            if end < plot.right() - 1.0 {
                let marker = recipes.style(label.recipe).marker;
                canvas.marker((end, *wanted), marker, 3.0, colour, 1.0)?;
            } else {
                let leader = [(end + 3.0, *wanted), (end + 20.0, row)];
                canvas.line(&leader, colour, 0.6, 0.6)?;
            }
            let mut look = Look::new(SMALL, colour);
            look.bold = label.recipe_is_baseline;
            canvas.text(&label.text, (plot.right() + 24.0, row), look)?;
        }
        recipes.legend(canvas, (LEFT, 14.0), &group.recipes(), None)?;
        let scale = if y.is_logarithmic() {
            ", log scale"
        } else {
            ""
        };
        let title = format!("{}{scale}", quantity.name);
        let middle = plot.y + plot.height / 2.0;
        let look = Look::new(TEXT, INK).align(Align::Centre);
        canvas.text(&title, (12.0, middle), look.vertical())?;
        let below = (plot.x + plot.width / 2.0, plot.bottom() + 36.0);
        canvas.text(STEP_TITLE, below, look)?;
        if cut {
            let corner = (plot.right() - 8.0, plot.y + 10.0);
            let look = Look::new(SMALL, MUTED).align(Align::Right);
            canvas.text("earlier values are above the frame", corner, look)?;
        }
        Ok(())
    })?;
    Ok(Some(Plot {
        file_stem: format!("{}-{}", quantity.file_stem, group.slug),
        title: format!("{}, {}", quantity.title, group.label),
        caption: format!(
            "Each line is a cell{}; labels show the last value, from highest to lowest.",
            match (quantity.noisy, raw_behind) {
                (true, true) => ", smoothed, with the logged values faint behind it",
                (true, false) => ", smoothed",
                (false, _) => ", measured on samples of its averaged weights",
            }
        ),
        svg,
    }))
}

/// The vertical axis, and whether it cuts off the start of training, where values fall from far above.
fn value_axis(lines: &[Line<'_>], last_step: f64) -> Option<(Axis, bool)> {
    let smoothed = || lines.iter().flat_map(|line| line.smooth.iter());
    let whole = extent(smoothed().map(|(_, loss)| *loss))?;
    let settled = smoothed().filter(|(step, _)| *step >= START * last_step);
    let settled = extent(settled.map(|(_, loss)| *loss)).unwrap_or(whole);
    let cut = whole.1 - whole.0 > 1.5 * (settled.1 - settled.0) && settled.1 > settled.0;
    let (low, high) = if cut { settled } else { whole };
    Some((Axis::adaptive([low, high], 6)?, cut))
}

struct Label<'a> {
    text: String,
    recipe: &'a str,
    recipe_is_baseline: bool,
    /// The end of the curve, averaged over seeds.
    step: f64,
    value: f64,
}

/// One label per encoder and recipe, shared by its seeds.
fn labels<'a>(lines: &[Line<'a>]) -> Vec<Label<'a>> {
    let key = |line: &Line<'a>| {
        let row = &line.cell.row;
        (
            row.recipe.as_str(),
            row.encoder.as_str(),
            row.status == Status::Failed,
        )
    };
    distinct(lines.iter().map(key))
        .into_iter()
        .filter_map(|(recipe, encoder, failed)| {
            let ends: Vec<(f64, f64)> = lines
                .iter()
                .filter(|line| key(line) == (recipe, encoder, failed))
                .filter_map(|line| line.smooth.last().copied())
                .collect();
            let count = ends.len() as f64;
            let sum = ends
                .iter()
                .copied()
                .reduce(|sum, end| (sum.0 + end.0, sum.1 + end.1))?;
            let baseline = recipe.is_empty() || recipe == "none";
            let (step, value) = (sum.0 / count, sum.1 / count);
            let name = if baseline {
                "baseline".to_owned()
            } else {
                format!("{encoder}, {recipe}")
            };
            let ending = if failed {
                format!("failed at {}", plain(step, 0))
            } else {
                short(value)
            };
            Some(Label {
                text: format!("{name} {ending}"),
                recipe,
                recipe_is_baseline: baseline,
                step,
                value,
            })
        })
        .collect()
}
