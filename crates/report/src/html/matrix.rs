//! Tables of encoders by recipes, and of the ranking of encoders before training.

use std::fmt::Write as _;

use metrics::figures::Figure;

use crate::comparison::{Group, Mean, groups};
use crate::correlation::{Agreement, predictions};
use crate::escape::escape;
use crate::figures::frechet;
use crate::number::{decimals, plain, signed};
use crate::run_folder::RunFolder;
use crate::words::capital;

/// One table per group and metric, with one row per encoder and one column per recipe. The better recipe is marked.
pub(super) fn recipes_by_encoder(run: &RunFolder) -> String {
    let mut html = String::new();
    for group in groups(run) {
        for figure in [frechet(run), Figure::DenoisingLoss] {
            html += &table(&group, figure);
        }
    }
    if html.is_empty() {
        return html;
    }
    html + "<p class=\"note\">The better recipe of each encoder is bold and marked \u{25cf}. \
            If there are several seeds, the value is their mean and their number is in parentheses. \
            Differences smaller than those between seeds are not meaningful.</p>\n"
}

fn table(group: &Group<'_>, figure: Figure) -> String {
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
        return String::new();
    }
    let baseline = group.baseline_mean(figure);
    let values = rows.iter().flat_map(|(_, means)| means).flatten();
    let digits = decimals(values.chain(&baseline).map(|mean| mean.value));
    let mut html = format!(
        "<h3>{}, {}</h3>\n<div class=\"table\"><table class=\"matrix\">\n<thead><tr><th>encoder</th>",
        escape(&capital(figure.title())),
        escape(&group.label)
    );
    for recipe in &recipes {
        let _ = write!(html, "<th class=\"number\">{}</th>", escape(recipe));
    }
    let pair = match recipes.as_slice() {
        [left, right] => {
            let _ = write!(
                html,
                "<th class=\"number\">{} \u{2212} {}</th>",
                escape(left),
                escape(right)
            );
            true
        }
        _ => false,
    };
    html += "</tr></thead>\n<tbody>\n";
    for (encoder, means) in &rows {
        let _ = write!(html, "<tr><td>{}</td>", escape(encoder));
        for mean in means {
            html += &cell(mean.as_ref(), means, figure, digits);
        }
        if pair {
            html += &match means.as_slice() {
                [Some(left), Some(right)] => {
                    let difference = left.value - right.value;
                    number(difference, &signed(difference, digits), "")
                }
                _ => "<td class=\"number\"></td>".to_owned(),
            };
        }
        html += "</tr>\n";
    }
    html += "</tbody></table></div>\n";
    if let Some(baseline) = baseline {
        let _ = writeln!(
            html,
            "<p class=\"note\">Baseline without alignment: {}{}.</p>",
            plain(baseline.value, digits),
            seeds(&baseline)
        );
    }
    html
}

fn cell(mean: Option<&Mean>, row: &[Option<Mean>], figure: Figure, digits: usize) -> String {
    let Some(mean) = mean else {
        return "<td class=\"number\"></td>".to_owned();
    };
    let others: Vec<f64> = row.iter().flatten().map(|other| other.value).collect();
    let beaten = others
        .iter()
        .any(|other| figure.improves(*other, mean.value));
    let differs = others.iter().any(|other| *other != mean.value);
    let text = format!("{}{}", plain(mean.value, digits), seeds(mean));
    if differs && !beaten {
        number(mean.value, &format!("\u{25cf} {text}"), " best")
    } else {
        number(mean.value, &text, "")
    }
}

fn seeds(mean: &Mean) -> String {
    match mean.seeds {
        1 => String::new(),
        seeds => format!(" ({seeds})"),
    }
}

fn number(value: f64, text: &str, class: &str) -> String {
    format!("<td class=\"number{class}\" data-value=\"{value}\">{text}</td>")
}

/// How well the ranking of encoders by each spatial metric predicted the ranking of the results.
pub(super) fn ranking(run: &RunFolder) -> String {
    let frechet = frechet(run);
    let mut html = String::new();
    for group in groups(run) {
        let found = predictions(run, &group, frechet);
        if found.is_empty() {
            continue;
        }
        let _ = writeln!(
            html,
            "<h3>The order before training, {}</h3>\n<div class=\"table\"><table>\n<thead><tr>\
             <th>recipe</th><th>ordered by</th><th class=\"number\">encoders</th>\
             <th class=\"number\">Spearman's \u{3c1}</th><th>95 % interval</th>\
             <th>ranked first</th><th class=\"number\">actual rank</th></tr></thead>\n<tbody>",
            escape(&group.label)
        );
        for prediction in found {
            let (rho, interval) = match prediction.agreement {
                Agreement::Known { rho, interval } => (
                    number(rho, &plain(rho, 2), ""),
                    match interval {
                        Some((low, high)) => format!("{} to {}", plain(low, 2), plain(high, 2)),
                        None => "none".to_owned(),
                    },
                ),
                Agreement::TooFew => (
                    "<td class=\"number\"></td>".to_owned(),
                    "too few encoders".to_owned(),
                ),
                Agreement::Undefined => (
                    "<td class=\"number\"></td>".to_owned(),
                    "all values equal".to_owned(),
                ),
            };
            let (first, place) = prediction.first;
            let _ = writeln!(
                html,
                "<tr><td>{}</td><td>{}</td>{}{rho}<td>{interval}</td><td>{}</td>{}</tr>",
                escape(&prediction.recipe),
                prediction.metric,
                number(prediction.n as f64, &prediction.n.to_string(), ""),
                escape(&first),
                number(place as f64, &format!("{place} of {}", prediction.n), ""),
            );
        }
        html += "</tbody></table></div>\n";
    }
    if html.is_empty() {
        return html;
    }
    let source = match &run.ranking {
        Some(ranking) => format!(
            "The order is that of <code>ranking.json</code>, computed on {} images of {}.",
            ranking.images,
            escape(&ranking.data)
        ),
        None => "The order is that of the metrics in the table, which need no training; \
                 <code>runner metrics --rank</code> computes it in advance."
            .to_owned(),
    };
    html + &format!(
        "<p class=\"note\">{source} More spatial structure is expected to lead to a lower {}: \u{3c1} is 1 \
         if the results have the predicted order and \u{2212}1 if they have the reverse order.</p>\n",
        escape(frechet.title())
    )
}
