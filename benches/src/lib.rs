//! Inputs and trainers for the Criterion benchmarks in the folder `benches`: `cargo bench -p benches`.

pub mod cosine_alignment;
pub mod inputs;
pub mod trainers;
