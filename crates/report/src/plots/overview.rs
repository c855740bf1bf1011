//! Small plots for the first screen of the report: each encoder metric against the Frechet distance, and the gain of the
//! first recipe over the second by encoder. The page arranges them to its width.

use metrics::figures::Figure;

use super::axis::Axis;
use super::canvas::{
    Align, BASELINE, DrawError, GRID, INK, Look, MUTED, Rect, SMALL, TEXT, picture, text_width,
};
use super::panel::Panel;
use super::recipes::Recipes;
use super::scatter::{self, Labels};
use super::{Plot, frechet_title};
use crate::comparison::{Group, change};
use crate::figures::{encoder_metrics, frechet};
use crate::number::signed;
use crate::run_folder::RunFolder;

/// Width of a plot. Three fit beside each other on a desktop, and one on a phone.
const WIDTH: f64 = 336.0;
const LEFT: f64 = 50.0;
const RIGHT: f64 = 10.0;
const HEAD: f64 = 24.0;
const LINE: f64 = 15.0;
const HEIGHT: f64 = 132.0;
const BELOW: f64 = 40.0;
const ROW: f64 = 15.0;

/// Draws the plots of a group, those of the metrics first; empty if no metric has points.
pub(super) fn plots(
    run: &RunFolder,
    group: &Group<'_>,
    recipes: &Recipes,
) -> Result<Vec<Plot>, DrawError> {
    let mut plots = Vec::new();
    for metric in encoder_metrics() {
        plots.extend(metric_plot(run, group, recipes, metric)?);
    }
    if !plots.is_empty() {
        plots.extend(gain_plot(run, group, recipes)?);
    }
    Ok(plots)
}

fn metric_plot(
    run: &RunFolder,
    group: &Group<'_>,
    recipes: &Recipes,
    metric: Figure,
) -> Result<Option<Plot>, DrawError> {
    let frechet = frechet(run);
    let series = scatter::series(group, metric, frechet);
    if series.is_empty() {
        return Ok(None);
    }
    let head = HEAD + LINE * series.len() as f64 + 4.0;
    let plot = Rect {
        x: LEFT,
        y: head,
        width: WIDTH - LEFT - RIGHT,
        height: HEIGHT,
    };
    let title = format!("{}, {}", metric.title(), group.label);
    let baseline = group.baseline_mean(frechet).map(|mean| mean.value);
    let svg = picture((WIDTH, head + HEIGHT + BELOW), &title, |canvas| {
        canvas.text(
            metric.title(),
            (4.0, 10.0),
            Look::new(TEXT + 1.0, INK).bold(),
        )?;
        let lines = Rect { x: 4.0, ..plot };
        scatter::statements(canvas, recipes, &series, (HEAD + 4.0, lines))?;
        scatter::panel(canvas, recipes, &series, baseline, plot, Labels::Omitted)?;
        let look = Look::new(SMALL, MUTED).align(Align::Centre);
        let below = (plot.x + plot.width / 2.0, plot.bottom() + 32.0);
        canvas.text(
            &format!("{} against {}", metric.name(), frechet.title()),
            below,
            look,
        )
    })?;
    Ok(Some(Plot {
        file_stem: format!("overview-{}-{}", metric.name(), group.slug),
        title,
        caption: String::new(),
        svg,
    }))
}

/// The relative change of the Frechet distance from the second recipe to the first, for each encoder that has both,
/// averaged over seeds; `None` without such encoders.
fn gain_plot(
    run: &RunFolder,
    group: &Group<'_>,
    recipes: &Recipes,
) -> Result<Option<Plot>, DrawError> {
    let [first, second] = group.recipes()[..] else {
        return Ok(None);
    };
    let gains = gains(group, frechet(run), first, second);
    let Some(x) = Axis::linear(gains.iter().map(|(_, gain)| *gain).chain([0.0]), 4) else {
        return Ok(None);
    };
    if gains.is_empty() {
        return Ok(None);
    }
    let names = gains.iter().map(|(name, _)| text_width(name, SMALL));
    let left = names.fold(40.0, f64::max) + 10.0;
    let plot = Rect {
        x: left,
        y: HEAD + LINE + 4.0,
        width: WIDTH - left - 54.0,
        height: ROW * gains.len() as f64,
    };
    let title = format!("{first} against {second}, {}", group.label);
    let better = gains.iter().filter(|(_, gain)| *gain < 0.0).count();
    let svg = picture((WIDTH, plot.bottom() + BELOW), &title, |canvas| {
        let heading = format!("{first} against {second}");
        canvas.text(&heading, (4.0, 10.0), Look::new(TEXT + 1.0, INK).bold())?;
        let count = format!("better with {better} of {} encoders", gains.len());
        canvas.text(&count, (4.0, HEAD + 4.0), Look::new(TEXT, INK))?;
        let axes = Panel::draw(canvas, plot, (&x, &Axis::without_ticks()), false)?;
        let column = |gain: f64| axes.pixel_at((gain, 0.0)).0;
        let zero = column(0.0);
        for (index, (encoder, gain)) in gains.iter().enumerate() {
            let row = plot.y + ROW * (index as f64 + 0.5);
            canvas.line(&[(plot.x, row), (plot.right(), row)], GRID, 1.0, 1.0)?;
            let style = recipes.style(if *gain < 0.0 { first } else { second });
            canvas.line(&[(zero, row), (column(*gain), row)], style.colour, 3.0, 0.8)?;
            canvas.marker((column(*gain), row), style.marker, 3.6, style.colour, 1.0)?;
            let name = Look::new(SMALL, INK).align(Align::Right);
            canvas.text(encoder, (plot.x - 8.0, row), name)?;
            let value = format!("{} %", signed(*gain, 1));
            canvas.text(&value, (plot.right() + 4.0, row), Look::new(SMALL, MUTED))?;
        }
        canvas.line(&[(zero, plot.y), (zero, plot.bottom())], BASELINE, 1.2, 1.0)?;
        let look = Look::new(SMALL, MUTED).align(Align::Centre);
        let below = (WIDTH / 2.0, plot.bottom() + 32.0);
        canvas.text(&format!("change of {}", frechet_title(run)), below, look)
    })?;
    Ok(Some(Plot {
        file_stem: format!("overview-gain-{}", group.slug),
        title,
        caption: String::new(),
        svg,
    }))
}

/// Encoders and their gains in per cent, the largest improvement first.
fn gains<'a>(group: &Group<'a>, frechet: Figure, first: &str, second: &str) -> Vec<(&'a str, f64)> {
    let encoders = group.encoders().into_iter();
    let mut gains: Vec<(&str, f64)> = encoders
        .filter_map(|encoder| {
            let from = group.mean(frechet, encoder, second)?.value;
            let to = group.mean(frechet, encoder, first)?.value;
            Some((encoder, change(from, to)?))
        })
        .collect();
    gains.sort_by(|left, right| left.1.total_cmp(&right.1));
    gains
}
