//! Mean and covariance of features, accumulated in a single pass.

use faer::Mat;
use ndarray::{Array2, ArrayView1, ArrayView2, Axis, aview1};

use crate::MetricsError;
use crate::linalg::add_outer_product;

/// Samples per update of the scatter matrix; few enough that their float64 copy fits into the cache.
const CHUNK: usize = 256;

/// Largest asymmetry of a matrix that counts as symmetric, relative to its largest value; allows for statistics
/// stored as float32.
const SYMMETRY_TOLERANCE: f64 = 1e-5;

/// Number, mean and covariance of feature vectors of `D` dimensions, in float64.
///
/// Accumulates batches ([`push`](Self::push)) and the moments of other accumulators
/// ([`merge`](Self::merge)). The division into batches changes the result only by rounding. Batches
/// are centred before they are multiplied (Chan, Golub and LeVeque 1983), so a mean far from zero loses no
/// precision.
///
/// A push costs as much as a `[D, N] x [N, D]` product, or as one pass over `D * D` values for a batch of a
/// few samples.
///
/// ```
/// use metrics::quality::Moments;
/// use ndarray::array;
///
/// let mut moments = Moments::new(2);
/// moments.push(array![[1.0, 0.0], [3.0, 0.0]].view())?;
/// moments.push(array![[4.0, 3.0], [4.0, 3.0]].view())?;
/// assert_eq!(moments.mean().to_vec(), [3.0, 1.5]);
/// assert_eq!(moments.covariance()?, array![[2.0, 2.0], [2.0, 3.0]]);
/// # Ok::<(), metrics::MetricsError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Moments {
    count: usize,
    mean: Vec<f64>,
    /// Sum of the outer products of the centred samples; only the lower triangle is defined.
    scatter: Mat<f64>,
}

impl Moments {
    /// Creates an empty accumulator for samples of `dimension` features.
    pub fn new(dimension: usize) -> Self {
        Self {
            count: 0,
            mean: vec![0.0; dimension],
            scatter: Mat::zeros(dimension, dimension),
        }
    }

    /// Creates moments from an existing mean `[D]` and covariance `[D, D]` (ddof 1), such as those of a
    /// reference file.
    ///
    /// `count` is their number of samples. It is the weight in a [`merge`](Self::merge), and it limits the rank
    /// of the covariance to `count - 1`. If it is unknown, pass a number above `D`.
    ///
    /// # Errors
    ///
    /// [`MetricsError::TooFew`] for a count below 2, [`MetricsError::Shape`],
    /// [`MetricsError::NonFinite`], and [`MetricsError::NotCovariance`] for a matrix that is not
    /// symmetric or has a negative variance.
    pub fn from_statistics(
        count: usize,
        mean: ArrayView1<'_, f64>,
        covariance: ArrayView2<'_, f64>,
    ) -> Result<Self, MetricsError> {
        check_count(count)?;
        let dimension = mean.len();
        if covariance.dim() != (dimension, dimension) {
            return Err(MetricsError::Shape {
                what: "the covariance",
                found: covariance.shape().to_vec(),
                expected: vec![dimension, dimension],
            });
        }
        if let Some((i, &value)) = mean.iter().enumerate().find(|(_, x)| !x.is_finite()) {
            return Err(MetricsError::NonFinite {
                what: "the mean",
                index: vec![i],
                value,
            });
        }
        check_covariance(covariance)?;
        let weight = (count - 1) as f64;
        Ok(Self {
            count,
            mean: mean.to_vec(),
            scatter: Mat::from_fn(dimension, dimension, |i, j| covariance[(i, j)] * weight),
        })
    }

    /// Adds a batch of features `[N, D]`; an empty batch changes nothing.
    ///
    /// # Errors
    ///
    /// [`MetricsError::Shape`] for another number of dimensions, [`MetricsError::NonFinite`]; the moments
    /// are then unchanged.
    pub fn push(&mut self, features: ArrayView2<'_, f32>) -> Result<(), MetricsError> {
        let (samples, dimension) = features.dim();
        if dimension != self.dimension() {
            return Err(MetricsError::Shape {
                what: "the batch of features",
                found: vec![samples, dimension],
                expected: vec![samples, self.dimension()],
            });
        }
        check_finite(features)?;
        for chunk in features.axis_chunks_iter(Axis(0), CHUNK) {
            self.push_chunk(chunk);
        }
        Ok(())
    }

    /// Adds the samples of another accumulator.
    ///
    /// # Errors
    ///
    /// [`MetricsError::Shape`] for another number of dimensions.
    pub fn merge(&mut self, other: &Self) -> Result<(), MetricsError> {
        if other.dimension() != self.dimension() {
            return Err(MetricsError::Shape {
                what: "the mean of the other moments",
                found: vec![other.dimension()],
                expected: vec![self.dimension()],
            });
        }
        if other.count == 0 {
            return Ok(());
        }
        let shift = self.shift_mean(other.count, &other.mean);
        self.scatter += &other.scatter;
        add_outer_product(&mut self.scatter, shift.as_ref());
        Ok(())
    }

