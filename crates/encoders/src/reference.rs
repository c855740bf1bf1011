//! Agreement with what Python computed when it wrote an encoder's file.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::{EncoderError, Tokens};

/// Values of the tokens of [`Reference::images`], as Python computed them from the network that
/// it then traced.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reference {
    /// Positions in the flattened patch tokens `[2, T, D]`.
    pub patch_index: Vec<i64>,
    /// The values there.
    pub patch: Vec<f64>,
    /// Positions in the flattened class tokens `[2, D]`; empty without them.
    pub class_index: Vec<i64>,
    /// The values there.
    pub class: Vec<f64>,
}

impl Reference {
    /// The two reference images, u8 `[2, 3, side, side]`. The value of image `b`, channel `c`, row
    /// `y`, column `x` is the lowest byte of
    /// `x (3 + b) + y (5 + 2 b) + 40 c + (x y >> 5) + ((x² + 3 y²) >> 7)`.
    ///
    /// # Errors
    /// libtorch has no memory.
    pub fn images(side: i64) -> Result<Tensor, EncoderError> {
        let count = (2 * 3 * side * side).max(0) as usize;
        let mut bytes = Vec::with_capacity(count);
        for b in 0..2 {
            for c in 0..3 {
                for y in 0..side {
                    for x in 0..side {
                        let value = x * (3 + b)
                            + y * (5 + 2 * b)
                            + 40 * c
                            + ((x * y) >> 5)
                            + ((x * x + 3 * y * y) >> 7);
                        bytes.push((value & 255) as u8);
                    }
                }
            }
        }
        Ok(Tensor::f_from_slice(&bytes)?.f_view([2, 3, side, side])?)
    }

    /// Largest difference of `tokens`, those of the reference images, from Python's, relative to
    /// the largest value Python found. Infinite if a value is not a number, or if nothing was
    /// recorded.
    ///
    /// # Errors
    /// Positions beyond the tokens.
    pub fn difference(&self, tokens: &Tokens) -> Result<f64, EncoderError> {
        let patch = relative(&tokens.patch, &self.patch_index, &self.patch)?;
        match &tokens.class {
            Some(class) if !self.class_index.is_empty() => {
                Ok(patch.max(relative(class, &self.class_index, &self.class)?))
            }
            _ => Ok(patch),
        }
    }

    /// Why the recorded values cannot be what the exporter writes; `None` if they can.
    pub(crate) fn flaw(&self) -> Option<&'static str> {
        let pairs = [
            (&self.patch_index, &self.patch),
            (&self.class_index, &self.class),
        ];
        if pairs
            .iter()
            .any(|(index, values)| index.len() != values.len())
        {
            return Some("`reference` has another number of positions than of values");
        }
        if pairs
            .iter()
            .any(|(index, _)| index.iter().any(|&at| at < 0))
        {
            return Some("`reference` has a negative position");
        }
        None
    }
}

/// Largest difference of a tensor from the values at some places, relative to the largest of these; infinite if one is
/// not a number.
pub(crate) fn relative(
    tokens: &Tensor,
    index: &[i64],
    expected: &[f64],
) -> Result<f64, EncoderError> {
    let index = Tensor::f_from_slice(index)?;
    let found = tokens
        .f_flatten(0, -1)?
        .f_to_device(Device::Cpu)?
        .f_index_select(0, &index)?
        .f_to_kind(Kind::Double)?;
    let found = Vec::<f64>::try_from(found)?;
    let scale = expected
        .iter()
        .fold(0.0, |most: f64, value| most.max(value.abs()));
    let off = found
        .iter()
        .zip(expected)
        .map(|(found, expected)| (found - expected).abs())
        .fold(0.0, |most, off| {
            if off > most || off.is_nan() {
                off
            } else {
                most
            }
        });
    let relative = off / scale;
    Ok(if relative.is_nan() {
        f64::INFINITY
    } else {
        relative
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(values: &[f32]) -> Tokens {
        Tokens {
            patch: Tensor::from_slice(values).view([2, 1, -1]),
            class: None,
        }
    }

    fn reference() -> Reference {
        Reference {
            patch_index: vec![3, 0],
            patch: vec![-4.0, 1.0],
            class_index: vec![],
            class: vec![],
        }
    }

    #[test]
    fn the_difference_is_relative_to_the_largest_value() {
        let same = reference().difference(&tokens(&[1.0, 7.0, 7.0, -4.0]));
        assert_eq!(same.unwrap(), 0.0);
        let off = reference().difference(&tokens(&[3.0, 7.0, 7.0, -4.0]));
        assert_eq!(off.unwrap(), 0.5);
    }

    #[test]
    fn tokens_that_are_not_numbers_never_agree() {
        for first in [f32::NAN, f32::INFINITY] {
            let off = reference().difference(&tokens(&[first, 7.0, 7.0, -4.0]));
            assert_eq!(off.unwrap(), f64::INFINITY);
        }
    }

    #[test]
    fn positions_beyond_the_tokens_are_an_error() {
        assert!(reference().difference(&tokens(&[1.0, 2.0])).is_err());
    }

    #[test]
    fn reference_images_are_bytes_by_the_formula() {
        let images = Reference::images(64).unwrap();
        assert_eq!(images.size(), [2, 3, 64, 64]);
        let at = |b, c, y, x| images.int64_value(&[b, c, y, x]);
        assert_eq!(at(0, 0, 0, 0), 0);
        assert_eq!(at(1, 2, 10, 20), (80 + 70 + 80 + 6 + 5) & 255);
        assert_eq!(at(0, 1, 63, 63), (189 + 315 + 40 + 124 + 124) & 255);
    }
}
