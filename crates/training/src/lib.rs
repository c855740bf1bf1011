//! The training step, optimiser, EMA, checkpoints and their configuration.
//!
//! A [`Trainer`] trains one model, one step at a time, on a batch and the encoders' tokens for it.
//! The caller reads the data and runs the encoders, so several trainers can share both. A [`Run`]
//! is a trainer with a folder: it logs to `metrics.jsonl`, saves [`Checkpoint`]s and resumes from
//! the newest valid one. On the CPU, a resumed run is bit-identical to an uninterrupted one.
//! [`Config`] holds all settings of a run.
//!
//! # Example
//!
//! ```
//! use data::{Cursor, Loader, LoaderConfig, OpenOptions};
//! use tch::{Device, Kind, Tensor};
//! use training::{Config, DeviceBatch, EncoderShape, Inputs, Run};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut config = Config::default();
//! config.model.name = "SiT-XS/4".into();
//! config.data.resolution = 16;
//! config.train.batch_size = 4;
//! config.train.steps = 2;
//!
//! # let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../experiments/data/emoji64");
//! let options = OpenOptions { split: Some("train".into()), ..Default::default() };
//! let dataset = data::open(root, &options)?;
//! let inputs = Inputs {
//!     device: Device::Cpu,
//!     num_classes: dataset.class_names().len() as i64,
//!     encoders: vec![EncoderShape { name: "random".into(), width: 32, grid: (4, 4) }],
//!     identity: dataset.fingerprint().into(),
//! };
//! # let folder = tempfile::tempdir()?;
//! # let folder = folder.path();
//! let mut run = Run::open(folder, &config, inputs)?;
//! let mut loader = Loader::new(dataset, config.loader(), run.trainer().cursor())?;
//! while !run.is_finished() {
//!     let Some(batch) = loader.next() else { break };
//!     let batch = DeviceBatch::new(batch?, Device::Cpu)?;
//!     // In a real run these come from an encoder.
//!     let tokens = Tensor::randn([4, 16, 32], (Kind::Float, Device::Cpu));
//!     run.step(&batch, &[tokens])?;
//! }
//! assert!(folder.join("checkpoints/step-0000002/manifest.json").is_file());
//! # Ok(())
//! # }
//! ```

#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod adamw;
mod aligner;
pub mod archive;
mod autoencoder;
mod average;
mod batch;
pub mod checkpoint;
mod collapse;
mod collapse_watch;
mod config;
mod data_parallel;
mod denoising;
mod error;
pub mod event_log;
mod forward;
mod inputs;
mod learning_rate;
mod metrics_log;
mod numerics;
mod passes;
mod repa_e;
mod run;
mod sampling;
mod step_graph;
mod task;
mod tensor_file;
mod trainer;
mod weights;

pub use adamw::AdamW;
pub use autoencoder::AutoencoderModel;
pub use average::Average;
pub use batch::{DeviceBatch, images_to_device};
pub use checkpoint::{Checkpoint, CheckpointError};
pub use collapse::Collapse;
pub use collapse_watch::CollapseWatch;
pub use config::{
    AlignmentConfig, Autoencoder, Config, ConfigPath, DataConfig, EvaluateConfig, InvalidConfig,
    JointTraining, KlLayout, KlSettings, ModelConfig, NO_ENCODER, Objective, OptimizerConfig,
    PerChannel, ReduceDtype, SampleConfig, Schedule, SettingEffect, TrainConfig, TrainPrecision,
};
pub use data_parallel::rows;
pub use error::{LastGoodCheckpoint, TrainError};
pub use event_log::EventLog;
pub use inputs::{EncoderShape, Inputs};
pub use learning_rate::LearningRate;
pub use metrics_log::{MetricsLog, StepMetrics};
pub use run::Run;
pub use sampling::Sampling;
pub use tensor_file::{read_tensors, write_tensors};
pub use trainer::Trainer;
