//! The sweep engine: plans the cells, groups them into cohorts, runs what is not done, and keeps
//! `results.csv` and the report up to date.

mod active_cell;
mod cohort;
mod failure;
mod latent_source;
mod measures;
mod prefetch;
mod progress;
mod resume;
mod shards;
mod shared;
mod sheet;
mod single;
mod token_source;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use data::{DataError, Dataset};
use encoders::{Inception, Registry};
use files::{Lock, LockError};
use globset::{Glob, GlobMatcher};
use tch::Device;
use thiserror::Error;
use torch_ext::TorchError;
use training::{CheckpointError, SettingEffect};

use crate::autoencoder_files::AutoencoderFiles;
use crate::cell_folder::{CellFolder, CellFolderError, CellResult};
use crate::config_file::ConfigError;
use crate::encoder_bank::{EncoderBank, IdentityError};
use crate::evaluation::{ReferenceClasses, uses_reference_classes};
use crate::experiment::{Cell, DeviceKind, Plan};
use crate::report::{self, ReportError};
use crate::results::{self, ResultRow, ResultsError, Status};
use crate::{errln, outln};
use cohort::{Cohort, Held};
use progress::Progress;

pub use single::{InitialWeights, TrainOptions, train};

/// What `runner sweep` was asked to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// The experiment file.
    pub experiment: PathBuf,
    /// Folder of run folders.
    pub out: PathBuf,
    /// `auto`, `cpu`, `cuda` or `cuda:N`.
    pub device: String,
    /// Only cells whose id matches this glob.
    pub only: Option<String>,
    /// `key=value` settings over every cell.
    pub settings: Vec<String>,
    /// Print the plan, run nothing.
    pub dry_run: bool,
    /// Run the selected cells again from the start; what they had is kept in `before/N`.
    pub fresh: bool,
    /// Only one of several parts of the cells.
    pub shard: Option<Shard>,
    /// Most bytes that the state of cells trained at the same time may take; `None` for most of what is free.
    pub memory_limit: Option<u64>,
}

/// A part of a sweep: `1/3` is the first of three.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// Counted from 0.
    pub index: usize,
    /// Number of parts.
    pub count: usize,
}

/// How a sweep ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The run folder.
    pub folder: PathBuf,
    /// Cells with results.
    pub done: usize,
    /// Cells that failed, with the reason.
    pub failed: Vec<(String, String)>,
    /// Cells that lack something.
    pub skipped: usize,
    /// Cells whose results are of other settings, data or encoders.
    pub stale: usize,
    /// Cells that were run now.
    pub ran: usize,
    /// Whether it was interrupted.
    pub interrupted: bool,
    /// Why no selected cell was run and none has a result.
    pub idle: Option<String>,
}

/// Why a sweep did not start, or could not write its results.
#[derive(Debug, Error)]
pub enum SweepError {
    /// The experiment is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The device cannot be used.
    #[error("--device {name}: {source}")]
    Device {
        /// The name given.
        name: String,
        /// Why not.
        source: TorchError,
    },
    /// The data cannot be opened.
    #[error("{experiment}: `data.path`: {source}", experiment = experiment.display())]
    Data {
        /// The experiment file.
        experiment: PathBuf,
        /// Why not.
        source: Box<DataError>,
    },
    /// The reference images have classes that the training images lack.
    #[error("{experiment}: `data.reference_split`: {source}", experiment = experiment.display())]
    Classes {
        /// The experiment file.
        experiment: PathBuf,
        /// The first difference.
        source: Box<DataError>,
    },
    /// `--only` is no glob, or matches nothing.
    #[error("--only {glob}: {reason}")]
    Only {
        /// The glob.
        glob: String,
        /// What is wrong.
        reason: String,
    },
    /// The run folder cannot be written.
    #[error("cannot write {}: {source}; choose another folder with --out", path.display())]
    Out {
        /// The folder or file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A run was to be continued that does not go on with these settings.
    #[error(
        "{}: {reason}; give it the settings that it was begun with, or start another run with --out (--init \
         takes weights to start from, such as a checkpoint's ema.safetensors)",
        folder.display()
    )]
    Resume {
        /// The run's folder.
        folder: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A file is there and cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A cell's folder cannot be read or written.
    #[error(transparent)]
    Cell(#[from] CellFolderError),
    /// The checkpoints of a run cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// It is not known what a cell's inputs are.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// `results.csv` cannot be written.
    #[error(transparent)]
    Results(#[from] ResultsError),
    /// The report cannot be written.
    #[error(transparent)]
    Report(#[from] ReportError),
}

/// What all cohorts share.
pub(crate) struct Context<'a> {
    pub(crate) device: Device,
    pub(crate) bank: &'a EncoderBank,
    pub(crate) folder: PathBuf,
    pub(crate) progress: Progress,
    pub(crate) interrupted: &'a AtomicBool,
    /// What a new run starts from, if not from drawn weights.
    pub(crate) init: Option<&'a InitialWeights>,
    /// As in [`Options`].
    pub(crate) memory_limit: Option<u64>,
    /// Why cells failed or could not be had, by their ids.
    pub(crate) failures: Mutex<BTreeMap<String, String>>,
}

impl Context<'_> {
    fn note_failure(&self, cell: &str, reason: &str) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.insert(cell.to_owned(), reason.to_owned());
    }

    fn into_failures(self) -> BTreeMap<String, String> {
        let failures = self.failures.into_inner();
        failures.unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }
}

