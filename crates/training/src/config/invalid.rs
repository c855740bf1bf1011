//! The error of an invalid setting.

/// A setting is out of range, or does not fit other settings.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("`{key}` {reason}")]
pub struct InvalidConfig {
    /// Dotted key of the setting.
    pub key: &'static str,
    /// The value and the allowed values, as the rest of the sentence.
    pub reason: String,
}

impl InvalidConfig {
    /// The error for a value of a setting, and the values that are allowed.
    pub(super) fn new(
        key: &'static str,
        found: impl std::fmt::Display,
        allowed: impl std::fmt::Display,
    ) -> Self {
        Self {
            key,
            reason: format!("is {found}, must be {allowed}"),
        }
    }
}
