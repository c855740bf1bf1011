//! A training run with its folder: it resumes, steps, logs and saves checkpoints.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use metrics::figures::{Figure, Figures, File};

use crate::checkpoint::{CHECKPOINTS, HISTORY};
use crate::{
    Checkpoint, Collapse, CollapseWatch, Config, DeviceBatch, EventLog, Inputs, LastGoodCheckpoint,
    MetricsLog, StepMetrics, TrainError, Trainer, archive, checkpoint, read_tensors,
};
use tch::Tensor;
use torch_ext::Mismatch;
use torch_ext::distributed::ProcessGroup;

/// A [`Trainer`] with a folder:
///
/// ```text
/// metrics.jsonl
/// events.out.tfevents.*   the same figures for TensorBoard
/// checkpoints/step-NNNNNNN/
/// before/N/               files of previous runs in this folder
/// ```
///
/// It resumes from the newest valid checkpoint in the folder. If a checkpoint cannot be read for a reason other than
/// damage, opening the run fails before anything is changed. When a figure leaves its own history ([`CollapseWatch`]),
/// the run logs a warning with the last good checkpoint.
#[derive(Debug)]
pub struct Run {
    trainer: Trainer,
    log: MetricsLog,
    events: EventLog,
    folder: PathBuf,
    resumed_from: u64,
    /// The step of the newest checkpoint of this run.
    saved: Option<u64>,
    speed: Speed,
    last: Option<StepMetrics>,
    /// The last line of the log, if its step still has to be evaluated.
    unevaluated: Option<StepMetrics>,
    watch: CollapseWatch,
}

/// Measures the speed since the last logged line. Only the time in this run's steps counts, without data, encoder,
/// evaluation and saving.
#[derive(Debug, Default)]
struct Speed {
    busy: Duration,
    steps: u64,
    /// Steps per second, as of the last line.
    last: Option<f64>,
}

impl Speed {
    /// Returns the steps per second since the last call. Without any steps since, it returns the previous value.
    fn take(&mut self) -> Option<f64> {
        let seconds = std::mem::take(&mut self.busy).as_secs_f64();
        let steps = std::mem::take(&mut self.steps);
        if steps > 0 && seconds > 0.0 {
            self.last = Some(steps as f64 / seconds);
        }
        self.last
    }
}

impl Run {
    /// Starts or resumes the run in `folder`, which is created if necessary.
    ///
    /// # Errors
    /// A setting is invalid; the encoders do not fit the model; the folder or a checkpoint cannot be read or written.
    pub fn open(folder: &Path, config: &Config, inputs: Inputs) -> Result<Self, TrainError> {
        let mut trainer = Trainer::new(config, inputs)?;
        std::fs::create_dir_all(folder)
            .map_err(|error| crate::CheckpointError::io("create", folder, error))?;
        let checkpoints = folder.join(CHECKPOINTS);
        let newest = Checkpoint::newest(&checkpoints, &trainer.hash(), config.train.steps)?;
        let step = newest.as_ref().map(|checkpoint| checkpoint.step);
        if let Some(before) = archive::set_aside(folder, step)? {
            tracing::warn!(
                "{} held files that this run does not use; they are kept in {}",
                folder.display(),
                before.display()
            );
        }
        let mut watch = CollapseWatch::default();
        if let Some(checkpoint) = &newest {
            trainer.resume(checkpoint)?;
            if let Some(state) = checkpoint.others.get(HISTORY) {
                watch = CollapseWatch::restore(state)?;
            }
        }
        let resumed_from = trainer.steps_done();
        let path = folder.join("metrics.jsonl");
        let log = MetricsLog::open(&path, resumed_from)?;
        // An evaluation is due if the process ended after the checkpoint and before the end of the evaluation.
        let unevaluated = MetricsLog::read(&path)?
            .pop()
            .filter(|line| line.step == resumed_from && !line.is_evaluated())
            .filter(|line| config.evaluate.is_due(line.step));
        Ok(Self {
            log,
            unevaluated,
            events: EventLog::open(folder, resumed_from)?,
            folder: folder.to_owned(),
            speed: Speed::default(),
            resumed_from,
            saved: newest.map(|checkpoint| checkpoint.step),
            trainer,
            last: None,
            watch,
        })
    }

    /// Replaces the initial weights; see [`Trainer::initialise`]. If the run has already done a step, this does
    /// nothing and returns `None`.
    ///
    /// # Errors
    /// Those of [`Trainer::initialise`].
    pub fn initialise(
        &mut self,
        weights: &[(String, Tensor)],
        partial: bool,
    ) -> Result<Option<Mismatch>, TrainError> {
        match self.trainer.steps_done() {
            0 => Ok(Some(self.trainer.initialise(weights, partial)?)),
            _ => Ok(None),
        }
    }

