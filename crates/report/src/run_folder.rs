//! Reads the folder of a sweep. Only `results.csv` must be valid: any other file that is missing or damaged becomes a
//! note, and the report uses the rest.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::ranking::Ranking;
use crate::results::{ResultRow, ResultsError, Status, read_csv};

use super::distinct::distinct;
use super::logged_step::{LoggedStep, parse_log};
use super::time;

/// Maximum size of a picture on the page, which should be small enough to be sent by e-mail.
const MAX_SAMPLE_BYTES: usize = 4 << 20;

/// The contents of a run folder that the report uses.
#[derive(Debug)]
pub(super) struct RunFolder {
    pub name: String,
    pub description: String,
    /// The cells in the order of `results.csv`, except stale ones.
    pub cells: Vec<Cell>,
    /// The rows of cells whose results have other settings.
    pub stale: Vec<ResultRow>,
    /// Number of cells of the plan that have no row yet.
    pub pending: usize,
    /// Distinct `hardware` lines of the cells' `result.json`.
    pub hardware: Vec<String>,
    /// The earliest start of a cell, as text.
    pub started: Option<String>,
    /// The latest end of a cell, as text.
    pub finished: Option<String>,
    /// The sheets of token maps, in the order of each encoder's first cell.
    pub sheets: Vec<Sheet>,
    /// The ranking of encoders from before the sweep, if there is one.
    pub ranking: Option<Ranking>,
    /// Files that could not be read, and other problems, one sentence each.
    pub notes: Vec<String>,
}

/// The sheet of an encoder's token maps.
#[derive(Debug)]
pub(super) struct Sheet {
    pub encoder: String,
    pub picture: Picture,
}

/// One cell with the contents of its folder.
#[derive(Debug)]
pub(super) struct Cell {
    pub row: ResultRow,
    /// The logged steps in ascending order.
    pub curve: Vec<LoggedStep>,
    /// The newest picture of samples.
    pub sample: Option<Picture>,
    pub config: Option<String>,
    /// Hash of configuration, data set and encoder files.
    pub hash: Option<String>,
}

/// A picture, such as the newest in a cell's `samples` folder.
#[derive(Debug)]
pub(super) struct Picture {
    pub file_name: String,
    pub png: Vec<u8>,
    pub width: u32,
    pub height: u32,
}

#[derive(Debug, Default, Deserialize)]
struct ResultJson {
    #[serde(default)]
    hash: Option<String>,
    #[serde(default)]
    hardware: Option<String>,
    #[serde(default)]
    started_at: Option<serde_json::Value>,
    #[serde(default)]
    finished_at: Option<serde_json::Value>,
}

impl RunFolder {
    /// Reads the run folder `run_dir`.
    pub fn read(run_dir: &Path) -> Result<Self, ResultsError> {
        let rows = read_csv(&run_dir.join("results.csv"))?;
        let mut notes = Vec::new();
        let plan = Plan::read(run_dir, &mut notes);
        let mut hardware = BTreeSet::new();
        let (mut starts, mut ends) = (BTreeSet::new(), BTreeSet::new());
        let mut seen = BTreeSet::new();
        let mut cells = Vec::with_capacity(rows.len());
        let mut stale = Vec::new();
        for row in rows {
            if !seen.insert(row.cell.clone()) {
                notes.push(format!(
                    "results.csv: cell `{}` appears more than once",
                    row.cell
                ));
            }
            if row.status == Status::Stale {
                stale.push(row);
                continue;
            }
            let mut folder = CellFolder::of(run_dir, &row, &mut notes);
            let result = folder.result();
            hardware.extend(result.hardware.filter(|line| !line.trim().is_empty()));
            starts.extend(result.started_at.as_ref().and_then(time::readable));
            ends.extend(result.finished_at.as_ref().and_then(time::readable));
            let curve = folder.curve();
            let sample = folder.sample();
            let config = folder.config();
            cells.push(Cell {
                row,
                curve,
                sample,
                config,
                hash: result.hash,
            });
        }
        let pending = plan.cells.iter().filter(|id| !seen.contains(*id)).count();
        let encoders = cells.iter().map(|cell: &Cell| cell.row.encoder.as_str());
        let sheets = distinct(encoders)
            .into_iter()
            .filter_map(|encoder| read_sheet(run_dir, encoder, &mut notes))
            .collect();
        Ok(RunFolder {
            name: plan.name,
            description: plan.description,
            pending,
            sheets,
            ranking: read_ranking(run_dir, &mut notes),
            cells,
            stale,
            hardware: hardware.into_iter().collect(),
            started: starts.pop_first(),
            finished: ends.pop_last(),
            notes,
        })
    }

