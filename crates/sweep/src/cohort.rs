//! Cells that see the same batches and the same encoder: both run once for all of them.

use std::collections::VecDeque;
use std::sync::Arc;

use data::Loader;
use tch::Tensor;
use training::DeviceBatch;
use training::checkpoint::{self, CheckpointId};

use crate::active_cell::{Active, Unopened};
use crate::cell_folder::{CellFolderError, CellLock};
use crate::context::Context;
use crate::failure::{Reached, Reason, fail, leave};
use crate::latent_source::LatentSource;
use crate::measures::{judges, measure_encoder};
use crate::planned::Planned;
use crate::prefetch::{Prefetcher, Prepared, Sources};
use crate::shared::Shared;
use crate::token_source::TokenSource;
use evaluation::{EvaluationError, Judges};
use report::results::Status;

/// Share of free memory that the state of cells may take; the rest is for a step and for evaluation.
const FREE_SHARE: f64 = 0.8;

/// Cells that share data, batches, encoder and autoencoder.
pub(crate) struct Cohort {
    pub(crate) cells: Vec<Planned>,
}

impl Cohort {
    /// Groups cells, keeping their order.
    pub(crate) fn group(cells: Vec<Planned>) -> Vec<Self> {
        let mut cohorts: Vec<(Shared, Self)> = Vec::new();
        for planned in cells {
            let shared = Shared::of(&planned);
            match cohorts.iter_mut().find(|(known, _)| *known == shared) {
                Some((_, cohort)) => cohort.cells.push(planned),
                None => cohorts.push((
                    shared,
                    Self {
                        cells: vec![planned],
                    },
                )),
            }
        }
        cohorts.into_iter().map(|(_, cohort)| cohort).collect()
    }
}

/// A cell that another process has.
pub(crate) struct Held<'a> {
    pub(crate) planned: &'a Planned,
    /// By which file, in words.
    pub(crate) reason: Reason,
    /// Whether it may wait for ever: the lock is a file, which stays when its owner is killed.
    pub(crate) is_by_file: bool,
}

/// Runs cells of one cohort to their end. Failures are written to the cells' folders. Returns the cells that other
/// processes have.
///
/// As many are trained at the same time as memory has room for. Where it runs out all the same, they go on from
/// their checkpoints in two halves, one after the other. Both give the same bits: a cell does not depend on which
/// others run beside it.
pub(crate) fn run<'a>(context: &Context, cells: Vec<&'a Planned>) -> Vec<Held<'a>> {
    let mut held = Vec::new();
    let mut parts = vec![cells];
    while let Some(cells) = parts.pop() {
        let mut part = Part {
            waiting: cells.into(),
            ..Part::default()
        };
        let outcome = part.train(context);
        let left = match outcome {
            Ok(()) => part.left(),
            Err(reason) => part.stopped(context, &reason, &mut parts),
        };
        held.append(&mut part.held);
        // Nothing of these cells is alive any more; the next ones may need the memory.
        drop(part);
        if let Err(error) = torch_ext::device::empty_cache(context.device) {
            tracing::debug!("the allocator keeps its memory: {error}");
        }
        if context.is_interrupted() {
            break;
        }
        if !left.is_empty() {
            parts.push(left);
        }
    }
    held
}

/// Takes a cell for this process. `None` if another process has it, has ended it meanwhile, or its folder cannot
/// be written; that is noted.
fn take<'a>(context: &Context, planned: &'a Planned, held: &mut Vec<Held<'a>>) -> Option<CellLock> {
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
            leave(context, planned, &Reason::from(error));
            return None;
        }
    };
    let id = &planned.cell.id;
    match planned.ended_meanwhile() {
        None => Some(lock),
        Some(row) if row.status == Status::Failed => {
            context.note_failure(id, &row.reason);
            let line = format!("{id}: failed in another process: {}", row.reason);
            context.progress.passed(&line);
            None
        }
        Some(_) => {
            context
                .progress
                .passed(&format!("{id}: done by another process"));
            None
        }
    }
}

