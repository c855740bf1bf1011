//! Inputs and trainers for the Criterion benchmarks in the folder `benches`: `cargo bench -p benches`.

pub mod inputs;
pub mod trainers;
