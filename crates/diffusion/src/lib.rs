//! Diffusion transformers, interpolants, objectives and samplers.
