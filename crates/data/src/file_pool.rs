//! The files of a data set that each hold many samples, with a limited number open at a time.

use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::error::DataError;

/// The files, identified by their index. Those used most recently stay open; the others are reopened on demand,
/// because a data set can have more files than a process may open.
#[derive(Debug)]
pub(crate) struct FilePool {
    entries: Vec<Entry>,
    pool: Mutex<Pool>,
}

#[derive(Debug)]
struct Entry {
    path: PathBuf,
    /// Recorded when the file is first opened.
    identity: OnceLock<Identity>,
}

/// Size and modification time of a file, which must be unchanged when the file is reopened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    size: u64,
    modified: (i64, i64),
}

impl Identity {
    fn of(metadata: &Metadata) -> Self {
        Self {
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

#[derive(Debug)]
struct Pool {
    /// For each file: its handle if it is open, and the clock value of its last use.
    open: Vec<Option<(Arc<File>, u64)>>,
    count: usize,
    capacity: usize,
    clock: u64,
}

impl FilePool {
    /// No file is opened yet.
    pub(crate) fn new(paths: Vec<PathBuf>) -> Self {
        Self::with_capacity(paths, capacity())
    }

    fn with_capacity(paths: Vec<PathBuf>, capacity: usize) -> Self {
        let pool = Pool {
            open: vec![None; paths.len()],
            count: 0,
            capacity: capacity.max(1),
            clock: 0,
        };
        let entries = paths.into_iter().map(|path| Entry {
            path,
            identity: OnceLock::new(),
        });
        Self {
            entries: entries.collect(),
            pool: Mutex::new(pool),
        }
    }

    pub(crate) fn path(&self, index: usize) -> &Path {
        &self.entries[index].path
    }

    /// Returns a file, and opens it if necessary. Several threads may call this at once.
    pub(crate) fn get(&self, index: usize) -> Result<Arc<File>, DataError> {
        if let Some(file) = self.lock().get(index) {
            return Ok(file);
        }
        // The lock is not held here, so that other threads can read while a slow file server responds.
        let entry = &self.entries[index];
        let (file, identity) = open(&entry.path)?;
        if identity != *entry.identity.get_or_init(|| identity) {
            return Err(DataError::Malformed {
                path: entry.path.clone(),
                problem: "the file has changed since the data set was opened".to_owned(),
                fix: "start again with the current data set",
            });
        }
        self.lock().insert(index, &file);
        Ok(file)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pool {
    fn get(&mut self, index: usize) -> Option<Arc<File>> {
        self.clock += 1;
        let (file, last_used) = self.open[index].as_mut()?;
        *last_used = self.clock;
        Some(Arc::clone(file))
    }

    /// Adds an open file. A full pool closes the least recently used file first.
    fn insert(&mut self, index: usize, file: &Arc<File>) {
        self.clock += 1;
        if self.open[index].is_none() {
            if self.count == self.capacity {
                let oldest = self.open.iter_mut().filter(|slot| slot.is_some());
                let oldest =
                    oldest.min_by_key(|slot| slot.as_ref().map(|(_, last_used)| *last_used));
                if let Some(slot) = oldest {
                    *slot = None;
                    self.count -= 1;
                }
            }
            self.count += 1;
        }
        self.open[index] = Some((Arc::clone(file), self.clock));
    }
}

fn open(path: &Path) -> Result<(Arc<File>, Identity), DataError> {
    let file = File::open(path).map_err(DataError::io(path, "open the file"))?;
    let metadata = file
        .metadata()
        .map_err(DataError::io(path, "read the size"))?;
    Ok((Arc::new(file), Identity::of(&metadata)))
}

/// A quarter of the files that this process may open, because a command opens up to three data sets and other files.
fn capacity() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let quarter = limit.unwrap_or(u64::MAX) / 4;
    usize::try_from(quarter)
        .unwrap_or(usize::MAX)
        .clamp(8, 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::FileExt;

    fn files(folder: &Path, count: usize, capacity: usize) -> FilePool {
        let paths = (0..count).map(|index| folder.join(index.to_string()));
        let files = FilePool::with_capacity(paths.collect(), capacity);
        for index in 0..count {
            fs::write(files.path(index), [index as u8]).unwrap();
            files.get(index).unwrap();
        }
        files
    }

    #[test]
    fn no_more_files_are_open_than_the_capacity() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path(), 20, 3);
        for index in [0, 19, 7, 7, 0, 3, 12, 0] {
            let mut byte = [255];
            files
                .get(index)
                .unwrap()
                .read_exact_at(&mut byte, 0)
                .unwrap();
            assert_eq!(byte[0] as usize, index);
            let pool = files.lock();
            let open = pool.open.iter().flatten().count();
            assert_eq!((open, pool.count), (3, 3));
        }
        // 0, 12 and 3 are the most recently used.
        let open = |index: usize| files.lock().open[index].is_some();
        assert!(open(0) && open(12) && open(3) && !open(7));
    }

    #[test]
    fn a_file_that_was_replaced_is_not_read_at_stale_offsets() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path(), 2, 1);
        fs::write(folder.path().join("0"), b"longer").unwrap();
        let error = files.get(0).unwrap_err().to_string();
        assert!(error.contains("has changed"), "{error}");
        assert!(files.get(1).is_ok());
    }
}
