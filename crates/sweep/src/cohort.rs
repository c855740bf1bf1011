//! Trains the cells of a cohort, which have the same batches and encoder, from one stream of batches and tokens.

use std::collections::VecDeque;
use std::sync::Arc;

use data::Loader;
use tch::Tensor;
use torch_ext::TorchError;
use training::DeviceBatch;
use training::checkpoint::{self, CheckpointId};

use crate::active_cell::{ActiveCell, Unopened};
use crate::cell_folder::{CellFolderError, CellLock};
use crate::cohort_key::{CohortKey, group_by_key};
use crate::context::Context;
use crate::failure::{Reached, Reason, fail, report_not_run};
use crate::latent_source::LatentSource;
use crate::measures::{judges, measure_encoder};
use crate::planned::Planned;
use crate::prefetch::{BatchMaker, Prefetcher, PreparedBatch};
use crate::token_source::TokenSource;
use evaluation::{EvaluationError, Judges};
use report::results::Status;

/// Share of free memory that the state of cells may occupy; the rest is for a training step and for evaluation.
const FREE_SHARE: f64 = 0.8;

/// Cells with the same data, batches, encoder and autoencoder.
pub(crate) struct Cohort {
    pub(crate) cells: Vec<Planned>,
}

impl Cohort {
    /// Groups cells into cohorts, in their order.
    pub(crate) fn group(cells: Vec<Planned>) -> Vec<Self> {
        group_by_key(cells, CohortKey::of)
            .into_iter()
            .map(|cells| Self { cells })
            .collect()
    }
}

/// A cell that is locked by another process.
pub(crate) struct Held<'a> {
    pub(crate) planned: &'a Planned,
    /// The error of the lock, which names its file.
    pub(crate) reason: Reason,
    /// Whether waiting may never end: the lock is a file that stays when its owner is killed.
    pub(crate) is_by_file: bool,
}

/// Runs cells of one cohort to the end. Failures are written to the cells' folders. Returns the cells that are locked
/// by other processes.
///
/// As many cells are trained at the same time as fit into memory. If memory runs out nevertheless, they resume from
/// their checkpoints in two halves, one after the other. The results are the same to the bit: a cell does not depend
/// on which other cells are trained beside it.
pub(crate) fn run<'a>(context: &Context, cells: Vec<&'a Planned>) -> Vec<Held<'a>> {
    let mut held = Vec::new();
    let mut queue = vec![cells];
    while let Some(cells) = queue.pop() {
        let mut group = Group {
            waiting: cells.into(),
            ..Group::default()
        };
        let outcome = group.train(context);
        let remaining = match outcome {
            Ok(()) => group.remaining(),
            Err(reason) => group.stop(context, &reason, &mut queue),
        };
        held.append(&mut group.held);
        // Frees the memory of these cells for the next ones.
        drop(group);
        if let Err(error) = torch_ext::device::empty_cache(context.device) {
            tracing::debug!("the allocator keeps its memory: {error}");
        }
        if context.is_interrupted() {
            break;
        }
        if !remaining.is_empty() {
            queue.push(remaining);
        }
    }
    held
}

/// Locks a cell for this process. `None` if another process holds the lock (the cell is then added to `held`), if
/// another process has finished the cell in the meantime, or if its folder cannot be written.
fn lock_cell<'a>(
    context: &Context,
    planned: &'a Planned,
    held: &mut Vec<Held<'a>>,
) -> Option<CellLock> {
    let lock = match planned.folder.lock() {
        Ok(lock) => lock,
        Err(CellFolderError::Locked(lock)) => {
            let is_by_file = lock.is_by_file();
            held.push(Held {
                planned,
                reason: Reason::from(CellFolderError::Locked(lock)),
                is_by_file,
            });
            return None;
        }
        Err(error) => {
            report_not_run(context, planned, &Reason::from(error));
            return None;
        }
    };
    let id = &planned.cell.id;
    match planned.ended_elsewhere() {
        None => Some(lock),
        Some(row) if row.status == Status::Failed => {
            context.note_failure(id, &row.reason);
            let line = format!("{id}: failed in another process: {}", row.reason);
            context.progress.done_elsewhere(&line);
            None
        }
        Some(_) => {
            context
                .progress
                .done_elsewhere(&format!("{id}: done by another process"));
            None
        }
    }
}

