//! SiT, the scalable interpolant transformer (arXiv 2401.08740), as REPA and iREPA train it.
//!
//! A DiT (arXiv 2212.09748) that predicts a velocity. Weights have the names and shapes of
//! upstream's state dict (`ldm/models/sit.py` of iREPA); projection heads are not part of it.

use serde::{Deserialize, Serialize};
use tch::Tensor;
use torch_ext::Scope;

use crate::denoiser::{Denoiser, Dimensions, HiddenTokens, Mode, Output};
use crate::nn::{
    Attention, FinalLayer, LabelEmbedder, LayerNorm, Mlp, Modulation, Norm, PatchEmbedder,
    TimestepEmbedder, gated_residual, position_embedding, unpatchify,
};
use crate::{DiffusionError, check};

/// Name, depth, width, heads, and the block that iREPA's paper aligns.
type Size = (&'static str, i64, i64, i64, i64);

const SIZES: [Size; 5] = [
    ("SiT-XS", 4, 128, 4, 2),
    ("SiT-S", 12, 384, 6, 4),
    ("SiT-B", 12, 768, 12, 4),
    ("SiT-L", 24, 1024, 16, 8),
    ("SiT-XL", 28, 1152, 16, 8),
];
const PATCHES: [i64; 3] = [2, 4, 8];

/// Configuration of a [`Sit`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SitConfig {
    /// Height and width of the image or latent, in pixels; a multiple of `patch_size`.
    pub input_size: i64,
    /// Height and width of a patch, in pixels.
    pub patch_size: i64,
    /// Channels of the image or latent: 4 for Stable Diffusion's latents, 3 for pixels.
    pub in_channels: i64,
    /// Width of the tokens, a multiple of 4 and of `num_heads`.
    pub hidden_size: i64,
    /// Number of blocks.
    pub depth: i64,
    /// Number of attention heads.
    pub num_heads: i64,
    /// Width of a block's MLP in units of `hidden_size`.
    pub mlp_ratio: f64,
    /// Number of classes, without the null class.
    pub num_classes: i64,
    /// Fraction of the labels that training replaces by the null class, in [0, 1]. At 0 the model
    /// has no null class, and guidance is not possible.
    pub class_dropout: f64,
    /// Layer norm of queries and keys in each head.
    pub qk_norm: bool,
    /// Train the position embedding, starting from its sinusoidal values. REPA-E's published models
    /// were trained this way, through an error in its code.
    pub train_pos_embed: bool,
}

impl Default for SitConfig {
    /// SiT-XL/2 on Stable Diffusion's latents of ImageNet at 256 x 256.
    fn default() -> Self {
        Self {
            input_size: 32,
            patch_size: 2,
            in_channels: 4,
            hidden_size: 1152,
            depth: 28,
            num_heads: 16,
            mlp_ratio: 4.0,
            num_classes: 1000,
            class_dropout: 0.1,
            qk_norm: false,
            train_pos_embed: false,
        }
    }
}

impl SitConfig {
    /// The model with this name, such as `SiT-B/2`. All other settings are the defaults: latents of
    /// ImageNet at 256 x 256.
    ///
    /// # Errors
    /// No model has that name.
    pub fn named(name: &str) -> Result<Self, DiffusionError> {
        let ((_, depth, hidden_size, num_heads, _), patch_size) = find(name)?;
        Ok(Self {
            patch_size,
            hidden_size,
            depth,
            num_heads,
            ..Self::default()
        })
    }

    /// The block whose tokens the paper aligns in the model with this name, counted from 1.
    ///
    /// # Errors
    /// No model has that name.
    pub fn alignment_depth(name: &str) -> Result<i64, DiffusionError> {
        let ((.., alignment_depth), _) = find(name)?;
        Ok(alignment_depth)
    }

    /// The names that [`SitConfig::named`] knows, smallest model first.
    pub fn names() -> Vec<String> {
        let names = SIZES.map(|(name, ..)| PATCHES.map(|patch| format!("{name}/{patch}")));
        names.into_iter().flatten().collect()
    }

    /// Checks the settings against each other.
    ///
    /// # Errors
    /// The first setting with an invalid value, by name.
    pub fn validate(&self) -> Result<(), DiffusionError> {
        let (size, patch) = (self.input_size, self.patch_size);
        let (width, heads) = (self.hidden_size, self.num_heads);
        check::positive(&[
            ("patch_size", patch),
            ("input_size", size),
            ("in_channels", self.in_channels),
            ("hidden_size", width),
            ("depth", self.depth),
            ("num_heads", heads),
            ("num_classes", self.num_classes),
        ])?;
        let allowed = format!("a multiple of patch_size = {patch}");
        check::setting(size % patch == 0, "input_size", size, allowed)?;
        let allowed = format!("a multiple of 4 and of num_heads = {heads}");
        let fits = width % 4 == 0 && width % heads == 0;
        check::setting(fits, "hidden_size", width, allowed)?;
        let ratio = self.mlp_ratio;
        let fits = ratio.is_finite() && ratio * width as f64 >= 1.0;
        check::setting(fits, "mlp_ratio", ratio, "a positive number, usually 4")?;
        let rate = self.class_dropout;
        let fits = (0.0..=1.0).contains(&rate);
        check::setting(fits, "class_dropout", rate, "between 0 and 1")
    }
}

