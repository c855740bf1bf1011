//! SiT, the scalable interpolant transformer (arXiv 2401.08740), as REPA and iREPA train it.
//!
//! A DiT (arXiv 2212.09748) that predicts a velocity. Weights have the names and shapes of
//! upstream's state dict (`ldm/models/sit.py` of iREPA); projection heads are not part of it.

mod config;

use tch::{Kind, Tensor};
use torch_ext::{Init, Scope, optim};

use crate::denoiser::{Denoiser, Mode, Output};
use crate::dual::Activation;
use crate::embedding::{LabelEmbedder, PatchEmbedder, TimestepEmbedder, sincos_2d};
use crate::layers::{Attention, Linear, Mlp};
use crate::{DiffusionError, check};
pub use config::SitConfig;

/// The SiT model.
///
/// ```
/// use diffusion::{Denoiser, Mode, Sit, SitConfig};
/// use tch::{Device, Kind, Tensor};
/// use torch_ext::Params;
///
/// # fn main() -> Result<(), diffusion::DiffusionError> {
/// let config = SitConfig { input_size: 16, in_channels: 3, ..SitConfig::named("SiT-XS/4")? };
/// let params = Params::new(Device::Cpu, 0)?;
/// let sit = Sit::new(&params.root(), &config)?;
///
/// let x = Tensor::randn([2, 3, 16, 16], (Kind::Float, Device::Cpu));
/// let t = Tensor::from_slice(&[0.1f32, 0.9]);
/// let labels = Tensor::from_slice(&[7i64, 1000]); // 1000 is the null class
/// let output = sit.forward(&x, &t, &labels, Mode::Eval)?;
/// assert_eq!(output.prediction.size(), [2, 3, 16, 16]);
/// assert_eq!(output.hidden.size(), [2, 16, 128]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Sit {
    x_embedder: PatchEmbedder,
    pub(crate) t_embedder: TimestepEmbedder,
    pub(crate) y_embedder: LabelEmbedder,
    pos_embed: Tensor,
    blocks: Vec<Block>,
    final_layer: FinalLayer,
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
        let width = config.hidden_size;
        let side = config.input_size / config.patch_size;
        let positions = sincos_2d(width, side)?
            .f_to_kind(Kind::Float)?
            .f_unsqueeze(0)?;
        let pos_embed = if config.train_pos_embed {
            let weight = scope.var("pos_embed", &positions.size(), Init::Zeros)?;
            optim::copy_(&[weight.shallow_clone()], &[positions])?;
            weight
        } else {
            scope.buffer("pos_embed", positions)?
        };
        let x_embedder = PatchEmbedder::new(
            &scope.sub("x_embedder"),
            config.in_channels,
            config.input_size,
            config.patch_size,
            width,
        )?;
        let t_embedder = TimestepEmbedder::new(&scope.sub("t_embedder"), width)?;
        let y_embedder = LabelEmbedder::new(
            &scope.sub("y_embedder"),
            config.num_classes,
            width,
            config.class_dropout,
        )?;
        let blocks = (0..config.depth)
            .map(|index| Block::new(&scope.sub("blocks").sub(index), config))
            .collect::<Result<_, _>>()?;
        let final_layer = FinalLayer::new(&scope.sub("final_layer"), config)?;
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
        self.embed(x)
    }

    /// As [`Sit::tokens`].
    pub(crate) fn embed<V: Activation>(&self, x: &V) -> Result<V, DiffusionError> {
        self.x_embedder.forward(x)?.add_constant(&self.pos_embed)
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
        let y = self.y_embedder.forward(labels, mode)?;
        Ok(t.f_add(&y)?)
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
        check::shape("labels", labels, &[x.size3()?.0])?;
        Ok((x, self.conditioning(t, labels, mode)?))
    }

    /// Runs the blocks up to the alignment depth on tokens `x` `[B, T, D]`. `c` `[B, D]` is the
    /// conditioning vector after SiLU.
    fn shallow_blocks<V: Activation>(&self, mut x: V, c: &V) -> Result<V, DiffusionError> {
        for block in &self.blocks[..self.config.alignment_depth as usize] {
            x = block.forward(&x, c)?;
        }
        Ok(x)
    }

    /// Runs all blocks on tokens `x` `[B, T, D]` with the conditioning vector `c` `[B, D]`. Returns
    /// the prediction `[B, C, H, W]` and the hidden tokens at the alignment depth.
    pub(crate) fn denoise<V: Activation>(
        &self,
        x: V,
        c: &V,
    ) -> Result<(V, Tensor), DiffusionError> {
        // Upstream applies SiLU to the condition in every block. Once is enough: the result is the same.
        let c = c.silu()?;
        let mut x = self.shallow_blocks(x, &c)?;
        let hidden = x.value().shallow_clone();
        for block in &self.blocks[self.config.alignment_depth as usize..] {
            x = block.forward(&x, &c)?;
        }
        let x = self.final_layer.forward(&x, &c)?; // [B, T, patch * patch * C]
        Ok((self.unpatchify(&x)?, hidden))
    }

    /// Maps tokens `[B, T, patch * patch * C]`, channels last, to images `[B, C, H, W]`.
    fn unpatchify<V: Activation>(&self, x: &V) -> Result<V, DiffusionError> {
        let (size, patch, channels) = (
            self.config.input_size,
            self.config.patch_size,
            self.config.in_channels,
        );
        let side = size / patch;
        x.map(move |x| {
            x.f_reshape([-1, side, side, patch, patch, channels])?
                .f_permute([0, 5, 1, 3, 2, 4])?
                .f_reshape([-1, channels, size, size])
        })
    }
}