    /// Number of samples so far.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Number of features per sample, `D`.
    pub fn dimension(&self) -> usize {
        self.mean.len()
    }

    /// Mean `[D]`; zeros without samples.
    pub fn mean(&self) -> ArrayView1<'_, f64> {
        aview1(&self.mean)
    }

    /// Sample covariance `[D, D]`, normalised by `count - 1` as in `numpy.cov`.
    ///
    /// # Errors
    ///
    /// [`MetricsError::TooFew`] with fewer than 2 samples.
    pub fn covariance(&self) -> Result<Array2<f64>, MetricsError> {
        let lower = self.lower_covariance()?;
        let dimension = self.dimension();
        Ok(Array2::from_shape_fn((dimension, dimension), |(i, j)| {
            lower[(i.max(j), i.min(j))]
        }))
    }

    /// Returns the covariance, of which only the lower triangle is defined.
    pub(super) fn lower_covariance(&self) -> Result<Mat<f64>, MetricsError> {
        check_count(self.count)?;
        let weight = (self.count - 1) as f64;
        Ok(Mat::from_fn(self.dimension(), self.dimension(), |i, j| {
            self.scatter[(i, j)] / weight
        }))
    }

    fn push_chunk(&mut self, chunk: ArrayView2<'_, f32>) {
        let (count, dimension) = chunk.dim();
        if count == 0 {
            return;
        }
        let mean = feature_means(chunk);
        let shift = self.shift_mean(count, &mean);
        // The shift of the mean is an additional column, so that a single product adds both.
        let columns = Mat::from_fn(dimension, count + 1, |i, j| {
            if j < count {
                f64::from(chunk[(j, i)]) - mean[i]
            } else {
                shift[(i, 0)]
            }
        });
        add_outer_product(&mut self.scatter, columns.as_ref());
    }

    /// Updates count and mean with `count` samples of mean `mean`. Returns a column `[D, 1]` whose outer product must
    /// be added to the scatter matrix.
    fn shift_mean(&mut self, count: usize, mean: &[f64]) -> Mat<f64> {
        let (before, added) = (self.count as f64, count as f64);
        let total = before + added;
        let weight = (before * added / total).sqrt();
        let mut shift = Mat::zeros(mean.len(), 1);
        for (i, (own, &other)) in self.mean.iter_mut().zip(mean).enumerate() {
            let difference = other - *own;
            *own += difference * (added / total);
            shift[(i, 0)] = difference * weight;
        }
        self.count += count;
        shift
    }
}

/// Computes the mean `[D]` of features `[N, D]`.
pub(super) fn feature_means(features: ArrayView2<'_, f32>) -> Vec<f64> {
    let mut sums = vec![0.0; features.ncols()];
    for sample in features.outer_iter() {
        for (sum, &value) in sums.iter_mut().zip(sample) {
            *sum += f64::from(value);
        }
    }
    let count = features.nrows() as f64;
    sums.iter().map(|sum| sum / count).collect()
}

/// Checks that all features `[N, D]` are finite.
pub(crate) fn check_finite(features: ArrayView2<'_, f32>) -> Result<(), MetricsError> {
    match features.indexed_iter().find(|(_, x)| !x.is_finite()) {
        Some(((i, j), &value)) => Err(MetricsError::NonFinite {
            what: "the set of features",
            index: vec![i, j],
            value: f64::from(value),
        }),
        None => Ok(()),
    }
}

/// Checks that there are enough samples for a covariance.
pub(super) fn check_count(count: usize) -> Result<(), MetricsError> {
    if count < 2 {
        return Err(MetricsError::TooFew {
            what: "a set of features",
            unit: "samples",
            found: count,
            needed: 2,
        });
    }
    Ok(())
}

fn check_covariance(covariance: ArrayView2<'_, f64>) -> Result<(), MetricsError> {
    let mut largest: f64 = 0.0;
    for ((i, j), &value) in covariance.indexed_iter() {
        if !value.is_finite() {
            return Err(MetricsError::NonFinite {
                what: "the covariance",
                index: vec![i, j],
                value,
            });
        }
        largest = largest.max(value.abs());
    }
    for ((i, j), &value) in covariance.indexed_iter() {
        let mirrored = covariance[(j, i)];
        let reason = if i == j && value < 0.0 {
            format!("the variance at [{i}, {i}] is {value}")
        } else if (value - mirrored).abs() > SYMMETRY_TOLERANCE * largest {
            format!("[{i}, {j}] is {value} and [{j}, {i}] is {mirrored}, so it is not symmetric")
        } else {
            continue;
        };
        return Err(MetricsError::NotCovariance { reason });
    }
    Ok(())
}
