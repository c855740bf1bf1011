//! What is compiled: a source with macros, for an architecture.

use std::fmt;

/// Number of threads per block.
pub const BLOCK: i64 = 256;

pub(super) const PRELUDE: &str = include_str!("prelude.cuh");
pub(super) const PRELUDE_NAME: &str = "prelude.cuh";

/// The compute capability of a device: 8.0 is an A100, 9.0 an H100.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Architecture {
    /// The number before the point.
    pub major: i32,
    /// The number after it.
    pub minor: i32,
}

/// A file of CUDA C++.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Source {
    /// File name, for messages.
    pub name: &'static str,
    /// Content of the file.
    pub text: &'static str,
}

/// A source and the macros that are defined for it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Program {
    /// The source.
    pub source: &'static Source,
    /// Names and values of the macros.
    pub defines: Vec<(&'static str, String)>,
}

impl Program {
    pub(super) fn options(&self) -> impl Iterator<Item = String> {
        self.defines
            .iter()
            .map(|(name, value)| format!("-D{name}={value}"))
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.source.name)?;
        for (name, value) in &self.defines {
            write!(f, " {name}={value}")?;
        }
        Ok(())
    }
}
