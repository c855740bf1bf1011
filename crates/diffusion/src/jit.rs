//! JiT, the "just image transformer" (arXiv 2511.13720), as iREPA trains it in pixel space.
//!
//! A plain transformer on large patches that predicts the clean image `x`, not noise or velocity.
//! [`XPrediction`](crate::objective::x_prediction::XPrediction) is its training objective and
//! [`JitSampler`](crate::samplers::jit::JitSampler) its sampler. Time runs from 0 (noise) to 1
//! (image), opposite to [`Sit`](crate::Sit). Weights have the names and shapes of upstream's state
//! dict (`jit/model_jit.py` of iREPA, there below `net.`). Projection heads are not part of it.

mod config;
mod layers;
mod rotary;

use tch::{Kind, Tensor};
use torch_ext::{Init, Scope};

use crate::denoiser::{Denoiser, Mode, Output};
use crate::dual::Activation;
use crate::embedding::{LabelEmbedder, TimestepEmbedder, sincos_2d};
use crate::layers::Linear;
use crate::sit::Modulation;
use crate::{DiffusionError, check};
pub use config::JitConfig;
use layers::{Attention, BottleneckPatchEmbedder, RmsNorm, SwiGlu};
pub use rotary::Rotary;

/// The JiT model.
///
/// The model drops no labels: the objective does, before it draws anything else, as upstream. In
/// [`Mode::Train`], the model draws random numbers for `attn_dropout` and `proj_dropout` only. The
/// null class always has an embedding, which stays untrained if the objective drops no labels.
///
/// ```
/// use diffusion::{Denoiser, Jit, JitConfig, Mode};
/// use tch::{Device, Kind, Tensor};
/// use torch_ext::Params;
///
/// # fn main() -> Result<(), diffusion::DiffusionError> {
/// let config = JitConfig { num_classes: 10, ..JitConfig::named("JiT-XS/4")? };
/// let params = Params::new(Device::Cpu, 0)?;
/// let jit = Jit::new(&params.root(), &config)?;
///
/// let z = Tensor::randn([2, 3, 32, 32], (Kind::Float, Device::Cpu));
/// let t = Tensor::from_slice(&[0.1f32, 0.9]);
/// let labels = Tensor::from_slice(&[7i64, 10]); // 10 is the null class
/// let output = jit.forward(&z, &t, &labels, Mode::Eval)?;
/// assert_eq!(output.prediction.size(), [2, 3, 32, 32]);
/// assert_eq!(output.hidden.size(), [2, 64, 128]); // without the in-context tokens
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Jit {
    x_embedder: BottleneckPatchEmbedder,
    t_embedder: TimestepEmbedder,
    y_embedder: LabelEmbedder,
    pos_embed: Tensor,
    in_context_posemb: Option<Tensor>,
    rotary: Rotary,
    blocks: Vec<Block>,
    final_layer: FinalLayer,
    config: JitConfig,
}

impl Jit {
    /// Declares the weights below `scope` and initialises them as upstream does: Xavier-uniform
    /// linear layers, normal embeddings with standard deviation 0.02, norm weights of one, and zeros
    /// in the layers that produce modulations or the output. The output of an untrained model is
    /// therefore zero.
    ///
    /// # Errors
    /// [`JitConfig::validate`] rejects the settings, or a weight name is already declared.
    pub fn new(scope: &Scope, config: &JitConfig) -> Result<Self, DiffusionError> {
        config.validate()?;
        let (width, side) = (config.hidden_size, config.side());
        let positions = sincos_2d(width, side)?.f_to_kind(Kind::Float)?;
        let pos_embed = scope.buffer("pos_embed", positions.f_unsqueeze(0)?)?;
        let in_context_posemb = match config.in_context_len {
            0 => None,
            count => {
                let init = Init::Normal { std: 0.02 };
                Some(scope.var("in_context_posemb", &[1, count, width], init)?)
            }
        };
        let x_embedder = BottleneckPatchEmbedder::new(&scope.sub("x_embedder"), config)?;
        let t_embedder = TimestepEmbedder::new(&scope.sub("t_embedder"), width)?;
        let y_embedder =
            LabelEmbedder::with_null_class(&scope.sub("y_embedder"), config.num_classes, width)?;
        let rotary = Rotary::new(
            config.head_width(),
            side,
            config.in_context_len,
            scope.device(),
        )?;
        let blocks = (0..config.depth)
            .map(|index| Block::new(&scope.sub("blocks").sub(index), config, index))
            .collect::<Result<_, _>>()?;
        let final_layer = FinalLayer::new(&scope.sub("final_layer"), config)?;
        Ok(Self {
            x_embedder,
            t_embedder,
            y_embedder,
            pos_embed,
            in_context_posemb,
            rotary,
            blocks,
            final_layer,
            config: config.clone(),
        })
    }

