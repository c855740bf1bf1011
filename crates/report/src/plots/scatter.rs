//! Plots each encoder metric against the Frechet distance of the model that is aligned to the encoder.

use metrics::figures::{Figure, Kind};

use super::axis::Axis;
use super::canvas::{
    Align, BASELINE, Canvas, DrawError, GRID, INK, Look, MUTED, Rect, SMALL, TEXT, picture,
    text_width,
};
use super::labels::{LabelRequest, place};
use super::panel::Panel;
use super::recipes::Recipes;
use super::{Plot, WIDTH, frechet_title};
use crate::comparison::Group;
use crate::correlation::{Point, Relation, points, relation};
use crate::distinct::distinct;
use crate::figures::{encoder_metrics, frechet};
use crate::number::{plain, short};
use crate::run_folder::RunFolder;

const LEFT: f64 = 70.0;
const RIGHT: f64 = 14.0;
/// Height of a panel with at most `FEW` encoders; each further encoder adds `HEIGHT_PER_LABEL`.
const HEIGHT: f64 = 300.0;
const FEW: usize = 12;
const HEIGHT_PER_LABEL: f64 = 12.0;
const TITLE: f64 = 24.0;
const LINE: f64 = 16.0;
const BELOW: f64 = 60.0;
const COLUMNS: usize = 2;

/// Whether the points of a panel have the names of their encoders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Labels {
    Drawn,
    Omitted,
}

/// The points of one recipe in one panel.
pub(super) struct Series<'a> {
    recipe: &'a str,
    points: Vec<Point>,
    relation: Relation,
}

/// Draws one panel per metric. A panel without points states the reason; `None` if no panel has points.
pub(super) fn plot(
    run: &RunFolder,
    group: &Group<'_>,
    recipes: &Recipes,
) -> Result<Option<Plot>, DrawError> {
    let frechet = frechet(run);
    let panels: Vec<(Figure, Vec<Series<'_>>)> = encoder_metrics()
        .map(|metric| (metric, series(group, metric, frechet)))
        .collect();
    let most = panels.iter().map(|(_, series)| series.len()).max();
    let most = most.unwrap_or(0);
    if most == 0 {
        return Ok(None);
    }
    let labels = group.encoders().len();
    let height = HEIGHT + HEIGHT_PER_LABEL * labels.saturating_sub(FEW) as f64;
    let height = height.min(2.0 * HEIGHT);
    let columns = COLUMNS.min(panels.len());
    let rows = panels.len().div_ceil(columns);
    let pitch = WIDTH / COLUMNS as f64;
    let head = TITLE + LINE * most as f64 + 10.0;
    let row_height = head + height + BELOW;
    let size = (pitch * columns as f64, row_height * rows as f64);
    let baseline = group.baseline_mean(frechet).map(|mean| mean.value);
    let y_title = frechet_title(run);
    let description = format!(
        "Encoder metrics against {}, {}",
        frechet.title(),
        group.label
    );
    let svg = picture(size, &description, |canvas| {
        for (index, (metric, series)) in panels.iter().enumerate() {
            let (row, column) = (index / columns, index % columns);
            let plot = Rect {
                x: pitch * column as f64 + LEFT,
                y: row_height * row as f64 + head,
                width: pitch - LEFT - RIGHT,
                height,
            };
            canvas.text(
                metric.title(),
                (plot.x, plot.y - head + 12.0),
                Look::new(TEXT + 1.0, INK).bold(),
            )?;
            if series.is_empty() {
                empty(canvas, why_empty(group, *metric), plot)?;
                continue;
            }
            let heights = (plot.y - head + TITLE + 8.0, plot);
            statements(canvas, recipes, series, heights)?;
            panel(canvas, recipes, series, baseline, plot, Labels::Drawn)?;
            let centre = Look::new(TEXT, INK).align(Align::Centre);
            let middle = plot.y + plot.height / 2.0;
            canvas.text(&y_title, (plot.x - LEFT + 12.0, middle), centre.vertical())?;
            let below = (plot.x + plot.width / 2.0, plot.bottom() + 36.0);
            canvas.text(metric.name(), below, centre)?;
        }
        Ok(())
    })?;
    Ok(Some(Plot {
        file_stem: format!("metrics-{}", group.slug),
        title: format!(
            "Encoder metrics against {}, {}",
            frechet.title(),
            group.label
        ),
        caption: "One point per encoder and recipe, averaged over seeds; a thin line joins the \
                  recipes of one encoder. Lines are least-squares fits. Brackets contain the \
                  95 % bootstrap interval of Pearson's r over encoders."
            .to_owned(),
        svg,
    }))
}

/// The reason why no cell has both values, in two short lines.
fn why_empty(group: &Group<'_>, metric: Figure) -> [&'static str; 2] {
    let aligned = group.done().filter(|cell| !cell.row.is_baseline());
    if aligned.filter_map(|cell| cell.row.finite(metric)).count() > 0 {
        return [
            "no finished cell has both",
            "this metric and a Frechet distance",
        ];
    }
    match (metric, metric.kind()) {
        (_, Kind::Probe) => [
            "no linear probe was trained: evaluate.probe_images",
            "is 0, or encoders are joined",
        ],
        (Figure::Srss, _) => [
            "SRSS needs foreground masks,",
            "which these images do not have",
        ],
        _ => [
            "not computed: evaluate.spatial_images is 0,",
            "or encoders are joined",
        ],
    }
}

/// Draws a panel without points.
fn empty(canvas: &Canvas<'_>, reason: [&str; 2], plot: Rect) -> Result<(), DrawError> {
    let corners = [
        (plot.x, plot.y),
        (plot.right(), plot.y),
        (plot.right(), plot.bottom()),
        (plot.x, plot.bottom()),
        (plot.x, plot.y),
    ];
    canvas.line(&corners, GRID, 1.0, 1.0)?;
    let look = Look::new(TEXT, MUTED).align(Align::Centre);
    let middle = (plot.x + plot.width / 2.0, plot.y + plot.height / 2.0);
    for (line, text) in reason.into_iter().enumerate() {
        canvas.text(text, (middle.0, middle.1 - 9.0 + 18.0 * line as f64), look)?;
    }
    Ok(())
}

/// The points of each recipe that has any.
pub(super) fn series<'a>(group: &Group<'a>, metric: Figure, frechet: Figure) -> Vec<Series<'a>> {
    let recipes = group.recipes().into_iter();
    recipes
        .map(|recipe| {
            let points = points(group, recipe, metric, frechet);
            let relation = relation(&points);
            Series {
                recipe,
                points,
                relation,
            }
        })
        .filter(|series| !series.points.is_empty())
        .collect()
}