/// Writes a failure for cells that cannot be opened. Returns those that are locked by other processes.
pub(crate) fn fail_all<'a>(
    context: &Context,
    cells: &[&'a Planned],
    reason: &Reason,
) -> Vec<Held<'a>> {
    let mut held = Vec::new();
    for planned in cells {
        if let Some(lock) = lock_cell(context, planned, &mut held) {
            fail(context, planned, last_saved(planned), reason);
            drop(lock);
        }
    }
    held
}

/// Cells of a cohort that are trained at the same time.
#[derive(Default)]
struct Group<'a> {
    /// Cells that are not opened yet.
    waiting: VecDeque<&'a Planned>,
    active: Vec<ActiveCell<'a>>,
    /// Cells that are locked by other processes.
    held: Vec<Held<'a>>,
    /// Cells to open again: the stream failed at a batch that they do not need.
    reopen: Vec<&'a Planned>,
    /// Whether peak memory was reset before the first cell was opened.
    counts_memory: bool,
    /// Number of cells opened since then.
    opened: usize,
}

impl<'a> Group<'a> {
    /// Removes and returns the cells that are still to be run.
    fn remaining(&mut self) -> Vec<&'a Planned> {
        self.reopen
            .drain(..)
            .chain(self.waiting.drain(..))
            .collect()
    }

    /// Handles an error that concerns all cells. Saves the active cells. If memory ran out with several cells, the
    /// second half of them is pushed to `queue` and the first half is returned; otherwise the active cells fail.
    /// Returns the cells that are still to be run.
    fn stop(
        &mut self,
        context: &Context,
        reason: &Reason,
        queue: &mut Vec<Vec<&'a Planned>>,
    ) -> Vec<&'a Planned> {
        let mut active: Vec<ActiveCell> = self.active.drain(..).collect();
        for cell in &mut active {
            // A cell that cannot be saved resumes from its previous checkpoint.
            if !cell.is_inconsistent
                && let Err(error) = cell.run.save()
            {
                tracing::warn!("{}: not saved: {error}", cell.planned.cell.id);
            }
        }
        // Counts the waiting cell that was about to be opened beside the active ones.
        let together = active.len() + usize::from(!self.waiting.is_empty());
        if context.is_interrupted() {
            return Vec::new();
        }
        if reason.is_out_of_memory() && !active.is_empty() && together > 1 {
            let mut first: Vec<&Planned> = Vec::new();
            for cell in active {
                first.push(cell.planned);
                context.progress.closed(&cell.planned.cell.id);
            }
            first.extend(self.remaining());
            let later = first.split_off(first.len().div_ceil(2));
            context.progress.print(&format!(
                "out of memory with {} cells at the same time: training {} first, then {}",
                first.len() + later.len(),
                first.len(),
                later.len()
            ));
            queue.push(later);
            return first;
        }
        if active.is_empty() {
            // Not even the first cell could be opened; the others would fail in the same way.
            let remaining = self.remaining();
            self.held.append(&mut fail_all(context, &remaining, reason));
            return Vec::new();
        }
        for cell in active {
            cell.fail(context, reason);
        }
        self.remaining()
    }

    /// Opens as many cells as fit into memory, trains and measures them.
    ///
    /// # Errors
    /// An error that concerns all cells; [`stop`](Self::stop) handles it.
    fn train(&mut self, context: &Context) -> Result<(), Reason> {
        // Locks a cell first, so that encoders are loaded only if they are needed.
        let (first, lock) = loop {
            let Some(planned) = self.waiting.pop_front() else {
                return Ok(());
            };
            if let Some(lock) = lock_cell(context, planned, &mut self.held) {
                break (planned, lock);
            }
        };
        self.counts_memory = torch_ext::device::reset_peak_memory(context.device).unwrap_or(false);
        let config = &first.cell.config;
        let (source, latents, budget) = match open_sources(context, first) {
            Ok(opened) => opened,
            Err(reason) => {
                self.waiting.push_front(first);
                return Err(reason);
            }
        };
        for line in [source.description(), latents.description()]
            .into_iter()
            .flatten()
        {
            context.progress.print(&line);
        }
        let mut loaded = match context.judges_first {
            false => None,
            true => match judges(context, first) {
                Ok(judges) => Some(judges),
                Err(EvaluationError::Interrupted) => return Ok(()),
                Err(error) => {
                    self.waiting.push_front(first);
                    return Err(error.into());
                }
            },
        };
        let mut next = Some((first, lock));
        while let Some((planned, lock)) = next.take() {
            match ActiveCell::open(context, planned, lock, &source) {
                Ok(cell) => {
                    self.opened += 1;
                    self.active.push(cell);
                }
                Err((Unopened::NotRun(reason), _lock)) => {
                    report_not_run(context, planned, &reason);
                }
                Err((Unopened::Failed(reason), _)) if self.can_split(&reason) => {
                    self.waiting.push_front(planned);
                    return Err(reason);
                }
                Err((Unopened::Failed(reason), _lock)) => {
                    fail(context, planned, last_saved(planned), &reason);
                }
            }
            next = self.lock_next(context, &budget);
        }
        self.evaluate_due(context, &mut loaded)?;
        // All cells share one stream, which starts at the step of the cell that is furthest behind.
        let behind = self
            .active
            .iter()
            .min_by_key(|cell| cell.run.trainer().steps_done());
        let (position, cursor) = match behind {
            Some(cell) => (cell.run.trainer().steps_done(), cell.run.trainer().cursor()),
            None => return Ok(()),
        };
        let source = match self.needs_batch(position) {
            false => source,
            true => {
                let maker = BatchMaker {
                    loader: Loader::new(Arc::clone(&first.training), config.loader(), cursor)?,
                    latents,
                    tokens: source,
                    device: context.device,
                };
                let ahead = config.data.encode_ahead;
                let ahead = ahead.unwrap_or_else(|| maker.gains_from_thread());
                let mut batches = Prefetcher::new(maker, context.device, ahead)?;
                self.train_on(context, &mut batches, position, &mut loaded)?;
                batches.finish()?.tokens
            }
        };
        self.evaluate(context, &source, loaded)
    }

    /// Locks the next waiting cell that is free, if it fits into memory.
    fn lock_next(
        &mut self,
        context: &Context,
        budget: &MemoryBudget,
    ) -> Option<(&'a Planned, CellLock)> {
        while !self.waiting.is_empty() && !context.is_interrupted() {
            if !budget.fits_another(&self.active) {
                context.progress.print(&format!(
                    "{} cells fit into memory at the same time; {} wait",
                    self.active.len(),
                    self.waiting.len()
                ));
                return None;
            }
            let planned = self.waiting.pop_front()?;
            if let Some(lock) = lock_cell(context, planned, &mut self.held) {
                return Some((planned, lock));
            }
        }
        None
    }

    /// Trains all cells on the stream, which begins at step `position`, until they are finished or interrupted.
    fn train_on(
        &mut self,
        context: &Context,
        batches: &mut Prefetcher<BatchMaker>,
        mut position: u64,
        loaded: &mut Option<Judges>,
    ) -> Result<(), Reason> {
        while self.needs_batch(position) {
            if context.is_interrupted() {
                self.suspend(context);
                break;
            }
            let another = self.needs_batch(position + 1);
            let PreparedBatch { batch, tokens } = match batches.next(another) {
                Ok(Some(prepared)) => prepared,
                Ok(None) => break,
                Err(reason) if reason.is_out_of_memory() => return Err(reason),
                Err(reason) => {
                    self.stream_failed(context, position, &reason);
                    break;
                }
            };
            self.step(context, position, &batch, &tokens, loaded)?;
            position += 1;
        }
        Ok(())
    }

    /// Handles a batch at `position` that cannot be made. Saves all unfinished cells and fails those that need the
    /// batch. Cells at later steps are opened again, with a stream from there; finished cells stay active.
    fn stream_failed(&mut self, context: &Context, position: u64, reason: &Reason) {
        let mut failed = Vec::new();
        for mut cell in std::mem::take(&mut self.active) {
            if cell.run.is_finished() {
                self.active.push(cell);
                continue;
            }
            let saved = cell.run.save();
            if cell.run.trainer().steps_done() == position {
                failed.push((cell, saved));
            } else {
                context.progress.closed(&cell.planned.cell.id);
                self.reopen.push(cell.planned);
            }
        }
        for (cell, saved) in failed {
            let mut reason = reason.clone();
            if let Err(error) = saved {
                let Reason(error) = Reason::from(error);
                reason
                    .0
                    .push_str(&format!("; the cell could not be saved: {error}"));
            }
            cell.fail(context, &reason);
        }
    }

    /// Whether a cell needs the batch at `position`, or a later one.
    fn needs_batch(&self, position: u64) -> bool {
        self.active.iter().any(|cell| {
            let steps = cell.run.trainer().config().train.steps;
            !cell.run.is_finished() && steps > position
        })
    }

    /// Whether the error may be avoided by training fewer cells at the same time.
    fn can_split(&self, reason: &Reason) -> bool {
        reason.is_out_of_memory() && !self.active.is_empty()
    }

    /// Trains every cell that is at step `position`. A cell that resumed from a later step waits until the stream
    /// reaches it.
    fn step(
        &mut self,
        context: &Context,
        position: u64,
        batch: &DeviceBatch,
        tokens: &[Tensor],
        loaded: &mut Option<Judges>,
    ) -> Result<(), Reason> {
        self.for_each(context, |cell| {
            let is_due = cell.run.trainer().steps_done() == position;
            if !is_due || cell.run.is_finished() {
                return Ok(());
            }
            if let Err(reason) = cell.step(context, batch, tokens) {
                cell.is_inconsistent = true;
                return Err(reason);
            }
            cell.evaluate_if_due(context, loaded)
        })
    }

    /// Runs the evaluations that an earlier process did not complete.
    fn evaluate_due(
        &mut self,
        context: &Context,
        loaded: &mut Option<Judges>,
    ) -> Result<(), Reason> {
        self.for_each(context, |cell| cell.evaluate_if_due(context, loaded))
    }

    /// Calls `run` for each active cell until interrupted. A cell for which it returns an error fails. The error is
    /// returned only if memory ran out with several cells.
    fn for_each(
        &mut self,
        context: &Context,
        mut run: impl FnMut(&mut ActiveCell<'a>) -> Result<(), Reason>,
    ) -> Result<(), Reason> {
        let mut index = 0;
        while let Some(cell) = self.active.get_mut(index) {
            if context.is_interrupted() {
                break;
            }
            match run(cell) {
                Ok(()) => index += 1,
                Err(reason) if reason.is_out_of_memory() && self.active.len() > 1 => {
                    return Err(reason);
                }
                Err(reason) => {
                    let cell = self.active.remove(index);
                    cell.fail(context, &reason);
                }
            }
        }
        Ok(())
    }

    /// Saves every cell, to be resumed later. Nothing is printed before all cells are saved: the terminal
    /// or pipe may be closed, or may block.
    fn suspend(&mut self, context: &Context) {
        let mut cells: Vec<ActiveCell> = self.active.drain(..).collect();
        let saved: Vec<_> = cells.iter_mut().map(|cell| cell.run.save()).collect();
        for (cell, saved) in cells.iter().zip(saved) {
            let step = cell.run.trainer().steps_done();
            match saved {
                Ok(()) => context.progress.done(
                    &cell.planned.cell.id,
                    &format!("interrupted and saved at step {step}"),
                ),
                Err(error) => {
                    let reason = Reason::from(error);
                    cell.fail(context, &reason);
                }
            }
        }
    }

    /// Measures the encoder and all active cells, and writes the cells' results.
    fn evaluate(
        &mut self,
        context: &Context,
        source: &TokenSource,
        loaded: Option<Judges>,
    ) -> Result<(), Reason> {
        let Some(first) = self.active.first() else {
            return Ok(());
        };
        let encoder_figures = match measure_encoder(context, first.planned, source) {
            Err(EvaluationError::Interrupted) => return Ok(()),
            encoder_figures => encoder_figures?,
        };
        let judges = match loaded {
            Some(judges) => judges,
            None => match judges(context, first.planned) {
                Err(EvaluationError::Interrupted) => return Ok(()),
                judges => judges?,
            },
        };
        let alone = self.counts_memory && self.opened == 1;
        while let Some(cell) = self.active.first_mut() {
            if context.is_interrupted() {
                break;
            }
            let outcome = cell.finish(context, &encoder_figures, &judges, alone);
            if let Err(reason) = &outcome
                && reason.is_out_of_memory()
                && self.active.len() > 1
            {
                return outcome;
            }
            let cell = self.active.remove(0);
            if let Err(reason) = outcome {
                cell.fail(context, &reason);
            }
        }
        Ok(())
    }
}

