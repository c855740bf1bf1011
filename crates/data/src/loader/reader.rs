//! Reads a sample for a batch.

use std::collections::HashSet;
use std::sync::Arc;

use super::config::LoaderConfig;
use super::order::Task;
use crate::dataset::Dataset;
use crate::error::DataError;
use crate::render::{self, Rendered};

/// Reads samples in the form of the batches.
pub(super) struct SampleReader {
    dataset: Arc<dyn Dataset>,
    config: LoaderConfig,
    content: Content,
}

/// What a batch has of its samples.
enum Content {
    Images,
    /// Labels only. The samples of the set count as corrupt.
    Labels {
        absent: HashSet<u64>,
    },
}

impl SampleReader {
    pub(super) fn new(dataset: Arc<dyn Dataset>, config: LoaderConfig) -> Self {
        Self {
            dataset,
            config,
            content: Content::Images,
        }
    }

    /// As [`new`](Self::new), for batches without images.
    pub(super) fn of_labels(
        dataset: Arc<dyn Dataset>,
        config: LoaderConfig,
        absent: HashSet<u64>,
    ) -> Self {
        Self {
            content: Content::Labels { absent },
            ..Self::new(dataset, config)
        }
    }

    pub(super) fn read(&self, task: Task) -> Result<Rendered, DataError> {
        let index = task.index;
        match &self.content {
            Content::Images => {
                let (resolution, background) = (self.config.resolution, self.config.background);
                render::read(&*self.dataset, index, resolution, background, task.flip)
            }
            Content::Labels { absent } if absent.contains(&index) => Err(DataError::Sample {
                dataset: self.dataset.name().to_owned(),
                index,
                reason: "it could not be read when the cache was written".to_owned(),
            }),
            Content::Labels { .. } => Ok(Rendered {
                pixels: Vec::new(),
                mask: None,
                label: self.dataset.label(index)?,
            }),
        }
    }
}
