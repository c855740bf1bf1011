//! The training step, optimiser, EMA, checkpoints and their configuration.
