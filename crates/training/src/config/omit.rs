//! Decides which settings are omitted from a file.

/// Rarely used settings are omitted from a file if they have their default value.
pub(super) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// As [`is_default`], for a switch that is on by default.
pub(super) fn is_true(value: &bool) -> bool {
    *value
}
