//! What tch lacks: generators, autocast, fused optimiser steps, run-time CUDA, as a small C++ shim with a safe Rust face.
