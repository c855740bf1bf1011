//! Configuration of JiT, and its named sizes.

use serde::{Deserialize, Serialize};

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

/// Configuration of a [`Jit`](crate::Jit).
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
    /// Number of the block, counted from 1, whose patch tokens are aligned.
    pub alignment_depth: i64,
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
            alignment_depth: 4,
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
        let found = SIZES
            .iter()
            .flat_map(|size| size.patches.map(|patch| (size, patch)))
            .find(|(size, patch)| name == format!("{}/{patch}", size.name));
        let Some((size, patch_size)) = found else {
            return Err(DiffusionError::unknown_model(name, &Self::names()));
        };
        Ok(Self {
            input_size: size.side * patch_size,
            patch_size,
            hidden_size: size.hidden_size,
            depth: size.depth,
            num_heads: size.num_heads,
            bottleneck_dim: size.bottleneck_dim,
            in_context_len: size.in_context_len,
            in_context_start: size.in_context_start,
            alignment_depth: size.alignment_depth,
            ..Self::default()
        })
    }

    /// The names that [`JitConfig::named`] knows, smallest model first.
    pub fn names() -> Vec<String> {
        SIZES
            .iter()
            .flat_map(|size| size.patches.map(|patch| format!("{}/{patch}", size.name)))
            .collect()
    }

    /// Number of patches along a side of the image.
    pub(super) fn side(&self) -> i64 {
        self.input_size / self.patch_size
    }

    pub(super) fn head_width(&self) -> i64 {
        self.hidden_size / self.num_heads
    }

    /// Inner width of SwiGLU: two thirds of an MLP's, since it has three matrices instead of two.
    pub(super) fn mlp_width(&self) -> i64 {
        (self.hidden_size as f64 * self.mlp_ratio) as i64 * 2 / 3
    }

    /// Rates of attention and projection dropout in block `index`, counted from 0.
    pub(super) fn dropout_of_block(&self, index: i64) -> (f64, f64) {
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
            in_channels,
            hidden_size,
            depth,
            num_heads,
            mlp_ratio,
            num_classes,
            bottleneck_dim,
            in_context_len,
            in_context_start,
            attn_dropout,
            proj_dropout,
            alignment_depth,
        } = *self;
        for (name, value) in [
            ("patch_size", patch_size),
            ("input_size", input_size),
            ("in_channels", in_channels),
            ("hidden_size", hidden_size),
            ("depth", depth),
            ("num_heads", num_heads),
            ("num_classes", num_classes),
            ("bottleneck_dim", bottleneck_dim),
        ] {
            check::setting(value > 0, name, value, "at least 1")?;
        }
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
            ("attn_dropout", attn_dropout),
            ("proj_dropout", proj_dropout),
        ] {
            let fits = (0.0..1.0).contains(&rate);
            check::setting(fits, name, rate, "at least 0 and below 1")?;
        }
        let allowed = format!("the number of a block, 1 to depth = {depth}");
        let fits = (1..=depth).contains(&alignment_depth);
        check::setting(fits, "alignment_depth", alignment_depth, allowed)
    }
}