/// A cell with the inputs it was found to have.
pub(crate) struct Planned {
    pub(crate) cell: Cell,
    pub(crate) folder: CellFolder,
    pub(crate) training: Arc<dyn Dataset>,
    pub(crate) reference: Arc<dyn Dataset>,
    /// Data set, encoders and autoencoder, as [`training::Inputs::identity`] wants them.
    pub(crate) identity: String,
    /// Hash of configuration, data, encoders and judge.
    pub(crate) hash: String,
    /// The result that was there when it was planned. One that could not be read is named when the cell is opened.
    pub(crate) found: Option<CellResult>,
    /// Whether the run that is in the folder is to be set aside, once.
    pub(crate) is_fresh: AtomicBool,
}

impl Planned {
    /// How another process ended the cell since it was planned here.
    fn ended_meanwhile(&self) -> Option<ResultRow> {
        let result = self.folder.result().ok().flatten()?;
        let ended = result.hash == self.hash && self.found.as_ref() != Some(&result);
        ended.then_some(result.row)
    }
}

/// Runs a sweep. `interrupted` may be set from a signal handler: every running cell is then
/// saved, and the sweep ends.
///
/// # Errors
/// The experiment, the device, the data or the output folder is wrong; cells that fail are part
/// of the [`Outcome`].
pub fn run(
    options: &Options,
    registry: Registry,
    interrupted: &AtomicBool,
) -> Result<Outcome, SweepError> {
    let device =
        torch_ext::device::resolve(&options.device).map_err(|source| SweepError::Device {
            name: options.device.clone(),
            source,
        })?;
    let kind = match device {
        Device::Cpu => DeviceKind::Cpu,
        _ => DeviceKind::Cuda,
    };
    let only = only(options)?;
    let is_selected = |id: &str| only.as_ref().is_none_or(|only| only.is_match(id));
    let plan = Plan::read_for(
        &options.experiment,
        kind,
        &registry,
        &options.settings,
        &is_selected,
    )?;
    let folder = options.out.join(&plan.name);
    let selected = select(&plan, options, is_selected)?;
    let selected = match options.shard {
        Some(shard) => shards::cells_of(&plan, &selected, shard),
        None => selected,
    };
    let bank = EncoderBank::new(registry, device);
    let mut planned = Vec::new();
    let mut missing: BTreeMap<String, String> = BTreeMap::new();
    let mut hashes: BTreeMap<String, String> = BTreeMap::new();
    let mut datasets = Datasets::default();
    for cell in &plan.cells {
        if let Some(reason) = bank.missing(&cell.config) {
            missing.insert(cell.id.clone(), reason);
            continue;
        }
        let mut prepared = prepare(cell, &folder, &bank, &mut datasets, &options.experiment)?;
        prepared.is_fresh = AtomicBool::new(options.fresh);
        hashes.insert(cell.id.clone(), prepared.hash.clone());
        planned.push(prepared);
    }
    planned.retain(|planned| selected.contains(&planned.cell.id));
    let mut cohorts = Cohort::group(planned);
    let todo = |planned: &Planned| options.fresh || !is_done(planned);
    print_plan(&plan, &cohorts, &missing, &selected, &folder, &todo);
    let wants_inception = |cell: &Cell| !cell.config.evaluate.inception.is_empty();
    if plan.cells.iter().any(wants_inception)
        && let Err(error) = Inception::find(bank.registry(), Inception::NAMES[0])
    {
        errln!("  left empty: fid, sfid, inception_score, precision, recall, kid: {error}");
    }
    if options.dry_run {
        for planned in cohorts.iter().flat_map(|cohort| &cohort.cells) {
            let state = if todo(planned) { "to run" } else { "done" };
            outln!("{}\t{state}", planned.cell.id);
        }
        for id in missing.keys().filter(|id| selected.contains(*id)) {
            outln!("{id}\tskipped");
        }
        return Ok(Outcome {
            folder,
            skipped: missing.len(),
            ..Outcome::default()
        });
    }

    create_run_folder(&folder, &plan, &options.device, &hashes)?;
    let mut ran = 0;
    for cohort in &mut cohorts {
        cohort.cells.retain(&todo);
        ran += cohort.cells.len();
    }
    let context = Context {
        device,
        bank: &bank,
        progress: Progress::new(&cohorts),
        folder: folder.clone(),
        interrupted,
        init: None,
        memory_limit: options.memory_limit,
        failures: Mutex::default(),
    };
    let mut groups: Vec<Vec<&Planned>> = cohorts
        .iter()
        .map(|cohort| cohort.cells.iter().collect())
        .collect();
    while !groups.is_empty() && !context.is_interrupted() {
        let mut held = Vec::new();
        for cells in groups {
            if context.is_interrupted() {
                break;
            }
            let left = cohort::run(&context, cells);
            if !left.is_empty() {
                held.push(left);
            }
            let _lock = lock_results(&folder)?;
            write_results(&folder, &plan, &missing, &hashes)?;
        }
        wait_for_others(&context, &held);
        groups = held
            .into_iter()
            .map(|cells| cells.into_iter().map(|held| held.planned).collect())
            .collect();
    }
    context.progress.finish();
    let lock = lock_results(&folder)?;
    let rows = write_results(&folder, &plan, &missing, &hashes)?;
    report::build(&folder)?;
    drop(lock);
    let mut failed = context.into_failures();
    for row in rows.iter().filter(|row| row.status == Status::Failed) {
        failed.insert(row.cell.clone(), row.reason.clone());
    }
    let count = |status| rows.iter().filter(|row| row.status == status).count();
    let is_done = |id: &String| {
        let mut done = rows.iter().filter(|row| row.status == Status::Done);
        done.any(|row| row.cell == *id)
    };
    let idle = ran == 0 && !selected.is_empty() && !selected.iter().any(is_done);
    let idle = idle.then(|| {
        let reason = selected.iter().find_map(|id| missing.get(id));
        format!(
            "none of the {} selected cells was run: {}",
            selected.len(),
            reason.map_or("they are all skipped", String::as_str)
        )
    });
    Ok(Outcome {
        idle,
        done: count(Status::Done),
        skipped: count(Status::Skipped),
        stale: count(Status::Stale),
        failed: failed.into_iter().collect(),
        ran,
        interrupted: interrupted.load(Ordering::Relaxed),
        folder,
    })
}

