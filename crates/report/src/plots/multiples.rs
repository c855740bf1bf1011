//! Plots one small panel per encoder on common axes: differences from the baseline, and alignment losses.

use metrics::figures::Figure;

use super::axis::{Axis, extent};
use super::canvas::{
    Align, BASELINE, Canvas, DrawError, INK, Look, Rect, SMALL, TEXT, picture, text_width,
};
use super::labels::spread;
use super::panel::Panel;
use super::recipes::Recipes;
use super::{Plot, STEP_TITLE, WIDTH};
use crate::comparison::Group;
use crate::curve::{self, Curve, smooth, thin};
use crate::number::{decimals, plain, signed};

const LEFT: f64 = 72.0;
const TOP: f64 = 34.0;
const BELOW: f64 = 22.0;
const TITLE: f64 = 20.0;
const TICKS: f64 = 26.0;
const HEIGHT: f64 = 128.0;
/// Space for final values to the right of each panel.
const VALUES: f64 = 52.0;
const MAX_COLUMNS: usize = 5;
const POINTS: usize = 160;
/// The first fraction of training, which is ignored for the range of the vertical axis.
const START: f64 = 0.05;

struct Line<'a> {
    encoder: &'a str,
    recipe: &'a str,
    raw: Curve,
    smooth: Curve,
}

/// The contents of the panels.
struct Panels<'a> {
    lines: Vec<Line<'a>>,
    axis_title: &'static str,
    /// Whether to draw the baseline at 0 and to write final values with a sign.
    zero: bool,
}

/// Plots the denoising loss of each aligned cell minus that of the baseline with the same seed.
pub(super) fn differences(group: &Group<'_>, recipes: &Recipes) -> Result<Option<Plot>, DrawError> {
    let panels = Panels {
        lines: lines(group, |cell| {
            let baseline = group.any_baseline_of(cell)?;
            let baseline = curve::denoising_loss(baseline);
            Some(curve::difference(&curve::denoising_loss(cell), &baseline))
        }),
        axis_title: "loss minus baseline",
        zero: true,
    };
    let description = format!(
        "Denoising loss minus that of the baseline against training step, {}",
        group.label
    );
    let svg = draw(&panels, group, recipes, &description)?;
    Ok(svg.map(|svg| Plot {
        file_stem: format!("loss-difference-{}", group.slug),
        title: format!("Difference from the baseline, {}", group.label),
        caption: "Denoising loss of the cell minus that of the baseline without alignment of the \
                  same model and seed at the same step, smoothed, with the unsmoothed difference \
                  faint behind it. Below zero, the aligned cell has the lower loss. Numbers are the \
                  final smoothed differences; a marker inside a panel shows where a cell \
                  stopped early."
            .to_owned(),
        svg,
    }))
}

/// Plots the alignment loss of each aligned cell.
pub(super) fn alignment_losses(
    group: &Group<'_>,
    recipes: &Recipes,
) -> Result<Option<Plot>, DrawError> {
    let panels = Panels {
        lines: lines(group, |cell| {
            Some(curve::logged(cell, Figure::AlignmentLoss))
        }),
        axis_title: "alignment loss",
        zero: false,
    };
    let description = format!("Alignment loss against training step, {}", group.label);
    let svg = draw(&panels, group, recipes, &description)?;
    Ok(svg.map(|svg| Plot {
        file_stem: format!("alignment-loss-{}", group.slug),
        title: format!("Alignment loss, {}", group.label),
        caption: "Smoothed, with the logged values faint behind the curves. The loss is a negative cosine \
                  similarity, before its coefficient; levels depend on the encoder and on the \
                  spatial normalisation, so compare shapes rather than heights."
            .to_owned(),
        svg,
    }))
}

fn lines<'a>(
    group: &Group<'a>,
    raw: impl Fn(&'a crate::run_folder::Cell) -> Option<Curve>,
) -> Vec<Line<'a>> {
    let cells = group.cells.iter().copied();
    cells
        .filter(|cell| !cell.row.is_baseline())
        .filter_map(|cell| {
            let raw = raw(cell)?;
            let smooth = smooth(&raw, group.last_step());
            (raw.len() > 1).then_some(Line {
                encoder: cell.row.encoder.as_str(),
                recipe: cell.row.recipe.as_str(),
                raw,
                smooth,
            })
        })
        .collect()
}