    /// The settings that the model was built with.
    pub fn config(&self) -> &JitConfig {
        &self.config
    }

    /// The input of the first block, `[B, T, D]`: the embedded patches of `x` `[B, C, H, W]` plus
    /// the position embedding.
    ///
    /// # Errors
    /// The shape of `x` differs from the configuration.
    pub fn tokens(&self, x: &Tensor) -> Result<Tensor, DiffusionError> {
        Ok(self.x_embedder.forward(x)?.f_add(&self.pos_embed)?)
    }

    /// The embedding `[B, D]` of times `t` `[B]`.
    ///
    /// # Errors
    /// `t` does not have exactly one dimension.
    pub fn time_embedding(&self, t: &Tensor) -> Result<Tensor, DiffusionError> {
        self.t_embedder.forward(t)
    }

    /// The embedding `[B, D]` of `labels` `[B]`, int64.
    ///
    /// # Errors
    /// As [`Denoiser::forward`].
    pub fn class_embedding(&self, labels: &Tensor) -> Result<Tensor, DiffusionError> {
        self.y_embedder.forward(labels, Mode::Eval)
    }

    /// As [`Denoiser::forward`], and calls `observe` with the number of each block, counted from 1,
    /// and its output: `[B, T, D]`, or `[B, K + T, D]` with the K in-context tokens first.
    ///
    /// # Errors
    /// As [`Denoiser::forward`].
    pub fn forward_observed(
        &self,
        x: &Tensor,
        t: &Tensor,
        labels: &Tensor,
        mut mode: Mode<'_>,
        observe: &mut dyn FnMut(i64, &Tensor),
    ) -> Result<Output, DiffusionError> {
        let mut x = self.tokens(x)?; // [B, T, D]
        check::shape("t", t, &[x.size3()?.0])?;
        check::shape("labels", labels, &[x.size3()?.0])?;
        let y = self.class_embedding(labels)?; // [B, D]
        // Upstream applies SiLU to the condition in every block. Once is enough: the result is the same.
        let c = self.time_embedding(t)?.f_add(&y)?.f_silu()?; // [B, D]

        let mut hidden = x.shallow_clone();
        for (index, block) in (0..).zip(&self.blocks) {
            if index == self.config.in_context_start {
                x = self.with_context(x, &y)?; // [B, K + T, D]
            }
            x = block.forward(&x, &c, &self.rotary, &mut mode)?;
            observe(index + 1, &x);
            if index + 1 == self.config.alignment_depth {
                hidden = self.patch_tokens(&x)?; // [B, T, D]
            }
        }
        let x = self.patch_tokens(&x)?; // [B, T, D]
        let x = self.final_layer.forward(&x, &c)?; // [B, T, patch * patch * C]
        let prediction = self.unpatchify(&x)?;
        Ok(Output { prediction, hidden })
    }

    /// Prepends the in-context tokens to the patch tokens: the class embedding `y` `[B, D]` plus
    /// learned position embeddings.
    fn with_context(&self, x: Tensor, y: &Tensor) -> Result<Tensor, DiffusionError> {
        let Some(positions) = &self.in_context_posemb else {
            return Ok(x);
        };
        let context = y.f_unsqueeze(1)?.f_add(positions)?; // [B, K, D]
        Ok(Tensor::f_cat(&[context, x], 1)?)
    }

    /// The patch tokens `[B, T, D]`, which come after the in-context tokens.
    fn patch_tokens(&self, x: &Tensor) -> Result<Tensor, DiffusionError> {
        let count = self.config.side() * self.config.side();
        Ok(x.f_narrow(1, x.size3()?.1 - count, count)?)
    }

