//! Plots the Frechet distance and the denoising loss of each encoder next to those of the baseline.

use metrics::figures::Figure;

use super::axis::Axis;
use super::canvas::{
    Align, BASELINE, Canvas, DrawError, GRID, INK, Look, MUTED, Rect, TEXT, picture, text_width,
};
use super::panel::Panel;
use super::recipes::Recipes;
use super::{Plot, WIDTH, frechet_title};
use crate::comparison::Group;
use crate::figures::frechet;
use crate::run_folder::RunFolder;

const ROW: f64 = 21.0;
const TOP: f64 = 58.0;
const BELOW: f64 = 46.0;
const BETWEEN: f64 = 36.0;

/// Draws the values of all recipes, with one row per encoder and the best encoder on top; `None` if no cell has finished.
pub(super) fn plot(
    run: &RunFolder,
    group: &Group<'_>,
    recipes: &Recipes,
) -> Result<Option<Plot>, DrawError> {
    let frechet = frechet(run);
    let columns: Vec<(Figure, String)> = [
        (frechet, frechet_title(run)),
        (Figure::DenoisingLoss, "denoising loss".to_owned()),
    ]
    .into_iter()
    .filter(|(figure, _)| !values(group, *figure).is_empty())
    .collect();
    let Some(&(first, _)) = columns.first() else {
        return Ok(None);
    };
    let encoders = ranked(group, first);
    if encoders.is_empty() {
        return Ok(None);
    }

    let names = encoders.iter().map(|name| text_width(name, TEXT));
    let left = names.fold(60.0, f64::max) + 18.0;
    let count = columns.len() as f64;
    let width = ((WIDTH - left - 16.0 - BETWEEN * (count - 1.0)) / count).min(460.0);
    let height = ROW * encoders.len() as f64;
    let size = (
        left + 16.0 + width * count + BETWEEN * (count - 1.0),
        TOP + height + BELOW,
    );
    let description = format!(
        "{} of each encoder and recipe, {}",
        first.title(),
        group.label
    );
    let svg = picture(size, &description, |canvas| {
        let shown = group.recipes();
        let baseline = columns
            .iter()
            .any(|(figure, _)| group.baseline_mean(*figure).is_some());
        recipes.legend(
            canvas,
            (left, 14.0),
            &shown,
            baseline.then_some("baseline without alignment"),
        )?;
        for (index, (figure, title)) in columns.iter().enumerate() {
            let plot = Rect {
                x: left + (width + BETWEEN) * index as f64,
                y: TOP,
                width,
                height,
            };
            panel(canvas, group, recipes, &encoders, (*figure, title), plot)?;
        }
        for (index, encoder) in encoders.iter().enumerate() {
            let row = TOP + ROW * (index as f64 + 0.5);
            let look = Look::new(TEXT, INK).align(Align::Right);
            canvas.text(encoder, (left - 10.0, row), look)?;
        }
        Ok(())
    })?;
    Ok(Some(Plot {
        file_stem: format!("quality-{}", group.slug),
        title: format!("Quality by encoder, {}", group.label),
        caption: "Lower is better in both panels; encoders are sorted by their best value in the \
                  left panel. Small dots are individual seeds if there are several."
            .to_owned(),
        svg,
    }))
}

fn panel(
    canvas: &Canvas<'_>,
    group: &Group<'_>,
    recipes: &Recipes,
    encoders: &[&str],
    (figure, title): (Figure, &str),
    plot: Rect,
) -> Result<(), DrawError> {
    let Some(x) = Axis::adaptive(values(group, figure), 5) else {
        return Ok(());
    };
    // Rows are numbered from the top, with half a row of space at both ends, and have no ticks.
    let row = |index: usize| plot.y + ROW * (index as f64 + 0.5);
    let y = Axis::without_ticks();
    for index in 0..encoders.len() {
        canvas.line(
            &[(plot.x, row(index)), (plot.right(), row(index))],
            GRID,
            1.0,
            1.0,
        )?;
    }
    let axes = Panel::draw(canvas, plot, (&x, &y), false)?;
    let position = |value: f64, index: usize| (axes.pixel_at((value, 0.0)).0, row(index));

    let scale = if x.is_logarithmic() {
        ", log scale"
    } else {
        ""
    };
    canvas.text(
        &format!("{title}{scale}"),
        (plot.x + plot.width / 2.0, plot.bottom() + 36.0),
        Look::new(TEXT, INK).align(Align::Centre),
    )?;
    if let Some(baseline) = group.baseline_mean(figure) {
        let (x, _) = position(baseline.value, 0);
        canvas.dashed((x, plot.y - 6.0), (x, plot.bottom()), BASELINE, 1.5)?;
        let text = crate::number::short(baseline.value);
        let half = text_width(&text, TEXT) / 2.0;
        let centre = x.clamp(plot.x + half, plot.right() - half);
        let look = Look::new(TEXT, MUTED).align(Align::Centre);
        canvas.text(&text, (centre, plot.y - 14.0), look)?;
    }
    for (index, encoder) in encoders.iter().enumerate() {
        for recipe in group.recipes() {
            let style = recipes.style(recipe);
            let Some(mean) = group.mean(figure, encoder, recipe) else {
                continue;
            };
            if mean.seeds > 1 {
                let cells = group.done().map(|cell| &cell.row);
                for row in cells.filter(|row| row.encoder == *encoder && row.recipe == recipe) {
                    if let Some(value) = row.finite(figure) {
                        let point = position(value, index);
                        canvas.marker(point, style.marker, 2.5, style.colour, 0.45)?;
                    }
                }
            }
            let point = position(mean.value, index);
            canvas.marker(point, style.marker, 5.0, style.colour, 1.0)?;
        }
    }
    Ok(())
}

fn values(group: &Group<'_>, figure: Figure) -> Vec<f64> {
    let cells = group.done();
    cells.filter_map(|cell| cell.row.finite(figure)).collect()
}

/// The encoders with a finished cell, best first, and those without a value last.
fn ranked<'a>(group: &Group<'a>, figure: Figure) -> Vec<&'a str> {
    let best = |encoder: &str| {
        let recipes = group.recipes().into_iter();
        recipes
            .filter_map(|recipe| group.mean(figure, encoder, recipe))
            .map(|mean| mean.value)
            .fold(f64::INFINITY, f64::min)
    };
    let mut encoders = group.encoders();
    encoders.retain(|encoder| {
        group
            .done()
            .any(|cell| !cell.row.is_baseline() && cell.row.encoder == *encoder)
    });
    encoders.sort_by(|left, right| best(left).total_cmp(&best(right)));
    encoders
}