fn draw(
    panels: &Panels<'_>,
    group: &Group<'_>,
    recipes: &Recipes,
    description: &str,
) -> Result<Option<String>, DrawError> {
    let lines = &panels.lines;
    let mut encoders = group.encoders();
    encoders.retain(|encoder| lines.iter().any(|line| line.encoder == *encoder));
    let last = lines.iter().filter_map(|line| line.smooth.last());
    let Some(x) = Axis::from_zero(last.map(|(step, _)| *step), 3) else {
        return Ok(None);
    };
    let settled = lines.iter().flat_map(|line| &line.smooth);
    let settled = settled.filter(|(step, _)| *step >= START * x.high());
    let settled = settled.map(|(_, value)| *value);
    let Some(y) = Axis::linear(settled.chain(panels.zero.then_some(0.0)), 4) else {
        return Ok(None);
    };

    let rows = encoders.len().div_ceil(MAX_COLUMNS);
    let columns = encoders.len().div_ceil(rows);
    let pitch = ((WIDTH - LEFT) / columns as f64).min(330.0);
    let row_height = TITLE + HEIGHT + TICKS;
    let size = (
        LEFT + pitch * columns as f64,
        TOP + row_height * rows as f64 + BELOW,
    );
    let ends = lines.iter().filter_map(|line| line.smooth.last());
    let digits = decimals(extent(ends.map(|(_, value)| *value)).map(|(low, high)| {
        // Three significant digits of the largest value are enough in a small panel.
        low.abs().max(high.abs()) * 10.0
    }));
    let svg = picture(size, description, |canvas| {
        let shown = group.recipes();
        let baseline = panels.zero.then_some("baseline");
        recipes.legend(canvas, (LEFT, 14.0), &shown, baseline)?;
        for (index, encoder) in encoders.iter().enumerate() {
            let (row, column) = (index / columns, index % columns);
            let plot = Rect {
                x: LEFT + pitch * column as f64,
                y: TOP + row_height * row as f64 + TITLE,
                width: pitch - VALUES,
                height: HEIGHT,
            };
            let axes = Panel::draw(canvas, plot, (&x, &y), column == 0)?;
            small_panel(canvas, panels, recipes, encoder, &axes, digits)?;
        }
        let centre = Look::new(TEXT, INK).align(Align::Centre);
        let middle = TOP + row_height * rows as f64 / 2.0;
        canvas.text(panels.axis_title, (12.0, middle), centre.vertical())?;
        let below = (
            LEFT + (pitch * columns as f64 - VALUES) / 2.0,
            size.1 - BELOW + 8.0,
        );
        canvas.text(STEP_TITLE, below, centre)
    })?;
    Ok(Some(svg))
}

fn small_panel(
    canvas: &Canvas<'_>,
    panels: &Panels<'_>,
    recipes: &Recipes,
    encoder: &str,
    axes: &Panel<'_, '_>,
    digits: usize,
) -> Result<(), DrawError> {
    let plot = axes.plot;
    canvas.text(
        &shorten(encoder, plot.width + VALUES - 8.0),
        (plot.x, plot.y - 10.0),
        Look::new(TEXT, INK).bold(),
    )?;
    if panels.zero {
        let zero = axes.row(0.0);
        canvas.dashed((plot.x, zero), (plot.right(), zero), BASELINE, 1.2)?;
    }
    let lines: Vec<&Line<'_>> = panels
        .lines
        .iter()
        .filter(|line| line.encoder == encoder)
        .collect();
    for line in &lines {
        let colour = recipes.style(line.recipe).colour;
        axes.curve(&thin(&line.raw, POINTS), colour, 0.6, 0.2)?;
    }
    for line in &lines {
        let style = recipes.style(line.recipe);
        axes.curve(&thin(&line.smooth, POINTS), style.colour, 1.6, 1.0)?;
        if let Some(&(step, value)) = line.smooth.last() {
            let (end, _) = axes.pixel_at((step, value));
            if end < plot.right() - 1.0 {
                let position = (end, axes.row(value));
                canvas.marker(position, style.marker, 3.0, style.colour, 1.0)?;
            }
        }
    }
    let ends: Vec<(&str, f64)> = crate::distinct::distinct(lines.iter().map(|line| line.recipe))
        .into_iter()
        .filter_map(|recipe| {
            let ends = lines.iter().filter(|line| line.recipe == recipe);
            let values = ends.filter_map(|line| Some(line.smooth.last()?.1));
            Some((recipe, crate::comparison::mean(values)?.value))
        })
        .collect();
    let wanted: Vec<f64> = ends.iter().map(|(_, value)| axes.row(*value)).collect();
    let rows = spread(&wanted, 12.0, plot.y, plot.bottom());
    for ((recipe, value), row) in ends.into_iter().zip(rows) {
        let text = if panels.zero {
            signed(value, digits)
        } else {
            plain(value, digits)
        };
        let look = Look::new(SMALL, recipes.style(recipe).colour);
        canvas.text(&text, (plot.right() + 4.0, row), look)?;
    }
    Ok(())
}

/// Returns `name`, shortened with an ellipsis if it is wider than `width` pixels.
fn shorten(name: &str, width: f64) -> String {
    if text_width(name, TEXT) <= width {
        return name.to_owned();
    }
    let mut short = String::new();
    for letter in name.chars() {
        if text_width(&short, TEXT) + 2.0 * TEXT > width {
            break;
        }
        short.push(letter);
    }
    short + "\u{2026}"
}
