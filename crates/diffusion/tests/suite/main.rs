//! Tests of the public interface, against upstream's numbers and on bad input.

mod autoencoder;
#[path = "../golden/mod.rs"]
mod golden;
mod interpolant;
mod meanflow;
mod objective;
mod samplers;
mod sit;
