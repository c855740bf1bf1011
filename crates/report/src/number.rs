//! Formats numbers with few digits and a typographic minus sign.

/// Returns the number of decimals that show four significant digits of the largest of `values`, at most 7.
pub(super) fn decimals(values: impl IntoIterator<Item = f64>) -> usize {
    let largest = values.into_iter().map(f64::abs).fold(0.0, f64::max);
    if largest == 0.0 || !largest.is_finite() {
        return 0;
    }
    // The value is between 0 and 7, so the cast is exact.
    (3.0 - largest.log10().floor()).clamp(0.0, 7.0) as usize
}

/// Formats `value` with `decimals` decimals; very large and very small values have an exponent.
pub(super) fn plain(value: f64, decimals: usize) -> String {
    let text = if value != 0.0 && !(1e-6..1e9).contains(&value.abs()) {
        format!("{value:.3e}")
    } else {
        format!("{value:.decimals$}")
    };
    let unsigned = text.trim_start_matches('-');
    if text.len() == unsigned.len() || unsigned.chars().all(|c| matches!(c, '0' | '.')) {
        unsigned.to_owned()
    } else {
        format!("\u{2212}{unsigned}")
    }
}

/// As [`plain`], but with a plus sign for positive values.
pub(super) fn signed(value: f64, decimals: usize) -> String {
    let text = plain(value, decimals);
    let zero = text.chars().all(|c| matches!(c, '0' | '.'));
    if value > 0.0 && !zero {
        format!("+{text}")
    } else {
        text
    }
}

/// Formats `value` with four significant digits.
pub(super) fn short(value: f64) -> String {
    plain(value, decimals([value]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_digits_of_the_largest_value_are_shown() {
        assert_eq!(decimals([0.8123, -12.5]), 2);
        assert_eq!(decimals([0.8123]), 4);
        assert_eq!(decimals([123_456.0]), 0);
        assert_eq!(decimals([]), 0);
        assert_eq!(decimals([f64::INFINITY]), 0);
    }

    #[test]
    fn signs_are_typographic_and_zero_has_none() {
        assert_eq!(plain(-0.25, 2), "\u{2212}0.25");
        assert_eq!(plain(-0.0001, 2), "0.00");
        assert_eq!(signed(0.0001, 2), "0.00");
        assert_eq!(signed(0.5, 1), "+0.5");
        assert_eq!(signed(-0.5, 1), "\u{2212}0.5");
    }

    #[test]
    fn extreme_values_have_an_exponent() {
        assert_eq!(short(1.5e300), "1.500e300");
        assert_eq!(short(-2e-9), "\u{2212}2.000e-9");
    }
}
