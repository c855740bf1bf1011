//! One pass over images: everything that is computed from their features.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;

use metrics::quality::{InceptionScore, InceptionScores, Moments, Splits};
use ndarray::Array2;

use super::{EvaluationError, Extractor, ImageSet};

/// Batches that are decoded ahead of the network.
const AHEAD: usize = 2;

/// What is wanted beside the moments of the pooled features.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted {
    /// The Inception score, over these parts.
    pub splits: Option<Splits>,
    /// All pooled features, for KID, precision and recall: `N D` numbers in memory.
    pub features: bool,
}

/// What a pass found.
pub struct Measured {
    /// Of the pooled features.
    pub pooled: Moments,
    /// Of Inception's spatial features.
    pub spatial: Option<Moments>,
    /// Of Inception's logits, if it was wanted.
    pub score: Option<InceptionScore>,
    /// Pooled features `[N, D]`, if they were wanted.
    pub features: Option<Array2<f32>>,
}

/// Measures images in one pass, in their order and in fixed batches, so that the same images give the same
/// bits. Memory does not grow with their number unless the features are wanted.
///
/// # Errors
/// An image cannot be read, the network failed, a feature is not finite, or `interrupted` was set.
pub fn measure(
    images: &ImageSet,
    extractor: &Extractor,
    wanted: Wanted,
    interrupted: &AtomicBool,
    mut progress: impl FnMut(usize),
) -> Result<Measured, EvaluationError> {
    let dimension = extractor.dimension();
    let mut pooled = Moments::new(dimension);
    let mut spatial = None;
    let mut scores = None;
    if let Some((spatial_dimension, classes)) = extractor.inception() {
        spatial = Some(Moments::new(spatial_dimension));
        scores = wanted
            .splits
            .map(|splits| InceptionScores::new(classes, splits, images.len()))
            .transpose()?;
    }
    let mut rows = wanted
        .features
        .then(|| Vec::with_capacity(images.len() * dimension));
    let batches = images.batches()?;
    let (send, receive) = mpsc::sync_channel(AHEAD);
    thread::scope(|scope| {
        // Gone with this closure, however it ends: the thread would wait for ever otherwise.
        let receive = receive;
        scope.spawn(move || {
            for batch in batches {
                // The other end is gone when something failed or was interrupted.
                if send.send(batch).is_err() {
                    return;
                }
            }
        });
        for batch in receive {
            if interrupted.load(Ordering::Relaxed) {
                return Err(EvaluationError::Interrupted);
            }
            let features = extractor.features(&batch?)?;
            pooled.push(features.pooled.view())?;
            if let (Some(moments), Some(features)) = (&mut spatial, &features.spatial) {
                moments.push(features.view())?;
            }
            if let (Some(scores), Some(logits)) = (&mut scores, &features.logits) {
                scores.push(logits.view())?;
            }
            progress(features.pooled.nrows());
            if let Some(rows) = &mut rows {
                rows.extend(features.pooled);
            }
        }
        Ok(())
    })?;
    let features = rows
        .map(|rows| Array2::from_shape_vec((images.len(), dimension), rows))
        .transpose()
        .map_err(|error| tch::TchError::Shape(error.to_string()))?;
    Ok(Measured {
        pooled,
        spatial,
        score: scores.map(InceptionScores::finish).transpose()?,
        features,
    })
}
