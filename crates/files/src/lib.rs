//! Atomic files and folders, locks between processes, and detection of misplaced files.
//!
//! - [`write()`] and [`AtomicFile`] write a file under a temporary name in the same folder, flush it to the disk and
//!   rename it. They then flush the folder, so that the new name also survives a power failure. [`AtomicPath`] is for
//!   writers that take a path.
//! - [`AtomicFolder`] does the same for a folder of files, such as a checkpoint.
//! - [`Lock`] gives one process exclusive use of something, also on file systems without `flock`.
//! - [`remove_leftovers`] removes temporary files and folders of processes that have ended.
//! - [`Checksum`] is the length and SHA-256 of a file.
//! - [`describe_foreign_file`] and [`read_text`] detect files of an unexpected kind, such as Git LFS pointers.
//!
//! Temporary names and locks record the process that they belong to ([`Owner`]). Processes of different containers
//! or hosts may have the same process number, but never use the same temporary name.
//!
//! ```
//! use std::io::Write;
//!
//! # let folder = tempfile::tempdir()?;
//! # let run = folder.path();
//! let lock = files::Lock::take(&run.join(".lock"))?;
//! files::write(&run.join("result.json"), |file| file.write_all(b"{}\n"))?;
//!
//! let checkpoint = files::AtomicFolder::create(&run.join("step-0000100"))?;
//! std::fs::write(checkpoint.path().join("manifest.json"), "{}")?;
//! assert!(!run.join("step-0000100").exists());
//! checkpoint.commit()?;
//! assert!(run.join("step-0000100/manifest.json").exists());
//! # drop(lock);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod atomic;
mod checksum;
mod leftovers;
mod lock;
mod owner;
mod sniff;

pub use atomic::{AtomicFile, AtomicFolder, AtomicPath, sync_folder, write};
pub use checksum::Checksum;
pub use leftovers::{LeftoverScope, remove_leftovers, remove_leftovers_of};
pub use lock::{Lock, LockError};
pub use owner::{Owner, OwnerState};
pub use sniff::{describe_foreign, describe_foreign_file, read_text};
