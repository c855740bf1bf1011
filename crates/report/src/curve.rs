//! Smooths, subtracts and thins training curves.

use std::collections::BTreeMap;

use metrics::figures::Figure;

use super::run_folder::Cell;

/// Points `(step, value)` in ascending order of steps; all values are finite.
pub(super) type Curve = Vec<(f64, f64)>;

/// Time constant of the smoothing, as a fraction of the length of training.
pub(super) const SMOOTHING: f64 = 0.025;

/// The logged values of a figure at the steps at which it was measured.
pub(super) fn logged(cell: &Cell, figure: Figure) -> Curve {
    let steps = cell.curve.iter();
    steps
        .filter_map(|step| Some((step.step as f64, step.figures.get(figure)?)))
        .filter(|(_, value)| value.is_finite())
        .collect()
}

/// The logged denoising loss of `cell`.
pub(super) fn denoising_loss(cell: &Cell) -> Curve {
    logged(cell, Figure::DenoisingLoss)
}

/// The logged FID of `cell`, or, if there is none, its Frechet distance on an encoder's features.
pub(super) fn distance(cell: &Cell) -> Curve {
    let fid = logged(cell, Figure::Fid);
    match fid.is_empty() {
        true => logged(cell, Figure::Fd),
        false => fid,
    }
}

/// Exponential moving average, computed forwards and backwards so that it does not lag behind a falling loss; at the last
/// step it equals the ordinary moving average. Weights decay with the distance in steps, not in logged lines, so that the
/// result does not depend on the logging interval. `training` is the number of steps of the whole training. Weights are
/// normalised.
pub(super) fn smooth(curve: &[(f64, f64)], training: f64) -> Curve {
    let time_constant = (SMOOTHING * training).max(f64::MIN_POSITIVE);
    let before = decaying_sums(curve.iter(), time_constant);
    let mut after = decaying_sums(curve.iter().rev(), time_constant);
    after.reverse();
    curve
        .iter()
        .zip(before.iter().zip(&after))
        .map(|(&(step, value), (before, after))| {
            // Both sums contain the point itself.
            let sum = before.0 + after.0 - value;
            (step, sum / (before.1 + after.1 - 1.0))
        })
        .collect()
}

/// For each point, the weighted sum of the values so far and the sum of their weights, which decay with the distance in
/// steps.
fn decaying_sums<'a>(
    curve: impl Iterator<Item = &'a (f64, f64)>,
    time_constant: f64,
) -> Vec<(f64, f64)> {
    let (mut sum, mut weight, mut previous) = (0.0, 0.0, None);
    curve
        .map(|&(step, value)| {
            let distance = previous.map_or(0.0, |previous: f64| (step - previous).abs());
            let decay = (-distance / time_constant).exp();
            previous = Some(step);
            sum = sum * decay + value;
            weight = weight * decay + 1.0;
            (sum, weight)
        })
        .collect()
}

/// Returns `curve - baseline` at the steps that both have.
pub(super) fn difference(curve: &[(f64, f64)], baseline: &[(f64, f64)]) -> Curve {
    let baseline: BTreeMap<u64, f64> = baseline
        .iter()
        .map(|&(step, value)| (step.to_bits(), value))
        .collect();
    curve
        .iter()
        .filter_map(|&(step, value)| Some((step, value - baseline.get(&step.to_bits())?)))
        .collect()
}

/// The step after which `smoothed` stays at or below `level`.
pub(super) fn stays_below(smoothed: &[(f64, f64)], level: f64) -> Option<f64> {
    let above = smoothed.iter().rposition(|&(_, value)| value > level);
    let first = above.map_or(0, |above| above + 1);
    smoothed.get(first).map(|&(step, _)| step)
}

/// Returns about `count` points at regular intervals, including the last one.
pub(super) fn thin(curve: &[(f64, f64)], count: usize) -> Curve {
    let stride = curve.len().div_ceil(count.max(1)).max(1);
    let mut thinned: Curve = curve.iter().copied().step_by(stride).collect();
    if let Some(&last) = curve.last()
        && thinned.last() != Some(&last)
    {
        thinned.push(last);
    }
    thinned
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smoothing_keeps_a_constant() {
        let flat: Curve = (1..50).map(|step| (f64::from(step), 3.0)).collect();
        for (_, value) in smooth(&flat, 50.0) {
            assert!((value - 3.0).abs() < 1e-12);
        }
    }

    #[test]
    fn smoothing_does_not_depend_on_the_logging_interval() {
        let line = |interval: u32| -> Curve {
            (1..=1000 / interval)
                .map(|index| f64::from(index * interval))
                .map(|step| (step, step))
                .collect()
        };
        let (_, often) = smooth(&line(1), 1000.0).pop().unwrap();
        let (_, rarely) = smooth(&line(10), 1000.0).pop().unwrap();
        assert!((often - rarely).abs() < 5.0, "{often} {rarely}");
    }

    #[test]
    fn smoothing_does_not_lag() {
        let falling: Curve = (0..1000)
            .map(|step| (f64::from(step), -f64::from(step)))
            .collect();
        let (step, value) = smooth(&falling, 1000.0)[500];
        assert!((value + step).abs() < 1e-6, "{value} at {step}");
    }

    #[test]
    fn smoothing_ends_as_the_ordinary_moving_average() {
        let curve = [(0.0, 1.0), (10.0, 0.0)];
        let decay = (-10.0_f64 / (SMOOTHING * 400.0)).exp();
        let (_, last) = smooth(&curve, 400.0)[1];
        assert!((last - decay / (1.0 + decay)).abs() < 1e-12);
        assert!(smooth(&[], 0.0).is_empty());
        assert_eq!(smooth(&[(0.0, 2.0)], 0.0), [(0.0, 2.0)]);
    }

    #[test]
    fn difference_uses_common_steps() {
        let curve = [(1.0, 5.0), (2.0, 4.0), (4.0, 3.0)];
        let baseline = [(2.0, 5.0), (3.0, 5.0), (4.0, 5.0)];
        assert_eq!(difference(&curve, &baseline), [(2.0, -1.0), (4.0, -2.0)]);
    }

    #[test]
    fn staying_below_ignores_a_dip() {
        let curve = [(1.0, 3.0), (2.0, 1.0), (3.0, 3.0), (4.0, 1.0), (5.0, 0.5)];
        assert_eq!(stays_below(&curve, 1.0), Some(4.0));
        assert_eq!(stays_below(&curve, 0.4), None);
        assert_eq!(stays_below(&curve, 9.0), Some(1.0));
        assert_eq!(stays_below(&[], 1.0), None);
    }

    #[test]
    fn thinning_keeps_both_ends() {
        let curve: Curve = (0..1001).map(|step| (f64::from(step), 0.0)).collect();
        let thinned = thin(&curve, 100);
        assert!(thinned.len() <= 102);
        assert_eq!(thinned.first().unwrap().0, 0.0);
        assert_eq!(thinned.last().unwrap().0, 1000.0);
    }
}
