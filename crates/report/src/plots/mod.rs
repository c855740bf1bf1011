//! Draws the plots of a report as SVG, with text in the reader's sans-serif font.
//!
//! Colours are plain attributes, so that any program can show the files. On a dark page, style rules replace them
//! ([`dark_rules`]).

mod axis;
mod canvas;
mod convergence;
mod labels;
mod models;
mod multiples;
mod overview;
mod panel;
mod quality;
mod recipes;
mod scatter;

pub(super) use canvas::{DrawError, dark_rules};

use super::comparison::groups;
use super::figures::{frechet, frechet_features};
use super::run_folder::RunFolder;
use recipes::Recipes;

/// Width of a full picture, in pixels.
const WIDTH: f64 = 1040.0;
const STEP_TITLE: &str = "training step";

/// One plot.
#[derive(Debug)]
pub(super) struct Plot {
    /// Name of the file in `plots/`, without `.svg`.
    pub file_stem: String,
    pub title: String,
    pub caption: String,
    /// An `<svg>` element.
    pub svg: String,
}

impl Plot {
    /// The plot as an independent file that follows the reader's dark mode.
    pub fn standalone(&self) -> String {
        let style = format!(
            "<style>@media (prefers-color-scheme: dark) {{ {} }}</style>",
            dark_rules("svg")
        );
        match self.svg.split_once('>') {
            Some((tag, rest)) => format!("{tag}>{style}{rest}\n"),
            None => self.svg.clone(),
        }
    }
}

/// The plots of a run by section of the report.
#[derive(Debug, Default)]
pub(super) struct Plots {
    /// The models and variants beside each other, if there are several.
    pub models: Vec<Plot>,
    /// Small plots for the first screen.
    pub overview: Vec<Plot>,
    pub quality: Vec<Plot>,
    pub convergence: Vec<Plot>,
    pub metrics: Vec<Plot>,
}

impl Plots {
    /// Draws all plots for which `run` has data.
    pub fn draw(run: &RunFolder) -> Result<Self, DrawError> {
        let recipes = Recipes::of(run);
        let groups = groups(run);
        let mut plots = Plots::default();
        plots.models.extend(models::plot(run, &groups, &recipes)?);
        for group in groups {
            // A single encoder says nothing about what predicts quality. Its point is in the detailed plots.
            if plots.models.is_empty() || group.encoders().len() > 1 {
                let plot = overview::plots(run, &group, &recipes)?;
                plots.overview.extend(plot);
            }
            plots.quality.extend(quality::plot(run, &group, &recipes)?);
            for quantity in [convergence::LOSS, convergence::DISTANCE] {
                let plot = convergence::plot(&quantity, &group, &recipes)?;
                plots.convergence.extend(plot);
            }
            plots
                .convergence
                .extend(multiples::differences(&group, &recipes)?);
            plots
                .convergence
                .extend(multiples::alignment_losses(&group, &recipes)?);
            plots.metrics.extend(scatter::plot(run, &group, &recipes)?);
        }
        Ok(plots)
    }

    /// All plots, in the order of the report.
    pub fn all(&self) -> impl Iterator<Item = &Plot> {
        self.models
            .iter()
            .chain(&self.overview)
            .chain(&self.quality)
            .chain(&self.convergence)
            .chain(&self.metrics)
    }
}

/// The axis title of the run's Frechet distance, with its features.
fn frechet_title(run: &RunFolder) -> String {
    let frechet = frechet(run);
    match frechet_features(run, frechet) {
        Some(features) => format!("{}, {features} features", frechet.title()),
        None => frechet.title().to_owned(),
    }
}
