//! Tests of the public interface: agreement with upstream's numbers, and errors for invalid input.

mod autoencoder;
#[path = "../golden/mod.rs"]
mod golden;
mod interpolant;
mod jit;
mod jit_config;
mod jit_sampler;
mod meanflow;
mod objective;
mod repa_e;
mod rotary;
mod samplers;
mod sit;
mod terms;
mod x_prediction;
