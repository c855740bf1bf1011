//! A cell while it is trained and measured.

use std::error::Error;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tch::Tensor;
use training::{DeviceBatch, Inputs, MetricsLog, Run, TrainError};

use crate::cell_folder::{CellLock, CellResult};
use crate::context::{Context, InitialWeights};
use crate::failure::{Reached, Reason, fail, hardware, now};
use crate::measures::{EncoderFigures, described, judges};
use crate::planned::{Planned, empty_row};
use crate::progress::CellProgress;
use crate::token_source::TokenSource;
use evaluation::{EvaluationError, Judges};
use report::image_grid::{GridLayout, write_grid};
use report::results::Status;

/// Share of the logged steps, at the end, whose mean is a cell's final loss.
const FINAL_SHARE: f64 = 0.1;

/// Why a cell could not be opened.
pub(crate) enum Unopened {
    /// What is in its folder cannot be read, and stays as it is.
    Left(Reason),
    /// Anything else.
    Failed(Reason),
}

/// A cell that is being trained.
pub(crate) struct Active<'a> {
    pub(crate) planned: &'a Planned,
    pub(crate) run: Run,
    pub(crate) progress: CellProgress,
    /// Until the cell is given up, its result or failure written.
    _lock: CellLock,
    /// Whether a step was broken off: the state is that of no step, and must not be saved.
    pub(crate) spoilt: bool,
    started_at: u64,
    /// Seconds in this cell's own steps, and their number, since it was opened.
    seconds: f64,
    steps: u64,
}

impl<'a> Active<'a> {
    /// Opens a cell that is locked for this process, where it stands. A cell that cannot be opened is still
    /// locked.
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
        let progress = context.progress.cell(
            &planned.cell.id,
            run.trainer().steps_done(),
            planned.cell.config.train.steps,
        );
        Ok(Self {
            planned,
            run,
            progress,
            _lock: lock,
            spoilt: false,
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
            &self.progress,
            self.run.trainer().steps_done(),
            self.planned.cell.config.train.steps,
            // MeanFlow's weighted loss is near 1 whatever happens.
            self.run
                .last_metrics()
                .map(|metrics| metrics.denoising_loss),
            self.steps as f64 / self.seconds.max(1e-9),
        );
        Ok(())
    }

    /// The evaluation that is due at this step, if one is. An interruption leaves it due.
    pub(crate) fn evaluate_if_due(
        &mut self,
        context: &Context,
        shared: &mut Option<Judges>,
    ) -> Result<(), Reason> {
        let (planned, progress) = (self.planned, &self.progress);
        let evaluated = self.run.evaluate(|trainer| {
            let judges = match shared {
                Some(judges) => judges,
                None => shared.insert(judges(context, planned, progress)?),
            };
            judges.measure(trainer, context.interrupted, |stage| {
                context.progress.stage(progress, &described(stage));
            })
        });
        match evaluated {
            Err(EvaluationError::Interrupted) => Ok(()),
            evaluated => Ok(evaluated?),
        }
    }

