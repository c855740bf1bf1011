//! Remembers the listing of a large image folder, so that the folder opens without looking up each file.
//!
//! The index is a file in the folder itself or in the user's cache. It has one record per folder: the folder's stamp and its
//! entries with their sizes. A record is used if the folder still has the stamp, because every file that is added, removed or
//! renamed changes it. Entries that are links are looked up again, because a change of their targets does not.
//!
//! The format is [`MAGIC`], the SHA-256 of the rest, and the records. Numbers are little-endian. A record is its length
//! (8 bytes), the path relative to the root (2 bytes length), the stamp (5 numbers of 8 bytes) and the entries: whether the
//! entry is a file (0), a folder (1) or a link (2) in one byte, the size (8 bytes) and the name (2 bytes length).

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};

use crate::entries::{Entry, sorted_entries};
use crate::error::DataError;
use crate::fingerprint::Fingerprint;

/// The name of the index in the folder of the images.
const FILE: &str = ".irepa-index";
const MAGIC: &[u8] = b"irepa-index 1\n";
const HASH: usize = 32;

/// When an index is written, and where.
#[derive(Debug, Clone)]
pub(super) struct Rules {
    /// Smallest number of files that are worth an index.
    pub min_files: usize,
    /// A folder that changed more recently than this before it was listed may change again without a new stamp, because the
    /// clocks of file systems are coarse. It is listed again the next time.
    pub settled_after: Duration,
    /// The folder for indices of folders that are not writable or that have the images themselves: an index file among the
    /// images would change the stamp of their folder.
    pub user_cache: Option<PathBuf>,
}

impl Default for Rules {
    fn default() -> Self {
        let non_empty = |key| std::env::var_os(key).filter(|value| !value.is_empty());
        let home = || non_empty("HOME").map(|home| Path::new(&home).join(".cache"));
        let cache = non_empty("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
        Self {
            min_files: 10_000,
            settled_after: Duration::from_secs(2),
            user_cache: cache.map(|cache| cache.join("irepa")),
        }
    }
}

/// What changes with the entries of a folder: inode number, and the times of the last change of its content and of its
/// attributes in seconds and nanoseconds. The device number is left out, because network file systems get another one with
/// each mount.
type Stamp = [u64; 5];

/// The records of an index that was read, and of the one to write.
pub(super) struct Index {
    root: PathBuf,
    settled_before: SystemTime,
    min_files: usize,
    /// The content of the index file.
    read: Vec<u8>,
    /// Where the record of each folder is in `read`, after its path.
    remembered: HashMap<Vec<u8>, Range<usize>>,
    /// The records of the folders visited.
    records: Vec<u8>,
    files: usize,
    /// Whether the root has so many files that its record is worth keeping.
    root_is_large: bool,
    reused_folders: usize,
    /// Number of folders listed that a new index would remember.
    new_folders: usize,
}

impl Index {
    pub(super) fn empty(root: &Path, rules: &Rules) -> Self {
        Self {
            root: root.to_path_buf(),
            settled_before: SystemTime::now()
                .checked_sub(rules.settled_after)
                .unwrap_or(UNIX_EPOCH),
            min_files: rules.min_files,
            read: Vec::new(),
            remembered: HashMap::new(),
            records: Vec::new(),
            files: 0,
            root_is_large: false,
            reused_folders: 0,
            new_folders: 0,
        }
    }

    /// Reads the index of a folder. Without a valid one, the index is empty.
    pub(super) fn load(root: &Path, rules: &Rules) -> Self {
        let mut index = Self::empty(root, rules);
        let user_file = rules
            .user_cache
            .as_deref()
            .map(|cache| user_file(cache, root));
        for path in [Some(root.join(FILE)), user_file].into_iter().flatten() {
            let Ok(read) = fs::read(&path) else { continue };
            match records_of(&read) {
                Some(remembered) => {
                    (index.read, index.remembered) = (read, remembered);
                    break;
                }
                None => tracing::debug!(
                    "{}: ignored, it is damaged or of another version",
                    path.display()
                ),
            }
        }
        index
    }

    /// Whether entries of the index were used instead of those of the folder.
    pub(super) fn was_used(&self) -> bool {
        self.reused_folders > 0
    }

    /// The entries of a folder in or below the root, as [`sorted_entries`] returns them. The name of a remembered file is
    /// not looked up; its `identity` is 0.
    pub(super) fn entries(&mut self, folder: &Path) -> Result<Vec<Entry>, DataError> {
        let metadata = fs::metadata(folder).map_err(DataError::io(folder, "list the folder"))?;
        let (stamp, changed) = stamp_of(&metadata);
        let relative = folder.strip_prefix(&self.root).unwrap_or(folder);
        let key = relative.as_os_str().as_bytes().to_vec();
        let remembered = match self.remembered.get(&key) {
            Some(range) => remembered_entries(&self.read[range.clone()], stamp, folder)?,
            None => None,
        };
        let is_reused = remembered.is_some();
        let entries = match remembered {
            Some(entries) => entries,
            None => sorted_entries(folder)?,
        };
        let files = entries.iter().filter(|entry| !entry.is_dir).count();
        self.files += files;
        let is_root = key.is_empty();
        if is_root {
            self.root_is_large = files >= self.min_files;
        }
        let is_kept = changed < self.settled_before && (!is_root || self.root_is_large);
        match is_reused {
            true => self.reused_folders += 1,
            false => self.new_folders += usize::from(is_kept),
        }
        if is_kept {
            self.add_record(&key, stamp, &entries);
        }
        Ok(entries)
    }