/// Draws the lines above a panel that state the correlations and also serve as its legend.
pub(super) fn statements(
    canvas: &Canvas<'_>,
    recipes: &Recipes,
    series: &[Series<'_>],
    (top, plot): (f64, Rect),
) -> Result<(), DrawError> {
    for (index, series) in series.iter().enumerate() {
        let row = top + LINE * index as f64;
        let style = recipes.style(series.recipe);
        canvas.marker((plot.x + 5.0, row), style.marker, 4.0, style.colour, 1.0)?;
        let text = format!("{}: {}", series.recipe, statement(&series.relation));
        canvas.text(&text, (plot.x + 15.0, row), Look::new(TEXT, style.colour))?;
    }
    Ok(())
}

fn statement(relation: &Relation) -> String {
    match relation {
        Relation::Fitted {
            r,
            interval: (low, high),
            n,
            ..
        } => format!(
            "r = {} [{}, {}], n = {n}",
            plain(*r, 2),
            plain(*low, 2),
            plain(*high, 2)
        ),
        Relation::TooFew { n } => format!("n = {n}: too few for r"),
        Relation::Undefined { n } => format!("n = {n}, r undefined"),
    }
}

/// Draws the points, their least-squares lines and the baseline.
pub(super) fn panel(
    canvas: &Canvas<'_>,
    recipes: &Recipes,
    series: &[Series<'_>],
    baseline: Option<f64>,
    plot: Rect,
    labels: Labels,
) -> Result<(), DrawError> {
    let all = || series.iter().flat_map(|series| &series.points);
    let x = Axis::linear(all().map(|point| point.x), 5);
    let y = Axis::linear(all().map(|point| point.y).chain(baseline), 5);
    let (Some(x), Some(y)) = (x, y) else {
        return Ok(());
    };
    let axes = Panel::draw(canvas, plot, (&x, &y), true)?;

    let mut obstacles = Vec::new();
    if let Some(value) = baseline {
        let row = axes.row(value);
        canvas.dashed((plot.x, row), (plot.right(), row), BASELINE, 1.2)?;
        let text = format!("baseline {}", short(value));
        let points = all().map(|point| axes.pixel_at((point.x, point.y)));
        let label = beside_line(
            row,
            text_width(&text, SMALL),
            plot,
            &points.collect::<Vec<_>>(),
        );
        canvas.text(
            &text,
            (label.x, label.y + label.height / 2.0),
            Look::new(SMALL, MUTED),
        )?;
        obstacles.push(label);
        obstacles.push(Rect {
            x: plot.x,
            y: row - 1.0,
            width: plot.width,
            height: 2.0,
        });
    }
    let mut lines = Vec::new();
    for series in series {
        if let Relation::Fitted {
            slope, intercept, ..
        } = series.relation
        {
            let xs = || series.points.iter().map(|point| point.x);
            let (low, high) = (
                xs().fold(f64::INFINITY, f64::min),
                xs().fold(f64::NEG_INFINITY, f64::max),
            );
            let ends = [low, high].map(|x| (x, intercept + slope * x));
            let colour = recipes.style(series.recipe).colour;
            axes.curve(&ends, colour, 1.6, 0.55)?;
            lines.push((axes.pixel_at(ends[0]), axes.pixel_at(ends[1])));
        }
    }
    let encoders = distinct(all().map(|point| point.encoder.as_str()));
    let mut requests = Vec::new();
    for encoder in &encoders {
        let anchors: Vec<(f64, f64)> = all()
            .filter(|point| point.encoder == *encoder)
            .map(|point| axes.pixel_at((point.x, point.y)))
            .collect();
        canvas.line(&anchors, GRID, 1.6, 1.0)?;
        obstacles.extend(anchors.iter().map(|(x, y)| Rect {
            x: x - 6.0,
            y: y - 6.0,
            width: 12.0,
            height: 12.0,
        }));
        requests.push(LabelRequest {
            width: text_width(encoder, SMALL),
            height: 12.0,
            anchors,
        });
    }
    for series in series {
        let style = recipes.style(series.recipe);
        for point in &series.points {
            let position = axes.pixel_at((point.x, point.y));
            canvas.marker(position, style.marker, 4.6, style.colour, 0.95)?;
        }
    }
    if labels == Labels::Omitted {
        return Ok(());
    }
    let placed = place(&requests, &obstacles, &lines, plot);
    for (encoder, placement) in encoders.iter().zip(placed) {
        let Some(placement) = placement else { continue };
        let rect = placement.rect;
        if placement.leader {
            let near = (
                placement.anchor.0.clamp(rect.x, rect.right()),
                placement.anchor.1.clamp(rect.y, rect.bottom()),
            );
            canvas.line(&[placement.anchor, near], MUTED, 0.6, 0.7)?;
        }
        let centre = (rect.x + rect.width / 2.0, rect.y + rect.height / 2.0);
        let look = Look::new(SMALL, INK).align(Align::Centre);
        canvas.text(encoder, centre, look)?;
    }
    Ok(())
}

/// The place of a label at a horizontal line across the plot: above or below the line, at its right or left end, where it
/// covers the fewest points.
fn beside_line(row: f64, width: f64, plot: Rect, points: &[(f64, f64)]) -> Rect {
    /// Half the size of a point.
    const POINT: f64 = 5.0;
    const HEIGHT: f64 = 14.0;
    let above = (row - 15.0, row - 15.0 >= plot.y - 1.0);
    let below = (row + 2.0, row + 2.0 + HEIGHT <= plot.bottom() + 1.0);
    let ends = [plot.right() - 4.0 - width, plot.x + 4.0];
    let places = ends.into_iter().flat_map(|x| {
        let inside = [above, below].into_iter().filter(|(_, fits)| *fits);
        inside.map(move |(y, _)| Rect {
            x,
            y,
            width,
            height: HEIGHT,
        })
    });
    let covered = |place: &Rect| {
        let hits = points.iter().filter(|(x, y)| {
            *x > place.x - POINT
                && *x < place.right() + POINT
                && *y > place.y - POINT
                && *y < place.bottom() + POINT
        });
        hits.count()
    };
    places.min_by_key(covered).unwrap_or(Rect {
        x: ends[0],
        y: above.0,
        width,
        height: HEIGHT,
    })
}
