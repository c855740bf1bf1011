//! A figure that has left the range of its own history.

use std::fmt;

/// A figure outside its history.
#[derive(Debug, Clone, PartialEq)]
pub struct Collapse {
    /// Name of the figure in `metrics.jsonl`.
    pub figure: String,
    /// Value of the figure.
    pub value: f64,
    /// The step of the value.
    pub step: u64,
    /// The first step at which the figure was outside.
    pub since: u64,
    /// Median magnitude of the history; `None` for a figure that is zero.
    pub usual: Option<f64>,
}

impl fmt::Display for Collapse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            figure,
            value,
            step,
            since,
            usual,
        } = self;
        match usual {
            Some(usual) => write!(
                f,
                "{figure} is {value:.4e} at step {step}, about {usual:.4e} is usual"
            )?,
            None => write!(f, "{figure} is zero at step {step}")?,
        }
        if since < step {
            write!(f, " (since step {since})")?;
        }
        Ok(())
    }
}
