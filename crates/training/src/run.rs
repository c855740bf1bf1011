//! A training run and its folder: resume, step, log, save.

use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::{
    Checkpoint, Config, DeviceBatch, EventLog, Inputs, MetricsLog, Quality, StepMetrics,
    TrainError, Trainer, checkpoint,
};
use tch::Tensor;
use torch_ext::Mismatch;

/// A [`Trainer`] with a folder:
///
/// ```text
/// metrics.jsonl
/// events.out.tfevents.*   the same figures for TensorBoard
/// checkpoints/step-NNNNNNN/
/// ```
///
/// It continues from the newest valid checkpoint that is there.
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
}

/// Steps a second since the last logged line.
#[derive(Debug)]
struct Speed {
    since: Instant,
    step: u64,
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
        let checkpoints = folder.join("checkpoints");
        let newest = Checkpoint::newest(&checkpoints, &trainer.hash());
        if let Some(checkpoint) = &newest {
            trainer.resume(checkpoint)?;
        }
        let resumed_from = trainer.steps_done();
        Ok(Self {
            log: MetricsLog::open(&folder.join("metrics.jsonl"), resumed_from)?,
            events: EventLog::open(folder, resumed_from)?,
            folder: folder.to_owned(),
            speed: Speed {
                since: Instant::now(),
                step: resumed_from,
            },
            resumed_from,
            saved: newest.map(|checkpoint| checkpoint.step),
            trainer,
            last: None,
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

    /// One optimiser step, with what is due after it: a line in the log, a checkpoint.
    ///
    /// # Errors
    /// As [`Trainer::step`], or the folder cannot be written.
    pub fn step(&mut self, batch: &DeviceBatch, tokens: &[Tensor]) -> Result<(), TrainError> {
        self.step_and_evaluate(batch, tokens, |_| Ok(Quality::default()))
    }

    /// As [`Run::step`], with the evaluation that may be due after the step.
    ///
    /// `evaluate` says what samples of the averaged weights are like. It is called after steps that `evaluate.every` divides, before the checkpoint: a checkpoint never lacks
    /// an evaluation that the log should have.
    ///
    /// # Errors
    /// As [`Trainer::step`] and `evaluate`, or the folder cannot be written.
    pub fn step_and_evaluate<E: From<TrainError>>(
        &mut self,
        batch: &DeviceBatch,
        tokens: &[Tensor],
        evaluate: impl FnOnce(&Trainer) -> Result<Quality, E>,
    ) -> Result<(), E> {
        let before = self.trainer.step(batch, tokens)?;
        self.record(before)?;
        let step = self.trainer.steps_done();
        let Config {
            train,
            evaluate: settings,
            ..
        } = self.trainer.config();
        let save = self.is_finished() || step.is_multiple_of(train.checkpoint_every);
        if settings.every > 0 && step.is_multiple_of(settings.every) {
            let mut last = self.trainer.finish_step()?;
            let started = Instant::now();
            let quality = evaluate(&self.trainer)?;
            self.speed.since += started.elapsed();
            if let Some(metrics) = &mut last {
                metrics.quality = quality;
            }
            self.record(last)?;
        }
        if save {
            self.save()?;
        }
        Ok(())
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
        let last = self.trainer.finish_step()?;
        self.record(last)?;
        self.log.sync()?;
        self.events.sync()?;
        let step = self.trainer.steps_done();
        if self.saved == Some(step) {
            return Ok(());
        }
        let checkpoints = self.folder.join("checkpoints");
        self.trainer.checkpoint()?.save(&checkpoints)?;
        self.saved = Some(step);
        checkpoint::prune(&checkpoints, self.trainer.config().train.keep_checkpoints)?;
        Ok(())
    }

    fn record(&mut self, metrics: Option<StepMetrics>) -> Result<(), TrainError> {
        let Some(mut metrics) = metrics else {
            return Ok(());
        };
        let train = &self.trainer.config().train;
        let is_due = metrics.step.is_multiple_of(train.log_every) || metrics.step == train.steps;
        if is_due || !metrics.quality.is_empty() {
            if train.log_speed {
                let seconds = self.speed.since.elapsed().as_secs_f64();
                let steps = metrics.step.saturating_sub(self.speed.step);
                metrics.steps_per_s = (seconds > 0.0).then(|| steps as f64 / seconds);
            }
            self.speed = Speed {
                since: Instant::now(),
                step: metrics.step,
            };
            self.log.append(&metrics)?;
            self.events.scalars(metrics.step, &metrics.figures())?;
        }
        self.last = Some(metrics);
        Ok(())
    }
}
