//! A cell that is being trained and measured.

use std::error::Error;
use std::sync::atomic::Ordering;
use std::time::Instant;

use metrics::figures::{Figure, Figures, File, Kind};
use tch::Tensor;
use training::{DeviceBatch, Inputs, MetricsLog, Run, TrainError};

use crate::cell_folder::{CellLock, CellResult};
use crate::context::{Context, InitialWeights};
use crate::failure::{Reached, Reason, fail, hardware, now};
use crate::measures::{describe, judges};
use crate::planned::{Planned, empty_row};
use crate::ranks::Ranks;
use crate::token_source::TokenSource;
use evaluation::{EvaluationError, Judges};
use report::image_grid::{GridLayout, write_grid};
use report::results::Status;

/// Share of the last logged steps over which a cell's final losses are averaged.
const FINAL_SHARE: f64 = 0.1;

/// Why a cell could not be opened.
pub(crate) enum Unopened {
    /// The files in its folder cannot be read. They are not changed.
    NotRun(Reason),
    /// Any other error.
    Failed(Reason),
}

/// A cell that is being trained.
pub(crate) struct ActiveCell<'a> {
    pub(crate) planned: &'a Planned,
    pub(crate) run: Run,
    /// Held until the cell's result or failure is written, or the cell is released.
    _lock: CellLock,
    /// Whether a step failed halfway. The state is then inconsistent and must not be saved.
    pub(crate) is_inconsistent: bool,
    started_at: u64,
    /// Duration of this cell's own steps in seconds, and their number, since it was opened.
    seconds: f64,
    steps: u64,
}

impl<'a> ActiveCell<'a> {
    /// Opens a cell that is locked for this process; it resumes from its newest checkpoint. If the cell cannot be
    /// opened, the error contains the lock, so that the cell stays locked.
    pub(crate) fn open(
        context: &Context,
        planned: &'a Planned,
        lock: CellLock,
        source: &TokenSource,
    ) -> Result<Self, (Unopened, CellLock)> {
        let run = match open(context, planned, source) {
            Ok(run) => run,
            Err(reason) => return Err((reason, lock)),
        };
        context.progress.opened(
            &planned.cell.id,
            run.trainer().steps_done(),
            planned.cell.config.train.steps,
        );
        Ok(Self {
            planned,
            run,
            _lock: lock,
            is_inconsistent: false,
            started_at: now(),
            seconds: 0.0,
            steps: 0,
        })
    }

    /// Trains one step.
    pub(crate) fn step(
        &mut self,
        context: &Context,
        batch: &DeviceBatch,
        tokens: &[Tensor],
    ) -> Result<(), Reason> {
        let started = Instant::now();
        self.run.step(batch, tokens)?;
        self.seconds += started.elapsed().as_secs_f64();
        self.steps += 1;
        context.progress.step(
            &self.planned.cell.id,
            self.run.trainer().steps_done(),
            self.planned.cell.config.train.steps,
            // Not the weighted loss: that of MeanFlow is always close to 1.
            self.run
                .last_metrics()
                .and_then(|metrics| metrics.get(Figure::DenoisingLoss)),
            self.steps as f64 / self.seconds.max(1e-9),
        );
        Ok(())
    }

    /// Runs the evaluation that is due at this step, if any. If it is interrupted, it stays due.
    pub(crate) fn evaluate_if_due(
        &mut self,
        context: &Context,
        loaded: &mut Option<Judges>,
    ) -> Result<(), Reason> {
        let planned = self.planned;
        let evaluated = self.run.evaluate(|trainer| {
            let judges = match loaded {
                Some(judges) => judges,
                None => loaded.insert(judges(context, planned)?),
            };
            judges.measure(trainer, context.interrupted, |stage| {
                context.progress.stage(&planned.cell.id, &describe(stage));
            })
        });
        match evaluated {
            Err(EvaluationError::Interrupted) => Ok(()),
            evaluated => Ok(evaluated?),
        }
    }

