//! The crate's one error type.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use data::DataError;
use encoders::EncoderError;
use metrics::MetricsError;
use metrics::npz::NpzError;
use tch::TchError;
use thiserror::Error;
use training::TrainError;

use crate::metric::SampleMetric;

/// Why something could not be measured.
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
    /// An `.npz` file is not what it must be.
    #[error(transparent)]
    Npz(#[from] NpzError),
    /// An image file cannot be read.
    #[error("{}: {reason}; sample it again or remove it", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no image.
    #[error("{} has no image", path.display())]
    NoImages {
        /// The folder or file.
        path: PathBuf,
    },
    /// An image, or a set, has another size than it must have.
    #[error(
        "{} has {} x {} pixels (height x width), {} x {} are needed: {way_out}",
        path.display(), found.0, found.1, expected.0, expected.1
    )]
    Size {
        /// The image or set.
        path: PathBuf,
        /// Its height and width.
        found: (u32, u32),
        /// The size needed.
        expected: (u32, u32),
        /// What to do.
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
        /// What is in it.
        found: String,
    },
    /// Statistics are of other features.
    #[error(
        "`{name}` of {} is of {found} features, but the network gives {expected}: it was computed with \
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
        /// That of the network.
        expected: usize,
    },
    /// A label beyond the classes of its data set.
    #[error("{dataset} has an image of class {label}, and no such class")]
    Label {
        /// The data set.
        dataset: String,
        /// The label.
        label: i64,
    },
    /// A measure that was asked for cannot be computed.
    #[error("{metric} cannot be computed: {reason}")]
    NotAllowed {
        /// The measure.
        metric: SampleMetric,
        /// Why.
        reason: String,
    },
    /// The user stopped it.
    #[error("interrupted; the same command begins again and gives the same result")]
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
    /// Whether the call was wrong, rather than its execution: what is measured cannot be measured so.
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

/// `Err` once `interrupted` is set.
pub(crate) fn check_interrupted(interrupted: &AtomicBool) -> Result<(), EvaluationError> {
    match interrupted.load(Ordering::Relaxed) {
        true => Err(EvaluationError::Interrupted),
        false => Ok(()),
    }
}