/// How often cells of other processes are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Waits until one of the cells that other processes have is free, done or not, or until it is interrupted.
fn wait_for_others(context: &Context, groups: &[Vec<Held>]) {
    let cells = || groups.iter().flatten();
    if cells().next().is_none() {
        return;
    }
    let ids: Vec<&str> = cells().map(|held| held.planned.cell.id.as_str()).collect();
    context.progress.print(&format!(
        "waiting for cells that other processes run: {}",
        ids.join("  ")
    ));
    for held in cells().filter(|held| held.is_by_file) {
        let line = format!("{}: {}", held.planned.cell.id, held.reason.0);
        context.progress.print(&line);
    }
    let is_free = |held: &Held| {
        // A folder that can no longer be written is found out when it is the cell's turn.
        !matches!(held.planned.folder.lock(), Err(CellFolderError::Locked(_)))
    };
    while !context.is_interrupted() && !cells().any(is_free) {
        thread::sleep(LOOK_EVERY);
    }
}

/// What `--only` matches.
fn only(options: &Options) -> Result<Option<GlobMatcher>, SweepError> {
    let glob = options.only.as_ref().map(|glob| {
        let compiled = Glob::new(glob).map_err(|source| SweepError::Only {
            glob: glob.clone(),
            reason: source.to_string(),
        })?;
        Ok(compiled.compile_matcher())
    });
    glob.transpose()
}

