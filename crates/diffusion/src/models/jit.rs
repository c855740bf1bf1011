//! JiT, the "just image transformer" (arXiv 2511.13720), as iREPA trains it in pixel space.
//!
//! A plain transformer on large patches that predicts the clean image `x`, not noise or velocity.
//! [`XPrediction`](crate::objective::x_prediction::XPrediction) is its training objective and
//! [`JitSampler`](crate::samplers::jit::JitSampler) its sampler. Time runs from 0 (noise) to 1
//! (image), opposite to [`Sit`](crate::Sit). Weights have the names and shapes of upstream's state
//! dict (`jit/model_jit.py` of iREPA, there below `net.`). Projection heads are not part of it.

use serde::{Deserialize, Serialize};
use tch::Tensor;
use torch_ext::{Init, Scope};

use crate::denoiser::{Denoiser, Dimensions, HiddenTokens, Mode, Output};
use crate::nn::{
    BottleneckPatchEmbedder, FinalLayer, LabelEmbedder, Modulation, Norm, RmsNorm, Rotary,
    RotaryAttention, SwiGlu, TimestepEmbedder, gated_residual, position_embedding, unpatchify,
};
use crate::{DiffusionError, check};

/// A named size.
struct Size {
    name: &'static str,
    patches: [i64; 2],
    /// Number of patches along a side of the image.
    side: i64,
    depth: i64,
    hidden_size: i64,
    num_heads: i64,
    bottleneck_dim: i64,
    in_context_len: i64,
    in_context_start: i64,
    alignment_depth: i64,
}

#[rustfmt::skip]
const SIZES: [Size; 4] = [
    Size { name: "JiT-XS", patches: [4, 8],   side: 8,  depth: 4,  hidden_size: 128,  num_heads: 4,  bottleneck_dim: 32,  in_context_len: 8,  in_context_start: 1,  alignment_depth: 2 },
    Size { name: "JiT-B",  patches: [16, 32], side: 16, depth: 12, hidden_size: 768,  num_heads: 12, bottleneck_dim: 128, in_context_len: 32, in_context_start: 4,  alignment_depth: 4 },
    Size { name: "JiT-L",  patches: [16, 32], side: 16, depth: 24, hidden_size: 1024, num_heads: 16, bottleneck_dim: 128, in_context_len: 32, in_context_start: 8,  alignment_depth: 8 },
    Size { name: "JiT-H",  patches: [16, 32], side: 16, depth: 32, hidden_size: 1280, num_heads: 16, bottleneck_dim: 256, in_context_len: 32, in_context_start: 10, alignment_depth: 8 },
];

/// Configuration of a [`Jit`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JitConfig {
    /// Height and width of the image, in pixels; a multiple of `patch_size`.
    pub input_size: i64,
    /// Height and width of a patch, in pixels.
    pub patch_size: i64,
    /// Channels of the image.
    pub in_channels: i64,
    /// Width of the tokens, a multiple of `4 num_heads`: the rotary embedding rotates pairs, one half
    /// of a head by the row and the other half by the column.
    pub hidden_size: i64,
    /// Number of blocks.
    pub depth: i64,
    /// Number of attention heads.
    pub num_heads: i64,
    /// Width of a block's MLP in units of `hidden_size`. SwiGLU uses two thirds of this width.
    pub mlp_ratio: f64,
    /// Number of classes, without the null class.
    pub num_classes: i64,
    /// Width to which a patch is reduced before it is projected to a token.
    pub bottleneck_dim: i64,
    /// Number of in-context class tokens; 0 for none.
    pub in_context_len: i64,
    /// Index of the block, counted from 0, before which the in-context tokens are prepended.
    pub in_context_start: i64,
    /// Dropout of attention weights in the middle half of the blocks, in [0, 1).
    pub attn_dropout: f64,
    /// Dropout after attention and inside the MLP in the middle half of the blocks, in [0, 1).
    pub proj_dropout: f64,
}

impl Default for JitConfig {
    /// JiT-B/16 on ImageNet at 256 x 256.
    fn default() -> Self {
        Self {
            input_size: 256,
            patch_size: 16,
            in_channels: 3,
            hidden_size: 768,
            depth: 12,
            num_heads: 12,
            mlp_ratio: 4.0,
            num_classes: 1000,
            bottleneck_dim: 128,
            in_context_len: 32,
            in_context_start: 4,
            attn_dropout: 0.0,
            proj_dropout: 0.0,
        }
    }
}

