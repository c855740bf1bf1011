//! Datasets, deterministic shuffling and a loader that decodes ahead. No libtorch.