    /// Draws and measures samples, and writes the cell's result. Peak memory is recorded only if the cell was `alone`
    /// since the peak was reset.
    pub(crate) fn finish(
        &mut self,
        context: &Context,
        encoder_figures: &Figures,
        judges: &Judges,
        alone: bool,
    ) -> Result<(), Reason> {
        let cell = &self.planned.cell;
        let config = &cell.config;
        let mut row = empty_row(cell, Status::Done);
        row.steps = Some(self.run.trainer().steps_done());
        if !self.draw_grid(context)? {
            return Ok(());
        }
        row.fd_encoder = config.evaluate.fd_encoder.clone();
        let measured = judges.measure(self.run.trainer(), context.interrupted, |stage| {
            context.progress.stage(&cell.id, &describe(stage));
        });
        let quality = match measured {
            // The cell stays unfinished; the next sweep completes it.
            Err(EvaluationError::Interrupted) => return Ok(()),
            quality => quality?,
        };
        row.figures.extend(quality.of_file(File::Results).iter());
        row.figures.extend(encoder_figures.iter());
        let log = MetricsLog::read(&self.run.folder().join("metrics.jsonl"))?;
        let last = ((log.len() as f64 * FINAL_SHARE).ceil() as usize).min(log.len());
        let tail = &log[log.len() - last..];
        for figure in Figure::of_kind(Kind::Training).filter(|figure| figure.is_in(File::Results)) {
            let mean = mean(tail.iter().map(|line| line.get(figure)));
            row.figures.set(figure, mean);
        }
        let speed = (self.steps > 0).then(|| self.steps as f64 / self.seconds.max(1e-9));
        row.figures.set(Figure::StepsPerSecond, speed);
        if alone {
            let peak = torch_ext::device::peak_memory(context.device)?;
            row.figures
                .set(Figure::PeakMemory, peak.map(|bytes| (bytes >> 20) as f64));
        }
        let distances: String = [Figure::Fid, Figure::Fd]
            .into_iter()
            .filter_map(|figure| Some(format!(", {figure} {:.2}", row.get(figure)?)))
            .collect();
        let loss = row
            .get(Figure::DenoisingLoss)
            .map(|loss| format!("denoising loss {loss:.4}"));
        let corrupt_skipped = self.run.trainer().cursor().skipped;
        let collapse = self.run.collapse().map(|collapse| collapse.to_string());
        let mut line = format!("done, {}{distances}", loss.unwrap_or_default());
        if corrupt_skipped > 0 {
            line += &format!(", {corrupt_skipped} corrupt samples skipped");
        }
        if let Some(collapse) = &collapse {
            line += &format!("; the training may have collapsed: {collapse}");
        }
        self.planned.folder.write_result(&CellResult {
            hash: self.planned.hash.clone(),
            hardware: hardware(context.device, config),
            started_at: self.started_at,
            finished_at: now(),
            corrupt_skipped: Some(corrupt_skipped),
            collapse,
            row,
        })?;
        context.progress.done(&cell.id, &line);
        Ok(())
    }

    /// Writes the result of the cell as failed at its current step.
    pub(crate) fn fail(&self, context: &Context, reason: &Reason) {
        let trainer = self.run.trainer();
        let reached = Reached {
            steps: trainer.steps_done(),
            corrupt_skipped: Some(trainer.cursor().skipped),
        };
        fail(context, self.planned, reached, reason);
    }

    /// Draws the sample grid of the report, with the classes in turn. Returns false if it was interrupted.
    fn draw_grid(&mut self, context: &Context) -> Result<bool, Reason> {
        let config = &self.planned.cell.config;
        let classes = self.planned.training.class_names().len().max(1);
        if config.sample.grid == 0 {
            return Ok(true);
        }
        context.progress.stage(&self.planned.cell.id, "sample grid");
        let labels: Vec<i64> = (0..config.sample.grid)
            .map(|i| (i % classes) as i64)
            .collect();
        // Drawn in chunks, so that an interruption takes effect soon.
        let at_once = self.run.trainer().samples_at_once();
        let mut parts = Vec::new();
        let mut first = 0;
        for labels in labels.chunks(at_once) {
            let trainer = self.run.trainer();
            match trainer.sample_until(context.interrupted, first, labels, |_| {}) {
                Err(TrainError::Interrupted) => return Ok(false),
                part => parts.push(part?),
            }
            first += labels.len() as u64;
        }
        let samples = Tensor::f_cat(&parts, 0).map_err(TrainError::from)?;
        let images = evaluation::image_array(&samples)?;
        let (count, _, height, width) = images.dim();
        let layout = GridLayout {
            columns: classes.min(12),
            ..GridLayout::for_images(count, height, width)
        };
        let name = format!("samples/step-{:07}.png", self.run.trainer().steps_done());
        let path = self.planned.folder.path().join(name);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        write_grid(&path, images.view(), layout)?;
        let (png, size) = (std::fs::read(&path)?, image::image_dimensions(&path)?);
        self.run.log_picture("samples", &png, size)?;
        Ok(true)
    }
}

