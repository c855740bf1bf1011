//! Writes the HTML page: one self-contained file that needs no network and no scripts to be read.

mod matrix;
mod table;

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use metrics::figures::Figure;

use crate::escape::escape;
use crate::results::Status;

use super::correlation::{LEVEL, MIN_ENCODERS, RESAMPLES};
use super::curve::SMOOTHING;
use super::distinct::distinct;
use super::figures::{frechet, frechet_features};
use super::findings::findings;
use super::number::short;
use super::plots::{Plot, Plots, dark_rules};
use super::run_folder::{Cell, Picture, RunFolder};
use super::words::{capital, counted};

const CSS: &str = include_str!("page.css");
/// Sample grids wider than this, in pixels, take half the page each.
const WIDE_SAMPLE: u32 = 800;
/// If cells were skipped for more reasons than this, the list is collapsed.
const MAX_OPEN_REASONS: usize = 3;
const SORT: &str = include_str!("sort.js");

/// Builds the whole page.
pub(super) fn page(run: &RunFolder, plots: &Plots) -> String {
    let sections: Vec<(&str, &str, String)> = [
        ("findings", "Findings", findings_section(run)),
        ("quality", "Quality", figures(&plots.quality)),
        ("results", "Results", results_section(run)),
        ("convergence", "Convergence", figures(&plots.convergence)),
        (
            "metrics",
            "What predicts quality",
            metrics_section(run, plots),
        ),
        ("samples", "Samples", samples_section(run)),
        ("encoders", "What the encoders see", encoders_section(run)),
        (
            "configurations",
            "Configurations",
            configurations_section(run),
        ),
        ("methods", "Methods", methods_section(run)),
    ]
    .into_iter()
    .filter(|(_, _, body)| !body.is_empty())
    .collect();

    let dark = dark_rules(".plot");
    let mut html = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <link rel=\"icon\" href=\"data:,\">\n<title>{}</title>\n<style>\n{CSS}\
         @media screen and (prefers-color-scheme: dark) {{\n{dark}}}\n</style>\n</head>\n<body>\n",
        escape(&run.name)
    );
    html += &header(run);
    html += "<nav>";
    for (id, title, _) in &sections {
        let _ = write!(html, "<a href=\"#{id}\">{title}</a>");
    }
    html += "</nav>\n</header>\n<main>\n";
    html += &notes(run);
    for (id, title, body) in &sections {
        let _ = write!(
            html,
            "<section id=\"{id}\">\n<h2>{title}</h2>\n{body}</section>\n"
        );
    }
    let _ = write!(
        html,
        "</main>\n<footer>Made from <code>results.csv</code> and the folders of the cells; the \
         plots are also in <code>plots/</code>. Rebuild with <code>runner report</code>.</footer>\n\
         <script>\n{SORT}</script>\n</body>\n</html>\n"
    );
    html
}

fn header(run: &RunFolder) -> String {
    let mut html = format!("<header>\n<h1>{}</h1>\n", escape(&run.name));
    if !run.description.is_empty() {
        let _ = writeln!(html, "<p class=\"lead\">{}</p>", escape(&run.description));
    }
    let mut facts = vec![format!("<strong>{}</strong> done", run.count(Status::Done))];
    let failed = run.count(Status::Failed);
    facts.push(if failed > 0 {
        format!("<strong class=\"bad\">{failed} failed</strong>")
    } else {
        "0 failed".to_owned()
    });
    facts.push(format!("{} skipped", run.count(Status::Skipped)));
    if !run.stale.is_empty() {
        facts.push(format!("{} stale", run.stale.len()));
    }
    let _ = write!(html, "<p class=\"facts\">Cells: {}", facts.join(", "));
    match (&run.started, &run.finished) {
        (Some(started), Some(finished)) if started != finished => {
            let _ = write!(html, " · {} to {}", escape(started), escape(finished));
        }
        (Some(time), _) | (None, Some(time)) => {
            let _ = write!(html, " · {}", escape(time));
        }
        (None, None) => {}
    }
    for hardware in &run.hardware {
        let _ = write!(html, "<br>{}", escape(hardware));
    }
    html + "</p>\n"
}

fn notes(run: &RunFolder) -> String {
    if run.notes.is_empty() {
        return String::new();
    }
    let mut html =
        "<div class=\"notes note\">Some files could not be read; the report uses the rest.\
         <ul>\n"
            .to_owned();
    for note in &run.notes {
        let _ = writeln!(html, "<li>{}</li>", escape(note));
    }
    html + "</ul></div>\n"
}