    /// Shares every batch with other processes; see [`Trainer::distribute`]. This process has rank 0.
    ///
    /// # Errors
    /// Those of [`Trainer::distribute`].
    pub fn distribute(&mut self, group: ProcessGroup) -> Result<(), TrainError> {
        self.trainer.distribute(group)
    }

    /// Asks all processes that share the batches to stop; see [`Trainer::ask_to_stop`].
    pub fn ask_to_stop(&mut self) {
        self.trainer.ask_to_stop();
    }

    /// Returns the trainer.
    pub fn trainer(&self) -> &Trainer {
        &self.trainer
    }

    /// Returns the run's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the step of the checkpoint that the run resumed from, or 0 for a new run.
    pub fn resumed_from(&self) -> u64 {
        self.resumed_from
    }

    /// Whether all steps are done.
    pub fn is_finished(&self) -> bool {
        self.trainer.steps_done() >= self.trainer.config().train.steps
    }

    /// Returns the figures of the newest step whose figures have been read.
    pub fn last_metrics(&self) -> Option<&StepMetrics> {
        self.last.as_ref()
    }

    /// Returns the figure that has collapsed, if any; see [`CollapseWatch::lasting`].
    pub fn collapse(&self) -> Option<Collapse> {
        self.watch.lasting()
    }

    /// Runs one optimiser step, then writes the log line and the checkpoint that are due. A checkpoint is always saved
    /// before an evaluation, which may take so long that losing the steps before it would be costly.
    ///
    /// # Errors
    /// Those of [`Trainer::step`], [`TrainError::Collapsed`], or the folder cannot be written.
    pub fn step(&mut self, batch: &DeviceBatch, tokens: &[Tensor]) -> Result<(), TrainError> {
        let started = Instant::now();
        let previous = self.trainer.step(batch, tokens);
        let previous = previous.map_err(|error| self.with_last_good_checkpoint(error))?;
        self.speed.busy += started.elapsed();
        self.speed.steps += 1;
        self.record(previous)?;
        let step = self.trainer.steps_done();
        let config = self.trainer.config();
        if self.is_finished()
            || step.is_multiple_of(config.train.checkpoint_every)
            || config.evaluate.is_due(step)
        {
            self.save()?;
        }
        Ok(())
    }

    /// Whether the current step has to be evaluated and has not been yet. This is the case after multiples of
    /// `evaluate.every`, also if a previous process ended during the evaluation.
    pub fn evaluation_is_due(&self) -> bool {
        self.unevaluated.is_some()
    }

    /// Runs the evaluation if it is due. `evaluate` returns the quality of samples of the averaged weights, which is
    /// added to the step's line in the log. If it fails, the evaluation remains due.
    ///
    /// # Errors
    /// Those of `evaluate`, or the folder cannot be written.
    pub fn evaluate<E: From<TrainError>>(
        &mut self,
        evaluate: impl FnOnce(&Trainer) -> Result<Figures, E>,
    ) -> Result<(), E> {
        let Some(line) = self.unevaluated.clone() else {
            return Ok(());
        };
        let quality = evaluate(&self.trainer)?;
        Ok(self.add_quality(line, quality)?)
    }

    /// Runs [`Run::step`], then [`Run::evaluate`].
    ///
    /// # Errors
    /// Those of both.
    pub fn step_and_evaluate<E: From<TrainError>>(
        &mut self,
        batch: &DeviceBatch,
        tokens: &[Tensor],
        evaluate: impl FnOnce(&Trainer) -> Result<Figures, E>,
    ) -> Result<(), E> {
        self.step(batch, tokens)?;
        self.evaluate(evaluate)
    }

