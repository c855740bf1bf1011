//! The errors of checkpoints.

use std::io;
use std::path::{Path, PathBuf};

use tch::TchError;
use thiserror::Error;

/// The version of the format of checkpoints.
pub(super) const FORMAT: u32 = 1;

/// Why a checkpoint could not be written or read.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// A file operation failed.
    #[error("cannot {action} {}: {source}{}", path.display(), hint(source))]
    Io {
        /// The operation, as a verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },

    /// A safetensors file is damaged, or could not be written.
    #[error("{}: {source}", path.display())]
    Tensors {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: safetensors::SafeTensorError,
    },

    /// A tensor's dtype cannot be stored or read.
    #[error("tensor `{name}` has dtype {found}, which checkpoints do not support")]
    Dtype {
        /// Name of the tensor.
        name: String,
        /// Its dtype.
        found: String,
    },

    /// The manifest is not valid JSON, or has other fields.
    #[error("{}: {source}", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// The reason, with line and column.
        source: serde_json::Error,
    },

    /// The manifest has another version of the format.
    #[error("{} has format {found}, but this program reads format {FORMAT}", path.display())]
    Format {
        /// The manifest.
        path: PathBuf,
        /// Its format version.
        found: u32,
    },

    /// A file is missing, or is not the one that the manifest describes.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The kind of damage.
        reason: String,
    },

    /// A libtorch operation failed.
    #[error(transparent)]
    Tch(#[from] TchError),
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull => {
            "; free some space and start the run again: it resumes from its last checkpoint"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; choose another folder with --out"
        }
        _ => "",
    }
}

impl CheckpointError {
    /// Whether the error means that the checkpoint is damaged: a file is missing, truncated, changed or of another
    /// kind. Other errors, such as those of the disk, of permissions or of memory, say nothing about the checkpoint.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Tensors { source, .. } => {
                !matches!(source, safetensors::SafeTensorError::IoError(_))
            }
            Self::Dtype { .. } | Self::Manifest { .. } | Self::Damaged { .. } => true,
            Self::Io { .. } | Self::Format { .. } | Self::Tch(_) => false,
        }
    }

    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }
}
