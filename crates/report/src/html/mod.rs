//! Writes the HTML page: one self-contained file that needs no network and no scripts to be read.

mod matrix;
mod samples;
mod skipped;
mod table;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::correlation::{LEVEL, MIN_ENCODERS, RESAMPLES};
use super::curve::SMOOTHING;
use super::figures::{frechet, frechet_features};
use super::findings::findings;
use super::markup::printable;
use super::plots::{Plot, Plots, dark_rules};
use super::run_folder::{Picture, RunFolder};
use crate::results::Status;

const CSS: &str = include_str!("page.css");
const SORT: &str = include_str!("sort.js");

/// Builds the whole page.
pub(super) fn page(run: &RunFolder, plots: &Plots) -> String {
    let sections = [
        ("models", "Alignment by model", figures(&plots.models)),
        (
            "overview",
            "What predicts quality",
            overview(&plots.overview),
        ),
        ("findings", "Findings", findings_section(run)),
        ("quality", "Quality", figures(&plots.quality)),
        ("results", "Results", results_section(run)),
        ("convergence", "Convergence", figures(&plots.convergence)),
        (
            "metrics",
            "What predicts quality, in detail",
            html! { (figures(&plots.metrics)) (matrix::ranking(run)) },
        ),
        ("samples", "Samples", samples::section(run)),
        ("encoders", "What the encoders see", encoders_section(run)),
        (
            "configurations",
            "Configurations",
            configurations_section(run),
        ),
        ("methods", "Methods", methods_section(run)),
    ];
    let sections = || {
        let sections = sections.iter();
        sections.filter(|(_, _, body)| !body.0.is_empty())
    };
    let dark = dark_rules(".plot");
    let dark = format!("@media screen and (prefers-color-scheme: dark) {{\n{dark}}}\n");
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                link rel="icon" href="data:,";
                title { (run.name) }
                style { (PreEscaped(CSS)) (PreEscaped(dark)) }
            }
            body {
                header {
                    (header(run))
                    nav {
                        @for (id, title, _) in sections() { a href={ "#" (id) } { (title) } }
                    }
                }
                main {
                    (notes(run))
                    @for (id, title, body) in sections() {
                        section id=(id) { h2 { (title) } (body) }
                    }
                }
                footer {
                    "Made from " code { "results.csv" } " and the folders of the cells; the plots are also in "
                    code { "plots/" } ". Rebuild with " code { "runner report" } "."
                }
                script { (PreEscaped(SORT)) }
            }
        }
    };
    printable(&page.into_string())
}

fn header(run: &RunFolder) -> Markup {
    let failed = run.count(Status::Failed);
    html! {
        h1 { (run.name) }
        @if !run.description.is_empty() { p.lead { (run.description) } }
        p.facts {
            "Cells: " strong { (run.count(Status::Done)) } " done, "
            @if failed > 0 { strong.bad { (failed) " failed" } } @else { "0 failed" }
            ", " (run.count(Status::Skipped)) " skipped"
            @if run.pending > 0 { ", " strong { (run.pending) " not run yet" } }
            @if !run.stale.is_empty() { ", " (run.stale.len()) " stale" }
            @match (&run.started, &run.finished) {
                (Some(started), Some(finished)) if started != finished => {
                    " · " (started) " to " (finished)
                }
                (Some(time), _) | (None, Some(time)) => { " · " (time) }
                (None, None) => {}
            }
            @for hardware in &run.hardware { br; (hardware) }
        }
    }
}

fn notes(run: &RunFolder) -> Markup {
    html! {
        @if !run.notes.is_empty() {
            div class="notes note" {
                "Some files could not be read; the report uses the rest."
                ul { @for note in &run.notes { li { (note) } } }
            }
        }
    }
}

fn findings_section(run: &RunFolder) -> Markup {
    html! {
        dl.findings {
            @for finding in findings(run) { dt { (finding.topic) } dd { (finding.text) } }
        }
    }
}

/// Small plots beside each other, as many as fit.
fn overview(plots: &[Plot]) -> Markup {
    html! {
        @if !plots.is_empty() {
            div.overview { @for plot in plots { div.plot { (PreEscaped(&plot.svg)) } } }
            p.note {
                "One point per encoder and recipe; lower distances are better. Brackets contain the 95 % bootstrap \
                 interval of Pearson's r over encoders. The names of the points are "
                a href="#metrics" { "below" } "."
            }
        }
    }
}

