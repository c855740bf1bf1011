//! Reference values that Python recorded when it wrote an encoder's file, and the comparison with
//! them.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::{EncoderError, Tokens};

/// Tokens of [`Reference::images`] at some positions, as Python computed them with the network before
/// tracing it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reference {
    /// Positions in the flattened patch tokens `[2, T, D]`.
    pub patch_index: Vec<i64>,
    /// Values at these positions.
    pub patch: Vec<f64>,
    /// Positions in the flattened class tokens `[2, D]`; empty without class token.
    pub class_index: Vec<i64>,
    /// Values at these positions.
    pub class: Vec<f64>,
}

impl Reference {
    /// Returns the two reference images, u8 `[2, 3, side, side]`. The value of image `b`, channel `c`, row
    /// `y`, column `x` is the lowest byte of
    /// `x (3 + b) + y (5 + 2 b) + 40 c + (x y >> 5) + ((x² + 3 y²) >> 7)`.
    ///
    /// # Errors
    /// libtorch runs out of memory.
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

    /// Largest absolute difference between `tokens` of the reference images and Python's values,
    /// relative to the largest absolute value from Python. Infinite if a value is NaN, or if no values were
    /// recorded.
    ///
    /// # Errors
    /// A position is outside of the tokens.
    pub fn difference(&self, tokens: &Tokens) -> Result<f64, EncoderError> {
        let patch = relative_difference(&tokens.patch, &self.patch_index, &self.patch)?;
        match &tokens.class {
            Some(class) if !self.class_index.is_empty() => {
                Ok(patch.max(relative_difference(class, &self.class_index, &self.class)?))
            }
            _ => Ok(patch),
        }
    }

    /// Describes why the recorded values are invalid; `None` if they are valid.
    pub(crate) fn flaw(&self) -> Option<&'static str> {
        let pairs = [
            (&self.patch_index, &self.patch),
            (&self.class_index, &self.class),
        ];
        if pairs
            .iter()
            .any(|(index, values)| index.len() != values.len())
        {
            return Some("`reference` has different numbers of positions and values");
        }
        if pairs
            .iter()
            .any(|(index, _)| index.iter().any(|&position| position < 0))
        {
            return Some("`reference` has a negative position");
        }
        None
    }
}

/// Largest absolute difference between a flattened tensor at the positions `index` and the values `expected`, relative
/// to the largest absolute expected value; infinite if the result is NaN.
pub(crate) fn relative_difference(
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
        .fold(0.0, |largest: f64, value| largest.max(value.abs()));
    let difference = found
        .iter()
        .zip(expected)
        .map(|(found, expected)| (found - expected).abs())
        .fold(0.0, |largest, difference| {
            if difference > largest || difference.is_nan() {
                difference
            } else {
                largest
            }
        });
    let relative = difference / scale;
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
        let difference = reference().difference(&tokens(&[3.0, 7.0, 7.0, -4.0]));
        assert_eq!(difference.unwrap(), 0.5);
    }

    #[test]
    fn nan_and_infinite_tokens_have_infinite_difference() {
        for first in [f32::NAN, f32::INFINITY] {
            let difference = reference().difference(&tokens(&[first, 7.0, 7.0, -4.0]));
            assert_eq!(difference.unwrap(), f64::INFINITY);
        }
    }

    #[test]
    fn positions_outside_of_the_tokens_are_an_error() {
        assert!(reference().difference(&tokens(&[1.0, 2.0])).is_err());
    }

    #[test]
    fn reference_images_follow_the_formula() {
        let images = Reference::images(64).unwrap();
        assert_eq!(images.size(), [2, 3, 64, 64]);
        let pixel = |b, c, y, x| images.int64_value(&[b, c, y, x]);
        assert_eq!(pixel(0, 0, 0, 0), 0);
        assert_eq!(pixel(1, 2, 10, 20), (80 + 70 + 80 + 6 + 5) & 255);
        assert_eq!(pixel(0, 1, 63, 63), (189 + 315 + 40 + 124 + 124) & 255);
    }
}