impl JitConfig {
    /// The model with this name, for 1000 classes and without dropout. Models such as `JiT-B/16` and
    /// `JiT-L/32` take images of 16 x 16 patches. `JiT-XS`, a small size defined by this project, takes
    /// images of 8 x 8 patches: 32 pixels for `JiT-XS/4`.
    ///
    /// # Errors
    /// No model has that name.
    pub fn named(name: &str) -> Result<Self, DiffusionError> {
        let (size, patch_size) = find(name)?;
        Ok(Self {
            input_size: size.side * patch_size,
            patch_size,
            hidden_size: size.hidden_size,
            depth: size.depth,
            num_heads: size.num_heads,
            bottleneck_dim: size.bottleneck_dim,
            in_context_len: size.in_context_len,
            in_context_start: size.in_context_start,
            ..Self::default()
        })
    }

    /// The block whose patch tokens the paper aligns in the model with this name, counted from 1.
    ///
    /// # Errors
    /// No model has that name.
    pub fn alignment_depth(name: &str) -> Result<i64, DiffusionError> {
        Ok(find(name)?.0.alignment_depth)
    }

    /// The names that [`JitConfig::named`] knows, smallest model first.
    pub fn names() -> Vec<String> {
        SIZES
            .iter()
            .flat_map(|size| size.patches.map(|patch| format!("{}/{patch}", size.name)))
            .collect()
    }

    /// Number of patches along a side of the image.
    fn side(&self) -> i64 {
        self.input_size / self.patch_size
    }

    fn head_width(&self) -> i64 {
        self.hidden_size / self.num_heads
    }

    /// Inner width of SwiGLU: two thirds of an MLP's, since it has three matrices instead of two.
    fn mlp_width(&self) -> i64 {
        (self.hidden_size as f64 * self.mlp_ratio) as i64 * 2 / 3
    }

    /// Rates of attention and projection dropout in block `index`, counted from 0.
    fn dropout_of_block(&self, index: i64) -> (f64, f64) {
        let quarter = self.depth / 4;
        match (quarter..3 * quarter).contains(&index) {
            true => (self.attn_dropout, self.proj_dropout),
            false => (0.0, 0.0),
        }
    }

    /// Checks the settings against each other.
    ///
    /// # Errors
    /// The first setting with an invalid value, by name.
    pub fn validate(&self) -> Result<(), DiffusionError> {
        let Self {
            input_size,
            patch_size,
            hidden_size,
            depth,
            num_heads,
            mlp_ratio,
            in_context_len,
            in_context_start,
            ..
        } = *self;
        check::positive(&[
            ("patch_size", patch_size),
            ("input_size", input_size),
            ("in_channels", self.in_channels),
            ("hidden_size", hidden_size),
            ("depth", depth),
            ("num_heads", num_heads),
            ("num_classes", self.num_classes),
            ("bottleneck_dim", self.bottleneck_dim),
        ])?;
        let allowed = format!("a multiple of patch_size = {patch_size}");
        let fits = input_size % patch_size == 0;
        check::setting(fits, "input_size", input_size, allowed)?;
        let allowed = format!(
            "a multiple of 4 num_heads = {}, for the rotary embedding",
            4 * num_heads
        );
        let fits = hidden_size % (4 * num_heads) == 0;
        check::setting(fits, "hidden_size", hidden_size, allowed)?;
        let fits = mlp_ratio.is_finite() && self.mlp_width() > 0;
        check::setting(fits, "mlp_ratio", mlp_ratio, "a positive number, usually 4")?;
        check::setting(
            in_context_len >= 0,
            "in_context_len",
            in_context_len,
            "0 or more",
        )?;
        // After the last block there are no in-context tokens to remove.
        let fits = in_context_len == 0 || (0..depth).contains(&in_context_start);
        let allowed = format!("the index of a block, 0 to depth - 1 = {}", depth - 1);
        check::setting(fits, "in_context_start", in_context_start, allowed)?;
        for (name, rate) in [
            ("attn_dropout", self.attn_dropout),
            ("proj_dropout", self.proj_dropout),
        ] {
            let fits = (0.0..1.0).contains(&rate);
            check::setting(fits, name, rate, "at least 0 and below 1")?;
        }
        Ok(())
    }
}

/// The size and the patch size of the model with this name.
fn find(name: &str) -> Result<(&'static Size, i64), DiffusionError> {
    let mut sizes = SIZES
        .iter()
        .flat_map(|size| size.patches.map(|patch| (size, patch)));
    sizes
        .find(|(size, patch)| name == format!("{}/{patch}", size.name))
        .ok_or_else(|| DiffusionError::unknown_model(name, &JitConfig::names()))
}

/// A transformer block whose norms and residuals are modulated by the condition (adaLN-Zero).
#[derive(Debug)]
struct Block {
    norm1: RmsNorm,
    attn: RotaryAttention,
    norm2: RmsNorm,
    mlp: SwiGlu,
    modulation: Modulation<6>,
}

