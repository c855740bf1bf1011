//! The folder of one cell: configuration, result, samples, and a lock.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use training::Config;

use crate::results::ResultRow;
use crate::{atomic_file, config_file};

/// Why a cell's folder cannot be used.
#[derive(Debug, Error)]
pub enum CellFolderError {
    /// A file operation failed.
    #[error("cannot {action} {}: {source}; choose another folder with --out, or check its permissions and the space left", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },

    /// Another process works on the cell.
    #[error("another process is running this cell (it holds {}); wait for it, or stop it", .0.display())]
    Locked(PathBuf),
}

/// `result.json`: the cell's row of `results.csv` and what it was computed from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CellResult {
    /// Hash of configuration and inputs. Another hash means that the cell has to run again.
    pub hash: String,
    /// Device, precision and threads, in words.
    pub hardware: String,
    /// When the cell was started or continued, in seconds since 1970.
    pub started_at: u64,
    /// When it ended, in seconds since 1970.
    pub finished_at: u64,
    /// The row.
    #[serde(flatten)]
    pub row: ResultRow,
}

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

    /// A folder that is not part of a sweep.
    pub fn at(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The last result, if there is one that can be read.
    pub fn result(&self) -> Option<CellResult> {
        let text = fs::read(self.path.join("result.json")).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Writes `result.json`, whole or not at all.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn write_result(&self, result: &CellResult) -> Result<(), CellFolderError> {
        self.create()?;
        let path = self.path.join("result.json");
        atomic_file::write(&path, |file| {
            serde_json::to_writer_pretty(&mut *file, result)?;
            file.write_all(b"\n")
        })
        .map_err(|source| io_error("write", &path, source))
    }

    /// Writes `config.toml`, whole or not at all.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn write_config(&self, config: &Config) -> Result<(), CellFolderError> {
        self.create()?;
        let path = self.path.join("config.toml");
        let text = config_file::to_file(config)
            .map_err(|error| io_error("write", &path, io::Error::other(error)))?;
        atomic_file::write(&path, |file| file.write_all(text.as_bytes()))
            .map_err(|source| io_error("write", &path, source))
    }

    /// Removes the folder and all in it.
    ///
    /// # Errors
    /// The system refused.
    pub fn remove(&self) -> Result<(), CellFolderError> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(io_error("remove", &self.path, error))
            }
            _ => Ok(()),
        }
    }

    /// Takes the cell for this process, until the lock is dropped or the process ends.
    ///
    /// # Errors
    /// Another process has it, or the folder cannot be written.
    pub fn lock(&self) -> Result<CellLock, CellFolderError> {
        self.create()?;
        let path = self.path.join(".lock");
        let file = File::create(&path).map_err(|source| io_error("create", &path, source))?;
        match file.try_lock() {
            Ok(()) => Ok(CellLock { _file: file }),
            Err(TryLockError::WouldBlock) => Err(CellFolderError::Locked(path)),
            Err(TryLockError::Error(source)) => Err(io_error("lock", &path, source)),
        }
    }

    fn create(&self) -> Result<(), CellFolderError> {
        fs::create_dir_all(&self.path).map_err(|source| io_error("create", &self.path, source))
    }
}

/// A cell taken by this process. The system releases it however the process ends.
#[derive(Debug)]
pub struct CellLock {
    _file: File,
}

fn io_error(action: &'static str, path: &Path, source: io::Error) -> CellFolderError {
    CellFolderError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}
