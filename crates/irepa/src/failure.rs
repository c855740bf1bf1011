//! The error of a command, with its exit code.

use std::fmt;

use data::DataError;
use evaluation::EvaluationError;
use sweep::SweepError;
use sweep::config_file::ConfigError;
use training::CheckpointError;

/// Why a command failed.
#[derive(Debug)]
pub struct Failure {
    error: anyhow::Error,
    usage: bool,
}

impl Failure {
    /// An error of the command line, a configuration or an input: exit code 2.
    pub fn usage(error: impl Into<anyhow::Error>) -> Self {
        Self {
            error: error.into(),
            usage: true,
        }
    }

    /// Changes the exit code of the error to 2.
    pub fn into_usage(self) -> Self {
        Self {
            usage: true,
            ..self
        }
    }

    /// Replaces the error by another one with the same exit code.
    pub fn because(self, error: impl fmt::Display) -> Self {
        Self {
            error: anyhow::anyhow!("{error}"),
            ..self
        }
    }

    /// Whether the error is that a checkpoint is damaged. Other errors do not show that it is.
    pub fn is_damage(&self) -> bool {
        let error = self.error.downcast_ref::<CheckpointError>();
        error.is_some_and(CheckpointError::is_damage)
    }

    /// The exit code: 2 for an error of usage or configuration, 1 for any other error.
    pub fn code(&self) -> u8 {
        if self.usage { 2 } else { 1 }
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error = error.into();
        let usage = error.is::<ConfigError>()
            || data_error(&error).is_some_and(DataError::is_refusal)
            || matches!(
                error.downcast_ref::<SweepError>(),
                Some(
                    SweepError::Config(_)
                        | SweepError::Device { .. }
                        | SweepError::Data { .. }
                        | SweepError::Classes { .. }
                        | SweepError::Only { .. }
                        | SweepError::Out { .. }
                        | SweepError::Resume { .. }
                        | SweepError::Ranks(_)
                        | SweepError::Shared { .. }
                )
            );
        Self { error, usage }
    }
}

/// The [`DataError`] in an error, also if it is wrapped in an [`EvaluationError`].
fn data_error(error: &anyhow::Error) -> Option<&DataError> {
    if let Some(EvaluationError::Data(error)) = error.downcast_ref() {
        return Some(error);
    }
    error.downcast_ref()
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = self.error.to_string();
        for cause in self.error.chain().skip(1) {
            let cause = cause.to_string();
            // Messages of the TOML parser end with a line break.
            let cause = cause.trim_end();
            // A transparent error has the same message as its source.
            if !text.contains(cause) {
                text = format!("{text}: {cause}");
            }
        }
        f.write_str(&text)
    }
}
