//! Files and folders that appear complete or not at all.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tempfile::{Builder, NamedTempFile, TempDir};

use crate::leftovers;

/// Writes a whole file or nothing: into a temporary file in the same folder, flushed to the disk, then renamed over
/// `path`. On an error the temporary file is removed and `path` is as before.
///
/// # Errors
/// The file cannot be written, or `contents` fails.
pub fn write(
    path: &Path,
    contents: impl FnOnce(&mut BufWriter<&mut AtomicFile>) -> io::Result<()>,
) -> io::Result<()> {
    let mut file = AtomicFile::create(path)?;
    let mut buffered = BufWriter::new(&mut file);
    contents(&mut buffered)?;
    buffered.flush()?;
    drop(buffered);
    file.commit()
}

/// A file that gets its name when it is complete. Without [`commit`](Self::commit) it is removed.
///
/// It has the permissions that any new file has.
#[derive(Debug)]
pub struct AtomicFile {
    file: NamedTempFile,
    path: PathBuf,
}

impl AtomicFile {
    /// Begins a file.
    ///
    /// # Errors
    /// The path names no file, or its folder cannot be written.
    pub fn create(path: &Path) -> io::Result<Self> {
        let (folder, prefix) = place(path)?;
        let mut builder = Builder::new();
        builder
            .prefix(&prefix)
            .suffix(leftovers::SUFFIX)
            .rand_bytes(RANDOM_BYTES);
        // Not tempfile's own way, which lets only the owner read.
        let create = |path: &Path| OpenOptions::new().write(true).create_new(true).open(path);
        Ok(Self {
            file: builder.make_in(folder, create)?,
            path: path.to_owned(),
        })
    }

    /// Flushes the file to the disk and gives it its name.
    ///
    /// # Errors
    /// The system refused; then the file is removed, and what had its name is as before.
    pub fn commit(self) -> io::Result<()> {
        self.file.as_file().sync_all()?;
        self.file.persist(&self.path).map_err(|error| error.error)?;
        sync_parent(&self.path)
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.as_file_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.as_file_mut().flush()
    }
}

impl Seek for AtomicFile {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.file.as_file_mut().seek(position)
    }
}

/// As [`AtomicFile`], for writers that take a path and may make temporary files of their own beside it.
#[derive(Debug)]
pub struct AtomicPath {
    folder: TempDir,
    temporary: PathBuf,
    target: PathBuf,
    permissions: fs::Permissions,
}

impl AtomicPath {
    /// Begins a file, which is there and empty.
    ///
    /// # Errors
    /// The path names no file, or its folder cannot be written.
    pub fn create(path: &Path) -> io::Result<Self> {
        let folder = temporary_folder(path)?;
        let temporary = folder.path().join(path.file_name().unwrap_or_default());
        let permissions = File::create(&temporary)?.metadata()?.permissions();
        Ok(Self {
            folder,
            temporary,
            target: path.to_owned(),
            permissions,
        })
    }

    /// Where to write the file, which may be replaced there.
    pub fn path(&self) -> &Path {
        &self.temporary
    }

    /// Flushes the file to the disk and gives it its name, and the permissions that any new file has.
    ///
    /// # Errors
    /// The system refused; then the file is removed, and what had its name is as before.
    pub fn commit(self) -> io::Result<()> {
        let file = File::open(&self.temporary)?;
        if file.metadata()?.permissions() != self.permissions {
            file.set_permissions(self.permissions)?;
        }
        file.sync_all()?;
        fs::rename(&self.temporary, &self.target)?;
        self.folder.close().map_err(plain)?;
        sync_parent(&self.target)
    }
}

/// A folder that gets its name when it is complete. Without [`commit`](Self::commit) it is removed.
#[derive(Debug)]
pub struct AtomicFolder {
    folder: TempDir,
    path: PathBuf,
}

impl AtomicFolder {
    /// Begins a folder, empty.
    ///
    /// # Errors
    /// The path names no folder, or the one above it cannot be written.
    pub fn create(path: &Path) -> io::Result<Self> {
        Ok(Self {
            folder: temporary_folder(path)?,
            path: path.to_owned(),
        })
    }

    /// Where the folder is until it is complete.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Flushes the folder and all in it to the disk and gives it its name. A folder of that name is replaced: at no
    /// time is there neither.
    ///
    /// # Errors
    /// The system refused; then the folder is removed, and what had its name is as before.
    pub fn commit(mut self) -> io::Result<()> {
        sync_all(self.folder.path())?;
        let temporary = self.folder.path().to_owned();
        if !exists(&self.path)? {
            fs::rename(&temporary, &self.path)?;
            self.folder.disable_cleanup(true);
            return sync_parent(&self.path);
        }
        if exchange(&temporary, &self.path)? {
            sync_parent(&self.path)?;
            // The temporary name is the old folder's now.
            return self.folder.close().map_err(plain);
        }
        // No leftover's name: nothing but this removes it.
        let mut old = self.path.clone().into_os_string();
        old.push(".old");
        let old = PathBuf::from(old);
        remove_folder(&old)?;
        fs::rename(&self.path, &old)?;
        if let Err(error) = fs::rename(&temporary, &self.path) {
            fs::rename(&old, &self.path)?;
            return Err(error);
        }
        self.folder.disable_cleanup(true);
        sync_parent(&self.path)?;
        remove_folder(&old)
    }
}

const RANDOM_BYTES: usize = 8;

/// A folder beside `path`, removed at the end.
fn temporary_folder(path: &Path) -> io::Result<TempDir> {
    let (parent, prefix) = place(path)?;
    let mut builder = Builder::new();
    builder
        .prefix(&prefix)
        .suffix(leftovers::SUFFIX)
        .rand_bytes(RANDOM_BYTES);
    builder.tempdir_in(parent).map_err(plain)
}

/// The folder of `path`, and how temporary names for it begin.
fn place(path: &Path) -> io::Result<(&Path, OsString)> {
    let prefix = leftovers::prefix(path)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path names no file"))?;
    Ok((parent(path), prefix.into()))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// The system's error, without the temporary name, which tells a user nothing.
fn plain(error: io::Error) -> io::Error {
    match error.to_string().split_once(" at path ") {
        Some((reason, _)) => io::Error::new(error.kind(), reason),
        None => error,
    }
}

pub(crate) fn exists(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Exchanges the names of two folders; `false` where the system cannot.
#[cfg(target_os = "linux")]
fn exchange(left: &Path, right: &Path) -> io::Result<bool> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    use rustix::io::Errno;
    match renameat_with(CWD, left, CWD, right, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(true),
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(not(target_os = "linux"))]
fn exchange(_left: &Path, _right: &Path) -> io::Result<bool> {
    Ok(false)
}

/// Flushes a folder, its files and its folders to the disk.
fn sync_all(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            sync_all(&entry.path())?;
        } else if kind.is_file() {
            File::open(entry.path())?.sync_all()?;
        }
    }
    sync_folder(folder)
}

/// Flushes the names in a folder to the disk, where the file system can.
///
/// # Errors
/// The folder cannot be opened or flushed.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    if !cfg!(unix) {
        return Ok(());
    }
    let synced = File::open(folder)?.sync_all();
    match synced {
        // Some network file systems cannot flush a folder; they order names themselves.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported
            ) =>
        {
            Ok(())
        }
        synced => synced,
    }
}

fn sync_parent(path: &Path) -> io::Result<()> {
    sync_folder(parent(path))
}

fn remove_folder(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
