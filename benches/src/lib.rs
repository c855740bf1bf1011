//! Criterion benchmarks, in the folder `benches`: `cargo bench -p benches`.