/// Ids of the cells that `--only` selects.
fn select(
    plan: &Plan,
    options: &Options,
    is_selected: impl Fn(&str) -> bool,
) -> Result<Vec<String>, SweepError> {
    let ids = plan.cells.iter().map(|cell| cell.id.clone());
    let selected: Vec<String> = ids.filter(|id| is_selected(id)).collect();
    match &options.only {
        Some(glob) if selected.is_empty() => {
            let first = plan.cells.first();
            let example = first.map(|cell| cell.id.as_str()).unwrap_or_default();
            Err(SweepError::Only {
                glob: glob.clone(),
                reason: format!("no cell matches; the first cell is {example}"),
            })
        }
        _ => Ok(selected),
    }
}

/// Data sets that are open, by folder and split.
#[derive(Default)]
struct Datasets {
    open: Vec<(PathBuf, data::OpenOptions, Arc<dyn Dataset>)>,
}

impl Datasets {
    fn get(
        &mut self,
        path: &Path,
        options: data::OpenOptions,
    ) -> Result<Arc<dyn Dataset>, DataError> {
        if let Some((_, _, dataset)) = self
            .open
            .iter()
            .find(|(folder, opened, _)| folder == path && *opened == options)
        {
            return Ok(Arc::clone(dataset));
        }
        let dataset = data::open(path, &options)?;
        self.open
            .push((path.to_owned(), options, Arc::clone(&dataset)));
        Ok(dataset)
    }
}

fn prepare(
    cell: &Cell,
    folder: &Path,
    bank: &EncoderBank,
    datasets: &mut Datasets,
    origin: &Path,
) -> Result<Planned, SweepError> {
    let data = &cell.config.data;
    let mut open = |split| {
        datasets
            .get(&data.path, split)
            .map_err(|source| SweepError::Data {
                experiment: origin.to_owned(),
                source: Box::new(source),
            })
    };
    let training = open(data.training_split())?;
    let reference = open(data.reference_split())?;
    if uses_reference_classes(&cell.config, bank) {
        ReferenceClasses::new(training.as_ref(), reference.as_ref()).map_err(|source| {
            SweepError::Classes {
                experiment: origin.to_owned(),
                source: Box::new(source),
            }
        })?;
    }
    let identity = format!(
        "{} {}{}",
        training.fingerprint(),
        bank.tokens_identity(&cell.config)?,
        bank.autoencoders().identity(&cell.config, bank.device())?
    );
    let judges = bank
        .judges_identity(&cell.config)
        .map_err(IdentityError::from)?;
    let hash = cell
        .config
        .hash(&format!("{identity} {} {judges}", reference.fingerprint()));
    let folder = CellFolder::new(folder, &cell.id);
    Ok(Planned {
        found: folder.result().ok().flatten(),
        folder,
        cell: cell.clone(),
        training,
        reference,
        identity,
        hash,
        is_fresh: AtomicBool::new(false),
    })
}

/// A result that cannot be read is not taken for one that is not there: opening the cell names the reason.
fn is_done(planned: &Planned) -> bool {
    matches!(planned.folder.is_done(&planned.hash), Ok(true))
}

fn create_run_folder(
    folder: &Path,
    plan: &Plan,
    device: &str,
    hashes: &BTreeMap<String, String>,
) -> Result<(), SweepError> {
    let out = |path: &Path, source| SweepError::Out {
        path: path.to_owned(),
        source,
    };
    fs::create_dir_all(folder)
        .and_then(|()| files::remove_leftovers(folder, files::LeftoverScope::Ended))
        .map_err(|source| out(folder, source))?;
    let path = folder.join("plan.toml");
    let text = toml::to_string(&plan.file(device, hashes))
        .map_err(|error| out(&path, io::Error::other(error)))?;
    files::write(&path, |file| file.write_all(text.as_bytes())).map_err(|source| out(&path, source))
}

/// Keeps other processes from reading cells and writing `results.csv` meanwhile: rows that one has read must not
/// replace newer ones of another.
fn lock_results(folder: &Path) -> Result<Lock, SweepError> {
    let path = folder.join(".lock");
    loop {
        match Lock::take(&path) {
            Err(error @ LockError::Held { .. }) if !error.is_abandoned() => {
                tracing::debug!("{error}");
                thread::sleep(Duration::from_millis(20));
            }
            lock => return Ok(lock.map_err(CellFolderError::from)?),
        }
    }
}

