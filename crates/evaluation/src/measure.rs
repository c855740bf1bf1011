//! Computes everything that metrics need from the features of images, in one pass.

use std::sync::atomic::AtomicBool;
use std::sync::mpsc;
use std::thread;

use metrics::quality::{InceptionScore, InceptionScores, Moments, Splits};
use ndarray::Array2;
use tch::Tensor;

use crate::error::EvaluationError;
use crate::features::Extractor;
use crate::images::ImageSet;

/// Batches that are decoded ahead of the network.
const PREFETCH: usize = 2;

/// What a pass computes in addition to the moments of the pooled features.
#[derive(Debug, Clone, Copy, Default)]
pub struct PassOptions {
    /// Computes the Inception score over these parts.
    pub splits: Option<Splits>,
    /// Keeps all pooled features `[N, D]` in memory, for KID, precision and recall.
    pub features: bool,
}

/// The results of a pass.
pub struct PassResult {
    /// Moments of the pooled features.
    pub pooled: Moments,
    /// Moments of Inception's spatial features.
    pub spatial: Option<Moments>,
    /// The Inception score, if it was requested.
    pub score: Option<InceptionScore>,
    /// Pooled features `[N, D]`, if they were requested.
    pub features: Option<Array2<f32>>,
}

/// A pass over images that arrive in batches. Sums are rounded per batch, so equal results require the same division into
/// batches.
pub struct FeaturePass<'a> {
    extractor: &'a Extractor,
    count: usize,
    pooled: Moments,
    spatial: Option<Moments>,
    scores: Option<InceptionScores>,
    rows: Option<Vec<f32>>,
}

impl<'a> FeaturePass<'a> {
    /// Starts a pass over `count` images.
    ///
    /// # Errors
    /// `count` images are too few for the parts of the Inception score.
    pub fn new(
        extractor: &'a Extractor,
        options: PassOptions,
        count: usize,
    ) -> Result<Self, EvaluationError> {
        let mut spatial = None;
        let mut scores = None;
        if let Some((spatial_dimension, classes)) = extractor.inception() {
            spatial = Some(Moments::new(spatial_dimension));
            scores = options
                .splits
                .map(|splits| InceptionScores::new(classes, splits, count))
                .transpose()?;
        }
        let dimension = extractor.dimension();
        Ok(Self {
            extractor,
            count,
            pooled: Moments::new(dimension),
            spatial,
            scores,
            rows: options
                .features
                .then(|| Vec::with_capacity(count * dimension)),
        })
    }

    /// Adds images u8 `[B, 3, H, W]` and returns their number.
    ///
    /// # Errors
    /// The network failed, a feature is not finite, or `interrupted` was set.
    pub fn push(
        &mut self,
        images: &Tensor,
        interrupted: &AtomicBool,
    ) -> Result<usize, EvaluationError> {
        let features = self.extractor.features(images, interrupted)?;
        self.pooled.push(features.pooled.view())?;
        if let (Some(moments), Some(features)) = (&mut self.spatial, &features.spatial) {
            moments.push(features.view())?;
        }
        if let (Some(scores), Some(logits)) = (&mut self.scores, &features.logits) {
            scores.push(logits.view())?;
        }
        let count = features.pooled.nrows();
        if let Some(rows) = &mut self.rows {
            rows.extend(features.pooled);
        }
        Ok(count)
    }

    /// Ends the pass and returns its results.
    ///
    /// # Errors
    /// The number of added images differs from the announced `count`.
    pub fn finish(self) -> Result<PassResult, EvaluationError> {
        let shape = (self.count, self.extractor.dimension());
        let features = self
            .rows
            .map(|rows| Array2::from_shape_vec(shape, rows))
            .transpose()
            .map_err(|error| tch::TchError::Shape(error.to_string()))?;
        Ok(PassResult {
            pooled: self.pooled,
            spatial: self.spatial,
            score: self.scores.map(InceptionScores::finish).transpose()?,
            features,
        })
    }
}

/// Measures images in one pass, in order and in fixed batches, so that the same images yield the same bits. Memory does
/// not grow with the number of images unless their features are kept.
///
/// # Errors
/// An image cannot be read, the network failed, a feature is not finite, or `interrupted` was set.
pub fn measure(
    images: &ImageSet,
    extractor: &Extractor,
    options: PassOptions,
    interrupted: &AtomicBool,
    mut progress: impl FnMut(usize),
) -> Result<PassResult, EvaluationError> {
    let mut pass = FeaturePass::new(extractor, options, images.len())?;
    let batches = images.batches()?;
    let (send, receive) = mpsc::sync_channel(PREFETCH);
    thread::scope(|scope| {
        // Dropped with this closure however it ends; the thread would otherwise block forever.
        let receive = receive;
        scope.spawn(move || {
            for batch in batches {
                // The receiver is dropped after a failure or an interruption.
                if send.send(batch).is_err() {
                    return;
                }
            }
        });
        for batch in receive {
            progress(pass.push(&batch?, interrupted)?);
        }
        Ok::<_, EvaluationError>(())
    })?;
    pass.finish()
}
