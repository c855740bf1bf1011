//! Files and folders that appear whole or not at all, locks between processes, and files that are not what they should be.
//!
//! - [`write()`] and [`AtomicFile`]: a file is written under a temporary name beside its own, flushed to the disk and
//!   renamed; then its folder is flushed, so that the name survives a power cut as well. [`AtomicPath`] is for
//!   writers that take a path.
//! - [`AtomicFolder`]: the same for a folder of files, such as a checkpoint.
//! - [`Lock`]: one process at a time, also on file systems that have no `flock`.
//! - [`remove_leftovers`]: temporary files and folders whose writers have ended.
//! - [`Checksum`]: SHA-256 of a file of any size.
//! - [`foreign`] and [`read_text`]: files that are something else than they should be, such as Git LFS pointers.
//!
//! Temporary names and locks say which process they belong to ([`Owner`]). Processes of two containers or hosts may
//! have the same number, but never share a name.
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
pub use leftovers::{Scope, remove_leftovers, remove_leftovers_of};
pub use lock::{Lock, LockError};
pub use owner::{Owner, State};
pub use sniff::{describe_foreign, foreign, read_text};
