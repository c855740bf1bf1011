//! Checks of arguments, so that errors name the wrong tensor or setting before libtorch sees it.

use std::fmt::Display;

use tch::{Kind, Tensor};

use crate::DiffusionError;

/// Checks that `tensor` has the shape `expected`, in which -1 stands for any size.
pub(crate) fn shape(
    what: &'static str,
    tensor: &Tensor,
    expected: &[i64],
) -> Result<(), DiffusionError> {
    let found = tensor.size();
    let fits = found.len() == expected.len()
        && found
            .iter()
            .zip(expected)
            .all(|(found, expected)| *expected == -1 || found == expected);
    if fits {
        return Ok(());
    }
    Err(DiffusionError::Shape {
        what,
        found,
        expected: expected.to_vec(),
    })
}

/// Checks that `tensor` has the dtype `expected`.
pub(crate) fn dtype(
    what: &'static str,
    tensor: &Tensor,
    expected: Kind,
) -> Result<(), DiffusionError> {
    let found = tensor.kind();
    if found == expected {
        return Ok(());
    }
    Err(DiffusionError::Dtype {
        what,
        found,
        expected,
    })
}

/// Returns an error that names the setting unless `holds` is true.
pub(crate) fn setting(
    holds: bool,
    name: &'static str,
    found: impl Display,
    allowed: impl Into<String>,
) -> Result<(), DiffusionError> {
    if holds {
        return Ok(());
    }
    Err(DiffusionError::Setting {
        name,
        found: found.to_string(),
        allowed: allowed.into(),
    })
}

/// Returns an error that names the first of `settings` that is below 1.
pub(crate) fn positive(settings: &[(&'static str, i64)]) -> Result<(), DiffusionError> {
    for &(name, value) in settings {
        setting(value > 0, name, value, "at least 1")?;
    }
    Ok(())
}

/// Converts `N` parts, whose name in an error is `what`, to an array.
pub(crate) fn array<T, const N: usize>(
    parts: Vec<T>,
    what: &'static str,
) -> Result<[T; N], DiffusionError> {
    parts
        .try_into()
        .map_err(|parts: Vec<T>| DiffusionError::Shape {
            what,
            found: vec![parts.len() as i64],
            expected: vec![N as i64],
        })
}
