//! The interface between denoising networks, objectives and samplers.

use std::fmt::Debug;

use tch::Tensor;
use torch_ext::Generator;

use crate::DiffusionError;

/// A class-conditional network that makes a prediction from a noisy image.
pub trait Denoiser: Debug + Send {
    /// Predicts for noisy images `x` `[B, C, H, W]` at times `t` `[B]`, both of one
    /// floating-point dtype, and classes `labels` `[B]`, int64.
    ///
    /// # Errors
    /// The shapes or dtypes differ from these, or a label has no embedding. Labels are checked only
    /// on the CPU: elsewhere the check would wait for the device.
    fn forward(
        &self,
        x: &Tensor,
        t: &Tensor,
        labels: &Tensor,
        mode: Mode<'_>,
    ) -> Result<Output, DiffusionError>;

    /// The hidden tokens alone, `[B, T, D]`. A network may stop after the block that they come
    /// from.
    ///
    /// # Errors
    /// As [`Denoiser::forward`].
    fn hidden(
        &self,
        x: &Tensor,
        t: &Tensor,
        labels: &Tensor,
        mode: Mode<'_>,
    ) -> Result<Tensor, DiffusionError> {
        Ok(self.forward(x, t, labels, mode)?.hidden)
    }

    /// `[C, H, W]` of the images that the network takes and returns.
    fn image_shape(&self) -> [i64; 3];

    /// Number of classes, without the null class.
    fn num_classes(&self) -> i64;

    /// The label that stands for no class, or `None` for a network trained without one.
    fn null_class(&self) -> Option<i64>;

    /// Rows and columns of the hidden tokens, `T = rows * columns`.
    fn token_grid(&self) -> (i64, i64);

    /// Width of the hidden tokens.
    fn hidden_width(&self) -> i64;
}

/// What a [`Denoiser`] returns.
#[derive(Debug)]
pub struct Output {
    /// The prediction, `[B, C, H, W]`. The objective defines what is predicted.
    pub prediction: Tensor,
    /// Tokens after the block at the alignment depth, `[B, T, D]`, row-major over the grid.
    pub hidden: Tensor,
}

/// Whether a network trains; if so, the source of its random numbers.
#[derive(Debug)]
pub enum Mode<'a> {
    /// Labels are used unchanged, and nothing is random.
    Eval,
    /// Labels are dropped at the network's rate. Numbers are drawn in order of use.
    Train(&'a mut Generator),
}

/// Replaces labels by the null class where `draws < probability` (`token_drop` upstream).
///
/// `labels` and `draws` have the same shape `[B]`; `draws` are uniform in [0, 1).
///
/// # Errors
/// The shapes differ.
pub fn drop_labels(
    labels: &Tensor,
    draws: &Tensor,
    probability: f64,
    null_class: i64,
) -> Result<Tensor, DiffusionError> {
    crate::check::shape("the draws for label dropout", draws, &labels.size())?;
    let dropped = draws.f_lt(probability)?.f_to_device(labels.device())?;
    Ok(Tensor::f_where_scalarself(&dropped, null_class, labels)?)
}
