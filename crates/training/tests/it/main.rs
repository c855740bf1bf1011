//! Tests of the public interface: resume, sampling, settings, CUDA graphs, autoencoders.

mod autoencoder;
mod checkpoints;
mod cuda_graphs;
mod evaluations;
mod processes;
mod refusals;
mod repa_e;
mod resume;
mod runs;
mod sampling;
mod settings;
mod steps;
