//! The interface between denoising networks, objectives and samplers.

use std::fmt::Debug;

use tch::Tensor;
use torch_ext::Generator;

use crate::{DiffusionError, check};

/// A class-conditional network of transformer blocks that makes a prediction from a noisy image.
pub trait Denoiser: Debug + Send {
    /// Predicts for noisy images `x` `[B, C, H, W]` at times `t` `[B]`, both of one
    /// floating-point dtype, and classes `labels` `[B]`, int64. Returns the hidden tokens after the blocks `depths`,
    /// counted from 1.
    ///
    /// # Errors
    /// The shapes or dtypes differ from these, a label has no embedding, or the network has no block of a depth.
    /// Labels are checked only on the CPU: elsewhere the check would wait for the device.
    fn forward(
        &self,
        x: &Tensor,
        t: &Tensor,
        labels: &Tensor,
        depths: &[i64],
        mode: Mode<'_>,
    ) -> Result<Output, DiffusionError>;

    /// The hidden tokens alone. A network may stop after the deepest of the blocks `depths`.
    ///
    /// # Errors
    /// As [`Denoiser::forward`].
    fn hidden(
        &self,
        x: &Tensor,
        t: &Tensor,
        labels: &Tensor,
        depths: &[i64],
        mode: Mode<'_>,
    ) -> Result<Vec<Tensor>, DiffusionError> {
        Ok(self.forward(x, t, labels, depths, mode)?.hidden)
    }

    /// Sizes of the network's inputs and outputs.
    fn dimensions(&self) -> Dimensions;
}

/// Sizes of a [`Denoiser`]'s inputs and outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dimensions {
    /// `[C, H, W]` of the images that the network takes and returns.
    pub image: [i64; 3],
    /// Number of classes, without the null class.
    pub num_classes: i64,
    /// The label that stands for no class, or `None` for a network trained without one.
    pub null_class: Option<i64>,
    /// Number of blocks.
    pub depth: i64,
    /// Rows and columns of the hidden tokens, `T = rows * columns`.
    pub token_grid: (i64, i64),
    /// Width of the hidden tokens.
    pub hidden_width: i64,
}

/// What a [`Denoiser`] returns.
#[derive(Debug)]
pub struct Output {
    /// The prediction, `[B, C, H, W]`. The objective defines what is predicted.
    pub prediction: Tensor,
    /// Tokens after each of the requested blocks, `[B, T, D]`, row-major over the grid.
    pub hidden: Vec<Tensor>,
}

/// Collects the hidden tokens of the blocks that were asked for, while a network runs its blocks.
#[derive(Debug)]
pub struct HiddenTokens<'a> {
    depths: &'a [i64],
    tokens: Vec<Tensor>,
    next: i64,
}

impl<'a> HiddenTokens<'a> {
    /// Starts before the first of `depth` blocks. `depths` are numbers of blocks, counted from 1.
    ///
    /// # Errors
    /// A number is below 1 or above `depth`.
    pub fn new(depths: &'a [i64], depth: i64) -> Result<Self, DiffusionError> {
        for wanted in depths {
            let fits = (1..=depth).contains(wanted);
            let allowed = format!("the number of a block, 1 to {depth}");
            check::setting(fits, "the depth of hidden tokens", wanted, allowed)?;
        }
        Ok(Self {
            depths,
            tokens: depths.iter().map(|_| Tensor::new()).collect(),
            next: 1,
        })
    }

    /// Takes the tokens after the next block, which `tokens` returns if they were asked for.
    ///
    /// # Errors
    /// The error that `tokens` returns.
    pub fn after_block(
        &mut self,
        tokens: impl FnOnce() -> Result<Tensor, DiffusionError>,
    ) -> Result<(), DiffusionError> {
        let depth = self.next;
        self.next += 1;
        if !self.depths.contains(&depth) {
            return Ok(());
        }
        let tokens = tokens()?;
        for (wanted, slot) in self.depths.iter().zip(&mut self.tokens) {
            if *wanted == depth {
                *slot = tokens.shallow_clone();
            }
        }
        Ok(())
    }

    /// The tokens, in the order of the depths that were asked for.
    pub fn into_tokens(self) -> Vec<Tensor> {
        self.tokens
    }
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
    check::shape("the draws for label dropout", draws, &labels.size())?;
    let dropped = draws.f_lt(probability)?.f_to_device(labels.device())?;
    Ok(Tensor::f_where_scalarself(&dropped, null_class, labels)?)
}
