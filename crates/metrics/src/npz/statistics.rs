//! Files of feature statistics: means and covariances.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use ndarray::{Array1, Array2};
use zip::ZipWriter;

use super::NpzError;
use super::member::{Member, names};
use super::samples::{Compression, SampleReader, begin, create, finish, options};
use crate::MetricsError;
use crate::quality::Moments;

const COUNT: &str = "count";

/// Mean and covariance of one type of features.
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics {
    /// Number of samples, if known.
    pub count: Option<usize>,
    /// Mean `[D]`.
    pub mean: Array1<f64>,
    /// Covariance `[D, D]` with ddof 1.
    pub covariance: Array2<f64>,
}

impl Statistics {
    /// Converts accumulated moments.
    ///
    /// # Errors
    ///
    /// [`MetricsError::TooFew`] with fewer than 2 samples.
    pub fn from_moments(moments: &Moments) -> Result<Self, MetricsError> {
        Ok(Self {
            count: Some(moments.count()),
            mean: moments.mean().to_owned(),
            covariance: moments.covariance()?,
        })
    }

    /// Converts to moments. An unknown number of samples is assumed to be above `D`.
    ///
    /// # Errors
    ///
    /// Those of [`Moments::from_statistics`].
    pub fn moments(&self) -> Result<Moments, MetricsError> {
        let count = self.count.unwrap_or(self.mean.len().max(1) + 1);
        Moments::from_statistics(count, self.mean.view(), self.covariance.view())
    }

    /// Number of features, `D`.
    pub fn dimension(&self) -> usize {
        self.mean.len()
    }
}

/// A file of statistics, which may also contain images.
#[derive(Debug, Clone)]
pub struct ReferenceFile {
    path: PathBuf,
    names: Vec<String>,
}

impl ReferenceFile {
    /// Opens a file and reads the names of its arrays.
    ///
    /// # Errors
    ///
    /// The file cannot be read or is not an `.npz` file.
    pub fn open(path: &Path) -> Result<Self, NpzError> {
        Ok(Self {
            path: path.to_owned(),
            names: names(path)?,
        })
    }

    /// Reads `mu` and `sigma`, the statistics of pooled features; `None` if the file has neither.
    ///
    /// # Errors
    ///
    /// One of the two is missing, their shapes are not `[D]` (or `[1, D]`) and `[D, D]`, or their values are not a
    /// valid mean and covariance.
    pub fn pooled(&self) -> Result<Option<Statistics>, NpzError> {
        self.pair("mu", "sigma")
    }

    /// Reads `mu_s` and `sigma_s`, the statistics of spatial features; `None` if the file has neither.
    ///
    /// # Errors
    ///
    /// Those of [`pooled`](Self::pooled).
    pub fn spatial(&self) -> Result<Option<Statistics>, NpzError> {
        self.pair("mu_s", "sigma_s")
    }

    /// Opens the images `arr_0`; `None` if the file has none.
    ///
    /// # Errors
    ///
    /// Those of [`SampleReader::open`].
    pub fn images(&self) -> Result<Option<SampleReader>, NpzError> {
        match self.has_array("arr_0") {
            true => SampleReader::open(&self.path).map(Some),
            false => Ok(None),
        }
    }

    /// Reads another array `[N, D]` of numbers as float32, such as features stored with their statistics; `None` if
    /// the file has no array `name`.
    ///
    /// # Errors
    ///
    /// The array is not an array of numbers `[N, D]`.
    pub fn features(&self, name: &str) -> Result<Option<Array2<f32>>, NpzError> {
        let Some(member) = Member::open(&self.path, name)? else {
            return Ok(None);
        };
        let &[rows, columns] = &member.shape[..] else {
            return Err(member.array_error("f4 [N, D]".to_owned()));
        };
        let (_, values) = member.floats()?;
        let values = values.into_iter().map(|x| x as f32).collect();
        Array2::from_shape_vec((rows, columns), values)
            .map(Some)
            .map_err(|error| NpzError::damaged(&self.path, error))
    }