fn findings_section(run: &RunFolder) -> String {
    let mut html = "<dl class=\"findings\">\n".to_owned();
    for finding in findings(run) {
        let _ = writeln!(
            html,
            "<dt>{}</dt><dd>{}</dd>",
            escape(&finding.topic),
            escape(&finding.text)
        );
    }
    html + "</dl>\n"
}

/// Escapes `text` and marks text between backticks as code.
fn with_code(text: &str) -> String {
    let mut html = String::new();
    let mut parts = text.split('`').peekable();
    let mut code = false;
    while let Some(part) = parts.next() {
        let closed = parts.peek().is_some();
        html += &match (code, closed) {
            (true, true) => format!("<code>{}</code>", escape(part)),
            (true, false) => format!("`{}", escape(part)),
            (false, _) => escape(part),
        };
        code = !code;
    }
    html
}

fn figures(plots: &[Plot]) -> String {
    let mut html = String::new();
    for plot in plots {
        let _ = write!(
            html,
            "<figure>\n<h3>{}</h3>\n<div class=\"plot\">{}</div>\n<figcaption>{}</figcaption>\n</figure>\n",
            escape(&plot.title),
            plot.svg,
            escape(&plot.caption)
        );
    }
    html
}

fn results_section(run: &RunFolder) -> String {
    let mut html = matrix::recipes_by_encoder(run);
    let all = table::results(run);
    if !html.is_empty() && !all.is_empty() {
        html += "<h3>All cells</h3>\n";
    }
    html += &all;
    html += &table::failed(run);
    html += &table::stale(run);
    html += &skipped(run);
    if html.is_empty() {
        html += "<p>The sweep has no cells.</p>\n";
    }
    html
}

/// Skipped cells, one line per reason. Encoders whose reasons differ only in the encoder's name share a line.
fn skipped(run: &RunFolder) -> String {
    const NAME: &str = "NAME";
    let skipped: Vec<(String, &Cell)> = run
        .with_status(Status::Skipped)
        .map(|cell| {
            let (reason, encoder) = (cell.row.reason.trim(), cell.row.encoder.as_str());
            let template = if encoder.is_empty() {
                reason.to_owned()
            } else {
                reason.replace(encoder, NAME)
            };
            (template, cell)
        })
        .collect();
    let mut html = String::new();
    let templates = distinct(skipped.iter().map(|(template, _)| template));
    let folded = templates.len() > MAX_OPEN_REASONS;
    for template in templates {
        let cells = skipped.iter().filter(|(other, _)| other == template);
        let names = distinct(cells.clone().map(|(_, cell)| {
            if cell.row.encoder.is_empty() {
                cell.row.cell.as_str()
            } else {
                cell.row.encoder.as_str()
            }
        }));
        let reason = match (template.as_str(), names.as_slice()) {
            ("", _) => "no reason given".to_owned(),
            (template, [name]) => template.replace(NAME, name),
            (template, _) => template.to_owned(),
        };
        let _ = writeln!(
            html,
            "<p class=\"note\"><strong>Skipped</strong> ({}): {}. {}</p>",
            counted(cells.count(), "cell"),
            escape(&names.join(", ")),
            with_code(&capital(&reason))
        );
    }
    if folded {
        return format!(
            "<details><summary>{} skipped</summary>\n{html}</details>\n",
            counted(skipped.len(), "cell")
        );
    }
    html
}

fn samples_section(run: &RunFolder) -> String {
    let frechet = frechet(run);
    let mut html = String::new();
    for cell in &run.cells {
        let Some(sample) = &cell.sample else { continue };
        let row = &cell.row;
        let mut lines: Vec<String> = [frechet, Figure::DenoisingLoss]
            .into_iter()
            .filter_map(|figure| Some(format!("{} {}", figure.title(), short(row.finite(figure)?))))
            .collect();
        lines.push(sample.file_name.clone());
        let status = match row.status {
            Status::Done => "",
            Status::Failed => " (failed)",
            Status::Skipped => " (skipped)",
            Status::Stale => " (stale)",
        };
        let _ = writeln!(
            html,
            "<figure>{}<figcaption><strong>{}</strong>{status}<br>{}</figcaption></figure>",
            image(sample, &format!("Samples of {}", row.cell)),
            escape(&row.cell),
            escape(&lines.join("\n")).replace('\n', "<br>"),
        );
    }
    if html.is_empty() {
        return html;
    }
    let samples = run.cells.iter().filter_map(|cell| cell.sample.as_ref());
    let class = match samples.map(|sample| sample.width).max() {
        Some(width) if width > WIDE_SAMPLE => "samples wide",
        _ => "samples",
    };
    format!(
        "<p class=\"note\">The newest samples of each cell.</p>\n\
         <div class=\"{class}\">\n{html}</div>\n"
    )
}

