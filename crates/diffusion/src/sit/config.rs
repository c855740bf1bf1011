//! Configuration of SiT, and its named sizes.

use serde::{Deserialize, Serialize};

use crate::{DiffusionError, check};

/// A named size.
struct Size {
    name: &'static str,
    depth: i64,
    hidden_size: i64,
    num_heads: i64,
    alignment_depth: i64,
}

#[rustfmt::skip]
const SIZES: [Size; 5] = [
    Size { name: "SiT-XS", depth: 4,  hidden_size: 128,  num_heads: 4,  alignment_depth: 2 },
    Size { name: "SiT-S",  depth: 12, hidden_size: 384,  num_heads: 6,  alignment_depth: 4 },
    Size { name: "SiT-B",  depth: 12, hidden_size: 768,  num_heads: 12, alignment_depth: 4 },
    Size { name: "SiT-L",  depth: 24, hidden_size: 1024, num_heads: 16, alignment_depth: 8 },
    Size { name: "SiT-XL", depth: 28, hidden_size: 1152, num_heads: 16, alignment_depth: 8 },
];

const PATCHES: [i64; 3] = [2, 4, 8];

/// Configuration of a [`Sit`](crate::Sit).
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
    /// Number of the block, counted from 1, whose output is aligned.
    pub alignment_depth: i64,
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
            alignment_depth: 8,
            qk_norm: false,
            train_pos_embed: false,
        }
    }
}

impl SitConfig {
    /// The model with this name, such as `SiT-B/2`. All other settings are the defaults: latents of
    /// ImageNet at 256 x 256. The alignment depth follows the paper.
    ///
    /// # Errors
    /// No model has that name.
    pub fn named(name: &str) -> Result<Self, DiffusionError> {
        let found = SIZES
            .iter()
            .flat_map(|size| PATCHES.map(|patch| (size, patch)))
            .find(|(size, patch)| name == format!("{}/{patch}", size.name));
        let Some((size, patch_size)) = found else {
            return Err(DiffusionError::unknown_model(name, &Self::names()));
        };
        Ok(Self {
            patch_size,
            hidden_size: size.hidden_size,
            depth: size.depth,
            num_heads: size.num_heads,
            alignment_depth: size.alignment_depth,
            ..Self::default()
        })
    }

    /// The names that [`SitConfig::named`] knows, smallest model first.
    pub fn names() -> Vec<String> {
        SIZES
            .iter()
            .flat_map(|size| PATCHES.map(|patch| format!("{}/{patch}", size.name)))
            .collect()
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
            class_dropout,
            alignment_depth,
            qk_norm: _,
            train_pos_embed: _,
        } = *self;
        for (name, value) in [
            ("patch_size", patch_size),
            ("input_size", input_size),
            ("in_channels", in_channels),
            ("hidden_size", hidden_size),
            ("depth", depth),
            ("num_heads", num_heads),
            ("num_classes", num_classes),
        ] {
            check::setting(value > 0, name, value, "at least 1")?;
        }
        let allowed = format!("a multiple of patch_size = {patch_size}");
        check::setting(
            input_size % patch_size == 0,
            "input_size",
            input_size,
            allowed,
        )?;
        let allowed = format!("a multiple of 4 and of num_heads = {num_heads}");
        let fits = hidden_size % 4 == 0 && hidden_size % num_heads == 0;
        check::setting(fits, "hidden_size", hidden_size, allowed)?;
        let fits = mlp_ratio.is_finite() && mlp_ratio * hidden_size as f64 >= 1.0;
        check::setting(fits, "mlp_ratio", mlp_ratio, "a positive number, usually 4")?;
        let fits = (0.0..=1.0).contains(&class_dropout);
        check::setting(fits, "class_dropout", class_dropout, "between 0 and 1")?;
        let allowed = format!("the number of a block, 1 to depth = {depth}");
        let fits = (1..=depth).contains(&alignment_depth);
        check::setting(fits, "alignment_depth", alignment_depth, allowed)
    }
}
