//! The crate's one error type.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use data::DataError;
use encoders::EncoderError;
use metrics::MetricsError;
use metrics::npz::NpzError;
use metrics::quality::SampleMetric;
use tch::TchError;
use thiserror::Error;
use training::TrainError;

/// Why a measurement failed.
#[derive(Debug, Error)]
pub enum EvaluationError {
    /// The images could not be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The encoder failed.
    #[error(transparent)]
    Encoder(#[from] EncoderError),
    /// The metric cannot be computed.
    #[error(transparent)]
    Metrics(MetricsError),
    /// The images could not be moved to the device.
    #[error(transparent)]
    Train(TrainError),
    /// libtorch failed.
    #[error(transparent)]
    Tch(#[from] TchError),
    /// An `.npz` file cannot be read or has unexpected contents.
    #[error(transparent)]
    Npz(#[from] NpzError),
    /// An image file cannot be read.
    #[error("{}: {reason}; sample it again or remove it", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// The problem.
        reason: String,
    },
    /// A folder or file contains no images.
    #[error("{} has no image", path.display())]
    NoImages {
        /// The folder or file.
        path: PathBuf,
    },
    /// An image, or a set of images, does not have the required size.
    #[error(
        "{} has {} x {} pixels (height x width), but must have {} x {}: {way_out}",
        path.display(), found.0, found.1, expected.0, expected.1
    )]
    Size {
        /// The image or set.
        path: PathBuf,
        /// Its height and width.
        found: (u32, u32),
        /// The required height and width.
        expected: (u32, u32),
        /// How to resolve the error.
        way_out: &'static str,
    },
    /// A reference file has neither statistics nor images.
    #[error(
        "{} holds neither statistics (mu, sigma) nor images (arr_0), only {found}",
        path.display()
    )]
    NoStatistics {
        /// The file.
        path: PathBuf,
        /// The names of its arrays.
        found: String,
    },
    /// Statistics describe the features of another network.
    #[error(
        "`{name}` in {} describes {found} features, but the network computes {expected}: the statistics come from \
         another network",
        path.display()
    )]
    Width {
        /// The file.
        path: PathBuf,
        /// The array.
        name: &'static str,
        /// Its number of features.
        found: usize,
        /// The number of features of the network.
        expected: usize,
    },
    /// A label outside the classes of its data set.
    #[error("an image of {dataset} has class {label}, which the data set does not have")]
    Label {
        /// The data set.
        dataset: String,
        /// The label.
        label: i64,
    },
    /// A requested metric cannot be computed.
    #[error("{metric} cannot be computed: {reason}")]
    NotAllowed {
        /// The metric.
        metric: SampleMetric,
        /// The reason.
        reason: String,
    },
    /// The user interrupted the measurement.
    #[error("interrupted; the same command starts over and returns the same result")]
    Interrupted,
}

impl From<TrainError> for EvaluationError {
    fn from(error: TrainError) -> Self {
        match error {
            TrainError::Interrupted => Self::Interrupted,
            error => Self::Train(error),
        }
    }
}

impl From<MetricsError> for EvaluationError {
    fn from(error: MetricsError) -> Self {
        match error {
            MetricsError::Interrupted => Self::Interrupted,
            error => Self::Metrics(error),
        }
    }
}

impl EvaluationError {
    /// Returns whether the request was invalid, as opposed to a failure while it was executed.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::NoImages { .. }
                | Self::Size { .. }
                | Self::NoStatistics { .. }
                | Self::Width { .. }
                | Self::NotAllowed { .. }
        )
    }
}

/// Returns [`EvaluationError::Interrupted`] once `interrupted` is set.
pub(crate) fn check_interrupted(interrupted: &AtomicBool) -> Result<(), EvaluationError> {
    match interrupted.load(Ordering::Relaxed) {
        true => Err(EvaluationError::Interrupted),
        false => Ok(()),
    }
}
