//! A part of a data set.

use std::path::Path;
use std::sync::Arc;

use crate::dataset::Dataset;
use crate::error::DataError;
use crate::fingerprint::Fingerprint;
use crate::sample::Sample;

/// Returns `count` evenly spaced indices below `total`. Data sets are often sorted by class, so the first indices would
/// not be representative.
pub fn evenly_spaced(count: u64, total: u64) -> Vec<u64> {
    (0..count)
        .map(|index| (u128::from(index) * u128::from(total) / u128::from(count)) as u64)
        .collect()
}

/// Evenly spaced samples of a data set.
pub(crate) struct Subset {
    dataset: Arc<dyn Dataset>,
    indices: Vec<u64>,
    fingerprint: String,
}

impl Subset {
    /// At most `count` samples of `dataset`.
    pub(crate) fn limit(dataset: Arc<dyn Dataset>, count: u64) -> Arc<dyn Dataset> {
        if count >= dataset.len() {
            return dataset;
        }
        let mut fingerprint = Fingerprint::default();
        fingerprint.text(dataset.fingerprint());
        fingerprint.number(count);
        Arc::new(Self {
            indices: evenly_spaced(count, dataset.len()),
            fingerprint: fingerprint.finish(),
            dataset,
        })
    }

    fn index(&self, index: u64) -> Result<u64, DataError> {
        let found = usize::try_from(index)
            .ok()
            .and_then(|index| self.indices.get(index));
        found.copied().ok_or_else(|| DataError::Index {
            dataset: self.name().to_owned(),
            index,
            len: self.len(),
        })
    }
}

impl Dataset for Subset {
    fn name(&self) -> &str {
        self.dataset.name()
    }

    fn len(&self) -> u64 {
        self.indices.len() as u64
    }

    fn class_names(&self) -> &[String] {
        self.dataset.class_names()
    }

    fn read(&self, index: u64) -> Result<Sample, DataError> {
        self.dataset.read(self.index(index)?)
    }

    fn label(&self, index: u64) -> Result<i64, DataError> {
        self.dataset.label(self.index(index)?)
    }

    fn path(&self, index: u64) -> Option<&Path> {
        self.dataset.path(self.index(index).ok()?)
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}
