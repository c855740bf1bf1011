//! `runner sweep`: from the experiment file to results and report.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use console::{errln, outln};
use encoders::{Inception, Registry};
use evaluation::encoder_bank::EncoderBank;
use globset::{Glob, GlobMatcher};
use report::results::Status;
use tch::Device;

use crate::SweepError;
use crate::cell_folder::CellFolderError;
use crate::cohort::{self, Cohort, Held};
use crate::context::Context;
use crate::experiment::{Cell, DeviceKind, Plan};
use crate::overview::print_plan;
use crate::planned::{Datasets, Planned, is_done, prepare};
use crate::progress::Progress;
use crate::results_file::{create_run_folder, lock_results, write_results};
use crate::shards::{self, Shard};

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
        progress: Progress::new(ran),
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