fn figures(plots: &[Plot]) -> Markup {
    html! {
        @for plot in plots {
            figure {
                h3 { (plot.title) }
                div.plot { (PreEscaped(&plot.svg)) }
                figcaption { (plot.caption) }
            }
        }
    }
}

fn results_section(run: &RunFolder) -> Markup {
    let by_encoder = matrix::recipes_by_encoder(run);
    let all = table::results(run);
    let needs_heading = !by_encoder.0.is_empty() && !all.0.is_empty();
    let section = html! {
        (by_encoder)
        @if needs_heading { h3 { "All cells" } }
        (all)
        (table::failed(run))
        (table::stale(run))
        (skipped::skipped(run))
    };
    match section.0.is_empty() {
        true => html! { p { "The sweep has no cells." } },
        false => section,
    }
}

fn encoders_section(run: &RunFolder) -> Markup {
    html! {
        @if !run.sheets.is_empty() {
            p.note {
                "Cosine similarity of each patch token to the marked patch, and the first three principal components \
                 as colours, for the unchanged tokens and after spatial normalisation."
            }
            div.sheets {
                @for sheet in &run.sheets {
                    figure {
                        h3 { (sheet.encoder) }
                        (image(&sheet.picture, &format!("Maps of {}", sheet.encoder)))
                    }
                }
            }
        }
    }
}

/// An `<img>` element that contains the picture.
fn image(picture: &Picture, description: &str) -> Markup {
    let data = BASE64.encode(&picture.png);
    html! {
        img width=(picture.width) height=(picture.height) alt=(description)
            src={ "data:image/png;base64," (PreEscaped(data)) };
    }
}

/// The hash of each cell's inputs, and its configuration, collapsed.
fn configurations_section(run: &RunFolder) -> Markup {
    let hashes: Vec<(&str, &str)> = run
        .cells
        .iter()
        .filter_map(|cell| Some((cell.row.cell.as_str(), cell.hash.as_deref()?)))
        .collect();
    html! {
        @for cell in &run.cells {
            @if let Some(config) = &cell.config {
                details { summary { code { (cell.row.cell) } } pre { (config) } }
            }
        }
        @if !hashes.is_empty() {
            div.table {
                table {
                    thead {
                        tr { th { "cell" } th { "hash of configuration, data set and encoder files" } }
                    }
                    tbody {
                        @for (cell, hash) in hashes { tr { td { (cell) } td { code { (hash) } } } }
                    }
                }
            }
        }
    }
}

fn methods_section(run: &RunFolder) -> Markup {
    let features = match frechet_features(run, frechet(run)) {
        Some(features) => format!("on {features} features"),
        None => "on the features named in the table".to_owned(),
    };
    html! {
        p {
            "An aligned cell is compared with the cell without alignment that has the same model, variant and seed. Both \
             are trained on the same samples in the same order."
        }
        p {
            "Curves are smoothed by an exponential moving average over training steps with a time constant of "
            (SMOOTHING * 100.0) " % of the run, computed forwards and backwards so that they do not lag. Losses in the \
             table are those that the cell recorded and are not smoothed here."
        }
        p {
            "Frechet distances are computed " (features) ", between generated and real images; they depend on the \
             number of images and are comparable only within this report. LDS, CDS, SRSS and RMSC describe the spatial \
             structure of the encoder's patch tokens; higher means more of it. Linear probes are softmax regressions on \
             the mean patch token; their accuracy is measured on held-out images."
        }
        p {
            "Correlations are Pearson's r over encoders. Each encoder is first averaged over its seeds, each recipe is \
             treated separately, and at least " (MIN_ENCODERS) " encoders are required. Intervals are "
            (format!("{:.0}", LEVEL * 100.0)) " % percentile bootstrap intervals with " (RESAMPLES) " resamples of \
             encoders and a fixed seed. The encoders are few and not a random sample, so the intervals describe only \
             this selection. The order before training is compared with the results by Spearman's rank correlation, \
             with the same bootstrap."
        }
        p {
            "In the table, the best value of each column among the cells of one model and variant is bold."
        }
    }
}