/// The row of [`SIZES`] and the patch size of the model with this name.
fn find(name: &str) -> Result<(Size, i64), DiffusionError> {
    let patches = SIZES
        .iter()
        .flat_map(|size| PATCHES.map(|patch| (*size, patch)));
    let mut sizes = patches.filter(|(size, patch)| name == format!("{}/{patch}", size.0));
    sizes
        .next()
        .ok_or_else(|| DiffusionError::unknown_model(name, &SitConfig::names()))
}

/// A transformer block whose layer norms and residuals are modulated by the condition
/// (adaLN-Zero): `x + gate_msa attn(norm(x) (1 + scale_msa) + shift_msa)`, then the same with the MLP.
#[derive(Debug)]
pub struct Block {
    /// Layer norm before attention.
    pub norm1: LayerNorm,
    /// Attention of tokens to each other.
    pub attn: Attention,
    /// Layer norm before the MLP.
    pub norm2: LayerNorm,
    /// Applied to each token.
    pub mlp: Mlp,
    /// Shift, scale and gate of attention, then of the MLP.
    pub modulation: Modulation<6>,
}

impl Block {
    /// Declares the weights of a block of the model with these settings.
    ///
    /// # Errors
    /// A weight name is already declared.
    pub fn new(scope: &Scope, config: &SitConfig) -> Result<Self, DiffusionError> {
        let width = config.hidden_size;
        let inner = (width as f64 * config.mlp_ratio) as i64;
        Ok(Self {
            norm1: LayerNorm,
            attn: Attention::new(&scope.sub("attn"), width, config.num_heads, config.qk_norm)?,
            norm2: LayerNorm,
            mlp: Mlp::new(&scope.sub("mlp"), width, inner)?,
            modulation: Modulation::new(scope, width)?,
        })
    }

    /// Maps tokens `x` `[B, T, D]`, with the conditioning vector `c` `[B, D]` after SiLU, to tokens of the same shape.
    ///
    /// # Errors
    /// The shapes do not match.
    #[rustfmt::skip] // The names of the modulation on one line, as in the paper.
    pub fn forward(&self, x: &Tensor, c: &Tensor) -> Result<Tensor, DiffusionError> {
        let [shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp] = self.modulation.forward(c)?;
        let y = self.attn.forward(&self.norm1.modulated(x, &shift_msa, &scale_msa)?)?;
        let x = gated_residual(x, &gate_msa, &y)?;
        let y = self.mlp.forward(&self.norm2.modulated(&x, &shift_mlp, &scale_mlp)?)?;
        gated_residual(&x, &gate_mlp, &y)
    }
}

/// The SiT model. The page of the [`crate`] trains and samples one.
#[derive(Debug)]
pub struct Sit {
    pub(super) x_embedder: PatchEmbedder,
    pub(super) t_embedder: TimestepEmbedder,
    pub(super) y_embedder: LabelEmbedder,
    pub(super) pos_embed: Tensor,
    pub(super) blocks: Vec<Block>,
    pub(super) final_layer: FinalLayer<LayerNorm>,
    config: SitConfig,
}

impl Sit {
    /// Declares the weights below `scope` and initialises them as upstream does: Xavier-uniform
    /// linear layers, normal embeddings with standard deviation 0.02, and zeros in the layers that
    /// produce modulations or the output. The output of an untrained model is therefore zero.
    ///
    /// # Errors
    /// [`SitConfig::validate`] rejects the settings, or a weight name is already declared.
    pub fn new(scope: &Scope, config: &SitConfig) -> Result<Self, DiffusionError> {
        config.validate()?;
        let &SitConfig {
            input_size: size,
            patch_size: patch,
            in_channels: channels,
            hidden_size: width,
            num_classes,
            class_dropout,
            ..
        } = config;
        let pos_embed = position_embedding(scope, width, size / patch, config.train_pos_embed)?;
        let x_embedder =
            PatchEmbedder::new(&scope.sub("x_embedder"), channels, size, patch, width)?;
        let t_embedder = TimestepEmbedder::new(&scope.sub("t_embedder"), width)?;
        let y_embedder =
            LabelEmbedder::new(&scope.sub("y_embedder"), num_classes, width, class_dropout)?;
        let blocks = (0..config.depth)
            .map(|index| Block::new(&scope.sub("blocks").sub(index), config))
            .collect::<Result<_, _>>()?;
        let pixels = patch * patch * channels;
        let final_layer = FinalLayer::new(&scope.sub("final_layer"), LayerNorm, width, pixels)?;
        Ok(Self {
            x_embedder,
            t_embedder,
            y_embedder,
            pos_embed,
            blocks,
            final_layer,
            config: config.clone(),
        })
    }