    pub fn count(&self, status: Status) -> usize {
        self.with_status(status).count()
    }

    pub fn with_status(&self, status: Status) -> impl Iterator<Item = &Cell> {
        self.cells
            .iter()
            .filter(move |cell| cell.row.status == status)
    }
}

/// What the report needs of `plan.toml`.
struct Plan {
    name: String,
    description: String,
    /// Ids of the cells.
    cells: Vec<String>,
}

impl Plan {
    fn read(run_dir: &Path, notes: &mut Vec<String>) -> Self {
        let folder_name = || {
            let name = run_dir.file_name();
            name.map_or_else(
                || "sweep".into(),
                |name| name.to_string_lossy().into_owned(),
            )
        };
        let plan = match fs::read_to_string(run_dir.join("plan.toml")) {
            Ok(text) => text.parse::<toml::Table>().unwrap_or_else(|error| {
                notes.push(format!("plan.toml: {}", error.message()));
                toml::Table::new()
            }),
            Err(error) => {
                notes.push(format!("plan.toml: {error}"));
                toml::Table::new()
            }
        };
        let text = |key: &str| {
            let value = plan.get(key)?.as_str()?.trim();
            (!value.is_empty()).then(|| value.to_owned())
        };
        let cells = plan.get("cell").and_then(toml::Value::as_array);
        let ids = cells.into_iter().flatten();
        Self {
            name: text("name").unwrap_or_else(folder_name),
            description: text("description").unwrap_or_default(),
            cells: ids
                .filter_map(|cell| Some(cell.get("id")?.as_str()?.to_owned()))
                .collect(),
        }
    }
}

/// Returns the path of the sheet of `encoder` in a run folder.
pub fn encoder_sheet(run_dir: &Path, encoder: &str) -> PathBuf {
    // A `/` in the name of an encoder must not lead outside the folder.
    let name = encoder.replace(['/', '\\'], "-");
    run_dir.join("encoders").join(format!("{name}.png"))
}

fn read_sheet(run_dir: &Path, encoder: &str, notes: &mut Vec<String>) -> Option<Sheet> {
    let path = encoder_sheet(run_dir, encoder);
    let png = fs::read(&path).ok()?;
    let file = format!("encoders/{}", path.file_name()?.to_string_lossy());
    match picture(file.clone(), png) {
        Ok(picture) => Some(Sheet {
            encoder: encoder.to_owned(),
            picture,
        }),
        Err(problem) => {
            notes.push(format!("{file}: {problem}"));
            None
        }
    }
}

fn read_ranking(run_dir: &Path, notes: &mut Vec<String>) -> Option<Ranking> {
    let bytes = fs::read(run_dir.join("ranking.json")).ok()?;
    match serde_json::from_slice(&bytes) {
        Ok(ranking) => Some(ranking),
        Err(error) => {
            notes.push(format!("ranking.json: {error}"));
            None
        }
    }
}

