//! Computes the range and round ticks of a linear or logarithmic axis.

use std::ops::Range;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};

use crate::number::plain;

/// Range, ticks and scale of one axis of a chart.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Axis {
    low: f64,
    high: f64,
    logarithmic: bool,
    ticks: Vec<f64>,
    decimals: usize,
}

impl Axis {
    /// A linear axis over all `values` with a margin on both sides and about `ticks` ticks; `None` if no value is finite.
    pub fn linear(values: impl IntoIterator<Item = f64>, ticks: usize) -> Option<Self> {
        let (low, high) = extent(values)?;
        let margin = margin(low, high, 0.06);
        Some(Self::between(low - margin, high + margin, ticks))
    }

    /// An axis from 0 to 1 without ticks, for positions that are not numbers.
    pub fn without_ticks() -> Self {
        Self {
            low: 0.0,
            high: 1.0,
            logarithmic: false,
            ticks: Vec::new(),
            decimals: 0,
        }
    }

    /// A linear axis from 0 to the largest of `values`.
    pub fn from_zero(values: impl IntoIterator<Item = f64>, ticks: usize) -> Option<Self> {
        let (_, high) = extent(values)?;
        Some(Self::between(0.0, high.max(f64::MIN_POSITIVE), ticks))
    }

    /// A logarithmic axis if all `values` are positive and span more than a factor of 8, which a linear axis would
    /// compress; otherwise a linear axis.
    pub fn adaptive(values: impl IntoIterator<Item = f64>, ticks: usize) -> Option<Self> {
        let (low, high) = extent(values)?;
        if low > 0.0 && high / low > 8.0 {
            Some(Self::logarithmic(low * 0.9, high * 1.1))
        } else {
            Self::linear([low, high], ticks)
        }
    }

    fn between(low: f64, high: f64, ticks: usize) -> Self {
        let step = round_step((high - low) / ticks.max(1) as f64);
        let first = (low / step).ceil();
        // A range of a few bits cannot be divided into steps and may have a single tick.
        let count = ((high - first * step) / step).floor().clamp(0.0, 50.0) as usize;
        let ticks = (0..=count).map(|index| (first + index as f64) * step);
        Self {
            low,
            high,
            logarithmic: false,
            ticks: ticks.filter(|tick| (low..=high).contains(tick)).collect(),
            decimals: (-step.log10().floor()).clamp(0.0, 9.0) as usize,
        }
    }

    fn logarithmic(low: f64, high: f64) -> Self {
        let digits: &[f64] = if high / low > 300.0 {
            &[1.0]
        } else {
            &[1.0, 2.0, 5.0]
        };
        let decades = low.log10().floor() as i32..=high.log10().ceil() as i32;
        let ticks: Vec<f64> = decades
            .flat_map(|decade| digits.iter().map(move |digit| digit * 10_f64.powi(decade)))
            .filter(|tick| (low..=high).contains(tick))
            .collect();
        let smallest = ticks.first().copied().unwrap_or(low);
        Self {
            low,
            high,
            logarithmic: true,
            decimals: (-smallest.log10().floor()).clamp(0.0, 9.0) as usize,
            ticks,
        }
    }

    pub fn low(&self) -> f64 {
        self.low
    }

    pub fn high(&self) -> f64 {
        self.high
    }

    pub fn is_logarithmic(&self) -> bool {
        self.logarithmic
    }

