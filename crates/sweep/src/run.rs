//! Runs an experiment: plans its cells, trains those that are not done, and writes results and report.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use encoders::{Inception, Registry};
use evaluation::encoder_bank::EncoderBank;
use globset::{Glob, GlobMatcher};
use metrics::figures::{Figure, File, Kind};
use report::results::Status;
use tch::Device;
use terminal::{errln, outln};

use crate::SweepError;
use crate::cell_folder::CellFolderError;
use crate::cell_lock::Held;
use crate::cohort::{self, Cohort};
use crate::context::Context;
use crate::experiment::{Cell, DeviceKind, Plan};
use crate::memory::memory_limit;
use crate::overview::print_plan;
use crate::planned::{Datasets, Planned, is_done, plan_cell};
use crate::progress::Progress;
use crate::ranks::{self, Ranks};
use crate::results_file::{create_run_folder, lock_results, write_results};
use crate::shards::{self, Shard};
use crate::workers::{Pool, Workers, default_count, running, serve, split_for};

/// Options of [`run`], as `runner sweep` takes them.
#[derive(Debug, Clone)]
pub struct Options {
    /// The experiment file.
    pub experiment: PathBuf,
    /// Folder in which the run folder is created.
    pub out: PathBuf,
    /// `auto`, `cpu`, `cuda` or `cuda:N`.
    pub device: String,
    /// Run only cells whose id matches this glob.
    pub only: Option<String>,
    /// `key=value` settings that apply to every cell.
    pub settings: Vec<String>,
    /// Print the plan and run nothing.
    pub dry_run: bool,
    /// Run the selected cells again from the start; their previous runs are kept in `before/N`.
    pub fresh: bool,
    /// Run only one of several parts of the selected cells.
    pub shard: Option<Shard>,
    /// Maximum size in bytes of the state of cells that are trained at the same time; `None` for 80 % of the free
    /// memory.
    pub memory_limit: Option<u64>,
    /// Whether this process is a worker of another one, for which it runs the cells that it is told to run.
    pub is_worker: bool,
    /// The processes that run the sweep together on a shared folder; `None` if this is the only one. Each takes cells that
    /// no other one is running.
    pub ranks: Option<Arc<Ranks>>,
}

/// How a sweep ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The run folder.
    pub folder: PathBuf,
    /// Number of cells with a current result.
    pub done: usize,
    /// Ids of the cells that failed or were not run, with the reason.
    pub failed: Vec<(String, String)>,
    /// Number of cells that were skipped because an encoder or another file is missing.
    pub skipped: usize,
    /// Number of cells whose results were computed with other settings, data or encoders.
    pub stale: usize,
    /// Number of cells that were to be run in this call.
    pub ran: usize,
    /// Whether the sweep was interrupted.
    pub interrupted: bool,
    /// The reason, if no selected cell was run and none has a result.
    pub idle: Option<String>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (done, failed, skipped) = (self.done, self.failed.len(), self.skipped);
        write!(f, "{done} done, {failed} failed, {skipped} skipped")?;
        match self.stale {
            0 => Ok(()),
            stale => write!(f, ", {stale} stale"),
        }
    }
}

