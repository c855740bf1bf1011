//! Trains the cells of a cohort, which have the same batches and encoder, from one stream of batches and tokens.

use std::collections::VecDeque;

use tch::Tensor;
use training::DeviceBatch;

use crate::active_cell::{ActiveCell, Unopened};
use crate::cell_folder::CellLock;
use crate::cell_lock::{Held, fail_all, last_saved, lock_cell};
use crate::cohort_key::{CohortKey, group_by_key};
use crate::context::Context;
use crate::failure::{Reason, fail, report_not_run};
use crate::latent_source::LatentSource;
use crate::measures::{judges, measure_encoder};
use crate::memory::MemoryBudget;
use crate::planned::Planned;
use crate::prefetch::{BatchMaker, Prefetcher, PreparedBatch, open_stream};
use crate::token_source::TokenSource;
use evaluation::{EvaluationError, Judges};

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
                if let Some(ranks) = context.ranks {
                    let interrupted = context.is_interrupted();
                    ranks.go(position, !interrupted)?;
                    if interrupted {
                        self.suspend(context);
                        return Ok(());
                    }
                }
                let mut batches = open_stream(context, first, (source, latents), cursor)?;
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
        let start = position;
        while self.needs_batch(position) {
            if self.must_stop(context, position, start)? {
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

    /// Whether the training must stop at `position`, after `start`. If several ranks train a cell, they stop at the same
    /// step. After an evaluation, the others wait for the decision of this one.
    fn must_stop(&mut self, context: &Context, position: u64, start: u64) -> Result<bool, Reason> {
        let interrupted = context.is_interrupted();
        let (Some(ranks), Some(cell)) = (context.ranks, self.active.first_mut()) else {
            return Ok(interrupted);
        };
        let last = cell.run.trainer().stop_after();
        let stops = last.is_some_and(|last| position >= last);
        if position > start && cell.planned.cell.config.evaluate.is_due(position) {
            let stops = stops || interrupted;
            ranks.go(position, !stops)?;
            return Ok(stops);
        }
        if interrupted {
            cell.run.ask_to_stop();
        }
        Ok(stops)
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
            // The other ranks do not know of the interruption yet.
            if context.is_interrupted() && context.ranks.is_none() {
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