/// Opens the sources of the cohort's tokens and latents, and then computes the memory for the state of cells.
fn open_sources(
    context: &Context,
    first: &Planned,
) -> Result<(TokenSource, LatentSource, MemoryBudget), Reason> {
    let config = &first.cell.config;
    let tokens = TokenSource::open(context.bank, config, first.training.as_ref())?;
    let latents = LatentSource::open(context.bank, config, first.training.as_ref())?;
    Ok((tokens, latents, MemoryBudget::new(context)?))
}

/// The step of the checkpoint that a cell would resume from; 0 if there is none.
fn last_saved(planned: &Planned) -> Reached {
    let config = &planned.cell.config;
    let hash = config.training_hash(&planned.identity);
    // Used for the text of a failure only, so a checkpoint that cannot be read is ignored here.
    let found = checkpoint::list(&planned.folder.path().join("checkpoints"));
    let steps = found
        .unwrap_or_default()
        .iter()
        .filter_map(|path| CheckpointId::read(path).ok())
        .filter(|identity| identity.config_hash == hash && identity.step <= config.train.steps)
        .map(|identity| identity.step)
        .max();
    Reached {
        steps: steps.unwrap_or(0),
        corrupt_skipped: None,
    }
}

/// The memory in bytes that the state of cells may occupy: the limit of the user, or a share of the free memory. `None`
/// if that is unknown.
pub(crate) fn memory_limit(context: &Context) -> Result<Option<u64>, TorchError> {
    if context.memory_limit.is_some() {
        return Ok(context.memory_limit);
    }
    let free = torch_ext::device::free_memory(context.device)?;
    Ok(free.map(|free| (free as f64 * FREE_SHARE) as u64))
}

/// The memory that the state of cells may occupy.
struct MemoryBudget {
    /// `None` if the free memory is unknown.
    bytes: Option<u64>,
}

impl MemoryBudget {
    /// Must be called before a cell is opened, because part of a cell's state is allocated only in its first step.
    fn new(context: &Context) -> Result<Self, Reason> {
        Ok(Self {
            bytes: memory_limit(context)?,
        })
    }

    /// Whether another cell, as large as the largest of `cells`, fits beside them. The first cell always fits.
    fn fits_another(&self, cells: &[ActiveCell]) -> bool {
        let sizes = cells.iter().map(|cell| cell.run.trainer().state_bytes());
        let (occupied, largest) = sizes.fold((0, 0), |(sum, largest), size| {
            (sum + size, size.max(largest))
        });
        cells.is_empty() || self.bytes.is_none_or(|bytes| occupied + largest <= bytes)
    }
}
