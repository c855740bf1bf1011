//! A training run and its folder: resume, step, log, save.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::checkpoint::{CHECKPOINTS, HISTORY};
use crate::{
    Checkpoint, Collapse, CollapseWatch, Config, DeviceBatch, EventLog, Inputs, MetricsLog,
    Quality, SoundCheckpoint, StepMetrics, TrainError, Trainer, before, checkpoint, read_tensors,
};
use tch::Tensor;
use torch_ext::Mismatch;

/// A [`Trainer`] with a folder:
///
/// ```text
/// metrics.jsonl
/// events.out.tfevents.*   the same figures for TensorBoard
/// checkpoints/step-NNNNNNN/
/// before/N/               what was there of another run, if anything was
/// ```
///
/// It continues from the newest valid checkpoint that is there. An error that is not damage of a checkpoint ends it before
/// anything is changed. Figures that leave their own history ([`CollapseWatch`]) are warned of, with the last
/// checkpoint from before.
#[derive(Debug)]
pub struct Run {
    trainer: Trainer,
    log: MetricsLog,
    events: EventLog,
    folder: PathBuf,
    resumed_from: u64,
    /// The step of the newest checkpoint, if it is this run's.
    saved: Option<u64>,
    speed: Speed,
    last: Option<StepMetrics>,
    /// The line of the step that has to be evaluated, as it is at the end of the log.
    unevaluated: Option<StepMetrics>,
    watch: CollapseWatch,
}

/// Steps since the last logged line, and the time in them: without data, encoder, evaluation and saving, and
/// without the steps of other runs.
#[derive(Debug, Default)]
struct Speed {
    busy: Duration,
    steps: u64,
    /// Steps a second, of the last line.
    last: Option<f64>,
}

