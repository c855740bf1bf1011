//! Cells that see the same batches and the same encoder: both run once for all of them.

use std::collections::VecDeque;
use std::sync::Arc;

use data::Loader;
use tch::Tensor;
use training::{Autoencoder, DeviceBatch};

use super::active_cell::Active;
use super::failure::{Reason, fail, leave};
use super::latent_source::LatentSource;
use super::measures::{judges, measure_encoder};
use super::prefetch::{Prefetcher, Prepared, Sources};
use super::token_source::TokenSource;
use super::{Context, Planned};
use crate::evaluation::{EvaluationError, Judges};

/// Share of free memory that the state of cells may take; the rest is for a step and for evaluation.
const FREE_SHARE: f64 = 0.8;

/// Cells that share data, batches, encoder and autoencoder.
pub(crate) struct Cohort {
    pub(crate) cells: Vec<Planned>,
}

impl Cohort {
    /// Groups cells, keeping their order.
    pub(crate) fn group(cells: Vec<Planned>) -> Vec<Self> {
        let mut cohorts: Vec<(String, Self)> = Vec::new();
        for planned in cells {
            let config = &planned.cell.config;
            let loader = config.loader();
            let key = format!(
                "{} {} {loader:?} {} {} {} {} {:?} {}",
                planned.training.fingerprint(),
                planned.reference.fingerprint(),
                config.data.token_cache.display(),
                config.data.latent_cache.display(),
                autoencoder(config),
                config.alignment.encoder,
                config.evaluate,
                config.sample.count,
            );
            match cohorts.iter_mut().find(|(known, _)| *known == key) {
                Some((_, cohort)) => cohort.cells.push(planned),
                None => cohorts.push((
                    key,
                    Self {
                        cells: vec![planned],
                    },
                )),
            }
        }
        cohorts.into_iter().map(|(_, cohort)| cohort).collect()
    }

    /// Runs all cells to their end. Failures are written to the cells' folders.
    ///
    /// As many are trained at the same time as memory has room for. Where it runs out all the same, they go on from
    /// their checkpoints in two halves, one after the other. Both give the same bits: a cell does not depend on which
    /// others run beside it.
    pub(crate) fn run(&self, context: &Context) {
        if self.cells.is_empty() {
            return;
        }
        let mut parts: Vec<Vec<&Planned>> = vec![self.cells.iter().collect()];
        while let Some(cells) = parts.pop() {
            let outcome = self.train(context, &cells);
            // Nothing of these cells is alive any more; the next ones may need the memory.
            if let Err(error) = torch_ext::device::empty_cache(context.device) {
                tracing::debug!("the allocator keeps its memory: {error}");
            }
            match outcome {
                Ok(later) if later.is_empty() || context.is_interrupted() => {}
                Ok(later) => parts.push(later),
                Err(Stopped {
                    mut left, splits, ..
                }) if splits => {
                    let later = left.split_off(left.len().div_ceil(2));
                    context.progress.print(&format!(
                        "out of memory with {} cells at once: {} go on first, then {}",
                        left.len() + later.len(),
                        left.len(),
                        later.len()
                    ));
                    parts.push(later);
                    parts.push(left);
                }
                Err(Stopped { left, reason, .. }) => {
                    for planned in left {
                        fail(context, planned, None, 0, &reason);
                    }
                }
            }
        }
    }

    /// Gives back the cells that there was no room for. `Err` is a failure of what the cells share, or too little
    /// memory for all of them; a failure of one cell is handled here.
    fn train<'a>(
        &self,
        context: &Context,
        cells: &[&'a Planned],
    ) -> Result<Vec<&'a Planned>, Stopped<'a>> {
        let mut part = Part {
            waiting: cells.iter().copied().collect(),
            active: Vec::new(),
        };
        let Err(reason) = part.train(context) else {
            return Ok(part.waiting.into());
        };
        // A cell that waits was about to be opened beside those that are.
        let together = part.active.len() + usize::from(!part.waiting.is_empty());
        let splits = reason.is_out_of_memory()
            && !part.active.is_empty()
            && together > 1
            && !context.is_interrupted();
        let mut left = Vec::new();
        for mut cell in part.active {
            left.push(cell.planned);
            // What cannot be saved now goes on from the checkpoint before.
            if splits
                && !cell.spoilt
                && let Err(error) = cell.run.save()
            {
                tracing::warn!("{}: not saved: {error}", cell.planned.cell.id);
            }
            context.progress.leave(&cell.progress);
        }
        left.extend(part.waiting);
        Err(Stopped {
            reason,
            left,
            splits,
        })
    }
}

/// Why cells could not go on together.
struct Stopped<'a> {
    reason: Reason,
    /// The cells that are neither done nor failed.
    left: Vec<&'a Planned>,
    /// Whether fewer of them at once may do.
    splits: bool,
}

