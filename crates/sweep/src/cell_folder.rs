//! The folder of one cell: configuration, result, samples and lock.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use files::{LeftoverScope, Lock, LockError};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use training::{CheckpointError, Config, archive};

use crate::config_file;
use report::results::{ResultRow, Status};

/// Why a cell's folder cannot be used.
#[derive(Debug, Error)]
pub enum CellFolderError {
    /// A file operation failed.
    #[error("cannot {action} {}: {source}; choose another folder with --out, or check its permissions and the space left", path.display())]
    Io {
        /// The operation, as a verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },

    /// Another process works on the cell.
    #[error("another process is running this cell: {0}")]
    Locked(LockError),

    /// The lock was left by a process that has ended.
    #[error("this cell is locked: {0}")]
    Abandoned(LockError),

    /// The previous run or result could not be moved or copied to `before/N`.
    #[error(transparent)]
    Archive(#[from] CheckpointError),
}

impl From<LockError> for CellFolderError {
    fn from(error: LockError) -> Self {
        match error {
            LockError::Io {
                action,
                path,
                source,
            } => Self::Io {
                action,
                path,
                source,
            },
            held if held.is_abandoned() => Self::Abandoned(held),
            held => Self::Locked(held),
        }
    }
}

/// `result.json`: the cell's row of `results.csv`, and the inputs and hardware that it was computed with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CellResult {
    /// Hash of configuration and inputs. If it changes, the cell is run again.
    pub hash: String,
    /// Device, precision and number of threads, as text.
    pub hardware: String,
    /// When the cell was started or resumed, in seconds since 1970.
    pub started_at: u64,
    /// When the cell ended, in seconds since 1970.
    pub finished_at: u64,
    /// Corrupt samples that the data stream skipped; absent for a cell that failed before it was opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub corrupt_skipped: Option<u64>,
    /// The metric that left the range of its own history for good, if any: the training may have collapsed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collapse: Option<String>,
    /// The row of `results.csv`.
    #[serde(flatten)]
    pub row: ResultRow,
}

const RESULT: &str = "result.json";
const LOCK: &str = ".lock";

/// A cell's folder.
#[derive(Debug, Clone)]
pub struct CellFolder {
    path: PathBuf,
}

impl CellFolder {
    /// The folder of cell `id` in a run folder. Nothing is created.
    pub fn new(run_folder: &Path, id: &str) -> Self {
        Self {
            path: run_folder.join("cells").join(id),
        }
    }

    /// A run's own folder, outside of any sweep.
    pub fn at(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    /// The path of the folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The last result; `None` if there is no result, or if it is damaged, which is logged as a warning.
    ///
    /// # Errors
    /// `result.json` exists but cannot be read.
    pub fn result(&self) -> Result<Option<CellResult>, CellFolderError> {
        let path = self.path.join(RESULT);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(io_error("read", &path, source)),
        };
        let result = serde_json::from_slice(&text);
        if let Err(error) = &result {
            tracing::warn!("{} is damaged: {error}", path.display());
        }
        Ok(result.ok())
    }

    /// Whether the cell has a result with status `done` for the configuration and inputs of `hash`.
    ///
    /// # Errors
    /// As [`result`](Self::result).
    pub fn is_done(&self, hash: &str) -> Result<bool, CellFolderError> {
        let result = self.result()?;
        Ok(result.is_some_and(|result| result.hash == hash && result.row.status == Status::Done))
    }

    /// Writes `result.json` atomically.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn write_result(&self, result: &CellResult) -> Result<(), CellFolderError> {
        self.create()?;
        let path = self.path.join(RESULT);
        files::write(&path, |file| {
            serde_json::to_writer_pretty(&mut *file, result)?;
            file.write_all(b"\n")
        })
        .map_err(|source| io_error("write", &path, source))
    }

    /// Writes `config.toml` atomically.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn write_config(&self, config: &Config) -> Result<(), CellFolderError> {
        self.create()?;
        let path = self.path.join("config.toml");
        let text = config_file::to_file(config)
            .map_err(|error| io_error("write", &path, io::Error::other(error)))?;
        files::write(&path, |file| file.write_all(text.as_bytes()))
            .map_err(|source| io_error("write", &path, source))
    }

    /// Writes the result of a failed cell. An existing result with status `done` is not lost: if its hash is the same,
    /// it stays and nothing is written; otherwise it is copied to `before/N` first.
    ///
    /// # Errors
    /// The folder cannot be read or written.
    pub fn write_failure(&self, result: &CellResult) -> Result<(), CellFolderError> {
        if let Some(old) = self.result()?
            && old.row.status == Status::Done
        {
            if old.hash == result.hash {
                return Ok(());
            }
            archive::keep_copies(&self.path)?;
        }
        self.write_result(result)
    }

    /// Moves a result with another hash than `hash` to `before/N`, together with copies of the files that belong to it,
    /// because a run that resumes is about to replace it. Returns the path of `before/N`.
    ///
    /// # Errors
    /// The folder cannot be read or written.
    pub fn keep_result_unless(&self, hash: &str) -> Result<Option<PathBuf>, CellFolderError> {
        let path = self.path.join(RESULT);
        let exists = path
            .try_exists()
            .map_err(|source| io_error("read", &path, source))?;
        let is_same = self.result()?.is_some_and(|result| result.hash == hash);
        if !exists || is_same {
            return Ok(None);
        }
        let before = archive::keep_copies(&self.path)?;
        fs::remove_file(&path).map_err(|source| io_error("move", &path, source))?;
        Ok(Some(before))
    }

    /// Moves the run in this folder to `before/N` and returns that path; the lock file stays. The cell must be
    /// [locked](Self::lock).
    ///
    /// # Errors
    /// The folder cannot be read or written.
    pub fn set_aside(&self) -> Result<Option<PathBuf>, CellFolderError> {
        Ok(archive::set_aside(&self.path, None)?)
    }

    /// Locks the cell for this process, until the lock is dropped or the process ends.
    ///
    /// # Errors
    /// Another process holds the lock, or the folder cannot be written.
    pub fn lock(&self) -> Result<CellLock, CellFolderError> {
        self.create()?;
        let lock = Lock::take(&self.path.join(LOCK))?;
        files::remove_leftovers(&self.path, LeftoverScope::EndedOrUnknown)
            .map_err(|source| io_error("clean up", &self.path, source))?;
        Ok(CellLock { _lock: lock })
    }

    fn create(&self) -> Result<(), CellFolderError> {
        fs::create_dir_all(&self.path).map_err(|source| io_error("create", &self.path, source))
    }
}

/// The lock of a cell, held by this process.
#[derive(Debug)]
pub struct CellLock {
    _lock: Lock,
}

fn io_error(action: &'static str, path: &Path, source: io::Error) -> CellFolderError {
    CellFolderError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}
