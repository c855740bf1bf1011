//! Turns the folder of a sweep into tables, plots and an HTML page, without libtorch.
//!
//! [`results`] reads and writes `results.csv`, [`ranking`] ranks encoders by spatial metrics, [`image_grid`] writes pictures
//! of many images, and [`markup`] helps to write SVG.
//!
//! The report of a sweep is `report.html`, one self-contained page, and `plots/*.svg`.
//!
//! [`build`] reads only the run folder, so the same folder yields the same bytes. Only `results.csv` must be valid. Other
//! files that are missing or damaged are listed in [`Report::notes`] and on the page, and the report uses the rest:
//!
//! | file | used for |
//! |---|---|
//! | `results.csv` | the table, the findings, Frechet distances, encoder metrics |
//! | `plan.toml` | `name` and `description` |
//! | `cells/ID/metrics.jsonl` | curves of figures over `step` |
//! | `cells/ID/samples/*.png` | the last picture by name; only pictures with `grid` in their name if there are any |
//! | `encoders/NAME.png` | maps of an encoder's patch tokens |
//! | `ranking.json` | the ranking of encoders by `runner metrics --rank` |
//! | `cells/ID/config.toml` | shown collapsed |
//! | `cells/ID/result.json` | `hash`, `hardware` (text), `started_at` and `finished_at` (text, or seconds since 1970) |

mod comparison;
mod correlation;
mod curve;
mod distinct;
mod figures;
mod findings;
mod html;
pub mod image_grid;
mod logged_step;
pub mod markup;
mod number;
mod plots;
pub mod ranking;
pub mod results;
mod run_folder;
mod time;
mod words;

pub use run_folder::encoder_sheet;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::results::{ResultsError, Status};
use plots::Plots;
use run_folder::RunFolder;

/// The files that [`build`] wrote, and a summary of the run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The page.
    pub html: PathBuf,
    /// The plots, in the order of the page.
    pub plots: Vec<PathBuf>,
    /// Finished cells.
    pub done: usize,
    /// Failed cells.
    pub failed: usize,
    /// Skipped cells.
    pub skipped: usize,
    /// Cells whose results have other settings; they are listed, but appear in no table of results, finding or plot.
    pub stale: usize,
    /// Files that are missing or damaged, one sentence each; also shown on the page.
    pub notes: Vec<String>,
}

/// Why a report could not be built.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// `results.csv` is missing or invalid.
    #[error("a report requires a valid results.csv; run the sweep again to write it")]
    Results(#[from] ResultsError),
    /// A file of the report could not be written.
    #[error("cannot write {}: check that the run folder is writable and has space left", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// The error of the system.
        #[source]
        source: io::Error,
    },
    /// A plot could not be drawn.
    #[error("cannot draw the plots")]
    Draw(#[source] plotters::drawing::DrawingAreaErrorKind<io::Error>),
}

/// Reads the run folder `run_dir` and writes `report.html` and `plots/*.svg` into it. Each file appears complete or not
/// at all.
///
/// # Errors
/// [`ReportError::Results`] if `results.csv` is missing or invalid, [`ReportError::Write`] if the folder is not
/// writable or the disk is full, [`ReportError::Draw`] if a plot cannot be drawn.
///
/// # Example
/// ```
/// use report::results::write_csv;
///
/// let run = tempfile::tempdir()?;
/// write_csv(&run.path().join("results.csv"), &[])?;
/// let report = report::build(run.path())?;
/// assert!(report.html.ends_with("report.html"));
/// assert_eq!(report.done, 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn build(run_dir: &Path) -> Result<Report, ReportError> {
    let run = RunFolder::read(run_dir)?;
    let plots = Plots::draw(&run).map_err(ReportError::Draw)?;

    let folder = run_dir.join("plots");
    fs::create_dir_all(&folder).map_err(|source| ReportError::Write {
        path: folder.clone(),
        source,
    })?;
    let mut written = Vec::new();
    for plot in plots.all() {
        let path = folder.join(format!("{}.svg", plot.file_stem));
        write(&path, &plot.standalone())?;
        written.push(path);
    }
    let page = run_dir.join("report.html");
    write(&page, &html::page(&run, &plots))?;
    Ok(Report {
        html: page,
        plots: written,
        done: run.count(Status::Done),
        failed: run.count(Status::Failed),
        skipped: run.count(Status::Skipped),
        stale: run.stale.len(),
        notes: run.notes,
    })
}

fn write(path: &Path, text: &str) -> Result<(), ReportError> {
    files::write(path, |file| file.write_all(text.as_bytes())).map_err(|source| {
        ReportError::Write {
            path: path.to_owned(),
            source,
        }
    })
}
