//! Directions of gradients, computed for eight gradients at a time.

use wide::f32x8;

/// Returns the directions of the vectors `(x, y)` in units of 45 degrees, 0..=8, from +x towards +y.
/// The absolute error is below 1e-6. The zero vector has direction 0.
#[inline]
pub(super) fn eighths(y: f32x8, x: f32x8) -> f32x8 {
    // Minimax polynomial of atan(t) * 4 / pi over 0..=1, error 5e-8.
    const ATAN: [f32; 8] = [
        1.273_238_7,
        -0.424_368_97,
        0.253_967_56,
        -0.177_090_16,
        0.122_768_25,
        -0.071_189_76,
        0.027_836_763,
        -0.005_162_43,
    ];
    let (min, max) = (x.abs().min(y.abs()), x.abs().max(y.abs()));
    let t = min / max.max(f32x8::splat(f32::MIN_POSITIVE));
    let t2 = t * t;
    let mut series = f32x8::splat(ATAN[7]);
    for c in ATAN.iter().rev().skip(1) {
        series = series * t2 + f32x8::splat(*c);
    }
    unfold(series * t, 2.0, y, x)
}

/// Returns the directions of `(x, y)` in degrees, 0..=360, by the polynomial of OpenCV's `fastAtan2`. Its
/// error of up to 0.3 degrees is part of OpenCV's SIFT.
#[inline]
pub(super) fn fast_atan2(y: f32x8, x: f32x8) -> f32x8 {
    let (min, max) = (x.abs().min(y.abs()), x.abs().max(y.abs()));
    let t = min / (max + f32x8::splat(f64::EPSILON as f32));
    let t2 = t * t;
    let series = [8.914_001, -18.667_446, 57.283_627]
        .iter()
        .fold(f32x8::splat(-2.539_724_6), |series, c| {
            series * t2 + f32x8::splat(*c)
        });
    unfold(series * t, 90.0, y, x)
}

/// Maps angles of the first octant to the octant of `(x, y)`; `right_angle` sets the unit.
#[inline]
fn unfold(angle: f32x8, right_angle: f32, y: f32x8, x: f32x8) -> f32x8 {
    let reflect = |angle, quarters: f32| f32x8::splat(quarters * right_angle) - angle;
    let angle = y
        .abs()
        .simd_gt(x.abs())
        .bitselect(reflect(angle, 1.0), angle);
    let angle = x.simd_lt(f32x8::ZERO).bitselect(reflect(angle, 2.0), angle);
    y.simd_lt(f32x8::ZERO).bitselect(reflect(angle, 4.0), angle)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn direction_of(direction: fn(f32x8, f32x8) -> f32x8, y: f32, x: f32) -> f32 {
        direction(f32x8::splat(y), f32x8::splat(x)).to_array()[3]
    }

    #[test]
    fn eighths_agree_with_atan2_in_all_directions() {
        for i in 0..=100_000 {
            let angle = std::f64::consts::TAU * f64::from(i) / 100_000.0;
            let (y, x) = ((angle.sin() * 3.0) as f32, (angle.cos() * 3.0) as f32);
            let exact = f64::from(y)
                .atan2(f64::from(x))
                .rem_euclid(std::f64::consts::TAU);
            let error = f64::from(direction_of(eighths, y, x)) - exact * 4.0 / std::f64::consts::PI;
            assert!(
                error.abs() < 1e-6 || (error.abs() - 8.0).abs() < 1e-6,
                "{angle}: {error}"
            );
        }
        assert_eq!(direction_of(eighths, 0.0, 0.0), 0.0);
        assert_eq!(direction_of(eighths, 0.0, -2.0), 4.0);
        assert_eq!(direction_of(eighths, 1.0, 0.0), 2.0);
    }

    #[test]
    fn error_of_fast_atan2_is_below_0_3_degrees() {
        for i in 0..=3600 {
            let degrees = f64::from(i) / 10.0;
            let (y, x) = degrees.to_radians().sin_cos();
            let error = f64::from(direction_of(fast_atan2, y as f32, x as f32)) - degrees;
            assert!(
                error.abs() < 0.3 || (error.abs() - 360.0).abs() < 0.3,
                "{degrees}: {error}"
            );
        }
        assert_eq!(direction_of(fast_atan2, 0.0, 0.0), 0.0);
        assert_eq!(direction_of(fast_atan2, 0.0, -1.0), 180.0);
        assert_eq!(direction_of(fast_atan2, -1.0, 0.0), 270.0);
    }
}
