//! The errors of configuration files.

use std::path::PathBuf;

use thiserror::Error;

/// Maximum length of a chain of `base` files.
pub(super) const MAX_DEPTH: usize = 16;

/// Why a configuration was refused. The program exits with code 2.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}{}", path.display(), named_by(.from))]
    Read {
        /// The file.
        path: PathBuf,
        /// The key and file that name it, if any.
        from: Option<String>,
        /// The error of the operating system.
        source: std::io::Error,
    },

    /// The file is not valid TOML, or not a valid configuration. The message has the line, the key and the allowed
    /// names.
    #[error("{}: {}{}", path.display(), .source.to_string().trim_end(), suggestion(.source.message()))]
    Toml {
        /// The file.
        path: PathBuf,
        /// The error, with its position.
        source: Box<toml::de::Error>,
    },

    /// The chain of `base` files leads back to itself, or is too long.
    #[error("{}: the chain of `base` files is circular or longer than {MAX_DEPTH}", .0.display())]
    BaseChain(PathBuf),

    /// A `--set` option is not of the form `key=value`.
    #[error("--set {0}: expected key=value, such as --set train.steps=100")]
    Set(String),

    /// The merged settings are not a valid configuration.
    #[error("{origin}: {message}{}", suggestion(.message))]
    Merged {
        /// The file, cell or option that was resolved.
        origin: String,
        /// The error.
        message: String,
    },

    /// A value is out of range.
    #[error("{origin}: {source}")]
    Invalid {
        /// The file, cell or option that was resolved.
        origin: String,
        /// Key, value and allowed range.
        source: training::InvalidConfig,
    },

    /// An experiment names something unknown, or sets something that it may not set.
    #[error("{origin}: {message}")]
    Name {
        /// File and key.
        origin: String,
        /// What was found, and what is allowed.
        message: String,
    },
}

fn named_by(from: &Option<String>) -> String {
    from.as_ref()
        .map(|from| format!(" (named by {from})"))
        .unwrap_or_default()
}

/// For serde's "unknown field `x`, expected one of `a`, `b`": a hint with the most similar name, or an empty string.
fn suggestion(message: &str) -> String {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let Some(found) = quoted.next().filter(|_| message.contains("unknown")) else {
        return String::new();
    };
    nearest(found, quoted)
        .map(|name| format!("\nDid you mean `{name}`?"))
        .unwrap_or_default()
}

/// The candidate that is most similar to `found`, if any is similar enough.
pub(crate) fn nearest<'a>(
    found: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    candidates
        .map(|name| (strsim::jaro_winkler(found, name), name))
        .filter(|(score, _)| *score > 0.75)
        .max_by(|left, right| left.0.total_cmp(&right.0))
        .map(|(_, name)| name)
}