    /// Draws and measures samples, and writes the cell's result. The most memory in use is the cell's where it was
    /// `alone` since the count began.
    pub(crate) fn finish(
        &mut self,
        context: &Context,
        figures: &EncoderFigures,
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
            context.progress.stage(&self.progress, &described(stage));
        });
        let quality = match measured {
            // It stays unfinished, for the next time.
            Err(EvaluationError::Interrupted) => return Ok(()),
            quality => quality?,
        };
        row.fid = quality.fid;
        row.sfid = quality.sfid;
        row.inception_score = quality.inception_score;
        row.precision = quality.precision;
        row.recall = quality.recall;
        row.kid = quality.kid;
        row.fd = quality.fd;
        row.linear_probe = figures.linear_probe;
        if let Some(spatial) = figures.spatial {
            row.lds = Some(spatial.lds);
            row.cds = Some(spatial.cds);
            row.srss = spatial.srss;
            row.rmsc = Some(spatial.rmsc);
        }
        let log = MetricsLog::read(&self.run.folder().join("metrics.jsonl"))?;
        let last = ((log.len() as f64 * FINAL_SHARE).ceil() as usize).min(log.len());
        let tail = &log[log.len() - last..];
        row.denoising_loss = mean(tail.iter().map(|line| Some(line.denoising_loss)));
        row.alignment_loss = mean(tail.iter().map(|line| line.alignment_loss));
        row.steps_per_s = (self.steps > 0).then(|| self.steps as f64 / self.seconds.max(1e-9));
        if alone {
            let peak = torch_ext::device::peak_memory(context.device)?;
            row.peak_memory_mib = peak.map(|bytes| (bytes >> 20) as f64);
        }
        let distances = [("fid", row.fid), ("fd", row.fd)];
        let distances: String = distances
            .iter()
            .filter_map(|(name, distance)| Some(format!(", {name} {:.2}", (*distance)?)))
            .collect();
        let loss = row
            .denoising_loss
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
        context.progress.done(&self.progress, &line);
        Ok(())
    }

    /// Writes the result of a cell that failed at the step where it stands.
    pub(crate) fn fail(&self, context: &Context, reason: &Reason) {
        let trainer = self.run.trainer();
        let reached = Reached {
            steps: trainer.steps_done(),
            corrupt_skipped: Some(trainer.cursor().skipped),
        };
        fail(context, self.planned, Some(&self.progress), reached, reason);
    }

    /// A grid with the classes in turn, for the report. Says whether it was not interrupted.
    fn draw_grid(&mut self, context: &Context) -> Result<bool, Reason> {
        let config = &self.planned.cell.config;
        let classes = self.planned.training.class_names().len().max(1);
        if config.sample.grid == 0 {
            return Ok(true);
        }
        context.progress.stage(&self.progress, "sample grid");
        let labels: Vec<i64> = (0..config.sample.grid)
            .map(|i| (i % classes) as i64)
            .collect();
        // In these parts, to end soon when interrupted.
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
    let left = |error: &dyn Error| Unopened::Left(Reason::of(error));
    let folder = &planned.folder;
    // One that cannot be read may be of a finished run.
    folder.result().map_err(|error| left(&error))?;
    if planned.is_fresh.swap(false, Ordering::Relaxed)
        && let Some(before) = folder.set_aside().map_err(|error| left(&error))?
    {
        let id = &planned.cell.id;
        let before = before.display();
        let line = format!("{id}: the run that was there is kept in {before}");
        context.progress.print(&line);
    }
    let inputs = Inputs {
        device: context.device,
        num_classes: planned.training.class_names().len() as i64,
        encoders: source.shapes(),
        identity: planned.identity.clone(),
    };
    // What is there of another run goes to a place of its own, its configuration with it.
    let config = &planned.cell.config;
    let mut run = Run::open(folder.path(), config, inputs).map_err(|error| match &error {
        // It says nothing of what is there, which must stay.
        TrainError::Checkpoint(source) if !source.is_damage() => left(&error),
        TrainError::Io(_) => left(&error),
        _ => failed(&error),
    })?;
    folder
        .keep_result_unless(&planned.hash)
        .map_err(|error| left(&error))?;
    folder
        .write_config(config)
        .map_err(|error| failed(&error))?;
    if let Some(init) = context.init {
        initialise(context, &mut run, init).map_err(Unopened::Failed)?;
    }
    Ok(run)
}

/// Loads the weights that a new run starts from, and says which it had to leave out.
fn initialise(context: &Context, run: &mut Run, init: &InitialWeights) -> Result<(), Reason> {
    let path = init.path.display();
    let mismatch = run
        .initialise(&init.tensors, init.partial)
        .map_err(|error| Reason(format!("{path}: {error}; --partial loads what fits")))?;
    let Some(mismatch) = mismatch else {
        return Ok(());
    };
    let left_out: Vec<String> =
        mismatch
            .unexpected
            .iter()
            .map(|(name, _)| name.clone())
            .chain(mismatch.reshaped.iter().map(|(name, found, declared)| {
                format!("{name} ({found:?} there, {declared:?} here)")
            }))
            .collect();
    for (what, names) in [
        ("drawn anew", mismatch.missing),
        ("not taken from it", left_out),
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
