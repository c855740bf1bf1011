//! A training run and its folder: resume, step, log, save.

use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::{
    Checkpoint, Config, DeviceBatch, Inputs, MetricsLog, StepMetrics, TrainError, Trainer,
    checkpoint,
};
use tch::Tensor;
use torch_ext::Mismatch;

/// A [`Trainer`] with a folder:
///
/// ```text
/// metrics.jsonl
/// checkpoints/step-NNNNNNN/
/// ```
///
/// It continues from the newest valid checkpoint that is there.
#[derive(Debug)]
pub struct Run {
    trainer: Trainer,
    log: MetricsLog,
    folder: PathBuf,
    resumed_from: u64,
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
        if let Some(checkpoint) = Checkpoint::newest(&checkpoints, &trainer.hash()) {
            trainer.resume(&checkpoint)?;
        }
        let resumed_from = trainer.steps_done();
        Ok(Self {
            log: MetricsLog::open(&folder.join("metrics.jsonl"), resumed_from)?,
            folder: folder.to_owned(),
            speed: Speed {
                since: Instant::now(),
                step: resumed_from,
            },
            resumed_from,
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
        let before = self.trainer.step(batch, tokens)?;
        self.record(before)?;
        let step = self.trainer.steps_done();
        let every = self.trainer.config().train.checkpoint_every;
        if self.is_finished() || step.is_multiple_of(every) {
            self.save()?;
        }
        Ok(())
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
        let checkpoints = self.folder.join("checkpoints");
        self.trainer.checkpoint()?.save(&checkpoints)?;
        checkpoint::prune(&checkpoints, self.trainer.config().train.keep_checkpoints)?;
        Ok(())
    }

    fn record(&mut self, metrics: Option<StepMetrics>) -> Result<(), TrainError> {
        let Some(mut metrics) = metrics else {
            return Ok(());
        };
        let train = &self.trainer.config().train;
        if metrics.step.is_multiple_of(train.log_every) || metrics.step == train.steps {
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
        }
        self.last = Some(metrics);
        Ok(())
    }
}
