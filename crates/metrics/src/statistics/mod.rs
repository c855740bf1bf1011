//! Correlation of two columns of values, with p-values, a fitted line and bootstrap intervals; and the sign test.
//!
//! A typical table has a metric and a Frechet distance for each of 27 encoders. All functions take pairs
//! `x[i]`, `y[i]` in float64. They refuse input for which the result is undefined: different lengths, too few
//! pairs, NaN or infinity, or a constant column.

mod bootstrap;
mod correlation;
mod line;
mod sample;
mod sign_test;
mod student;

pub use bootstrap::{Interval, bootstrap_interval, bootstrap_interval_of};
pub use correlation::{pearson, ranks, spearman};
pub use line::{Line, fit_line};
pub use sign_test::sign_test;
pub use student::correlation_p_value;
