//! Visualisations of an image's patch tokens: similarity to an anchor token, and principal components.

use faer::Mat;
use ndarray::{Array1, Array2, ArrayView2};

use super::similarity::{NORM_FLOOR, norms};
use crate::MetricsError;
use crate::linalg::{cross_product, symmetric_eigen};

/// Number of components, shown as red, green and blue.
const COMPONENTS: usize = 3;

/// Value of a component that does not vary.
const CONSTANT_VALUE: f32 = 0.5;

/// Percentiles at which a component's values are clipped, as fractions.
const PERCENTILES: (f64, f64) = (0.02, 0.98);

/// Computes the cosine similarity `[T]` of the token at index `anchor` with each of the tokens `[T, D]` of one
/// image, in `[-1, 1]`.
///
/// The result is row `anchor` of [`cosine_similarity`](super::cosine_similarity), but computed in float64. A zero
/// token has similarity 0 to every token, including itself; any other anchor has similarity 1 to itself.
///
/// ```
/// use metrics::spatial::anchor_similarity;
/// use ndarray::array;
///
/// let tokens = array![[2.0, 0.0], [0.0, 1.0], [-3.0, 0.0]];
/// assert_eq!(anchor_similarity(tokens.view(), 0)?, array![1.0, 0.0, -1.0]);
/// # Ok::<(), metrics::MetricsError>(())
/// ```
///
/// # Errors
///
/// [`MetricsError::NonFinite`], and [`MetricsError::OutOfRange`] if there is no token `anchor`.
pub fn anchor_similarity(
    tokens: ArrayView2<'_, f32>,
    anchor: usize,
) -> Result<Array1<f32>, MetricsError> {
    let norms = norms(tokens)?;
    let Some(anchor_norm) = norms.get(anchor) else {
        return Err(MetricsError::OutOfRange {
            what: "the anchor",
            found: anchor as f64,
            allowed: "the index of a token",
        });
    };
    let cosine = |(token, norm): (usize, &f64)| {
        let channels = tokens.row(token).into_iter().zip(tokens.row(anchor));
        let dot: f64 = channels
            .map(|(&left, &right)| f64::from(left) * f64::from(right))
            .sum();
        let cosine = dot / (norm.max(NORM_FLOOR) * anchor_norm.max(NORM_FLOOR));
        cosine.clamp(-1.0, 1.0) as f32
    };
    Ok(norms.iter().enumerate().map(cosine).collect())
}

/// Computes the first three principal components of the tokens `[T, D]` of one image as colours `[T, 3]`, in
/// `[0, 1]`.
///
/// Tokens are centred over the image. Each component is scaled so that its 2nd percentile over the tokens
/// becomes 0 and its 98th percentile 1, and clipped there. Without clipping, a few outliers, which are common in
/// vision transformers, would make all other tokens grey. If the two percentiles are equal, the smallest and
/// largest value are used instead. A component is 0.5 everywhere if it does not vary, or if the tokens span
/// fewer dimensions.
///
/// The sign of a component is a convention: the token that is farthest from the mean is positive (the first of
/// them if there are several). The computation is in float64 and uses the smaller of the Gram matrices `[T, T]`
/// and `[D, D]`; the bits do not depend on the number of threads.
///
/// # Errors
///
/// [`MetricsError::NonFinite`], [`MetricsError::TooFew`] without tokens, and
/// [`MetricsError::NoConvergence`].
pub fn pca_rgb(tokens: ArrayView2<'_, f32>) -> Result<Array2<f32>, MetricsError> {
    let count = tokens.nrows();
    if count == 0 {
        return Err(MetricsError::TooFew {
            what: "the image",
            unit: "tokens",
            found: 0,
            needed: 1,
        });
    }
    let sum_of_squares: f64 = norms(tokens)?.iter().map(|norm| norm * norm).sum();
    let mut colours = Array2::from_elem((count, COMPONENTS), CONSTANT_VALUE);
    for (component, scores) in principal_scores(tokens, sum_of_squares)?
        .into_iter()
        .enumerate()
    {
        for (token, value) in to_colours(scores).into_iter().enumerate() {
            colours[[token, component]] = value;
        }
    }
    Ok(colours)
}

/// Computes the scores `[T]` of up to three components in descending order of variance. `sum_of_squares` is that of
/// all values of the tokens.
fn principal_scores(
    tokens: ArrayView2<'_, f32>,
    sum_of_squares: f64,
) -> Result<Vec<Vec<f64>>, MetricsError> {
    let (count, width) = tokens.dim();
    if width == 0 {
        return Ok(Vec::new());
    }
    let means: Vec<f64> = tokens
        .columns()
        .into_iter()
        .map(|channel| channel.iter().copied().map(f64::from).sum::<f64>() / count as f64)
        .collect();
    let centred = Mat::from_fn(count, width, |t, d| f64::from(tokens[[t, d]]) - means[d]);

    let by_tokens = count <= width;
    let gram = match by_tokens {
        true => cross_product(centred.transpose(), centred.transpose()),
        false => cross_product(centred.as_ref(), centred.as_ref()),
    };
    let (values, vectors) = symmetric_eigen(gram.as_ref())?;
    let largest = values.last().copied().unwrap_or(0.0);
    // Bound of the rounding errors of the decomposition and of the mean of constant channels.
    let floor = f64::EPSILON * sum_of_squares.max(count as f64 * largest);

    let strongest = (0..values.len()).rev().take(COMPONENTS);
    let scores = strongest
        .filter(|&k| values[k] > floor)
        .map(|k| match by_tokens {
            // The scores have unit length, which is sufficient because they are scaled later.
            true => vectors.col(k).iter().copied().collect(),
            false => {
                let axis = vectors.subcols(k, 1);
                let scores = cross_product(centred.transpose(), axis);
                scores.col(0).iter().copied().collect()
            }
        });
    Ok(scores.map(with_fixed_sign).collect())
}

