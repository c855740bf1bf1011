//! Tests of the public API: golden data, damaged files, and the stream of batches.

mod arrow;
mod center_crop;
mod folder;
mod images;
mod loader;
mod masks;
mod parquet;
mod subset;
mod support;
mod webdataset;