    /// The settings that the model was built with.
    pub fn config(&self) -> &SitConfig {
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

    /// The conditioning vector `[B, D]` of times `t` `[B]` and `labels` `[B]`.
    ///
    /// # Errors
    /// As [`Denoiser::forward`].
    pub fn conditioning(
        &self,
        t: &Tensor,
        labels: &Tensor,
        mode: Mode<'_>,
    ) -> Result<Tensor, DiffusionError> {
        let t = self.t_embedder.forward(t)?;
        Ok(t.f_add(&self.y_embedder.forward(labels, mode)?)?)
    }

    /// The labels that training uses in place of `labels` `[B]`: some are replaced by the null class.
    /// [`Denoiser::forward`] in [`Mode::Eval`] on the result equals [`Mode::Train`] on `labels`.
    ///
    /// # Errors
    /// As [`Denoiser::forward`].
    pub fn drop_labels(&self, labels: &Tensor, mode: Mode<'_>) -> Result<Tensor, DiffusionError> {
        self.y_embedder.drop(labels, mode)
    }

    /// The input of the first block `[B, T, D]` and the conditioning vector `[B, D]`.
    fn inputs(
        &self,
        x: &Tensor,
        t: &Tensor,
        labels: &Tensor,
        mode: Mode<'_>,
    ) -> Result<(Tensor, Tensor), DiffusionError> {
        let x = self.tokens(x)?;
        check::shape("t", t, &[x.size3()?.0])?;
        check::shape("labels", labels, &t.size())?;
        Ok((x, self.conditioning(t, labels, mode)?))
    }

    /// Runs the blocks and the final layer on tokens `x` `[B, T, D]`. `c` `[B, D]` is the conditioning vector before SiLU.
    pub(super) fn denoise(
        &self,
        x: Tensor,
        c: &Tensor,
        depths: &[i64],
    ) -> Result<Output, DiffusionError> {
        // Upstream applies SiLU to the condition in every block. Once is enough: the result is the same.
        let c = c.f_silu()?;
        let (x, hidden) = self.run_blocks(x, &c, depths, self.config.depth)?; // [B, T, D]
        let x = self.final_layer.forward(&x, &c)?; // [B, T, patch * patch * C]
        let (channels, size) = (self.config.in_channels, self.config.input_size);
        let prediction = unpatchify(&x, channels, size, self.config.patch_size)?;
        Ok(Output { prediction, hidden })
    }

    /// The tokens after the first `count` blocks, and the hidden tokens. `c` is the conditioning vector after SiLU.
    fn run_blocks(
        &self,
        mut x: Tensor,
        c: &Tensor,
        depths: &[i64],
        count: i64,
    ) -> Result<(Tensor, Vec<Tensor>), DiffusionError> {
        let mut hidden = HiddenTokens::new(depths, self.config.depth)?;
        for block in self.blocks.iter().take(count as usize) {
            x = block.forward(&x, c)?;
            hidden.after_block(|| Ok(x.shallow_clone()))?;
        }
        Ok((x, hidden.into_tokens()))
    }
}

impl Denoiser for Sit {
    fn forward(
        &self,
        x: &Tensor,
        t: &Tensor,
        labels: &Tensor,
        depths: &[i64],
        mode: Mode<'_>,
    ) -> Result<Output, DiffusionError> {
        let (x, c) = self.inputs(x, t, labels, mode)?;
        self.denoise(x, &c, depths)
    }

    fn hidden(
        &self,
        x: &Tensor,
        t: &Tensor,
        labels: &Tensor,
        depths: &[i64],
        mode: Mode<'_>,
    ) -> Result<Vec<Tensor>, DiffusionError> {
        let (x, c) = self.inputs(x, t, labels, mode)?;
        let deepest = depths.iter().copied().max().unwrap_or(0);
        let (_, hidden) = self.run_blocks(x, &c.f_silu()?, depths, deepest)?;
        Ok(hidden)
    }

    fn dimensions(&self) -> Dimensions {
        let config = &self.config;
        let (size, side) = (config.input_size, config.input_size / config.patch_size);
        Dimensions {
            image: [config.in_channels, size, size],
            num_classes: config.num_classes,
            null_class: self.y_embedder.null_class(),
            depth: config.depth,
            token_grid: (side, side),
            hidden_width: config.hidden_size,
        }
    }
}
