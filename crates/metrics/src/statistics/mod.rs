//! Correlation of two columns of numbers, with p-values, a fitted line and bootstrap intervals.
//!
//! For tables such as one metric and one Frechet distance for each of 27 encoders. All functions take pairs
//! `x[i]`, `y[i]` in float64 and refuse what has no answer: different lengths, too few pairs, NaN or
//! infinity, a constant column.

mod bootstrap;
mod correlation;
mod line;
mod sample;
mod student;

pub use bootstrap::{Interval, bootstrap_interval};
pub use correlation::{pearson, ranks, spearman};
pub use line::{Line, fit_line};
pub use student::correlation_p_value;