    /// Names of the arrays.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    fn has_array(&self, name: &str) -> bool {
        self.names.iter().any(|found| found == name)
    }

    fn pair(
        &self,
        mean_name: &'static str,
        covariance_name: &'static str,
    ) -> Result<Option<Statistics>, NpzError> {
        let missing = |name| NpzError::Missing {
            path: self.path.clone(),
            name,
            found: self.names.join(", "),
            needed: "a mean and its covariance must both be present",
        };
        let (mean, covariance) = match (self.has_array(mean_name), self.has_array(covariance_name))
        {
            (false, false) => return Ok(None),
            (false, true) => return Err(missing(mean_name)),
            (true, false) => return Err(missing(covariance_name)),
            (true, true) => (self.member(mean_name)?, self.member(covariance_name)?),
        };
        let &[dimension] = without_ones(&mean.shape, 1) else {
            return Err(mean.array_error("f8 [D] or [1, D]".to_owned()));
        };
        if without_ones(&covariance.shape, 2) != [dimension, dimension] || dimension == 0 {
            return Err(covariance.array_error(format!(
                "f8 [{dimension}, {dimension}], because `{mean_name}` has {dimension} values"
            )));
        }
        let damaged = |error| NpzError::damaged(&self.path, error);
        let statistics = Statistics {
            count: self.count()?,
            mean: Array1::from_vec(mean.floats()?.1),
            covariance: Array2::from_shape_vec((dimension, dimension), covariance.floats()?.1)
                .map_err(damaged)?,
        };
        statistics
            .moments()
            .map_err(|source| NpzError::Statistics {
                path: self.path.clone(),
                name: covariance_name,
                source,
            })?;
        Ok(Some(statistics))
    }

    /// Reads the number of samples, which only files of this project contain. ADM's files contain fewer images than
    /// their statistics were computed from, so the number of images does not tell.
    fn count(&self) -> Result<Option<usize>, NpzError> {
        if !self.has_array(COUNT) {
            return Ok(None);
        }
        let member = self.member(COUNT)?;
        if member.shape.iter().product::<usize>() != 1 {
            return Err(member.array_error("i8 []".to_owned()));
        }
        let (_, values) = member.floats()?;
        Ok(values.first().map(|&count| count as usize))
    }

    fn member(&self, name: &'static str) -> Result<Member, NpzError> {
        Member::open(&self.path, name)?.ok_or_else(|| NpzError::Missing {
            path: self.path.clone(),
            name,
            found: self.names.join(", "),
            needed: "the file has changed since it was opened",
        })
    }
}

/// Removes leading sides of 1 from a shape down to `axes` axes. Such sides result from `numpy.mean` with `keepdims`
/// and from batches of one.
fn without_ones(mut shape: &[usize], axes: usize) -> &[usize] {
    while let [1, rest @ ..] = shape
        && rest.len() >= axes
    {
        shape = rest;
    }
    shape
}

/// Writes statistics in a format that [`ReferenceFile`] and the evaluators of ADM and JiT read: `mu` and
/// `sigma`, `mu_s` and `sigma_s` of spatial features, `count`, and named features `[N, D]`. The file
/// appears atomically.
///
/// # Errors
///
/// The file cannot be written.
pub fn write_statistics(
    path: &Path,
    pooled: &Statistics,
    spatial: Option<&Statistics>,
    features: &[(&str, &Array2<f32>)],
) -> Result<(), NpzError> {
    let mut archive = ZipWriter::new(BufWriter::new(create(path)?));
    let options = options(Compression::Stored).large_file(true);
    let mut add =
        |name: &str, dtype: &str, shape: &[usize], bytes: &mut dyn Iterator<Item = [u8; 8]>| {
            begin(&mut archive, path, name, dtype, shape, options)?;
            let width = if dtype == "<f4" { 4 } else { 8 };
            for number in bytes {
                archive
                    .write_all(&number[..width])
                    .map_err(NpzError::io("write", path))?;
            }
            Ok::<(), NpzError>(())
        };
    let float64 = |x: &f64| x.to_le_bytes();
    for (suffix, statistics) in [("", Some(pooled)), ("_s", spatial)] {
        let Some(statistics) = statistics else {
            continue;
        };
        let dimension = statistics.dimension();
        let (mean, covariance) = (&statistics.mean, &statistics.covariance);
        let name = format!("mu{suffix}");
        add(&name, "<f8", &[dimension], &mut mean.iter().map(float64))?;
        let name = format!("sigma{suffix}");
        let shape = [dimension, dimension];
        add(&name, "<f8", &shape, &mut covariance.iter().map(float64))?;
    }
    if let Some(count) = pooled.count {
        let number = (count as u64).to_le_bytes();
        add(COUNT, "<i8", &[], &mut std::iter::once(number))?;
    }
    for (name, features) in features {
        let float32 = |x: &f32| {
            let mut number = [0; 8];
            number[..4].copy_from_slice(&x.to_le_bytes());
            number
        };
        let (rows, columns) = features.dim();
        add(
            name,
            "<f4",
            &[rows, columns],
            &mut features.iter().map(float32),
        )?;
    }
    finish(archive, path)
}
