//! Tests of the public interface, against upstream's numbers and on bad input.

mod autoencoder;
#[path = "../golden/mod.rs"]
mod golden;
mod interpolant;
mod objective;
mod repa_e;
mod samplers;
mod sit;