fn metrics_section(run: &RunFolder, plots: &Plots) -> String {
    figures(&plots.metrics) + &matrix::ranking(run)
}

fn encoders_section(run: &RunFolder) -> String {
    let mut html = String::new();
    for sheet in &run.sheets {
        let _ = writeln!(
            html,
            "<figure><h3>{}</h3>{}</figure>",
            escape(&sheet.encoder),
            image(&sheet.picture, &format!("Maps of {}", sheet.encoder))
        );
    }
    if html.is_empty() {
        return html;
    }
    format!(
        "<p class=\"note\">Cosine similarity of each patch token to the marked patch, and the \
         first three principal components as colours, for the unchanged tokens and after spatial \
         normalisation.</p>\n<div class=\"sheets\">\n{html}</div>\n"
    )
}

/// An `<img>` element that contains the picture.
fn image(picture: &Picture, description: &str) -> String {
    format!(
        "<img width=\"{}\" height=\"{}\" alt=\"{}\" src=\"data:image/png;base64,{}\">",
        picture.width,
        picture.height,
        escape(description),
        BASE64.encode(&picture.png)
    )
}

/// The hash of each cell's inputs, and its configuration, collapsed.
fn configurations_section(run: &RunFolder) -> String {
    let mut hashes = String::new();
    let mut html = String::new();
    for cell in &run.cells {
        let id = escape(&cell.row.cell);
        if let Some(hash) = &cell.hash {
            let _ = writeln!(
                hashes,
                "<tr><td>{id}</td><td><code>{}</code></td></tr>",
                escape(hash)
            );
        }
        if let Some(config) = &cell.config {
            let _ = writeln!(
                html,
                "<details><summary><code>{id}</code></summary><pre>{}</pre></details>",
                escape(config)
            );
        }
    }
    if !hashes.is_empty() {
        html += &format!(
            "<div class=\"table\"><table>\n<thead><tr><th>cell</th><th>hash of configuration, \
             data set and encoder files</th></tr></thead>\n<tbody>\n{hashes}</tbody></table></div>\n"
        );
    }
    html
}

fn methods_section(run: &RunFolder) -> String {
    let frechet = frechet(run);
    let features = match frechet_features(run, frechet) {
        Some(features) => format!("on {} features", escape(&features)),
        None => "on the features named in the table".to_owned(),
    };
    format!(
        "<p>An aligned cell is compared with the cell without alignment that has the same model, \
         variant and seed. Both are trained on the same samples in the same order.</p>\n\
         <p>Curves are smoothed by an exponential moving average over training steps with a time \
         constant of {} % of the run, computed forwards and backwards so that they do not lag. Losses in the table are \
         those that the cell recorded and are not smoothed here.</p>\n\
         <p>Frechet distances are computed {features}, between generated and real images; they \
         depend on the number of images and are comparable only within this report. LDS, CDS, SRSS and \
         RMSC describe the spatial structure of the encoder's patch tokens; higher means more \
         of it. Linear probes are softmax regressions on the mean patch token; their accuracy is measured \
         on held-out images.</p>\n\
         <p>Correlations are Pearson's r over encoders. Each encoder is first averaged over its seeds, \
         each recipe is treated separately, and at least {MIN_ENCODERS} encoders are required. Intervals are \
         {:.0} % percentile bootstrap intervals with {RESAMPLES} resamples of encoders and a fixed seed. The \
         encoders are few and not a random sample, so the intervals describe only this selection. The order \
         before training is compared with the results by Spearman's rank correlation, with the same bootstrap.</p>\n\
         <p>In the table, the best value of each column among the cells of one model and variant is \
         bold.</p>\n",
        SMOOTHING * 100.0,
        LEVEL * 100.0,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_is_escaped() {
        assert_eq!(
            escape("<a href='x'>\"&\"</a>\u{1b}"),
            "&lt;a href=&#39;x&#39;&gt;&quot;&amp;&quot;&lt;/a&gt;\u{fffd}"
        );
    }

    #[test]
    fn text_between_backticks_is_code() {
        assert_eq!(with_code("run `a<b` now"), "run <code>a&lt;b</code> now");
        assert_eq!(with_code("one ` alone"), "one ` alone");
    }
}
