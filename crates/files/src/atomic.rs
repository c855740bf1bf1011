//! Writes files and folders atomically: they appear complete or not at all.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tempfile::{Builder, NamedTempFile, TempDir};

use crate::leftovers;

/// Writes a file atomically. The content goes to a temporary file in the same folder, which is flushed to the disk and
/// renamed to `path`. On an error, the temporary file is removed and `path` is unchanged.
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

/// A file that gets its final name on [`commit`](Self::commit). Without a commit, it is removed.
///
/// It has the default permissions of a new file.
#[derive(Debug)]
pub struct AtomicFile {
    file: NamedTempFile,
    path: PathBuf,
}

impl AtomicFile {
    /// Creates the temporary file.
    ///
    /// # Errors
    /// The path has no file name, or its folder is not writable.
    pub fn create(path: &Path) -> io::Result<Self> {
        let (folder, prefix) = folder_and_prefix(path)?;
        let mut builder = Builder::new();
        builder
            .prefix(&prefix)
            .suffix(leftovers::SUFFIX)
            .rand_bytes(RANDOM_BYTES);
        // By default, tempfile creates files that only the owner may read.
        let create = |path: &Path| OpenOptions::new().write(true).create_new(true).open(path);
        Ok(Self {
            file: builder.make_in(folder, create)?,
            path: path.to_owned(),
        })
    }

    /// Flushes the file to the disk and renames it to its final name.
    ///
    /// # Errors
    /// A file operation failed. If the file was not renamed, the temporary file is removed and an existing file of the
    /// final name is unchanged.
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

/// As [`AtomicFile`], for writers that take a path and may create further temporary files beside it.
#[derive(Debug)]
pub struct AtomicPath {
    folder: TempDir,
    temporary: PathBuf,
    target: PathBuf,
    permissions: fs::Permissions,
}

impl AtomicPath {
    /// Creates an empty temporary file.
    ///
    /// # Errors
    /// The path has no file name, or its folder is not writable.
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

    /// The path to write to. The file at this path may be replaced.
    pub fn path(&self) -> &Path {
        &self.temporary
    }

    /// Sets the default permissions of a new file, flushes the file to the disk and renames it to its final name.
    ///
    /// # Errors
    /// A file operation failed. If the file was not renamed, the temporary file is removed and an existing file of the
    /// final name is unchanged.
    pub fn commit(self) -> io::Result<()> {
        let file = File::open(&self.temporary)?;
        if file.metadata()?.permissions() != self.permissions {
            file.set_permissions(self.permissions)?;
        }
        file.sync_all()?;
        fs::rename(&self.temporary, &self.target)?;
        self.folder.close().map_err(without_temporary_path)?;
        sync_parent(&self.target)
    }
}

/// A folder that gets its final name on [`commit`](Self::commit). Without a commit, it is removed.
#[derive(Debug)]
pub struct AtomicFolder {
    folder: TempDir,
    path: PathBuf,
}

impl AtomicFolder {
    /// Creates an empty temporary folder.
    ///
    /// # Errors
    /// The path has no folder name, or its parent folder is not writable.
    pub fn create(path: &Path) -> io::Result<Self> {
        Ok(Self {
            folder: temporary_folder(path)?,
            path: path.to_owned(),
        })
    }

    /// The path of the temporary folder, to write files into.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Flushes the folder with its content to the disk and renames it to its final name. An existing folder of that
    /// name is replaced. On Linux the replacement is atomic, if the file system can exchange names; otherwise the
    /// existing folder is first renamed to `NAME.old`.
    ///
    /// # Errors
    /// A file operation failed. If the folder was not renamed, the temporary folder is removed and an existing folder of
    /// the final name is unchanged.
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
            // The temporary name now belongs to the old folder, which this removes.
            return self.folder.close().map_err(without_temporary_path);
        }
        // This is not a temporary name, so that `remove_leftovers` never removes the old folder.
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

/// Creates a temporary folder beside `path`, which is removed when it is dropped.
fn temporary_folder(path: &Path) -> io::Result<TempDir> {
    let (parent, prefix) = folder_and_prefix(path)?;
    let mut builder = Builder::new();
    builder
        .prefix(&prefix)
        .suffix(leftovers::SUFFIX)
        .rand_bytes(RANDOM_BYTES);
    builder.tempdir_in(parent).map_err(without_temporary_path)
}

/// The parent folder of `path`, and the prefix of temporary names for `path`.
fn folder_and_prefix(path: &Path) -> io::Result<(&Path, OsString)> {
    let prefix = leftovers::prefix(path)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path has no file name"))?;
    Ok((parent(path), prefix.into()))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Removes the temporary path, which is meaningless to a user, from an error of tempfile.
fn without_temporary_path(error: io::Error) -> io::Error {
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

/// Exchanges the names of two folders atomically. Returns `false` if the system does not support that.
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

/// Flushes a folder with all files and folders in it to the disk.
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

/// Flushes the names of the entries in a folder to the disk, if the file system supports that.
///
/// # Errors
/// The folder cannot be opened or flushed.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    if !cfg!(unix) {
        return Ok(());
    }
    let synced = File::open(folder)?.sync_all();
    match synced {
        // Some network file systems cannot flush a folder; they order changes of names themselves.
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
