//! Means and covariances of features.

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

/// Mean and covariance of one kind of features.
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics {
    /// Number of samples behind them, where it is known.
    pub count: Option<usize>,
    /// Mean `[D]`.
    pub mean: Array1<f64>,
    /// Covariance `[D, D]`, ddof 1.
    pub covariance: Array2<f64>,
}

impl Statistics {
    /// Of accumulated features.
    ///
    /// # Errors
    ///
    /// [`MetricsError::TooFew`] with fewer than 2 samples.
    pub fn of(moments: &Moments) -> Result<Self, MetricsError> {
        Ok(Self {
            count: Some(moments.count()),
            mean: moments.mean().to_owned(),
            covariance: moments.covariance()?,
        })
    }

    /// As accumulated features. Where the number of samples is not known it is taken to be above `D`.
    ///
    /// # Errors
    ///
    /// As [`Moments::from_statistics`].
    pub fn moments(&self) -> Result<Moments, MetricsError> {
        let count = self.count.unwrap_or(self.mean.len().max(1) + 1);
        Moments::from_statistics(count, self.mean.view(), self.covariance.view())
    }

    /// Number of features, `D`.
    pub fn dimension(&self) -> usize {
        self.mean.len()
    }
}

/// A file of statistics, and perhaps of the images that they are of.
#[derive(Debug, Clone)]
pub struct ReferenceFile {
    path: PathBuf,
    names: Vec<String>,
}

impl ReferenceFile {
    /// Lists what is in the file.
    ///
    /// # Errors
    ///
    /// The file cannot be read or is no `.npz`.
    pub fn open(path: &Path) -> Result<Self, NpzError> {
        Ok(Self {
            path: path.to_owned(),
            names: names(path)?,
        })
    }

    /// `mu` and `sigma`, of pooled features.
    ///
    /// # Errors
    ///
    /// One without the other, not `[D]` (or `[1, D]`) and `[D, D]`, or numbers that are no mean and covariance.
    pub fn pooled(&self) -> Result<Option<Statistics>, NpzError> {
        self.pair("mu", "sigma")
    }

    /// `mu_s` and `sigma_s`, of spatial features.
    ///
    /// # Errors
    ///
    /// As [`pooled`](Self::pooled).
    pub fn spatial(&self) -> Result<Option<Statistics>, NpzError> {
        self.pair("mu_s", "sigma_s")
    }

    /// The images `arr_0`, if there are any.
    ///
    /// # Errors
    ///
    /// As [`SampleReader::open`].
    pub fn images(&self) -> Result<Option<SampleReader>, NpzError> {
        match self.holds("arr_0") {
            true => SampleReader::open(&self.path).map(Some),
            false => Ok(None),
        }
    }

    /// Another array of floats, such as features kept beside their statistics.
    ///
    /// # Errors
    ///
    /// An array that is not float32 `[N, D]`.
    pub fn features(&self, name: &str) -> Result<Option<Array2<f32>>, NpzError> {
        let Some(member) = Member::open(&self.path, name)? else {
            return Ok(None);
        };
        let &[rows, columns] = &member.shape[..] else {
            return Err(member.unlike("f4 [N, D]".to_owned()));
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

    fn holds(&self, name: &str) -> bool {
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
            needed: "a mean and its covariance go together",
        };
        let (mean, covariance) = match (self.holds(mean_name), self.holds(covariance_name)) {
            (false, false) => return Ok(None),
            (false, true) => return Err(missing(mean_name)),
            (true, false) => return Err(missing(covariance_name)),
            (true, true) => (self.member(mean_name)?, self.member(covariance_name)?),
        };
        let &[dimension] = without_ones(&mean.shape, 1) else {
            return Err(mean.unlike("f8 [D] or [1, D]".to_owned()));
        };
        if without_ones(&covariance.shape, 2) != [dimension, dimension] || dimension == 0 {
            return Err(covariance.unlike(format!(
                "f8 [{dimension}, {dimension}], as `{mean_name}` has {dimension} numbers"
            )));
        }
        let shape = |error| NpzError::damaged(&self.path, error);
        let statistics = Statistics {
            count: self.count()?,
            mean: Array1::from_vec(mean.floats()?.1),
            covariance: Array2::from_shape_vec((dimension, dimension), covariance.floats()?.1)
                .map_err(shape)?,
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

    /// Number of samples, in files of ours. The images in ADM's files are fewer than those behind the
    /// statistics, and tell nothing.
    fn count(&self) -> Result<Option<usize>, NpzError> {
        if !self.holds(COUNT) {
            return Ok(None);
        }
        let member = self.member(COUNT)?;
        if member.shape.iter().product::<usize>() != 1 {
            return Err(member.unlike("i8 []".to_owned()));
        }
        let (_, values) = member.floats()?;
        Ok(values.first().map(|&count| count as usize))
    }

    fn member(&self, name: &'static str) -> Result<Member, NpzError> {
        Member::open(&self.path, name)?.ok_or_else(|| NpzError::Missing {
            path: self.path.clone(),
            name,
            found: self.names.join(", "),
            needed: "it was there a moment ago",
        })
    }
}

/// A shape without the leading sides of 1 that it has beyond `axes`: `numpy.mean` with `keepdims` and batches
/// of one leave such.
fn without_ones(mut shape: &[usize], axes: usize) -> &[usize] {
    while let [1, rest @ ..] = shape
        && rest.len() >= axes
    {
        shape = rest;
    }
    shape
}

/// Writes statistics so that [`ReferenceFile`], and the evaluators of ADM and JiT, read them: `mu` and
/// `sigma`, of spatial features `mu_s` and `sigma_s`, `count`, and features `[N, D]` by name. The file
/// appears whole or not at all.
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
    let wide = |x: &f64| x.to_le_bytes();
    for (suffix, statistics) in [("", Some(pooled)), ("_s", spatial)] {
        let Some(statistics) = statistics else {
            continue;
        };
        let dimension = statistics.dimension();
        let (mean, covariance) = (&statistics.mean, &statistics.covariance);
        let name = format!("mu{suffix}");
        add(&name, "<f8", &[dimension], &mut mean.iter().map(wide))?;
        let name = format!("sigma{suffix}");
        let shape = [dimension, dimension];
        add(&name, "<f8", &shape, &mut covariance.iter().map(wide))?;
    }
    if let Some(count) = pooled.count {
        let number = (count as u64).to_le_bytes();
        add(COUNT, "<i8", &[], &mut std::iter::once(number))?;
    }
    for (name, features) in features {
        let narrow = |x: &f32| {
            let mut number = [0; 8];
            number[..4].copy_from_slice(&x.to_le_bytes());
            number
        };
        let (rows, columns) = features.dim();
        add(
            name,
            "<f4",
            &[rows, columns],
            &mut features.iter().map(narrow),
        )?;
    }
    finish(archive, path)
}
