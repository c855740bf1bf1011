//! One process at a time.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::{Owner, State, atomic};

/// Why a lock cannot be had.
#[derive(Debug, Error)]
pub enum LockError {
    /// Another process holds it.
    #[error("{} is held by {}{}", path.display(), described(owner), advice(path, *by_file, owner))]
    Held {
        /// The lock's file.
        path: PathBuf,
        /// Who holds it, where that is known.
        owner: Option<Owner>,
        /// Whether the lock is the file itself, which stays when its owner is killed.
        by_file: bool,
    },

    /// A file operation failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

impl LockError {
    /// Whether the lock is a file that stays when its owner is killed, so that waiting may never end.
    pub fn is_by_file(&self) -> bool {
        matches!(self, Self::Held { by_file: true, .. })
    }

    /// Whether the lock is held by a process that has ended, which waiting does not change.
    pub fn is_abandoned(&self) -> bool {
        match self {
            Self::Held {
                by_file: true,
                owner: Some(owner),
                ..
            } => owner.state() == State::Ended,
            _ => false,
        }
    }
}

fn described(owner: &Option<Owner>) -> String {
    match owner {
        Some(owner) => owner.to_string(),
        None => "another process".to_owned(),
    }
}

fn advice(path: &Path, by_file: bool, owner: &Option<Owner>) -> String {
    const WAIT: &str = "; wait for it, or stop it";
    if !by_file {
        return WAIT.to_owned();
    }
    let path = path.display();
    match owner.as_ref().map(Owner::state) {
        Some(State::Running) => WAIT.to_owned(),
        Some(State::Ended) => format!(
            ", which has ended; this file system has no flock, so remove {path} yourself to go on"
        ),
        Some(State::Unknown) | None => format!(
            "; this file system has no flock, so if that process has ended, remove {path} to go on"
        ),
    }
}

/// Exclusive use of something by this process, until it is dropped or the process ends.
///
/// The lock is an advisory lock (`flock`) on a file, which is created and stays. Where the file system has none, it is
/// a second file, `FILE.held`, which must not exist and is removed at the end. A process that is killed cannot
/// remove it; the error then names process, host and file. The lock of one [`Lock`] excludes others of the same process.
#[derive(Debug)]
pub struct Lock {
    // Closing the file releases the lock.
    _file: File,
    held: Option<PathBuf>,
}

impl Lock {
    /// Takes the lock on the file `path`, without waiting. The file is created; its folder must exist.
    ///
    /// # Errors
    /// [`LockError::Held`] if another process has it; the file cannot be created or locked.
    pub fn take(path: &Path) -> Result<Self, LockError> {
        Self::take_with(path, File::try_lock)
    }

    fn take_with(
        path: &Path,
        try_lock: impl Fn(&File) -> Result<(), TryLockError>,
    ) -> Result<Self, LockError> {
        loop {
            let mut file = open(path).map_err(|source| io_error("create", path, source))?;
            let held = held_path(path);
            match try_lock(&file) {
                Ok(()) if !is_at(&file, path) => continue,
                Ok(()) => {
                    // A process for which the same file system has no flock may have it.
                    if atomic::exists(&held)
                        .map_err(|source| io_error("look for", &held, source))?
                    {
                        return Err(held_by_file(held));
                    }
                    // For the error of other processes; the lock holds without it.
                    let _full_or_read_only = note_owner(&mut file);
                    return Ok(Self {
                        _file: file,
                        held: None,
                    });
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(LockError::Held {
                        owner: read_owner(&mut file),
                        path: path.to_owned(),
                        by_file: false,
                    });
                }
                Err(TryLockError::Error(error)) if is_unsupported(&error) => {
                    create_held(&held)?;
                    return Ok(Self {
                        _file: file,
                        held: Some(held),
                    });
                }
                Err(TryLockError::Error(source)) => return Err(io_error("lock", path, source)),
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Some(held) = &self.held {
            // Who removed it already has been told that it was held.
            let _gone = fs::remove_file(held);
        }
    }
}

/// Whether the file system has no locks: ENOSYS, EOPNOTSUPP, or ENOLCK, as of NFS without a lock service.
fn is_unsupported(error: &io::Error) -> bool {
    let no_locks = match cfg!(any(target_os = "linux", target_os = "android")) {
        true => 37,
        false => 77,
    };
    error.kind() == io::ErrorKind::Unsupported || error.raw_os_error() == Some(no_locks)
}

fn open(path: &Path) -> io::Result<File> {
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path);
    match opened {
        // Another user's file, in a folder of a group: reading is enough to lock.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            File::open(path).map_err(|_| error)
        }
        opened => opened,
    }
}

/// Whether the file that is locked is still the one at its path: a folder may have been removed in between.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    match (file.metadata(), fs::metadata(path)) {
        (Ok(locked), Ok(there)) => identity(locked) == identity(there),
        (_, Err(error)) => error.kind() != io::ErrorKind::NotFound,
        _ => true,
    }
}