/// Reads a PNG and checks its size; an error describes the problem.
fn picture(file_name: String, png: Vec<u8>) -> Result<Picture, String> {
    if png.len() > MAX_SAMPLE_BYTES {
        return Err(format!(
            "omitted from the report: {} MiB (limit: {} MiB)",
            png.len() >> 20,
            MAX_SAMPLE_BYTES >> 20
        ));
    }
    let picture = image::load_from_memory_with_format(&png, image::ImageFormat::Png);
    let picture = picture.map_err(|error| error.to_string())?;
    Ok(Picture {
        file_name,
        width: picture.width(),
        height: picture.height(),
        png,
    })
}

/// One folder below `cells/`, and the list of notes for its problems.
struct CellFolder<'a> {
    /// `None` if the cell has no folder, or its id is not a plain folder name.
    path: Option<PathBuf>,
    id: &'a str,
    status: Status,
    notes: &'a mut Vec<String>,
}

impl<'a> CellFolder<'a> {
    fn of(run_dir: &Path, row: &'a ResultRow, notes: &'a mut Vec<String>) -> Self {
        let id = row.cell.as_str();
        // An id such as `../x` must not make the report read outside the run folder.
        let plain = Path::new(id).file_name() == Some(id.as_ref());
        if !plain {
            notes.push(format!("results.csv: `{id}` is not the name of a folder"));
        }
        let path = run_dir.join("cells").join(id);
        let path = (plain && path.is_dir()).then_some(path);
        if path.is_none() && plain && row.status == Status::Done {
            notes.push(format!("cells/{id}: the folder is missing"));
        }
        CellFolder {
            path,
            id,
            status: row.status,
            notes,
        }
    }

    fn note(&mut self, file: &str, problem: impl std::fmt::Display) {
        self.notes
            .push(format!("cells/{}/{file}: {problem}", self.id));
    }

    /// Reads the bytes of `file`. A missing file is noted only if it is `expected` and the cell has finished.
    fn read(&mut self, file: &str, expected: bool) -> Option<Vec<u8>> {
        match fs::read(self.path.as_ref()?.join(file)) {
            Ok(bytes) => Some(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if expected && self.status == Status::Done {
                    self.note(file, "missing");
                }
                None
            }
            Err(error) => {
                self.note(file, error);
                None
            }
        }
    }

    fn result(&mut self) -> ResultJson {
        let Some(bytes) = self.read("result.json", false) else {
            return ResultJson::default();
        };
        serde_json::from_slice(&bytes).unwrap_or_else(|error| {
            self.note("result.json", error);
            ResultJson::default()
        })
    }

    fn config(&mut self) -> Option<String> {
        let bytes = self.read("config.toml", true)?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn curve(&mut self) -> Vec<LoggedStep> {
        let Some(bytes) = self.read("metrics.jsonl", true) else {
            return Vec::new();
        };
        let parsed = parse_log(&bytes);
        if let Some(line) = parsed.incomplete {
            self.note(
                "metrics.jsonl",
                format_args!("the last line ({line}) is incomplete and was ignored"),
            );
        }
        if let Some(first) = parsed.unreadable.first() {
            self.note(
                "metrics.jsonl",
                format_args!(
                    "{} unreadable lines were ignored, the first is line {first}",
                    parsed.unreadable.len()
                ),
            );
        }
        parsed.steps
    }

    fn sample(&mut self) -> Option<Picture> {
        let folder = self.path.as_ref()?.join("samples");
        let mut names: Vec<String> = match fs::read_dir(&folder) {
            Ok(entries) => entries
                .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
                .filter(|name| name.ends_with(".png") && !name.starts_with('.'))
                .collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                self.note("samples", error);
                return None;
            }
        };
        // The folder may also contain individual images; grids have `grid` in their names.
        if names.iter().any(|name| name.contains("grid")) {
            names.retain(|name| name.contains("grid"));
        }
        let file_name = names.into_iter().max()?;
        let file = format!("samples/{file_name}");
        let png = self.read(&file, true)?;
        match picture(file_name, png) {
            Ok(sample) => Some(sample),
            Err(problem) => {
                self.note(&file, problem);
                None
            }
        }
    }
}
