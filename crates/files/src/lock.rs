//! Locks that exclude other processes.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::{Owner, OwnerState, atomic};

/// Why a lock cannot be taken.
#[derive(Debug, Error)]
pub enum LockError {
    /// Another process holds the lock.
    #[error("{} is held by {}{}", path.display(), described(owner), advice(path, *by_file, owner))]
    Held {
        /// The file of the lock.
        path: PathBuf,
        /// The process that holds the lock, if it is known.
        owner: Option<Owner>,
        /// Whether the existence of the file is the lock. Such a file remains if its owner is killed.
        by_file: bool,
    },

    /// A file operation failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The operation that failed.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
}

impl LockError {
    /// Whether the lock is a file that stays when its owner is killed, so that waiting may never end.
    pub fn is_by_file(&self) -> bool {
        matches!(self, Self::Held { by_file: true, .. })
    }

    /// Whether the lock is held by a process that has ended, so that waiting is useless.
    pub fn is_abandoned(&self) -> bool {
        match self {
            Self::Held {
                by_file: true,
                owner: Some(owner),
                ..
            } => owner.state() == OwnerState::Ended,
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
        Some(OwnerState::Running) => WAIT.to_owned(),
        Some(OwnerState::Ended) => format!(
            ", which has ended; this file system has no flock, so the lock file remains: remove {path} to continue"
        ),
        Some(OwnerState::Unknown) | None => format!(
            "; this file system has no flock, so the lock file can outlive its process: if that process has ended, \
             remove {path} to continue"
        ),
    }
}

/// Exclusive use of something by this process, until this value is dropped or the process ends.
///
/// The lock is an advisory lock (`flock`) on a file, which is created and never removed. If the file system has no
/// `flock`, the lock is the existence of a second file, `FILE.held`, which is removed when the lock is released. A
/// process that is killed cannot remove it; the error then names the process, the host and the file. Two [`Lock`]s of
/// the same process also exclude each other.
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
    /// [`LockError::Held`] if the lock is held already, [`LockError::Io`] if the file cannot be created or locked.
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
                Ok(()) if !is_same_file(&file, path) => continue,
                Ok(()) => {
                    // A process that cannot use flock on this file system may hold the lock by file.
                    if atomic::exists(&held)
                        .map_err(|source| io_error("look for", &held, source))?
                    {
                        return Err(held_by_file(held));
                    }
                    // The owner is only for the error messages of other processes, so that a failure is ignored.
                    let _ignored = write_owner(&mut file);
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
            // A user may have removed the file, as the error message suggests.
            let _ignored = fs::remove_file(held);
        }
    }
}

/// Whether the file system has no locks: ENOSYS, EOPNOTSUPP, or ENOLCK, which NFS without a lock service returns.
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
        // The file may belong to another user of a group's folder. Read access is enough to lock it.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            File::open(path).map_err(|_| error)
        }
        opened => opened,
    }
}

/// Whether `file` is still the file at `path`. The folder may have been removed and created again between opening and
/// locking.
#[cfg(unix)]
fn is_same_file(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    match (file.metadata(), fs::metadata(path)) {
        (Ok(locked), Ok(current)) => identity(locked) == identity(current),
        (_, Err(error)) => error.kind() != io::ErrorKind::NotFound,
        _ => true,
    }
}

#[cfg(not(unix))]
fn is_same_file(_file: &File, _path: &Path) -> bool {
    true
}

fn write_owner(file: &mut File) -> io::Result<()> {
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

/// Creates the file whose existence is the lock.
fn create_held(held: &Path) -> Result<(), LockError> {
    match OpenOptions::new().write(true).create_new(true).open(held) {
        Ok(mut file) => {
            let written = file
                .write_all(Owner::current().line().as_bytes())
                .and_then(|()| file.sync_all());
            written.map_err(|source| {
                // Otherwise the file would be a lock without an owner.
                let _ignored = fs::remove_file(held);
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

    /// ENOLCK, ENOSYS and EOPNOTSUPP on Linux.
    const UNSUPPORTED: [i32; 3] = [37, 38, 95];

    fn without_flock(code: i32) -> impl Fn(&File) -> Result<(), TryLockError> {
        move |_| Err(TryLockError::Error(io::Error::from_raw_os_error(code)))
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn without_flock_the_lock_is_a_created_file() {
        for code in UNSUPPORTED {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join(".lock");
            let lock = Lock::take_with(&path, without_flock(code)).unwrap();
            let second = Lock::take_with(&path, without_flock(code)).unwrap_err();
            let LockError::Held { owner, .. } = &second else {
                panic!("{second}");
            };
            assert_eq!(owner.as_ref(), Some(&Owner::current()));
            // A process that can use flock on the same file system is excluded as well.
            let third = Lock::take(&path).unwrap_err();
            assert!(matches!(third, LockError::Held { .. }), "{third}");
            drop(lock);
            drop(Lock::take_with(&path, without_flock(code)).unwrap());
            Lock::take(&path).unwrap();
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_error_for_a_lock_of_a_killed_process_tells_how_to_remove_it() {
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
    fn other_errors_do_not_fall_back_to_a_lock_file() {
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
    fn a_lock_excludes_others_and_the_error_names_its_process() {
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
