//! Spatial metrics, generative quality and statistics on ndarray and rayon. No libtorch.
