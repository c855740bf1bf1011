//! The Arrow files of a data set, of which only some are open at a time.

use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::DataError;

/// Files by number. Those used last stay open; the rest are opened again when they are needed, since a set can have
/// more files than a process may open.
#[derive(Debug)]
pub(super) struct Files {
    entries: Vec<Entry>,
    pool: Mutex<Pool>,
}

#[derive(Debug)]
struct Entry {
    path: PathBuf,
    identity: Identity,
}

/// What a file must still be when it is opened again.
#[derive(Debug, PartialEq, Eq)]
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
    /// By number of the file: its handle, and when it was used last.
    open: Vec<Option<(Arc<File>, u64)>>,
    count: usize,
    capacity: usize,
    clock: u64,
}

impl Files {
    pub(super) fn new() -> Self {
        Self::with_capacity(capacity())
    }

    fn with_capacity(capacity: usize) -> Self {
        Self {
            entries: Vec::new(),
            pool: Mutex::new(Pool {
                open: Vec::new(),
                count: 0,
                capacity: capacity.max(1),
                clock: 0,
            }),
        }
    }

    /// Opens one more file, which gets the next number.
    pub(super) fn add(&mut self, path: PathBuf) -> Result<Arc<File>, DataError> {
        let (file, identity) = open(&path)?;
        let number = self.entries.len();
        self.entries.push(Entry { path, identity });
        let pool = self.pool.get_mut().unwrap_or_else(PoisonError::into_inner);
        pool.open.push(None);
        pool.keep(number, &file);
        Ok(file)
    }

    pub(super) fn path(&self, number: usize) -> &Path {
        &self.entries[number].path
    }

    /// The file of a number, opened again if it has to be.
    pub(super) fn get(&self, number: usize) -> Result<Arc<File>, DataError> {
        if let Some(file) = self.lock().get(number) {
            return Ok(file);
        }
        // Without the lock: other threads read on while a file server takes its time.
        let entry = &self.entries[number];
        let (file, identity) = open(&entry.path)?;
        if identity != entry.identity {
            return Err(DataError::Malformed {
                path: entry.path.clone(),
                problem: "the file has changed since the data set was opened".to_owned(),
                fix: "start again with the data set as it is now",
            });
        }
        self.lock().keep(number, &file);
        Ok(file)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pool {
    fn get(&mut self, number: usize) -> Option<Arc<File>> {
        self.clock += 1;
        let (file, used) = self.open[number].as_mut()?;
        *used = self.clock;
        Some(Arc::clone(file))
    }

    fn keep(&mut self, number: usize, file: &Arc<File>) {
        self.clock += 1;
        if self.open[number].is_none() {
            if self.count == self.capacity {
                let oldest = self.open.iter_mut().filter(|slot| slot.is_some());
                let oldest = oldest.min_by_key(|slot| slot.as_ref().map(|(_, used)| *used));
                if let Some(slot) = oldest {
                    *slot = None;
                    self.count -= 1;
                }
            }
            self.count += 1;
        }
        self.open[number] = Some((Arc::clone(file), self.clock));
    }
}

fn open(path: &Path) -> Result<(Arc<File>, Identity), DataError> {
    let file = File::open(path).map_err(DataError::io(path, "open the Arrow file"))?;
    let metadata = file
        .metadata()
        .map_err(DataError::io(path, "read the size"))?;
    Ok((Arc::new(file), Identity::of(&metadata)))
}

/// A quarter of the files that this process may open: a command has up to three data sets open, and other files.
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

    fn files(folder: &Path, count: usize, capacity: usize) -> Files {
        let mut files = Files::with_capacity(capacity);
        for number in 0..count {
            let path = folder.join(number.to_string());
            fs::write(&path, [number as u8]).unwrap();
            files.add(path).unwrap();
        }
        files
    }

    #[test]
    fn no_more_files_are_open_than_the_capacity() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path(), 20, 3);
        for number in [0, 19, 7, 7, 0, 3, 12, 0] {
            let mut byte = [255];
            files
                .get(number)
                .unwrap()
                .read_exact_at(&mut byte, 0)
                .unwrap();
            assert_eq!(byte[0] as usize, number);
            let pool = files.lock();
            let open = pool.open.iter().flatten().count();
            assert_eq!((open, pool.count), (3, 3));
        }
        // 0, 12 and 3 were used last.
        let open = |number: usize| files.lock().open[number].is_some();
        assert!(open(0) && open(12) && open(3) && !open(7));
    }

    #[test]
    fn a_file_that_was_replaced_meanwhile_is_not_read_with_the_old_places() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path(), 2, 1);
        fs::write(folder.path().join("0"), b"longer").unwrap();
        let error = files.get(0).unwrap_err().to_string();
        assert!(error.contains("has changed"), "{error}");
        assert!(files.get(1).is_ok());
    }
}