    fn add_record(&mut self, key: &[u8], stamp: Stamp, entries: &[Entry]) {
        let start = self.records.len();
        let records = &mut self.records;
        records.extend([0; 8]);
        put_text(records, key);
        for number in stamp {
            records.extend(number.to_le_bytes());
        }
        for entry in entries {
            records.push(match (entry.is_link, entry.is_dir) {
                (true, _) => LINK,
                (false, true) => FOLDER,
                (false, false) => PLAIN,
            });
            records.extend(entry.size.to_le_bytes());
            put_text(
                records,
                entry.path.file_name().unwrap_or_default().as_bytes(),
            );
        }
        let len = (records.len() - start - 8) as u64;
        records[start..start + 8].copy_from_slice(&len.to_le_bytes());
    }

    /// Writes the index if the folder is large and something changed. The data set works without the index, so that a failure
    /// is only logged.
    pub(super) fn save(self, rules: &Rules) {
        if self.files < self.min_files || self.new_folders == 0 {
            return;
        }
        let write = |path: &Path| {
            ::files::write(path, |file| {
                file.write_all(MAGIC)?;
                file.write_all(&Sha256::digest(&self.records))?;
                file.write_all(&self.records)
            })
        };
        if !self.root_is_large && write(&self.root.join(FILE)).is_ok() {
            return;
        }
        let Some(cache) = &rules.user_cache else {
            return;
        };
        let path = user_file(cache, &self.root);
        if let Err(error) = fs::create_dir_all(cache).and_then(|()| write(&path)) {
            tracing::debug!("{}: cannot write the index: {error}", path.display());
        }
    }
}

const PLAIN: u8 = 0;
const FOLDER: u8 = 1;
const LINK: u8 = 2;

fn put_text(records: &mut Vec<u8>, text: &[u8]) {
    // Linux limits names to 255 bytes and paths to 4096.
    records.extend((text.len() as u16).to_le_bytes());
    records.extend(text);
}

/// The index of `root` in the user's cache.
fn user_file(cache: &Path, root: &Path) -> PathBuf {
    let root = root.canonicalize().unwrap_or_else(|_| root.to_path_buf());
    let mut name = Fingerprint::default();
    name.text(&crate::entries::distinct_name(root.as_os_str()));
    cache.join(format!("index-{}", name.finish()))
}

/// The stamp of a folder, and the time of its last change.
fn stamp_of(folder: &fs::Metadata) -> (Stamp, SystemTime) {
    let times = [
        (folder.mtime(), folder.mtime_nsec()),
        (folder.ctime(), folder.ctime_nsec()),
    ];
    let [modified, changed] =
        times.map(|(seconds, nanoseconds)| [seconds as u64, nanoseconds as u64]);
    let latest = times.into_iter().max().and_then(|(seconds, nanoseconds)| {
        let since = Duration::new(
            u64::try_from(seconds).ok()?,
            u32::try_from(nanoseconds).ok()?,
        );
        UNIX_EPOCH.checked_add(since)
    });
    let stamp = [
        folder.ino(),
        modified[0],
        modified[1],
        changed[0],
        changed[1],
    ];
    (stamp, latest.unwrap_or(UNIX_EPOCH))
}

/// Finds the records in the content of an index file. `None` if it is damaged or has another format.
fn records_of(read: &[u8]) -> Option<HashMap<Vec<u8>, Range<usize>>> {
    let rest = read.strip_prefix(MAGIC)?;
    let (hash, records) = rest.split_at_checked(HASH)?;
    if Sha256::digest(records).as_slice() != hash {
        return None;
    }
    let mut found = HashMap::new();
    let mut records = Records(records);
    while !records.0.is_empty() {
        let len = usize::try_from(records.number()?).ok()?;
        let mut record = Records(records.take(len)?);
        let key = record.text()?.to_vec();
        let end = read.len() - records.0.len();
        found.insert(key, end - record.0.len()..end);
    }
    Some(found)
}

/// The entries in a record, if the folder still has the stamp.
fn remembered_entries(
    record: &[u8],
    stamp: Stamp,
    folder: &Path,
) -> Result<Option<Vec<Entry>>, DataError> {
    let mut record = Records(record);
    for number in stamp {
        if record.number() != Some(number) {
            return Ok(None);
        }
    }
    let mut entries = Vec::new();
    while !record.0.is_empty() {
        let (Some(&[kind]), Some(size), Some(name)) =
            (record.take(1), record.number(), record.text())
        else {
            return Ok(None);
        };
        let path = folder.join(OsStr::from_bytes(name));
        entries.push(match kind {
            PLAIN => Entry::of_file(path, size),
            _ => Entry::look_up(path, kind == LINK)?,
        });
    }
    Ok(Some(entries))
}

/// Reads the fields of records.
struct Records<'a>(&'a [u8]);

impl<'a> Records<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u64> {
        let bytes = self.take(8)?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    }

    fn text(&mut self) -> Option<&'a [u8]> {
        let bytes = self.take(2)?;
        let len = u16::from_le_bytes(bytes.try_into().ok()?);
        self.take(usize::from(len))
    }
}

#[cfg(test)]
mod tests;