/// Cells of a cohort that are trained at the same time.
struct Part<'a> {
    /// Not opened yet.
    waiting: VecDeque<&'a Planned>,
    active: Vec<Active<'a>>,
}

impl Part<'_> {
    fn train(&mut self, context: &Context) -> Result<(), Reason> {
        let Some(first) = self.waiting.front().copied() else {
            return Ok(());
        };
        let config = &first.cell.config;
        let source = TokenSource::open(context.bank, config, first.training.as_ref())?;
        let latents = LatentSource::open(context.bank, config, first.training.as_ref())?;
        for line in [source.described(), latents.described()]
            .into_iter()
            .flatten()
        {
            context.progress.print(&line);
        }
        let room = Room::new(context)?;
        while let Some(&planned) = self.waiting.front() {
            if !room.has_place(&self.active) {
                context.progress.print(&format!(
                    "memory for {} cells at once; {} wait",
                    self.active.len(),
                    self.waiting.len()
                ));
                break;
            }
            let lock = match planned.folder.lock() {
                Ok(lock) => lock,
                Err(error) => {
                    leave(context, planned, &Reason::from(error));
                    self.waiting.pop_front();
                    continue;
                }
            };
            match Active::open(context, planned, lock, &source) {
                Ok(cell) => self.active.push(cell),
                Err(reason) if self.may_split(&reason) => return Err(reason),
                Err(reason) => fail(context, planned, None, 0, &reason),
            }
            self.waiting.pop_front();
        }
        // One stream for all: it starts where the cell that is furthest behind stands.
        let behind = self
            .active
            .iter()
            .min_by_key(|cell| cell.run.trainer().steps_done());
        let (position, cursor) = match behind {
            Some(cell) => (cell.run.trainer().steps_done(), cell.run.trainer().cursor()),
            None => return Ok(()),
        };
        let mut shared = None;
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
            let Some(Prepared { batch, tokens }) = batches.next(another)? else {
                break;
            };
            self.step(context, position, &batch, &tokens, shared)?;
            position += 1;
        }
        Ok(())
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
        let mut index = 0;
        while let Some(cell) = self.active.get_mut(index) {
            let stands_here = cell.run.trainer().steps_done() == position;
            if !stands_here || cell.run.is_finished() {
                index += 1;
                continue;
            }
            match cell.step(context, batch, tokens, shared) {
                Ok(()) => index += 1,
                Err(reason) if reason.is_out_of_memory() && self.active.len() > 1 => {
                    self.active[index].spoilt = true;
                    return Err(reason);
                }
                Err(reason) => {
                    let cell = self.active.remove(index);
                    let progress = Some(&cell.progress);
                    fail(context, cell.planned, progress, position, &reason);
                }
            }
        }
        Ok(())
    }

    /// Saves every cell as it is, to be continued.
    fn suspend(&mut self, context: &Context) {
        for mut cell in self.active.drain(..) {
            let done = cell.run.trainer().steps_done();
            match cell.run.save() {
                Ok(()) => context.progress.done(
                    &cell.progress,
                    &format!("interrupted and saved at step {done}"),
                ),
                Err(error) => {
                    let reason = Reason::from(error);
                    fail(context, cell.planned, Some(&cell.progress), done, &reason);
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
        let figures = match measure_encoder(context, first, source) {
            Err(EvaluationError::Interrupted) => return Ok(()),
            figures => figures?,
        };
        let judges = match shared {
            Some(judges) => judges,
            None => match judges(context, first.planned, context.interrupted, &first.progress) {
                Err(EvaluationError::Interrupted) => return Ok(()),
                judges => judges?,
            },
        };
        while let Some(cell) = self.active.first_mut() {
            if context.is_interrupted() {
                break;
            }
            let outcome = cell.finish(context, &figures, &judges);
            if let Err(reason) = &outcome
                && reason.is_out_of_memory()
                && self.active.len() > 1
            {
                return outcome;
            }
            let cell = self.active.remove(0);
            if let Err(reason) = outcome {
                let steps = cell.run.trainer().steps_done();
                fail(context, cell.planned, Some(&cell.progress), steps, &reason);
            }
        }
        Ok(())
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

/// Which latents a run sees, before they are scaled; one that trains its autoencoder has its own.
fn autoencoder(config: &training::Config) -> String {
    match &config.model.autoencoder {
        Autoencoder::Identity => "pixels".to_owned(),
        Autoencoder::Kl(settings) if settings.train => "trained".to_owned(),
        Autoencoder::Kl(settings) => {
            format!("{} {}", settings.layout.name(), settings.weights.display())
        }
    }
}