impl Denoiser for Sit {
    fn forward(
        &self,
        x: &Tensor,
        t: &Tensor,
        labels: &Tensor,
        mode: Mode<'_>,
    ) -> Result<Output, DiffusionError> {
        let (x, c) = self.inputs(x, t, labels, mode)?; // [B, T, D], [B, D]
        let (prediction, hidden) = self.denoise(x, &c)?;
        Ok(Output { prediction, hidden })
    }

    fn hidden(
        &self,
        x: &Tensor,
        t: &Tensor,
        labels: &Tensor,
        mode: Mode<'_>,
    ) -> Result<Tensor, DiffusionError> {
        let (x, c) = self.inputs(x, t, labels, mode)?;
        self.shallow_blocks(x, &c.f_silu()?)
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
        let side = self.config.input_size / self.config.patch_size;
        (side, side)
    }

    fn hidden_width(&self) -> i64 {
        self.config.hidden_size
    }
}

/// A transformer block whose layer norms and residuals are modulated by the condition
/// (adaLN-Zero).
#[derive(Debug)]
struct Block {
    attn: Attention,
    mlp: Mlp,
    modulation: Modulation<6>,
    width: i64,
}

impl Block {
    fn new(scope: &Scope, config: &SitConfig) -> Result<Self, DiffusionError> {
        let width = config.hidden_size;
        let inner = (width as f64 * config.mlp_ratio) as i64;
        Ok(Self {
            attn: Attention::new(&scope.sub("attn"), width, config.num_heads, config.qk_norm)?,
            mlp: Mlp::new(&scope.sub("mlp"), width, inner)?,
            modulation: Modulation::new(scope, width)?,
            width,
        })
    }

    /// `x` is `[B, T, D]`; `c` `[B, D]` is the conditioning vector after SiLU.
    fn forward<V: Activation>(&self, x: &V, c: &V) -> Result<V, DiffusionError> {
        let [
            shift_msa,
            scale_msa,
            gate_msa,
            shift_mlp,
            scale_mlp,
            gate_mlp,
        ] = self.modulation.forward(c)?;
        let y = x.norm_modulate(self.width, &shift_msa, &scale_msa)?;
        let x = x.add_gated(&gate_msa, &self.attn.forward(&y)?)?;
        let y = x.norm_modulate(self.width, &shift_mlp, &scale_mlp)?;
        x.add_gated(&gate_mlp, &self.mlp.forward(&y)?)
    }
}

/// Projects tokens to the pixels of their patches.
#[derive(Debug)]
struct FinalLayer {
    linear: Linear,
    modulation: Modulation<2>,
    width: i64,
}

impl FinalLayer {
    fn new(scope: &Scope, config: &SitConfig) -> Result<Self, DiffusionError> {
        let width = config.hidden_size;
        let patch = config.patch_size * config.patch_size * config.in_channels;
        Ok(Self {
            linear: Linear::new(&scope.sub("linear"), width, patch, Init::Zeros)?,
            modulation: Modulation::new(scope, width)?,
            width,
        })
    }

    fn forward<V: Activation>(&self, x: &V, c: &V) -> Result<V, DiffusionError> {
        let [shift, scale] = self.modulation.forward(c)?;
        let x = x.norm_modulate(self.width, &shift, &scale)?;
        self.linear.forward(&x)
    }
}

/// The linear layer that maps a condition `[B, D]` to `N` shifts, scales and gates `[B, 1, D]`.
#[derive(Debug)]
pub(crate) struct Modulation<const N: usize> {
    linear: Linear,
    width: i64,
}

impl<const N: usize> Modulation<N> {
    pub fn new(scope: &Scope, width: i64) -> Result<Self, DiffusionError> {
        let scope = scope.sub("adaLN_modulation").sub(1);
        let linear = Linear::new(&scope, width, N as i64 * width, Init::Zeros)?;
        Ok(Self { linear, width })
    }

    pub fn forward<V: Activation>(&self, c: &V) -> Result<[V; N], DiffusionError> {
        let width = self.width;
        let parts = self
            .linear
            .forward(c)?
            .map(move |parts| parts.f_view([-1, N as i64, 1, width]))?
            .unbind(1)?;
        parts
            .try_into()
            .map_err(|parts: Vec<V>| DiffusionError::Shape {
                what: "a modulation",
                found: vec![parts.len() as i64],
                expected: vec![N as i64],
            })
    }
}