    /// Maps tokens `[B, T, patch * patch * C]`, channels last, to images `[B, C, H, W]`.
    fn unpatchify(&self, x: &Tensor) -> Result<Tensor, DiffusionError> {
        let JitConfig {
            input_size: size,
            patch_size: patch,
            in_channels: channels,
            ..
        } = self.config;
        let side = self.config.side();
        Ok(x.f_reshape([-1, side, side, patch, patch, channels])?
            .f_permute([0, 5, 1, 3, 2, 4])?
            .f_reshape([-1, channels, size, size])?)
    }
}

impl Denoiser for Jit {
    fn forward(
        &self,
        x: &Tensor,
        t: &Tensor,
        labels: &Tensor,
        mode: Mode<'_>,
    ) -> Result<Output, DiffusionError> {
        self.forward_observed(x, t, labels, mode, &mut |_, _| {})
    }

    fn image_shape(&self) -> [i64; 3] {
        let size = self.config.input_size;
        [self.config.in_channels, size, size]
    }

    fn num_classes(&self) -> i64 {
        self.config.num_classes
    }

    fn null_class(&self) -> Option<i64> {
        self.y_embedder.null_class()
    }

    fn token_grid(&self) -> (i64, i64) {
        (self.config.side(), self.config.side())
    }

    fn hidden_width(&self) -> i64 {
        self.config.hidden_size
    }
}

/// A transformer block whose norms and residuals are modulated by the condition (adaLN-Zero).
#[derive(Debug)]
struct Block {
    norm1: RmsNorm,
    attn: Attention,
    norm2: RmsNorm,
    mlp: SwiGlu,
    modulation: Modulation<6>,
}

impl Block {
    fn new(scope: &Scope, config: &JitConfig, index: i64) -> Result<Self, DiffusionError> {
        let width = config.hidden_size;
        let (attn_dropout, proj_dropout) = config.dropout_of_block(index);
        Ok(Self {
            norm1: RmsNorm::new(&scope.sub("norm1"), width)?,
            attn: Attention::new(
                &scope.sub("attn"),
                width,
                config.num_heads,
                (attn_dropout, proj_dropout),
            )?,
            norm2: RmsNorm::new(&scope.sub("norm2"), width)?,
            mlp: SwiGlu::new(&scope.sub("mlp"), width, config.mlp_width(), proj_dropout)?,
            modulation: Modulation::new(scope, width)?,
        })
    }

    /// `x` is `[B, T, D]` or `[B, K + T, D]`; `c` `[B, D]` is the conditioning vector after SiLU.
    fn forward(
        &self,
        x: &Tensor,
        c: &Tensor,
        rotary: &Rotary,
        mode: &mut Mode<'_>,
    ) -> Result<Tensor, DiffusionError> {
        let [
            shift_msa,
            scale_msa,
            gate_msa,
            shift_mlp,
            scale_mlp,
            gate_mlp,
        ] = self.modulation.forward(c)?;
        let y = self.norm1.modulated(x, &shift_msa, &scale_msa)?;
        let x = x.add_gated(&gate_msa, &self.attn.forward(&y, rotary, mode)?)?;
        let y = self.norm2.modulated(&x, &shift_mlp, &scale_mlp)?;
        x.add_gated(&gate_mlp, &self.mlp.forward(&y, mode)?)
    }
}

/// Projects tokens to the pixels of their patches.
#[derive(Debug)]
struct FinalLayer {
    norm_final: RmsNorm,
    linear: Linear,
    modulation: Modulation<2>,
}

impl FinalLayer {
    fn new(scope: &Scope, config: &JitConfig) -> Result<Self, DiffusionError> {
        let width = config.hidden_size;
        let patch = config.patch_size * config.patch_size * config.in_channels;
        Ok(Self {
            norm_final: RmsNorm::new(&scope.sub("norm_final"), width)?,
            linear: Linear::new(&scope.sub("linear"), width, patch, Init::Zeros)?,
            modulation: Modulation::new(scope, width)?,
        })
    }

    fn forward(&self, x: &Tensor, c: &Tensor) -> Result<Tensor, DiffusionError> {
        let [shift, scale] = self.modulation.forward(c)?;
        let x = self.norm_final.modulated(x, &shift, &scale)?;
        self.linear.forward(&x)
    }
}