/// Cells of a cohort that are trained at the same time.
#[derive(Default)]
struct Part<'a> {
    /// Not opened yet.
    waiting: VecDeque<&'a Planned>,
    active: Vec<Active<'a>>,
    /// Other processes have them.
    held: Vec<Held<'a>>,
    /// To be opened again: the stream that failed was not theirs.
    again: Vec<&'a Planned>,
    /// Whether the most memory in use is counted since the first cell was opened.
    counts_memory: bool,
    /// Cells opened since.
    opened: usize,
}

impl<'a> Part<'a> {
    /// The cells that are still to be run.
    fn left(&mut self) -> Vec<&'a Planned> {
        self.again.drain(..).chain(self.waiting.drain(..)).collect()
    }

    /// After a failure of what the cells share, or with too little memory for all of them: saves and fails those
    /// that had begun, or sees to it that fewer are tried at once. Returns the cells that are still to be run.
    fn stopped(
        &mut self,
        context: &Context,
        reason: &Reason,
        parts: &mut Vec<Vec<&'a Planned>>,
    ) -> Vec<&'a Planned> {
        let mut active: Vec<Active> = self.active.drain(..).collect();
        for cell in &mut active {
            // What cannot be saved now goes on from the checkpoint before.
            if !cell.spoilt
                && let Err(error) = cell.run.save()
            {
                tracing::warn!("{}: not saved: {error}", cell.planned.cell.id);
            }
        }
        // A cell that waits was about to be opened beside those that are.
        let together = active.len() + usize::from(!self.waiting.is_empty());
        if context.is_interrupted() {
            return Vec::new();
        }
        if reason.is_out_of_memory() && !active.is_empty() && together > 1 {
            let mut first: Vec<&Planned> = Vec::new();
            for cell in active {
                first.push(cell.planned);
                context.progress.leave(&cell.progress);
            }
            first.extend(self.left());
            let later = first.split_off(first.len().div_ceil(2));
            context.progress.print(&format!(
                "out of memory with {} cells at once: {} go on first, then {}",
                first.len() + later.len(),
                first.len(),
                later.len()
            ));
            parts.push(later);
            return first;
        }
        if active.is_empty() {
            // Not even the first could be opened, and the others would do no better.
            for planned in self.left() {
                if let Some(lock) = take(context, planned, &mut self.held) {
                    fail(context, planned, None, saved(planned), reason);
                    drop(lock);
                }
            }
            return Vec::new();
        }
        for cell in active {
            cell.fail(context, reason);
        }
        self.left()
    }

    fn train(&mut self, context: &Context) -> Result<(), Reason> {
        // Encoders are loaded only where there is something to do for them.
        let (first, lock) = loop {
            let Some(planned) = self.waiting.pop_front() else {
                return Ok(());
            };
            if let Some(lock) = take(context, planned, &mut self.held) {
                break (planned, lock);
            }
        };
        self.counts_memory = torch_ext::device::reset_peak_memory(context.device).unwrap_or(false);
        let config = &first.cell.config;
        let (source, latents, room) = match open_sources(context, first) {
            Ok(opened) => opened,
            Err(reason) => {
                self.waiting.push_front(first);
                return Err(reason);
            }
        };
        for line in [source.described(), latents.described()]
            .into_iter()
            .flatten()
        {
            context.progress.print(&line);
        }
        let mut next = Some((first, lock));
        while let Some((planned, lock)) = next.take() {
            match Active::open(context, planned, lock, &source) {
                Ok(cell) => {
                    self.opened += 1;
                    self.active.push(cell);
                }
                Err((Unopened::Left(reason), _lock)) => leave(context, planned, &reason),
                Err((Unopened::Failed(reason), _)) if self.may_split(&reason) => {
                    self.waiting.push_front(planned);
                    return Err(reason);
                }
                Err((Unopened::Failed(reason), _lock)) => {
                    fail(context, planned, None, saved(planned), &reason);
                }
            }
            next = self.take_another(context, &room);
        }
        let mut shared = None;
        self.evaluate_due(context, &mut shared)?;
        // One stream for all: it starts where the cell that is furthest behind stands.
        let behind = self
            .active
            .iter()
            .min_by_key(|cell| cell.run.trainer().steps_done());
        let (position, cursor) = match behind {
            Some(cell) => (cell.run.trainer().steps_done(), cell.run.trainer().cursor()),
            None => return Ok(()),
        };
        let source = match self.wants_batch(position) {
            false => source,
            true => {
                let sources = Sources {
                    loader: Loader::new(Arc::clone(&first.training), config.loader(), cursor)?,
                    latents,
                    tokens: source,
                    device: context.device,
                };
                let ahead = config.data.encode_ahead;
                let ahead = ahead.unwrap_or_else(|| sources.gain_by_a_thread());
                let mut batches = Prefetcher::new(sources, context.device, ahead)?;
                self.follow(context, &mut batches, position, &mut shared)?;
                batches.finish()?.tokens
            }
        };
        self.evaluate(context, &source, shared)
    }

    /// The next cell that is free, if there is memory for it.
    fn take_another(&mut self, context: &Context, room: &Room) -> Option<(&'a Planned, CellLock)> {
        while !self.waiting.is_empty() && !context.is_interrupted() {
            if !room.has_place(&self.active) {
                context.progress.print(&format!(
                    "memory for {} cells at once; {} wait",
                    self.active.len(),
                    self.waiting.len()
                ));
                return None;
            }
            let planned = self.waiting.pop_front()?;
            if let Some(lock) = take(context, planned, &mut self.held) {
                return Some((planned, lock));
            }
        }
        None
    }

    /// Trains all cells on the stream that begins at `position`, to their ends or until it is interrupted.
    fn follow(
        &mut self,
        context: &Context,
        batches: &mut Prefetcher<Sources>,
        mut position: u64,
        shared: &mut Option<Judges>,
    ) -> Result<(), Reason> {
        while self.wants_batch(position) {
            if context.is_interrupted() {
                self.suspend(context);
                break;
            }
            let another = self.wants_batch(position + 1);
            let Prepared { batch, tokens } = match batches.next(another) {
                Ok(Some(prepared)) => prepared,
                Ok(None) => break,
                Err(reason) if reason.is_out_of_memory() => return Err(reason),
                Err(reason) => {
                    self.stream_failed(context, position, &reason);
                    break;
                }
            };
            self.step(context, position, &batch, &tokens, shared)?;
            position += 1;
        }
        Ok(())
    }

    /// The batch at `position` cannot be had. Saves all cells and fails those that wanted it. Cells that stand
    /// further on are opened again, with a stream from there; those that are trained stay.
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
                context.progress.leave(&cell.progress);
                self.again.push(cell.planned);
            }
        }
        for (cell, saved) in failed {
            let mut reason = reason.clone();
            if let Err(error) = saved {
                let Reason(error) = Reason::from(error);
                reason.0.push_str(&format!("; nor was it saved: {error}"));
            }
            cell.fail(context, &reason);
        }
    }

    /// Whether a cell has a use for the batch at `position`, or for one after it.
    fn wants_batch(&self, position: u64) -> bool {
        self.active.iter().any(|cell| {
            let steps = cell.run.trainer().config().train.steps;
            !cell.run.is_finished() && steps > position
        })
    }

    /// Whether an error is one that fewer cells at once may not have.
    fn may_split(&self, reason: &Reason) -> bool {
        reason.is_out_of_memory() && !self.active.is_empty()
    }

    /// Trains every cell that stands at `position`; one that was saved later than the others waits for the
    /// stream to come by.
    fn step(
        &mut self,
        context: &Context,
        position: u64,
        batch: &DeviceBatch,
        tokens: &[Tensor],
        shared: &mut Option<Judges>,
    ) -> Result<(), Reason> {
        self.each(context, |cell| {
            let stands_here = cell.run.trainer().steps_done() == position;
            if !stands_here || cell.run.is_finished() {
                return Ok(());
            }
            if let Err(reason) = cell.step(context, batch, tokens) {
                cell.spoilt = true;
                return Err(reason);
            }
            cell.evaluate_if_due(context, shared)
        })
    }

    /// The evaluations that an earlier process did not get to the end of.
    fn evaluate_due(
        &mut self,
        context: &Context,
        shared: &mut Option<Judges>,
    ) -> Result<(), Reason> {
        self.each(context, |cell| cell.evaluate_if_due(context, shared))
    }

    /// Does something with each active cell until it is interrupted. A cell with which it fails is failed; only
    /// where there was too little memory for several, the error is returned.
    fn each(
        &mut self,
        context: &Context,
        mut run: impl FnMut(&mut Active<'a>) -> Result<(), Reason>,
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

    /// Saves every cell as it is, to be continued. Nothing is printed before all are saved: a terminal or pipe
    /// may be gone, or take no more.
    fn suspend(&mut self, context: &Context) {
        let mut cells: Vec<Active> = self.active.drain(..).collect();
        let saved: Vec<_> = cells.iter_mut().map(|cell| cell.run.save()).collect();
        for (cell, saved) in cells.iter().zip(saved) {
            let done = cell.run.trainer().steps_done();
            match saved {
                Ok(()) => context.progress.done(
                    &cell.progress,
                    &format!("interrupted and saved at step {done}"),
                ),
                Err(error) => {
                    let reason = Reason::from(error);
                    cell.fail(context, &reason);
                }
            }
        }
    }

    fn evaluate(
        &mut self,
        context: &Context,
        source: &TokenSource,
        shared: Option<Judges>,
    ) -> Result<(), Reason> {
        let Some(first) = self.active.first() else {
            return Ok(());
        };
        let figures = match measure_encoder(context, first.planned, &first.progress, source) {
            Err(EvaluationError::Interrupted) => return Ok(()),
            figures => figures?,
        };
        let judges = match shared {
            Some(judges) => judges,
            None => match judges(context, first.planned, &first.progress) {
                Err(EvaluationError::Interrupted) => return Ok(()),
                judges => judges?,
            },
        };
        let alone = self.counts_memory && self.opened == 1;
        while let Some(cell) = self.active.first_mut() {
            if context.is_interrupted() {
                break;
            }
            let outcome = cell.finish(context, &figures, &judges, alone);
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

/// What the cells' tokens and latents come from, and the memory that there is for their state.
fn open_sources(
    context: &Context,
    first: &Planned,
) -> Result<(TokenSource, LatentSource, Room), Reason> {
    let config = &first.cell.config;
    let tokens = TokenSource::open(context.bank, config, first.training.as_ref())?;
    let latents = LatentSource::open(context.bank, config, first.training.as_ref())?;
    Ok((tokens, latents, Room::new(context)?))
}

/// The newest checkpoint that a cell would resume from.
fn saved(planned: &Planned) -> Reached {
    let config = &planned.cell.config;
    let hash = config.training_hash(&planned.identity);
    // It is for the words of a failure; what cannot be read is named elsewhere.
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

/// Memory for the state of cells.
struct Room {
    bytes: Option<u64>,
}

impl Room {
    /// Before a cell is opened: part of a cell's state is only made by its first step.
    fn new(context: &Context) -> Result<Self, Reason> {
        let bytes = match context.memory_limit {
            Some(limit) => Some(limit),
            None => torch_ext::device::free_memory(context.device)?
                .map(|free| (free as f64 * FREE_SHARE) as u64),
        };
        Ok(Self { bytes })
    }

    /// Whether another cell, as large as the largest of these, fits beside them. The first always does.
    fn has_place(&self, cells: &[Active]) -> bool {
        let sizes = cells.iter().map(|cell| cell.run.trainer().state_bytes());
        let (taken, largest) = sizes.fold((0, 0), |(sum, largest), size| {
            (sum + size, size.max(largest))
        });
        cells.is_empty() || self.bytes.is_none_or(|bytes| taken + largest <= bytes)
    }
}
