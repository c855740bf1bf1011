//! All figures in one table, and a map of their values.
//!
//! A new figure is one entry of the table in `table.rs`, and the code that computes its value. From the table follow its
//! key in `metrics.jsonl` and `result.json`, its tag in TensorBoard, its column in `results.csv`, and its column and
//! title in the report.

mod table;
mod values;

pub use table::{Better, Figure, File, Kind};
pub use values::Figures;
