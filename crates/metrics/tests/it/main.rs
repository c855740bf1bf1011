//! Tests of the public interface: properties, edge cases and golden cases.

mod golden;
mod linear_probe;
mod npz;
mod quality;
mod quality_scores;
mod spatial;
mod statistics;