/// Writes `results.csv` from what the cells' folders hold, in the plan's order.
fn write_results(
    folder: &Path,
    plan: &Plan,
    missing: &BTreeMap<String, String>,
    hashes: &BTreeMap<String, String>,
) -> Result<Vec<ResultRow>, SweepError> {
    let mut rows = Vec::new();
    for cell in &plan.cells {
        let cell_folder = CellFolder::new(folder, &cell.id);
        let hash = hashes.get(&cell.id).map(String::as_str);
        let row = match (row(cell, &cell_folder, hash), missing.get(&cell.id)) {
            (Ok(Some(row)), _) => Some(row),
            (Ok(None), Some(reason)) => Some(ResultRow {
                reason: reason.clone(),
                ..empty_row(cell, Status::Skipped)
            }),
            (Ok(None), None) => None,
            (Err(error), _) => Some(ResultRow {
                reason: error.to_string(),
                ..empty_row(cell, Status::Failed)
            }),
        };
        rows.extend(row);
    }
    results::write_csv(&folder.join("results.csv"), &rows)?;
    Ok(rows)
}

/// The row of a cell's result, `stale` if it is not of the plan's settings and inputs. Without a `hash` an input is missing:
/// the settings decide, and only a result that is done counts.
fn row(
    cell: &Cell,
    folder: &CellFolder,
    hash: Option<&str>,
) -> Result<Option<ResultRow>, SweepError> {
    let Some(CellResult {
        hash: found, row, ..
    }) = folder.result()?
    else {
        return Ok(None);
    };
    let counts = |key: &str| cell.config.effect_of(key) != SettingEffect::Nothing;
    let reason = match hash {
        Some(hash) if hash == found => None,
        Some(_) => Some(resume::described(folder.path(), &cell.config, counts)?),
        None if row.status != Status::Done => return Ok(None),
        None => resume::stale(folder.path(), &cell.config)?,
    };
    Ok(Some(match reason {
        None => row,
        Some(reason) => ResultRow {
            status: Status::Stale,
            reason,
            ..row
        },
    }))
}

/// A row with no figures yet.
pub(crate) fn empty_row(cell: &Cell, status: Status) -> ResultRow {
    ResultRow {
        encoder: cell.encoder.clone(),
        recipe: cell.recipe.clone(),
        model: cell.model.clone(),
        variant: cell.variant.clone(),
        seed: cell.seed,
        ..ResultRow::empty(&cell.id, status)
    }
}

fn print_plan(
    plan: &Plan,
    cohorts: &[Cohort],
    missing: &BTreeMap<String, String>,
    selected: &[String],
    folder: &Path,
    todo: &impl Fn(&Planned) -> bool,
) {
    let runnable: usize = cohorts.iter().map(|cohort| cohort.cells.len()).sum();
    let waiting: usize = cohorts
        .iter()
        .map(|cohort| cohort.cells.iter().filter(|cell| todo(cell)).count())
        .sum();
    errln!(
        "{}: {} cells in {}; {waiting} to run, {} done, {} skipped{}",
        plan.name,
        plan.cells.len(),
        folder.display(),
        runnable - waiting,
        missing.len(),
        if selected.len() < plan.cells.len() {
            format!(", {} selected", selected.len())
        } else {
            String::new()
        },
    );
    for cohort in cohorts
        .iter()
        .filter(|cohort| cohort.cells.iter().any(todo))
    {
        let ids: Vec<&str> = cohort
            .cells
            .iter()
            .filter(|planned| todo(planned))
            .map(|planned| planned.cell.id.as_str())
            .collect();
        errln!("  {}", ids.join("  "));
    }
    // One line for all that is missing: 27 encoders would push the plan off the screen.
    let mut encoders: BTreeMap<&str, &str> = BTreeMap::new();
    let mut autoencoders: BTreeMap<&str, usize> = BTreeMap::new();
    for cell in &plan.cells {
        match missing.get(&cell.id) {
            Some(reason) if AutoencoderFiles::missing(&cell.config).is_some() => {
                *autoencoders.entry(reason).or_default() += 1;
            }
            Some(reason) => {
                encoders.insert(&cell.encoder, reason);
            }
            None => {}
        }
    }
    for (reason, cells) in autoencoders {
        errln!("  skipped: {cells} cells: {reason}");
    }
    if let Some((name, reason)) = encoders.first_key_value() {
        let names: Vec<&str> = encoders.keys().copied().collect();
        let reason = reason.replace(name, "NAME");
        errln!("  skipped: {}: {reason}", names.join(", "));
    }
}