fn open(context: &Context, planned: &Planned, source: &TokenSource) -> Result<Run, Unopened> {
    let failed = |error: &dyn Error| Unopened::Failed(Reason::of(error));
    let not_run = |error: &dyn Error| Unopened::NotRun(Reason::of(error));
    let folder = &planned.folder;
    // A result that cannot be read may belong to a finished run, which must not be overwritten.
    folder.result().map_err(|error| not_run(&error))?;
    if planned.is_fresh.swap(false, Ordering::Relaxed)
        && let Some(before) = folder.set_aside().map_err(|error| not_run(&error))?
    {
        let id = &planned.cell.id;
        let before = before.display();
        let line = format!("{id}: the previous run is kept in {before}");
        context.progress.print(&line);
    }
    let inputs = Inputs {
        device: context.device,
        num_classes: planned.training.class_names().len() as i64,
        encoders: source.shapes(),
        identity: planned.identity.clone(),
    };
    // Moves the files of another run to `before/N`, with its configuration.
    let config = &planned.cell.config;
    let mut run = Run::open(folder.path(), config, inputs).map_err(|error| match &error {
        // These errors do not show that the files are unusable, so the files must stay.
        TrainError::Checkpoint(source) if !source.is_damage() => not_run(&error),
        TrainError::Io(_) => not_run(&error),
        _ => failed(&error),
    })?;
    folder
        .keep_result_unless(&planned.hash)
        .map_err(|error| not_run(&error))?;
    folder
        .write_config(config)
        .map_err(|error| failed(&error))?;
    if let Some(init) = context.init {
        initialise(context, &mut run, init).map_err(Unopened::Failed)?;
    }
    if let Some(ranks) = context.ranks {
        join(context, ranks, &mut run).map_err(Unopened::NotRun)?;
    }
    Ok(run)
}

/// Shares the batches of a run that is open with the other ranks.
fn join(context: &Context, ranks: &Ranks, run: &mut Run) -> Result<(), Reason> {
    run.distribute(ranks.training_group(context.device)?)?;
    Ok(())
}

/// Loads the initial weights of a new run, and prints which weights did not match.
fn initialise(context: &Context, run: &mut Run, init: &InitialWeights) -> Result<(), Reason> {
    let path = init.path.display();
    let mismatch = run
        .initialise(&init.tensors, init.partial)
        .map_err(|error| Reason(format!("{path}: {error}; --partial loads what fits")))?;
    let Some(mismatch) = mismatch else {
        return Ok(());
    };
    let ignored: Vec<String> = mismatch
        .unexpected
        .iter()
        .map(|(name, _)| name.clone())
        .chain(mismatch.reshaped.iter().map(|(name, found, declared)| {
            format!("{name} ({found:?} in the file, {declared:?} in the model)")
        }))
        .collect();
    for (what, names) in [
        ("initialised randomly", mismatch.missing),
        ("ignored", ignored),
    ] {
        if !names.is_empty() {
            let count = names.len();
            let line = format!("{path}: {count} {what}: {}", names.join(", "));
            context.progress.print(&line);
        }
    }
    Ok(())
}

fn mean(values: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let values: Option<Vec<f64>> = values.collect();
    values
        .filter(|values| !values.is_empty())
        .map(|values| values.iter().sum::<f64>() / values.len() as f64)
}
