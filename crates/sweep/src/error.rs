//! The error type of [`run`](crate::run()) and [`train`](crate::train).

use std::io;
use std::path::PathBuf;

use data::DataError;
use evaluation::encoder_bank::IdentityError;
use report::ReportError;
use report::results::ResultsError;
use thiserror::Error;
use torch_ext::TorchError;
use training::{CheckpointError, TrainError};

use crate::cell_folder::CellFolderError;
use crate::config_file::ConfigError;
use crate::ranks::RanksError;

/// Why a sweep or a single run could not start, or could not write its results.
#[derive(Debug, Error)]
pub enum SweepError {
    /// The experiment file or a configuration is invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The device cannot be used.
    #[error("--device {name}: {source}")]
    Device {
        /// The value of `--device`.
        name: String,
        /// The reason.
        source: TorchError,
    },
    /// The data cannot be opened.
    #[error("{experiment}: `data.path`: {source}", experiment = experiment.display())]
    Data {
        /// The experiment file.
        experiment: PathBuf,
        /// The reason.
        source: Box<DataError>,
    },
    /// The reference images have classes that the training images lack.
    #[error("{experiment}: `data.reference_split`: {source}", experiment = experiment.display())]
    Classes {
        /// The experiment file.
        experiment: PathBuf,
        /// The first difference.
        source: Box<DataError>,
    },
    /// `--only` is not a valid glob, or matches no cell.
    #[error("--only {glob}: {reason}")]
    Only {
        /// The value of `--only`.
        glob: String,
        /// The reason.
        reason: String,
    },
    /// The run folder cannot be written.
    #[error("cannot write {}: {source}; choose another folder with --out", path.display())]
    Out {
        /// The folder or file.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// Several processes cannot train the model together.
    #[error(transparent)]
    Ranks(#[from] RanksError),
    /// The batch cannot be shared, or this model is trained by one process only.
    #[error("{}: {source}", origin.display())]
    Shared {
        /// The configuration file.
        origin: PathBuf,
        /// The reason.
        source: Box<TrainError>,
    },
    /// A worker process cannot be started.
    #[error("cannot start a worker: {source}; --workers 1 runs all cells in this process")]
    Worker {
        /// The error of the operating system.
        source: io::Error,
    },
    /// The run in the folder cannot be resumed with these settings.
    #[error(
        "{}: {reason}; use the settings that the run was started with, or start another run with --out (--init \
         loads initial weights, such as a checkpoint's ema.safetensors)",
        folder.display()
    )]
    Resume {
        /// The run's folder.
        folder: PathBuf,
        /// Why it cannot be resumed.
        reason: String,
    },
    /// A file exists but cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// A cell's folder cannot be read or written.
    #[error(transparent)]
    Cell(#[from] CellFolderError),
    /// The checkpoints of a run cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The identity of a cell's encoders or autoencoder cannot be determined.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// `results.csv` cannot be written.
    #[error(transparent)]
    Results(#[from] ResultsError),
    /// The report cannot be written.
    #[error(transparent)]
    Report(#[from] ReportError),
}