#[cfg(not(unix))]
fn is_at(_file: &File, _path: &Path) -> bool {
    true
}

fn note_owner(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(Owner::current().line().as_bytes())
}

fn read_owner(file: &mut File) -> Option<Owner> {
    let mut line = String::new();
    file.read_to_string(&mut line).ok()?;
    Owner::of_line(&line)
}

fn held_path(path: &Path) -> PathBuf {
    let mut held = path.as_os_str().to_owned();
    held.push(".held");
    held.into()
}

/// Creates the file that is the lock itself.
fn create_held(held: &Path) -> Result<(), LockError> {
    match OpenOptions::new().write(true).create_new(true).open(held) {
        Ok(mut file) => {
            let written = file
                .write_all(Owner::current().line().as_bytes())
                .and_then(|()| file.sync_all());
            written.map_err(|source| {
                // It would be a lock of nobody.
                let _gone = fs::remove_file(held);
                io_error("write", held, source)
            })
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Err(held_by_file(held.to_owned()))
        }
        Err(source) => Err(io_error("create", held, source)),
    }
}

fn held_by_file(held: PathBuf) -> LockError {
    let line = fs::read_to_string(&held).ok();
    LockError::Held {
        owner: line.and_then(|line| Owner::of_line(&line)),
        path: held,
        by_file: true,
    }
}

fn io_error(action: &'static str, path: &Path, source: io::Error) -> LockError {
    LockError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ENOLCK, ENOSYS and EOPNOTSUPP of Linux.
    const UNSUPPORTED: [i32; 3] = [37, 38, 95];

    fn without_flock(code: i32) -> impl Fn(&File) -> Result<(), TryLockError> {
        move |_| Err(TryLockError::Error(io::Error::from_raw_os_error(code)))
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_file_system_without_flock_gets_a_lock_by_creation() {
        for code in UNSUPPORTED {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join(".lock");
            let lock = Lock::take_with(&path, without_flock(code)).unwrap();
            let second = Lock::take_with(&path, without_flock(code)).unwrap_err();
            let LockError::Held { owner, .. } = &second else {
                panic!("{second}");
            };
            assert_eq!(owner.as_ref(), Some(&Owner::current()));
            // Nor does a process get it for which the file system has flock.
            let third = Lock::take(&path).unwrap_err();
            assert!(matches!(third, LockError::Held { .. }), "{third}");
            drop(lock);
            drop(Lock::take_with(&path, without_flock(code)).unwrap());
            Lock::take(&path).unwrap();
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_lock_of_a_killed_process_is_named_with_the_way_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(".lock");
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        let tag = Owner::current().tag();
        let machine = tag.split('-').next().unwrap();
        let line = format!("{machine}-{}-1 here\n", child.id());
        let held = folder.path().join(".lock.held");
        fs::write(&held, line).unwrap();
        let error = Lock::take_with(&path, without_flock(37)).unwrap_err();
        let text = error.to_string();
        assert!(error.is_abandoned());
        let process = format!("process {} on host here, which has ended", child.id());
        let remove = format!("remove {}", held.display());
        assert!(text.contains(&process) && text.contains(&remove), "{text}");
        fs::write(&held, "0000000000000001-7-1 elsewhere\n").unwrap();
        let text = Lock::take(&path).unwrap_err().to_string();
        assert!(text.contains("process 7 on host elsewhere"), "{text}");
        assert!(text.contains("if that process has ended"), "{text}");
    }

    #[test]
    fn other_errors_are_no_reason_to_lock_otherwise() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(".lock");
        // EIO.
        let error = Lock::take_with(&path, without_flock(5)).unwrap_err();
        assert!(
            matches!(error, LockError::Io { action: "lock", .. }),
            "{error}"
        );
        assert!(!folder.path().join(".lock.held").exists());
    }

    #[test]
    fn a_lock_excludes_others_and_names_its_process() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(".lock");
        let lock = Lock::take(&path).unwrap();
        let error = Lock::take(&path).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains(&format!("process {}", std::process::id())),
            "{text}"
        );
        drop(lock);
        assert!(path.exists());
        Lock::take(&path).unwrap();
    }
}