    /// Adds a PNG image for the current step to the event file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn log_picture(
        &mut self,
        tag: &str,
        png: &[u8],
        size: (u32, u32),
    ) -> Result<(), TrainError> {
        let step = self.trainer.steps_done();
        self.events.image(step, tag, png, size)?;
        Ok(self.events.sync()?)
    }

    /// Saves a checkpoint of the current step, unless the newest one already is of this step.
    ///
    /// # Errors
    /// The last step's loss is not finite (no checkpoint is saved then), or the folder cannot be
    /// written.
    pub fn save(&mut self) -> Result<(), TrainError> {
        let last = self.finish_step()?;
        self.record(last)?;
        self.log.sync()?;
        self.events.sync()?;
        let step = self.trainer.steps_done();
        if self.saved == Some(step) {
            return Ok(());
        }
        let checkpoints = self.folder.join(CHECKPOINTS);
        let mut checkpoint = self.trainer.checkpoint()?;
        checkpoint
            .others
            .insert(HISTORY.to_owned(), self.watch.state()?);
        checkpoint.save(&checkpoints)?;
        self.saved = Some(step);
        // During a collapse, the last good checkpoint must not be removed.
        let last_good = self
            .watch
            .since()
            .and_then(|since| self.newest_good_before(since));
        let keep = self.trainer.config().train.keep_checkpoints;
        checkpoint::prune(&checkpoints, keep, last_good.as_deref())?;
        Ok(())
    }

    fn finish_step(&mut self) -> Result<Option<StepMetrics>, TrainError> {
        let started = Instant::now();
        let last = self.trainer.finish_step();
        let last = last.map_err(|error| self.with_last_good_checkpoint(error))?;
        self.speed.busy += started.elapsed();
        Ok(last)
    }

    fn record(&mut self, metrics: Option<StepMetrics>) -> Result<(), TrainError> {
        let Some(mut metrics) = metrics else {
            return Ok(());
        };
        let config = self.trainer.config();
        let is_due = is_logged(config, metrics.step);
        let evaluated = config.evaluate.is_due(metrics.step);
        if is_due || evaluated {
            let speed = self.speed.take();
            let speed = speed.filter(|_| config.train.log_speed);
            metrics.figures.set(Figure::StepsPerSecond, speed);
            self.log.append(&metrics)?;
        }
        if is_due {
            self.events.scalars(metrics.step, &metrics.figures)?;
        }
        self.unevaluated = evaluated.then(|| metrics.clone());
        let newly_outside = self.watch.observe(&metrics);
        if let Some(first) = newly_outside.first() {
            let last_good = self.last_good_checkpoint(first.since);
            for collapse in &newly_outside {
                tracing::warn!("{}: {collapse}; {last_good}", self.folder.display());
            }
        }
        self.last = Some(metrics);
        match self.watch.lasting() {
            Some(collapse) if self.trainer.config().train.stop_on_collapse => {
                Err(TrainError::Collapsed {
                    last_good: self.last_good_checkpoint(collapse.since),
                    collapse,
                })
            }
            _ => Ok(()),
        }
    }

    /// Adds the last good checkpoint to a [`TrainError::NotFinite`]: one from before the step with the NaN and before
    /// any figure left its history.
    fn with_last_good_checkpoint(&self, mut error: TrainError) -> TrainError {
        if let TrainError::NotFinite {
            step, last_good, ..
        } = &mut error
        {
            let since = self.watch.since().map_or(*step, |since| since.min(*step));
            *last_good = self.last_good_checkpoint(since);
        }
        error
    }

    fn last_good_checkpoint(&self, step: u64) -> LastGoodCheckpoint {
        match self.newest_good_before(step) {
            Some(path) => LastGoodCheckpoint::At(path),
            None => LastGoodCheckpoint::None,
        }
    }

    /// Returns the newest checkpoint that the failure at `step` has not affected. The loss of `step` is computed with
    /// the weights of the previous step. Therefore a checkpoint of the previous step is used only if there is no
    /// earlier one. Checkpoints with weights that are not finite are skipped.
    fn newest_good_before(&self, step: u64) -> Option<PathBuf> {
        let checkpoints = checkpoint::list(&self.folder.join(CHECKPOINTS)).unwrap_or_default();
        let is_finite = |path: &PathBuf| {
            let weights = read_tensors(&path.join("model.safetensors"));
            weights.is_ok_and(|weights| {
                let all_finite = |tensor: &Tensor| tensor.f_isfinite()?.f_all()?.f_int64_value(&[]);
                weights
                    .iter()
                    .all(|(_, tensor)| all_finite(tensor).is_ok_and(|all| all == 1))
            })
        };
        let newest_below = |step: u64| {
            let is_below =
                |path: &&PathBuf| checkpoint::step_of(path).is_some_and(|saved| saved < step);
            checkpoints
                .iter()
                .rev()
                .filter(is_below)
                .find(|path| is_finite(path))
        };
        newest_below(step.saturating_sub(1))
            .or_else(|| newest_below(step))
            .cloned()
    }

    /// Adds an evaluation to the last line of the log. If the line was written only for the evaluation, and this
    /// measured nothing, the line is removed.
    fn add_quality(&mut self, mut line: StepMetrics, quality: Figures) -> Result<(), TrainError> {
        let is_due = is_logged(self.trainer.config(), line.step);
        let quality = quality.of_file(File::Log);
        line.figures.extend(quality.iter());
        match (quality.is_empty(), is_due) {
            (true, true) => {}
            (true, false) => self.log.replace_last(None)?,
            (false, _) => self.log.replace_last(Some(&line))?,
        }
        self.log.sync()?;
        if !quality.is_empty() {
            // The other figures of a step that is due are in the event file already.
            let figures = if is_due { &quality } else { &line.figures };
            self.events.scalars(line.step, figures)?;
            self.events.sync()?;
        }
        self.unevaluated = None;
        self.last = Some(line);
        Ok(())
    }
}

/// Whether a step has a line in the log even without an evaluation.
fn is_logged(config: &Config, step: u64) -> bool {
    step.is_multiple_of(config.train.log_every) || step == config.train.steps
}