/// Flips the signs so that the value farthest from zero is positive. Of values that differ only by rounding, the first
/// counts.
fn with_fixed_sign(mut scores: Vec<f64>) -> Vec<f64> {
    let largest = scores
        .iter()
        .fold(0.0_f64, |max, score| max.max(score.abs()));
    let negative = scores
        .iter()
        .find(|score| score.abs() >= largest * (1.0 - 1e-6))
        .is_some_and(|score| *score < 0.0);
    if negative {
        scores.iter_mut().for_each(|score| *score = -*score);
    }
    scores
}

/// Maps scores linearly to `[0, 1]` between two of their percentiles.
fn to_colours(scores: Vec<f64>) -> Vec<f32> {
    let mut sorted = scores.clone();
    sorted.sort_by(f64::total_cmp);
    let (mut low, mut high) = (
        percentile(&sorted, PERCENTILES.0),
        percentile(&sorted, PERCENTILES.1),
    );
    let extremes = percentile(&sorted, 0.0)..=percentile(&sorted, 1.0);
    let full_range = extremes.end() - extremes.start();
    // The percentiles are equal up to rounding.
    if high - low <= 1e-9 * full_range {
        (low, high) = extremes.into_inner();
    }
    let range = high - low;
    let colour = |score: f64| match range > 0.0 {
        true => ((score - low) / range).clamp(0.0, 1.0) as f32,
        false => CONSTANT_VALUE,
    };
    scores.into_iter().map(colour).collect()
}

