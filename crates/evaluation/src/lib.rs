//! Measures encoders and samples.
//!
//! [`evaluate`] compares an [`ImageSet`] of samples with a [`Reference`] and returns a [`QualityReport`]: FID, sFID,
//! Inception score, KID, precision and recall, from one pass with an [`Extractor`]. [`Judges`] measure the samples of a
//! training run in the same way. [`spatial_metrics`] and [`probe`] measure encoders.
//!
//! [`sampling`] draws many samples from a checkpoint; each sample depends only on its index. [`visualize`] draws maps of
//! an encoder's patch tokens. [`encoder_bank`] and [`autoencoder_files`] find and load the networks that a configuration
//! names.

#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod autoencoder_files;
mod classes;
pub mod encoder_bank;
mod error;
mod features;
mod identity;
mod image_selection;
mod images;
mod judges;
mod measure;
mod probe;
mod quality;
mod quality_report;
pub mod sampling;
mod spatial;
mod statistics;
mod subset;
mod tensors;
pub mod visualize;

pub use classes::{ReferenceClasses, uses_reference_classes};
pub use error::EvaluationError;
pub use features::{Extractor, Features};
pub use image_selection::ImageSelection;
pub use images::{Batches, ImageOptions, ImageSet};
pub use judges::{JudgeStage, Judges};
pub use measure::{FeaturePass, PassOptions, PassResult, measure};
pub use probe::{ProbeAccuracy, ProbeData, probe};
pub use quality::{QualityOptions, Scoring, Stage, evaluate};
pub use quality_report::{FeatureReport, Measured, QualityReport, Results, SetReport};
pub use spatial::spatial_metrics;
pub use statistics::{Reference, ReferenceStatistics};
pub use tensors::images as image_array;
