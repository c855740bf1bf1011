//! Tests of the public interface: resume, sampling, settings, CUDA graphs, autoencoders.

mod autoencoder;
mod cuda_graphs;
mod resume;
mod sampling;
mod settings;
