//! Criterion benchmarks, in the folder `benches`: `cargo bench -p benches`.

pub mod cells;
pub mod inputs;