impl Block {
    fn new(scope: &Scope, config: &JitConfig, index: i64) -> Result<Self, DiffusionError> {
        let width = config.hidden_size;
        let dropout = config.dropout_of_block(index);
        let norm = |name| RmsNorm::new(&scope.sub(name), width);
        Ok(Self {
            norm1: norm("norm1")?,
            attn: RotaryAttention::new(&scope.sub("attn"), width, config.num_heads, dropout)?,
            norm2: norm("norm2")?,
            mlp: SwiGlu::new(&scope.sub("mlp"), width, config.mlp_width(), dropout.1)?,
            modulation: Modulation::new(scope, width)?,
        })
    }

    /// `x` is `[B, T, D]` or `[B, K + T, D]`; `c` `[B, D]` is the conditioning vector after SiLU.
    #[rustfmt::skip] // The names of the modulation on one line, as in the paper.
    fn forward(&self, x: &Tensor, c: &Tensor, rotary: &Rotary, mode: &mut Mode<'_>) -> Result<Tensor, DiffusionError> {
        let [shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp] = self.modulation.forward(c)?;
        let y = self.attn.forward(&self.norm1.modulated(x, &shift_msa, &scale_msa)?, rotary, mode)?;
        let x = gated_residual(x, &gate_msa, &y)?;
        let y = self.mlp.forward(&self.norm2.modulated(&x, &shift_mlp, &scale_mlp)?, mode)?;
        gated_residual(&x, &gate_mlp, &y)
    }
}

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
/// let output = jit.forward(&z, &t, &labels, &[2], Mode::Eval)?;
/// assert_eq!(output.prediction.size(), [2, 3, 32, 32]);
/// assert_eq!(output.hidden[0].size(), [2, 64, 128]); // after block 2, without the in-context tokens
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
    final_layer: FinalLayer<RmsNorm>,
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
        let pos_embed = position_embedding(scope, width, side, false)?;
        let in_context_posemb = match config.in_context_len {
            0 => None,
            count => {
                let init = Init::Normal { std: 0.02 };
                Some(scope.var("in_context_posemb", &[1, count, width], init)?)
            }
        };
        let x_embedder = BottleneckPatchEmbedder::new(
            &scope.sub("x_embedder"),
            config.in_channels,
            config.input_size,
            config.patch_size,
            [config.bottleneck_dim, width],
        )?;
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
        let scope = scope.sub("final_layer");
        let norm = RmsNorm::new(&scope.sub("norm_final"), width)?;
        let pixels = config.patch_size * config.patch_size * config.in_channels;
        let final_layer = FinalLayer::new(&scope, norm, width, pixels)?;
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
}

impl Denoiser for Jit {
    fn forward(
        &self,
        x: &Tensor,
        t: &Tensor,
        labels: &Tensor,
        depths: &[i64],
        mut mode: Mode<'_>,
    ) -> Result<Output, DiffusionError> {
        let mut x = self.tokens(x)?; // [B, T, D]
        check::shape("t", t, &[x.size3()?.0])?;
        check::shape("labels", labels, &[x.size3()?.0])?;
        let y = self.class_embedding(labels)?; // [B, D]
        // Upstream applies SiLU to the condition in every block. Once is enough: the result is the same.
        let c = self.time_embedding(t)?.f_add(&y)?.f_silu()?; // [B, D]

        let mut hidden = HiddenTokens::new(depths, self.config.depth)?;
        for (index, block) in (0..).zip(&self.blocks) {
            if index == self.config.in_context_start {
                x = self.with_context(x, &y)?; // [B, K + T, D]
            }
            x = block.forward(&x, &c, &self.rotary, &mut mode)?;
            hidden.after_block(|| self.patch_tokens(&x))?;
        }
        let x = self.patch_tokens(&x)?; // [B, T, D]
        let x = self.final_layer.forward(&x, &c)?; // [B, T, patch * patch * C]
        let config = &self.config;
        let (channels, size) = (config.in_channels, config.input_size);
        Ok(Output {
            prediction: unpatchify(&x, channels, size, config.patch_size)?,
            hidden: hidden.into_tokens(),
        })
    }

    fn dimensions(&self) -> Dimensions {
        let (size, side) = (self.config.input_size, self.config.side());
        Dimensions {
            image: [self.config.in_channels, size, size],
            num_classes: self.config.num_classes,
            null_class: self.y_embedder.null_class(),
            depth: self.config.depth,
            token_grid: (side, side),
            hidden_width: self.config.hidden_size,
        }
    }
}