impl Speed {
    /// Steps a second since the last call, or before it if there were none since.
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
    /// Opens or continues the run in `folder`, which is created.
    ///
    /// # Errors
    /// A setting, the model or the encoders do not fit; the folder cannot be written.
    pub fn open(folder: &Path, config: &Config, inputs: Inputs) -> Result<Self, TrainError> {
        let mut trainer = Trainer::new(config, inputs)?;
        std::fs::create_dir_all(folder)
            .map_err(|error| crate::CheckpointError::io("create", folder, error))?;
        let checkpoints = folder.join(CHECKPOINTS);
        let newest = Checkpoint::newest(&checkpoints, &trainer.hash(), config.train.steps)?;
        let step = newest.as_ref().map(|checkpoint| checkpoint.step);
        if let Some(before) = before::set_aside(folder, step)? {
            tracing::warn!(
                "{} held what this run does not resume from; it is kept in {}",
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
        // It was saved, and ended before its evaluation did.
        let unevaluated = MetricsLog::read(&path)?
            .pop()
            .filter(|line| line.step == resumed_from && line.quality.is_empty())
            .filter(|line| wants_evaluation(config, line.step));
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

    /// Starts from given weights, unless the run has begun already; see
    /// [`Trainer::initialise`]. `None` if it has.
    ///
    /// # Errors
    /// As [`Trainer::initialise`].
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

    /// The trainer.
    pub fn trainer(&self) -> &Trainer {
        &self.trainer
    }

    /// The run's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The step of the checkpoint that the run started from; 0 for a fresh start.
    pub fn resumed_from(&self) -> u64 {
        self.resumed_from
    }

    /// Whether all steps are done.
    pub fn is_finished(&self) -> bool {
        self.trainer.steps_done() >= self.trainer.config().train.steps
    }

    /// Figures of the newest step that has been read back.
    pub fn last_metrics(&self) -> Option<&StepMetrics> {
        self.last.as_ref()
    }

    /// What has left its history for good, if anything has: the run may have died.
    pub fn collapse(&self) -> Option<Collapse> {
        self.watch.lasting()
    }

    /// One optimiser step, with what is due after it: a line in the log, a checkpoint. Before an evaluation
    /// there always is a checkpoint: it may take longer than the steps before it, and must not lose them.
    ///
    /// # Errors
    /// As [`Trainer::step`], or the folder cannot be written.
    pub fn step(&mut self, batch: &DeviceBatch, tokens: &[Tensor]) -> Result<(), TrainError> {
        let started = Instant::now();
        let before = self.trainer.step(batch, tokens);
        let before = before.map_err(|error| self.with_way_back(error))?;
        self.speed.busy += started.elapsed();
        self.speed.steps += 1;
        self.record(before)?;
        let step = self.trainer.steps_done();
        let config = self.trainer.config();
        if self.is_finished()
            || step.is_multiple_of(config.train.checkpoint_every)
            || wants_evaluation(config, step)
        {
            self.save()?;
        }
        Ok(())
    }

    /// Whether the state as it is has to be evaluated and has not been: after steps that `evaluate.every`
    /// divides, also where an earlier process was stopped before the evaluation's end.
    pub fn evaluation_is_due(&self) -> bool {
        self.unevaluated.is_some()
    }

    /// The evaluation that is due, if one is. `evaluate` says what samples of the averaged weights are like,
    /// which is added to the step's line in the log. Where it fails, the evaluation stays due.
    ///
    /// # Errors
    /// Those of `evaluate`, or the folder cannot be written.
    pub fn evaluate<E: From<TrainError>>(
        &mut self,
        evaluate: impl FnOnce(&Trainer) -> Result<Quality, E>,
    ) -> Result<(), E> {
        let Some(line) = self.unevaluated.clone() else {
            return Ok(());
        };
        let quality = evaluate(&self.trainer)?;
        Ok(self.add_quality(line, quality)?)
    }

    /// [`Run::step`], then [`Run::evaluate`].
    ///
    /// # Errors
    /// As both.
    pub fn step_and_evaluate<E: From<TrainError>>(
        &mut self,
        batch: &DeviceBatch,
        tokens: &[Tensor],
        evaluate: impl FnOnce(&Trainer) -> Result<Quality, E>,
    ) -> Result<(), E> {
        self.step(batch, tokens)?;
        self.evaluate(evaluate)
    }

    /// Adds a PNG picture of the state as it is to the event file.
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

    /// Saves a checkpoint of the state as it is, unless the newest one is of this step.
    ///
    /// # Errors
    /// The last step's loss is not finite (nothing is saved then), or the folder cannot be
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
        // The last one of a sound run is the way back.
        let sound = self
            .watch
            .since()
            .and_then(|since| self.sound_before(since));
        let keep = self.trainer.config().train.keep_checkpoints;
        checkpoint::prune(&checkpoints, keep, sound.as_deref())?;
        Ok(())
    }

    fn finish_step(&mut self) -> Result<Option<StepMetrics>, TrainError> {
        let started = Instant::now();
        let last = self.trainer.finish_step();
        let last = last.map_err(|error| self.with_way_back(error))?;
        self.speed.busy += started.elapsed();
        Ok(last)
    }

    fn record(&mut self, metrics: Option<StepMetrics>) -> Result<(), TrainError> {
        let Some(mut metrics) = metrics else {
            return Ok(());
        };
        let config = self.trainer.config();
        let is_due = is_logged(config, metrics.step);
        let evaluated = wants_evaluation(config, metrics.step);
        if is_due || evaluated {
            let speed = self.speed.take();
            metrics.steps_per_s = speed.filter(|_| config.train.log_speed);
            self.log.append(&metrics)?;
        }
        if is_due {
            self.events.scalars(metrics.step, &metrics.figures())?;
        }
        self.unevaluated = evaluated.then(|| metrics.clone());
        let begun = self.watch.observe(&metrics);
        if let Some(first) = begun.first() {
            let sound = self.way_back(first.since);
            for collapse in &begun {
                tracing::warn!("{}: {collapse}; {sound}", self.folder.display());
            }
        }
        self.last = Some(metrics);
        match self.watch.lasting() {
            Some(collapse) if self.trainer.config().train.stop_on_collapse => {
                Err(TrainError::Collapsed {
                    sound: self.way_back(collapse.since),
                    collapse,
                })
            }
            _ => Ok(()),
        }
    }

    /// Says of a NaN which checkpoint is from before it, and before what may have led to it.
    fn with_way_back(&self, mut error: TrainError) -> TrainError {
        if let TrainError::NotFinite { step, sound, .. } = &mut error {
            *sound = self.way_back(self.watch.since().map_or(*step, |since| since.min(*step)));
        }
        error
    }

    fn way_back(&self, step: u64) -> SoundCheckpoint {
        match self.sound_before(step) {
            Some(path) => SoundCheckpoint::At(path),
            None => SoundCheckpoint::None,
        }
    }

    /// The newest checkpoint that what went wrong at `step` has not touched. A loss is that of the weights of the
    /// step before, whose checkpoint is the last choice, and not one if they are not finite.
    fn sound_before(&self, step: u64) -> Option<PathBuf> {
        let checkpoints = checkpoint::list(&self.folder.join(CHECKPOINTS)).unwrap_or_default();
        let finite = |path: &PathBuf| {
            let weights = read_tensors(&path.join("model.safetensors"));
            weights.is_ok_and(|weights| {
                let finite = |tensor: &Tensor| tensor.f_isfinite()?.f_all()?.f_int64_value(&[]);
                weights
                    .iter()
                    .all(|(_, tensor)| finite(tensor).is_ok_and(|all| all == 1))
            })
        };
        let newest = |below: u64| {
            let before =
                |path: &&PathBuf| checkpoint::step_of(path).is_some_and(|saved| saved < below);
            checkpoints
                .iter()
                .rev()
                .filter(before)
                .find(|path| finite(path))
        };
        newest(step.saturating_sub(1))
            .or_else(|| newest(step))
            .cloned()
    }

    /// Adds an evaluation to the last line of the log, which was written for its sake if it was not due.
    fn add_quality(&mut self, line: StepMetrics, quality: Quality) -> Result<(), TrainError> {
        let is_due = is_logged(self.trainer.config(), line.step);
        let (before, line) = (line.figures(), StepMetrics { quality, ..line });
        match (quality.is_empty(), is_due) {
            (true, true) => {}
            (true, false) => self.log.replace_last(None)?,
            (false, _) => self.log.replace_last(Some(&line))?,
        }
        self.log.sync()?;
        if !quality.is_empty() {
            let mut figures = line.figures();
            figures.retain(|figure| !is_due || !before.contains(figure));
            self.events.scalars(line.step, &figures)?;
            self.events.sync()?;
        }
        self.unevaluated = None;
        self.last = Some(line);
        Ok(())
    }
}

/// Whether a step has a line in the log whatever else happens.
fn is_logged(config: &Config, step: u64) -> bool {
    step.is_multiple_of(config.train.log_every) || step == config.train.steps
}

fn wants_evaluation(config: &Config, step: u64) -> bool {
    let every = config.evaluate.every;
    every > 0 && step > 0 && step.is_multiple_of(every)
}
