use std::fmt;
use std::process::ExitCode;

use data::DataError;
use evaluation::EvaluationError;
use sweep::SweepError;
use sweep::config_file::ConfigError;
use training::CheckpointError;

/// Why the program ends with another code than 0.
#[derive(Debug)]
pub struct Failure {
    error: anyhow::Error,
    usage: bool,
}

impl Failure {
    /// Bad usage or configuration: exit code 2.
    pub fn usage(error: impl Into<anyhow::Error>) -> Self {
        Self {
            error: error.into(),
            usage: true,
        }
    }

    /// The same error as one of usage.
    pub fn into_usage(self) -> Self {
        Self {
            usage: true,
            ..self
        }
    }

    /// Whether it is damage of a checkpoint, rather than an error that says nothing of it.
    pub fn is_damage(&self) -> bool {
        let error = self.error.downcast_ref::<CheckpointError>();
        error.is_some_and(CheckpointError::is_damage)
    }

    /// 2 for bad usage or configuration, 1 for anything else.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(if self.usage { 2 } else { 1 })
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error = error.into();
        let usage = error.is::<ConfigError>()
            || refused_data(&error).is_some_and(DataError::is_refusal)
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
                )
            );
        Self { error, usage }
    }
}

/// The error of a data set within an error, whichever layer passed it on.
fn refused_data(error: &anyhow::Error) -> Option<&DataError> {
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
            // What the TOML parser says ends with a line break.
            let cause = cause.trim_end();
            // A transparent error repeats its source.
            if !text.contains(cause) {
                text = format!("{text}: {cause}");
            }
        }
        f.write_str(&text)
    }
}