    /// The position of `value`: 0 at the low end, 1 at the high end, below 0 or above 1 outside the range.
    pub fn position(&self, value: f64) -> f64 {
        if self.logarithmic {
            (value / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        }
    }

    /// The label of a tick, with thousands as `k` and only as many decimals as the ticks need.
    pub fn label(&self, tick: f64) -> String {
        let largest = self.low.abs().max(self.high.abs());
        let round = |unit: f64| self.ticks.iter().all(|tick| tick % (unit / 10.0) == 0.0);
        for (unit, suffix) in [(1e6, "M"), (1e3, "k")] {
            if largest >= 10.0 * unit && round(unit) && tick != 0.0 {
                let whole = self.ticks.iter().all(|tick| tick % unit == 0.0);
                return format!("{}{suffix}", plain(tick / unit, usize::from(!whole)));
            }
        }
        plain(tick, self.decimals)
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, value: &f64) -> String {
        self.label(*value)
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (start, end): (i32, i32)) -> i32 {
        // Clamping keeps the pixel within an i32 and does not change what is visible.
        let position = self.position(*value).clamp(-10.0, 10.0);
        start + (position * f64::from(end - start)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _hint: Hint) -> Vec<f64> {
        self.ticks.clone()
    }

    fn range(&self) -> Range<f64> {
        self.low..self.high
    }
}

/// The smallest and the largest of `values`, except values that are not finite or exceed 1e300.
pub(super) fn extent(values: impl IntoIterator<Item = f64>) -> Option<(f64, f64)> {
    values
        .into_iter()
        // Larger values overflow when the range is padded.
        .filter(|value| value.abs() < 1e300)
        .fold(None, |extent, value| match extent {
            None => Some((value, value)),
            Some((low, high)) => Some((value.min(low), value.max(high))),
        })
}

fn margin(low: f64, high: f64, share: f64) -> f64 {
    let span = high - low;
    let size = low.abs().max(high.abs());
    if span > size * 1e-9 {
        span * share
    } else if size > 0.0 {
        size * 0.1
    } else {
        1.0
    }
}

/// The smallest number of the form 1, 2 or 5 times a power of ten that is at least `step`.
fn round_step(step: f64) -> f64 {
    let power = 10_f64.powf(step.max(f64::MIN_POSITIVE).log10().floor());
    let digit = step / power;
    let round = [1.0, 2.0, 5.0]
        .into_iter()
        .find(|round| digit <= round * (1.0 + 1e-9))
        .unwrap_or(10.0);
    // Negative powers of ten are not exact; dividing by an integer is more accurate.
    if power < 1.0 {
        round / (1.0 / power).round()
    } else {
        round * power
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside_the_range() {
        let axis = Axis::linear([0.113, 0.187], 5).unwrap();
        assert!(!axis.ticks.is_empty());
        for tick in &axis.ticks {
            assert!((axis.low..=axis.high).contains(tick));
        }
        let labels: Vec<String> = axis.ticks.iter().map(|tick| axis.label(*tick)).collect();
        assert_eq!(labels, ["0.12", "0.14", "0.16", "0.18"]);
    }

    #[test]
    fn steps_are_labelled_in_thousands() {
        let axis = Axis::from_zero([40_000.0], 4).unwrap();
        let labels: Vec<String> = axis.ticks.iter().map(|tick| axis.label(*tick)).collect();
        assert_eq!(labels, ["0", "10k", "20k", "30k", "40k"]);
    }

    #[test]
    fn wide_ranges_are_logarithmic() {
        assert!(Axis::adaptive([0.1, 1.0], 5).unwrap().is_logarithmic());
        assert!(!Axis::adaptive([0.5, 1.0], 5).unwrap().is_logarithmic());
        assert!(!Axis::adaptive([-1.0, 100.0], 5).unwrap().is_logarithmic());
    }

    #[test]
    fn single_and_extreme_values_have_an_axis() {
        for values in [
            vec![0.0],
            vec![3.0, 3.0],
            vec![-1e299, 1e299],
            vec![1.0, 1.0 + f64::EPSILON],
            vec![1e-300, 1e-299],
        ] {
            let axis = Axis::linear(values.clone(), 5).unwrap();
            assert!(axis.low < axis.high, "{values:?}");
            assert!(axis.ticks.len() < 60, "{values:?}");
            assert!(axis.position(values[0]).is_finite(), "{values:?}");
            let adaptive = Axis::adaptive(values.clone(), 5).unwrap();
            assert!(adaptive.position(values[0]).is_finite(), "{values:?}");
        }
        assert_eq!(Axis::linear([f64::NAN, f64::INFINITY], 5), None);
    }
}
