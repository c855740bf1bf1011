//! Tables of encoders by recipes, and of the ranking of encoders before training.

use maud::{Markup, html};
use metrics::figures::Figure;

use crate::comparison::{Group, Mean, groups};
use crate::correlation::{Agreement, Prediction, predictions};
use crate::figures::frechet;
use crate::number::{decimals, plain, signed};
use crate::run_folder::RunFolder;
use crate::words::capital;

/// One table per group and figure, with one row per encoder and one column per recipe. The better recipe is marked.
pub(super) fn recipes_by_encoder(run: &RunFolder) -> Markup {
    let figures = [frechet(run), Figure::DenoisingLoss];
    let tables: Vec<Markup> = groups(run)
        .iter()
        .flat_map(|group| figures.map(|figure| table(group, figure)))
        .flatten()
        .collect();
    html! {
        @if !tables.is_empty() {
            @for table in tables { (table) }
            p.note {
                "The better recipe of each encoder is bold and marked \u{25cf}. If there are several seeds, the value is \
                 their mean and their number is in parentheses. Differences smaller than those between seeds are not \
                 meaningful."
            }
        }
    }
}

/// `None` if no cell has finished with the figure.
fn table(group: &Group<'_>, figure: Figure) -> Option<Markup> {
    let recipes = group.recipes();
    let rows: Vec<(&str, Vec<Option<Mean>>)> = group
        .encoders()
        .into_iter()
        .map(|encoder| {
            let means = recipes.iter();
            let means = means.map(|recipe| group.mean(figure, encoder, recipe));
            (encoder, means.collect())
        })
        .filter(|(_, means): &(_, Vec<Option<Mean>>)| means.iter().any(Option::is_some))
        .collect();
    if rows.is_empty() {
        return None;
    }
    let baseline = group.baseline_mean(figure);
    let values = rows.iter().flat_map(|(_, means)| means).flatten();
    let digits = decimals(values.chain(&baseline).map(|mean| mean.value));
    let pair = match recipes.as_slice() {
        [left, right] => Some((left, right)),
        _ => None,
    };
    Some(html! {
        h3 { (capital(figure.title())) ", " (group.label) }
        div.table {
            table.matrix {
                thead {
                    tr {
                        th { "encoder" }
                        @for recipe in &recipes { th.number { (recipe) } }
                        @if let Some((left, right)) = pair { th.number { (left) " \u{2212} " (right) } }
                    }
                }
                tbody {
                    @for (encoder, means) in &rows {
                        tr {
                            td { (encoder) }
                            @for mean in means { (cell(mean.as_ref(), means, figure, digits)) }
                            @if pair.is_some() { (difference(means, digits)) }
                        }
                    }
                }
            }
        }
        @if let Some(baseline) = baseline {
            p.note {
                "Baseline without alignment: " (plain(baseline.value, digits)) (seeds(&baseline)) "."
            }
        }
    })
}

fn cell(mean: Option<&Mean>, row: &[Option<Mean>], figure: Figure, digits: usize) -> Markup {
    let Some(mean) = mean else {
        return empty();
    };
    let others: Vec<f64> = row.iter().flatten().map(|other| other.value).collect();
    let beaten = others
        .iter()
        .any(|other| figure.improves(*other, mean.value));
    let differs = others.iter().any(|other| *other != mean.value);
    let best = differs && !beaten;
    html! {
        td.number.best[best] data-value=(mean.value.to_string()) {
            @if best { "\u{25cf} " }
            (plain(mean.value, digits)) (seeds(mean))
        }
    }
}

/// The first of two values minus the second.
fn difference(means: &[Option<Mean>], digits: usize) -> Markup {
    match means {
        [Some(left), Some(right)] => {
            let difference = left.value - right.value;
            number(difference, &signed(difference, digits))
        }
        _ => empty(),
    }
}

fn seeds(mean: &Mean) -> String {
    match mean.seeds {
        1 => String::new(),
        seeds => format!(" ({seeds})"),
    }
}

fn number(value: f64, text: &str) -> Markup {
    html! { td.number data-value=(value.to_string()) { (text) } }
}

fn empty() -> Markup {
    html! { td.number {} }
}

/// How well the ranking of encoders by each spatial metric predicted the ranking of the results.
pub(super) fn ranking(run: &RunFolder) -> Markup {
    let frechet = frechet(run);
    let tables: Vec<(String, Vec<Prediction>)> = groups(run)
        .into_iter()
        .map(|group| (predictions(run, &group, frechet), group.label))
        .filter(|(found, _)| !found.is_empty())
        .map(|(found, label)| (label, found))
        .collect();
    if tables.is_empty() {
        return Markup::default();
    }
    html! {
        @for (label, found) in tables {
            h3 { "The order before training, " (label) }
            div.table {
                table {
                    thead {
                        tr {
                            th { "recipe" }
                            th { "ordered by" }
                            th.number { "encoders" }
                            th.number { "Spearman's \u{3c1}" }
                            th { "95 % interval" }
                            th { "ranked first" }
                            th.number { "actual rank" }
                        }
                    }
                    tbody { @for prediction in found { (prediction_row(&prediction)) } }
                }
            }
        }
        p.note {
            @match &run.ranking {
                Some(ranking) => {
                    "The order is that of " code { "ranking.json" } ", computed on " (ranking.images) " images of "
                    (ranking.data) "."
                }
                None => {
                    "The order is that of the metrics in the table, which need no training; "
                    code { "runner metrics --rank" } " computes it in advance."
                }
            }
            " More spatial structure is expected to lead to a lower " (frechet.title()) ": \u{3c1} is 1 if the results \
             have the predicted order and \u{2212}1 if they have the reverse order."
        }
    }
}

fn prediction_row(prediction: &Prediction) -> Markup {
    let (rho, interval) = match prediction.agreement {
        Agreement::Known {
            rho,
            interval: (low, high),
        } => (
            number(rho, &plain(rho, 2)),
            format!("{} to {}", plain(low, 2), plain(high, 2)),
        ),
        Agreement::TooFew => (empty(), "too few encoders".to_owned()),
        Agreement::Undefined => (empty(), "undefined".to_owned()),
    };
    let (first, place) = &prediction.first;
    let n = prediction.n;
    html! {
        tr {
            td { (prediction.recipe) }
            td { (prediction.metric.name()) }
            (number(n as f64, &n.to_string()))
            (rho)
            td { (interval) }
            td { (first) }
            (number(*place as f64, &format!("{place} of {n}")))
        }
    }
}