/// Runs a sweep in several processes. `interrupted` may be set from a signal handler: every running cell is then saved,
/// and the sweep ends.
///
/// # Errors
/// The experiment, the device, the data or the output folder cannot be used. Cells that fail are not errors, but part of
/// the [`Outcome`].
pub fn run(
    options: &Options,
    workers: Workers,
    registry: Registry,
    interrupted: &'static AtomicBool,
) -> Result<Outcome, SweepError> {
    let ranks = options.ranks.as_deref();
    let local_rank = ranks.map_or(0, |ranks| ranks.world().local_rank);
    let devices = (!workers.devices.is_empty()).then_some(workers.devices);
    let device_error = |source| SweepError::Device {
        name: options.device.clone(),
        source,
    };
    let device = ranks::device_of(&options.device, devices, local_rank).map_err(device_error)?;
    let kind = match device {
        Device::Cpu => DeviceKind::Cpu,
        _ => DeviceKind::Cuda,
    };
    let only = only(options)?;
    let is_selected = |id: &str| only.as_ref().is_none_or(|only| only.is_match(id));
    let mut plan = Plan::read_for(
        &options.experiment,
        kind,
        &registry,
        &options.settings,
        &is_selected,
    )?;
    for cell in &mut plan.cells {
        cell.config.alignment.choose_precision(device);
    }
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
        let mut planned_cell = plan_cell(cell, &folder, &bank, &mut datasets, &options.experiment)?;
        planned_cell.is_fresh = AtomicBool::new(options.fresh);
        hashes.insert(cell.id.clone(), planned_cell.hash.clone());
        planned.push(planned_cell);
    }
    planned.retain(|planned| selected.contains(&planned.cell.id));
    if options.is_worker {
        let mut context = Context {
            progress: Progress::of_worker(),
            ..Context::new(device, &bank, &folder, interrupted)
        };
        serve(&mut context, &planned, interrupted);
        return Ok(Outcome::default());
    }
    let mut cohorts = Cohort::group(planned);
    let todo = |planned: &Planned| options.fresh || !is_done(planned);
    print_plan(&plan, &cohorts, &missing, &selected, &folder, &todo);
    let wants_inception = |cell: &Cell| !cell.config.evaluate.inception.is_empty();
    if plan.cells.iter().any(wants_inception)
        && let Err(error) = Inception::find(bank.registry(), Inception::NAMES[0])
    {
        // All figures of samples but `fd`, which has an encoder of its own.
        let figures = Figure::of_kind(Kind::Quality)
            .filter(|figure| figure.is_in(File::Results) && *figure != Figure::Fd);
        let names: Vec<&str> = figures.map(Figure::name).collect();
        errln!("  left empty: {}: {error}", names.join(", "));
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

    let is_first = ranks.is_none_or(Ranks::is_first);
    if is_first {
        create_run_folder(&folder, &plan, &options.device, &hashes)?;
    }
    if let Some(ranks) = ranks {
        // A result that exists before all have planned is not counted as one of this sweep.
        ranks.meet_to_sweep()?;
    }
    let mut ran = 0;
    for cohort in &mut cohorts {
        cohort.cells.retain(&todo);
        ran += cohort.cells.len();
    }
    let context = Context {
        progress: match is_first {
            true => Progress::new(ran),
            false => Progress::silent(),
        },
        memory_limit: options.memory_limit,
        ..Context::new(device, &bank, &folder, interrupted)
    };
    let update = || {
        let _lock = lock_results(&folder)?;
        write_results(&folder, &plan, &missing, &hashes)?;
        // So that the first results can be looked at while others are computed.
        if let Err(error) = report::build(&folder) {
            tracing::warn!("the report is not up to date: {error}");
        }
        Ok(())
    };
    let mut groups: Vec<Vec<&Planned>> = cohorts
        .iter()
        .map(|cohort| cohort.cells.iter().collect())
        .filter(|cells: &Vec<&Planned>| !cells.is_empty())
        .collect();
    let threads = usize::try_from(tch::get_num_threads()).unwrap_or(1);
    let count = match (workers.count, devices) {
        (Some(count), _) => count,
        (None, Some(devices)) => devices.len(),
        (None, None) if ranks.is_some() => 1,
        (None, None) => default_count(device, threads, shards::cohorts_of(&plan)),
    };
    groups = split_for(groups, count * ranks.map_or(1, |ranks| ranks.world().size));
    let pool = match count {
        0 | 1 => None,
        _ => {
            let names = match devices {
                Some(devices) => devices.iter().map(|&device| name_of(device)).collect(),
                None => vec![name_of(device)],
            };
            // Every device has memory of its own.
            let free = match devices {
                Some(_) => None,
                None => torch_ext::device::free_memory(device).map_err(device_error)?,
            };
            Some(Pool::new(
                (&context.progress, interrupted),
                workers.command,
                names,
                running(count, groups.len(), free),
                (threads / count).max(1),
                memory_limit(&context).map_err(device_error)?,
            ))
        }
    };
    while !groups.is_empty() && !context.is_interrupted() {
        let held = match &pool {
            Some(pool) => pool.run(&context, groups, &update)?,
            None => run_here(&context, groups, &update)?,
        };
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

/// The name of a device, as `--device` takes it.
fn name_of(device: Device) -> String {
    match device {
        Device::Cuda(index) => format!("cuda:{index}"),
        _ => "cpu".to_owned(),
    }
}

/// Runs cohorts in this process, one after the other, and calls `after` when one has ended. Returns the cells that are
/// locked by other processes.
fn run_here<'a>(
    context: &Context,
    cohorts: Vec<Vec<&'a Planned>>,
    after: &dyn Fn() -> Result<(), SweepError>,
) -> Result<Vec<Vec<Held<'a>>>, SweepError> {
    let mut held = Vec::new();
    for cells in cohorts {
        if context.is_interrupted() {
            break;
        }
        let locked = cohort::run(context, cells);
        if !locked.is_empty() {
            held.push(locked);
        }
        after()?;
    }
    Ok(held)
}

/// Interval at which the locks of other processes are checked.
const CHECK_EVERY: Duration = Duration::from_millis(500);

/// Waits until one of the cells that other processes have locked is free, whether it is done or not, or until
/// interrupted.
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
        // Another error, such as a folder that cannot be written, is reported when the cell is run.
        !matches!(held.planned.folder.lock(), Err(CellFolderError::Locked(_)))
    };
    while !context.is_interrupted() && !cells().any(is_free) {
        thread::sleep(CHECK_EVERY);
    }
}

/// The compiled glob of `--only`.
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
