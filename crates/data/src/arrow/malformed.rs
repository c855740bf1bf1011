//! The error for a damaged Arrow file.

use std::path::Path;

use crate::error::DataError;

/// The advice for a damaged file.
pub(super) const COPY_AGAIN: &str = "the file is damaged: copy or download it again";

/// The error for a damaged file.
pub(super) fn malformed(path: &Path, problem: String) -> DataError {
    DataError::Malformed {
        path: path.to_path_buf(),
        problem,
        fix: COPY_AGAIN,
    }
}
