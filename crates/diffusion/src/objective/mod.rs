//! Training objectives of denoisers, one per module.

pub mod meanflow;
pub mod velocity;
pub mod x_prediction;
