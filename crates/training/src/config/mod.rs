//! The configuration of a training run. Every setting has a default, the paper's value where it
//! states one. Unknown keys are refused.
//!
//! Each section of a file is a struct in a file of its own; [`Config`] holds all sections.

mod alignment;
mod autoencoder;
mod check;
mod data;
mod effect;
mod evaluate;
mod invalid;
mod joint_training;
mod model;
mod objective;
mod omit;
mod optimizer;
mod path;
mod paths;
mod root;
mod sample;
mod sampler;
mod train;

pub use alignment::{AlignmentConfig, NO_ENCODER};
pub use autoencoder::{Autoencoder, KlLayout, KlSettings, PerChannel};
pub use data::DataConfig;
pub use effect::SettingEffect;
pub use evaluate::EvaluateConfig;
pub use invalid::InvalidConfig;
pub use joint_training::JointTraining;
pub use model::ModelConfig;
pub use objective::Objective;
pub use optimizer::{OptimizerConfig, Schedule};
pub use path::ConfigPath;
pub use root::Config;
pub use sample::SampleConfig;
pub(crate) use sampler::meanflow_sampler;
pub use train::{ReduceDtype, TrainConfig, TrainPrecision};
