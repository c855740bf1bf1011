//! Classifier-free guidance: predictions for a class and for the null class, from one call of a network.

use tch::Tensor;

use crate::DiffusionError;

/// Calls `predict` on two copies of `x` `[B, ...]`, with `labels` `[B]` for the first and `null_class` for the second.
/// Returns the halves of what `predict` returns, `[B, ...]` each: those for the labels, then those for the null class.
pub(crate) fn with_and_without_class(
    x: &Tensor,
    labels: &Tensor,
    null_class: i64,
    predict: impl FnOnce(&Tensor, &Tensor) -> Result<Tensor, DiffusionError>,
) -> Result<[Tensor; 2], DiffusionError> {
    let count = labels.size1()?;
    let null = labels.f_full_like(null_class)?;
    let both = predict(
        &Tensor::f_cat(&[x, x], 0)?,
        &Tensor::f_cat(&[labels, &null], 0)?,
    )?;
    Ok([both.f_narrow(0, 0, count)?, both.f_narrow(0, count, count)?])
}

/// The labels of samples and the scale of guidance.
#[derive(Debug)]
pub(crate) struct Guidance<'a> {
    labels: &'a Tensor,
    /// The scale and the null class; `None` without guidance.
    guided: Option<(f64, i64)>,
}

impl<'a> Guidance<'a> {
    /// Guides samples of the classes `labels` `[B]` with `scale`; 1 means no guidance.
    ///
    /// # Errors
    /// Guidance of a network without a null class.
    pub fn new(
        labels: &'a Tensor,
        scale: f64,
        null_class: Option<i64>,
    ) -> Result<Self, DiffusionError> {
        let guided = match scale > 1.0 {
            true => Some((scale, null_class.ok_or(DiffusionError::NoNullClass(scale))?)),
            false => None,
        };
        Ok(Self { labels, guided })
    }

    /// Calls `predict` with `x` `[B, ...]` and the labels and returns what it returns. If `guide` is true and guidance
    /// is on, `predict` gets a batch of twice the size, and the result is `uncond + scale (cond - uncond)`.
    pub fn apply(
        &self,
        x: &Tensor,
        guide: bool,
        predict: impl FnOnce(&Tensor, &Tensor) -> Result<Tensor, DiffusionError>,
    ) -> Result<Tensor, DiffusionError> {
        let Some((scale, null_class)) = self.guided.filter(|_| guide) else {
            return predict(x, self.labels);
        };
        let [conditional, unconditional] =
            with_and_without_class(x, self.labels, null_class, predict)?;
        Ok(conditional
            .f_sub(&unconditional)?
            .f_mul_scalar_(scale)?
            .f_add_(&unconditional)?)
    }
}