/// Returns the percentile `fraction` of sorted values, with NumPy's linear interpolation.
fn percentile(sorted: &[f64], fraction: f64) -> f64 {
    let position = fraction * sorted.len().saturating_sub(1) as f64;
    let value_at = |index: f64| sorted.get(index as usize).copied().unwrap_or(0.0);
    let (below, above) = (value_at(position.floor()), value_at(position.ceil()));
    below + (above - below) * position.fract()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spatial::cosine_similarity;
    use ndarray::array;

    /// Pseudo-random tokens, the same on every platform.
    fn noise(count: usize, width: usize) -> Array2<f32> {
        let mut state = 1_u32;
        Array2::from_shape_simple_fn((count, width), || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        })
    }

    fn column(colours: &Array2<f32>, component: usize) -> Vec<f32> {
        colours.column(component).to_vec()
    }

    #[test]
    fn identical_tokens_have_similarity_one_and_orthogonal_ones_zero() {
        let same = Array2::from_elem((4, 3), 0.7);
        assert_eq!(
            anchor_similarity(same.view(), 2).unwrap(),
            Array1::<f32>::ones(4)
        );
        let basis = Array2::<f32>::eye(3) * 5.0;
        assert_eq!(
            anchor_similarity(basis.view(), 1).unwrap(),
            array![0.0, 1.0, 0.0]
        );
    }

    #[test]
    fn an_anchor_has_similarity_one_to_itself_and_a_zero_token_similarity_zero() {
        let mut tokens = noise(50, 37);
        tokens.row_mut(3).fill(0.0);
        for anchor in 0..50 {
            let similarity = anchor_similarity(tokens.view(), anchor).unwrap();
            assert_eq!(similarity[anchor], if anchor == 3 { 0.0 } else { 1.0 });
            assert_eq!(similarity[3], 0.0);
        }
    }

    #[test]
    fn similarity_to_an_anchor_equals_its_row_of_the_matrix() {
        let tokens = noise(20, 9);
        let matrix = cosine_similarity(tokens.view()).unwrap();
        for anchor in [0, 7, 19] {
            let row = anchor_similarity(tokens.view(), anchor).unwrap();
            for (one, other) in row.iter().zip(matrix.row(anchor)) {
                assert!((one - other).abs() < 1e-6, "{one} {other}");
            }
        }
    }

    #[test]
    fn an_anchor_outside_of_the_tokens_is_refused() {
        let error = anchor_similarity(noise(4, 2).view(), 4).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the anchor is 4, but must be the index of a token"
        );
    }

    /// Three waves over 64 tokens along the rows of `directions`, with variances 9 : 4 : 1.
    fn waves(directions: &Array2<f32>) -> (Array2<f32>, [Vec<f32>; 3]) {
        let wave = |frequency: usize| -> Vec<f32> {
            let angle = |t: usize| (t * frequency) as f32 * std::f32::consts::TAU / 64.0;
            (0..64).map(|t| angle(t).cos()).collect()
        };
        let waves = [wave(1), wave(2), wave(5)];
        let tokens = Array2::from_shape_fn((64, directions.ncols()), |(t, d)| {
            let parts = waves.iter().zip([3.0, 2.0, 1.0]).enumerate();
            let sum: f32 = parts
                .map(|(k, (wave, size))| size * wave[t] * directions[[k, d]])
                .sum();
            sum + 10.0
        });
        (tokens, waves)
    }

    #[test]
    fn known_components_are_found_in_order_by_both_gram_matrices() {
        // The directions are orthonormal; the widths cover T > D, T = D and T < D.
        for width in [3, 64, 100] {
            let (tokens, waves) = waves(&Array2::eye(width).slice(ndarray::s![..3, ..]).to_owned());
            let colours = pca_rgb(tokens.view()).unwrap();
            for (component, wave) in waves.iter().enumerate() {
                let mut sorted = wave.clone();
                sorted.sort_by(f32::total_cmp);
                // The 2nd and 98th percentile of 64 values are between two neighbouring values.
                let (low, high) = (
                    sorted[1] + 0.26 * (sorted[2] - sorted[1]),
                    sorted[61] + 0.74 * (sorted[62] - sorted[61]),
                );
                for (t, value) in column(&colours, component).into_iter().enumerate() {
                    let expected = ((wave[t] - low) / (high - low)).clamp(0.0, 1.0);
                    assert!(
                        (value - expected).abs() < 1e-4,
                        "width {width}, component {component}, token {t}: {value} {expected}"
                    );
                }
            }
        }
    }

    #[test]
    fn signs_of_components_do_not_depend_on_the_sign_of_the_tokens() {
        let tokens = noise(30, 12);
        let colours = pca_rgb(tokens.view()).unwrap();
        let mirrored = pca_rgb(tokens.mapv(|value| -value).view()).unwrap();
        for (one, other) in colours.iter().zip(&mirrored) {
            assert!((one - other).abs() < 1e-6, "{one} {other}");
        }
        assert_eq!(colours, pca_rgb(tokens.view()).unwrap());
    }

    #[test]
    fn a_single_different_token_is_bright() {
        // Fewer different tokens than the percentiles exclude.
        let mut tokens = Array2::<f32>::ones((100, 4));
        tokens[[42, 0]] = 3.0;
        let colours = pca_rgb(tokens.view()).unwrap();
        for (t, value) in column(&colours, 0).into_iter().enumerate() {
            assert_eq!(value, f32::from(u8::from(t == 42)), "token {t}");
        }
    }

    #[test]
    fn a_few_outliers_do_not_reduce_the_contrast_of_the_others() {
        let mut tokens = Array2::from_shape_fn((200, 2), |(t, _)| t as f32);
        tokens.row_mut(17).fill(1e5);
        let red = column(&pca_rgb(tokens.view()).unwrap(), 0);
        assert_eq!(red[17], 1.0);
        assert!(red[190] - red[10] > 0.9, "{} {}", red[10], red[190]);
    }

    #[test]
    fn constant_components_are_grey() {
        // 1/7 is not a binary fraction, so its mean is rounded.
        for constant in [0.0, 1.0 / 7.0, 3e38, 1e-40] {
            let tokens = Array2::from_elem((300, 7), constant);
            let colours = pca_rgb(tokens.view()).unwrap();
            assert!(colours.iter().all(|&value| value == 0.5), "{constant}");
        }
        let line = Array2::from_shape_fn((40, 5), |(t, d)| (t * (d + 1)) as f32);
        let colours = pca_rgb(line.view()).unwrap();
        // Both ends are equally far from the mean, so the first one is positive.
        assert_eq!((colours[[0, 0]], colours[[39, 0]]), (1.0, 0.0));
        assert!(column(&colours, 1).iter().all(|&value| value == 0.5));
        assert!(column(&colours, 2).iter().all(|&value| value == 0.5));
        assert_eq!(
            pca_rgb(Array2::ones((1, 9)).view()).unwrap(),
            Array2::from_elem((1, 3), 0.5)
        );
        assert_eq!(
            pca_rgb(Array2::ones((2, 0)).view()).unwrap(),
            Array2::from_elem((2, 3), 0.5)
        );
    }

    #[test]
    fn values_that_are_not_finite_are_refused_with_their_index() {
        for wrong in [f32::NAN, f32::INFINITY] {
            let mut tokens = noise(6, 5);
            tokens[[4, 2]] = wrong;
            let errors = [
                anchor_similarity(tokens.view(), 0).unwrap_err(),
                pca_rgb(tokens.view()).unwrap_err(),
            ];
            for error in errors {
                assert!(
                    matches!(&error, MetricsError::NonFinite { index, .. } if index == &[4, 2]),
                    "{error}"
                );
            }
        }
        let error = pca_rgb(Array2::zeros((0, 3)).view()).unwrap_err();
        assert!(matches!(error, MetricsError::TooFew { .. }), "{error}");
    }
}
