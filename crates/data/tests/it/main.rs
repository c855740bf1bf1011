//! The crate from outside: goldens, damaged files, and the stream of batches.

mod arrow;
mod center_crop;
mod folder;
mod images;
mod loader;
mod masks;
mod support;
