//! The catalogue of encoders that the exporter can create.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::Deserialize;

use crate::Preprocessing;

/// An encoder whose weights are not part of this project: one of the 27 of the study (arXiv
/// 2512.10794, figure 3), or one of eleven more that upstream supports. The exporter creates its
/// file.
#[derive(Debug, Clone, PartialEq)]
pub struct KnownEncoder {
    /// Name in upstream's `--enc-type`.
    pub name: String,
    /// Whether it is one of the study's 27.
    pub study: bool,
    /// Model family.
    pub family: String,
    /// Publication that introduced it.
    pub paper: String,
    /// Millions of parameters without heads.
    pub params_m: f64,
    /// Width of a token, `D`.
    pub width: usize,
    /// Number of transformer blocks; 0 for a convolutional network.
    pub depth: usize,
    /// Side in input pixels of the patch that one token covers.
    pub patch_size: i64,
    /// Number of tokens that the network has besides the patch tokens: class token, registers.
    pub prefix_tokens: usize,
    /// Whether it returns a class token.
    pub class_token: bool,
    /// Side of the network's input for images of 256 pixels.
    pub input_size: i64,
    /// Image sides in pixels that it can be exported for.
    pub resolutions: Vec<i64>,
    /// Conversion from image bytes to the network's input.
    pub preprocessing: Preprocessing,
    /// Where the weights are published.
    pub weights: String,
    /// Licence of the weights.
    pub licence: String,
    /// Whether access to the weights must be requested.
    pub gated: bool,
    /// One-line note; may be empty.
    pub note: String,
}

impl KnownEncoder {
    /// Side of the network's input for images of `resolution` pixels. As in upstream, it scales
    /// with the whole multiples of 256 pixels; smaller images are enlarged to the base size.
    pub fn input_size_at(&self, resolution: i64) -> i64 {
        self.input_size * (resolution / 256).max(1)
    }

    /// Side of the token grid for images of 256 pixels.
    pub fn grid_side(&self) -> i64 {
        self.input_size / self.patch_size
    }
}

/// All known encoders: the study's 27 in the study's order, then the others.
pub fn catalogue() -> &'static [KnownEncoder] {
    static CATALOGUE: LazyLock<Vec<KnownEncoder>> = LazyLock::new(|| {
        let file: File =
            toml::from_str(include_str!("../catalogue.toml")).unwrap_or_else(|error| {
                unreachable!("catalogue.toml is part of this crate and tested: {error}")
            });
        file.encoders()
    });
    &CATALOGUE
}

/// Looks up an encoder of the catalogue by name.
pub fn known(name: &str) -> Option<&'static KnownEncoder> {
    catalogue().iter().find(|encoder| encoder.name == name)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    preprocessing: BTreeMap<String, Preprocessing>,
    encoder: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    study: bool,
    family: String,
    paper: String,
    params_m: f64,
    width: usize,
    depth: usize,
    patch_size: i64,
    prefix_tokens: usize,
    class_token: bool,
    input_size: i64,
    resolutions: Vec<i64>,
    preprocessing: String,
    weights: String,
    licence: String,
    gated: bool,
    #[serde(default)]
    note: String,
    /// Read by the exporter only.
    #[serde(rename = "build")]
    _build: serde::de::IgnoredAny,
}

impl File {
    fn encoders(self) -> Vec<KnownEncoder> {
        let Self {
            preprocessing,
            encoder,
        } = self;
        let resolve = |entry: Entry| KnownEncoder {
            preprocessing: preprocessing[&entry.preprocessing],
            name: entry.name,
            study: entry.study,
            family: entry.family,
            paper: entry.paper,
            params_m: entry.params_m,
            width: entry.width,
            depth: entry.depth,
            patch_size: entry.patch_size,
            prefix_tokens: entry.prefix_tokens,
            class_token: entry.class_token,
            input_size: entry.input_size,
            resolutions: entry.resolutions,
            weights: entry.weights,
            licence: entry.licence,
            gated: entry.gated,
            note: entry.note,
        };
        encoder.into_iter().map(resolve).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_catalogue_has_the_27_encoders_of_the_study_and_eleven_more() {
        let names: BTreeSet<&str> = catalogue().iter().map(|encoder| &*encoder.name).collect();
        assert_eq!((catalogue().len(), names.len()), (38, 38));
        let study = catalogue().iter().take_while(|encoder| encoder.study);
        assert_eq!(study.count(), 27);
        assert_eq!(
            catalogue().iter().filter(|encoder| encoder.study).count(),
            27
        );
    }

    #[test]
    fn every_encoder_has_a_grid_of_16_by_16_at_256_pixels() {
        for encoder in catalogue() {
            assert_eq!(encoder.grid_side(), 16, "{}", encoder.name);
            assert_eq!(
                encoder.input_size % encoder.patch_size,
                0,
                "{}",
                encoder.name
            );
            assert!(encoder.resolutions.starts_with(&[256]), "{}", encoder.name);
            assert!(
                encoder.width > 0 && encoder.params_m > 1.0,
                "{}",
                encoder.name
            );
            for text in [
                &encoder.family,
                &encoder.paper,
                &encoder.weights,
                &encoder.licence,
            ] {
                assert!(!text.is_empty(), "{}", encoder.name);
            }
        }
    }

    #[test]
    fn a_class_token_is_a_prefix_token() {
        for encoder in catalogue().iter().filter(|encoder| encoder.class_token) {
            assert!(encoder.prefix_tokens >= 1, "{}", encoder.name);
        }
    }
}
