//! `model.autoencoder`: the map between images and the denoiser's space.

use diffusion::DiffusionError;
use diffusion::autoencoder::KlConfig;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use super::path::ConfigPath;

/// The map between images and the denoiser's space. In files it is the name `identity`, or a table.
///
/// ```
/// use training::{Autoencoder, ModelConfig};
///
/// let text = r#"
/// name = "SiT-B/2"
/// [autoencoder]
/// kind = "kl"
/// layout = "f8d4"
/// weights = "pretrained/sd-vae-ft-mse.safetensors"
/// scale = 0.18215
/// "#;
/// let model: ModelConfig = toml::from_str(text)?;
/// let Autoencoder::Kl(settings) = &model.autoencoder else { panic!("not a table") };
/// assert_eq!(settings.layout.config().downsampling(), 8);
/// assert_eq!(settings.scale.values(), [0.18215]);
/// # Ok::<(), toml::de::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Autoencoder {
    /// No autoencoder: pixels, scaled to [-1, 1].
    #[default]
    Identity,
    /// Latents of a KL autoencoder, such as Stable Diffusion's.
    Kl(KlSettings),
}

/// `model.autoencoder` with `kind = "kl"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KlSettings {
    /// `f8d4` (Stable Diffusion's), `f16d32` (VA-VAE's), or a table with the fields of [`KlConfig`].
    pub layout: KlLayout,
    /// Safetensors file of the weights, with upstream's names. If it is empty, the weights are drawn
    /// from the seed, which requires `train = true`.
    pub weights: ConfigPath,
    /// Factor of the latents after `bias` is subtracted: one for all channels, or one per channel.
    pub scale: PerChannel,
    /// Subtracted from the latents: one value for all channels, or one per channel.
    pub bias: PerChannel,
    /// Whether the autoencoder is trained together with the denoiser, as in REPA-E. It then starts
    /// from `weights`, if set, and its latents are normalised by running statistics that start from
    /// `scale` and `bias`.
    pub train: bool,
}

impl Default for KlSettings {
    fn default() -> Self {
        Self {
            layout: KlLayout::F8d4,
            weights: ConfigPath::default(),
            scale: PerChannel(vec![1.0]),
            bias: PerChannel(vec![0.0]),
            train: false,
        }
    }
}

/// The shape of a KL autoencoder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KlLayout {
    /// [`KlConfig::f8d4`].
    F8d4,
    /// [`KlConfig::f16d32`].
    F16d32,
    /// Any other.
    Other(KlConfig),
}

impl KlLayout {
    /// Returns the configuration of the layout.
    pub fn config(&self) -> KlConfig {
        match self {
            Self::F8d4 => KlConfig::f8d4(),
            Self::F16d32 => KlConfig::f16d32(),
            Self::Other(config) => config.clone(),
        }
    }

    /// Returns the layout's name, or its settings as JSON if it has no name.
    pub fn name(&self) -> String {
        let config = self.config();
        if config == KlConfig::f8d4() {
            return F8D4.to_owned();
        }
        if config == KlConfig::f16d32() {
            return F16D32.to_owned();
        }
        // A struct of plain fields always serialises; the Debug form keeps this total.
        serde_json::to_string(&config).unwrap_or_else(|_| format!("{config:?}"))
    }
}

/// One number for all channels, or one number per channel. In files it is a number or a list.
#[derive(Debug, Clone, PartialEq)]
pub struct PerChannel(Vec<f64>);

impl PerChannel {
    /// Returns the one number, or one number per channel.
    pub fn values(&self) -> &[f64] {
        &self.0
    }
}

impl From<Vec<f64>> for PerChannel {
    fn from(values: Vec<f64>) -> Self {
        Self(values)
    }
}

impl Autoencoder {
    /// Whether the autoencoder is trained together with the denoiser.
    pub fn is_trained(&self) -> bool {
        matches!(self, Self::Kl(settings) if settings.train)
    }

    /// Returns the shape `[C, h, w]` of the denoiser's input for images of `side` x `side` pixels.
    ///
    /// # Errors
    /// The autoencoder does not support images of this size.
    pub fn latent_shape(&self, side: i64) -> Result<[i64; 3], DiffusionError> {
        match self {
            Self::Identity => Ok([3, side, side]),
            Self::Kl(settings) => settings.layout.config().latent_shape(side, side),
        }
    }
}

/// The name of [`Autoencoder::Identity`].
const IDENTITY: &str = "identity";
/// The kind of [`Autoencoder::Kl`].
const KL: &str = "kl";
/// The name of [`KlLayout::F8d4`].
const F8D4: &str = "f8d4";
/// The name of [`KlLayout::F16d32`].
const F16D32: &str = "f16d32";

impl Serialize for Autoencoder {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Tagged<'a> {
            kind: &'static str,
            #[serde(flatten)]
            settings: &'a KlSettings,
        }
        match self {
            Self::Identity => serializer.serialize_str(IDENTITY),
            Self::Kl(settings) => Tagged { kind: KL, settings }.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Autoencoder {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let unknown = |found: &Value| {
            D::Error::custom(format!(
                "unknown autoencoder {found}: allowed are \"{IDENTITY}\" and a table with kind = \"{KL}\""
            ))
        };
        match Value::deserialize(deserializer)? {
            Value::String(name) if name == IDENTITY => Ok(Self::Identity),
            Value::Object(mut table) => match table.remove("kind") {
                Some(Value::String(kind)) if kind == KL => {
                    let settings = serde_json::from_value(table.into());
                    Ok(Self::Kl(settings.map_err(D::Error::custom)?))
                }
                Some(Value::String(kind)) if kind == IDENTITY && table.is_empty() => {
                    Ok(Self::Identity)
                }
                Some(kind) => Err(unknown(&kind)),
                None => Err(unknown(&Value::Object(table))),
            },
            other => Err(unknown(&other)),
        }
    }
}

impl Serialize for KlLayout {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::F8d4 => serializer.serialize_str(F8D4),
            Self::F16d32 => serializer.serialize_str(F16D32),
            Self::Other(config) => config.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for KlLayout {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(name) if name == F8D4 => Ok(Self::F8d4),
            Value::String(name) if name == F16D32 => Ok(Self::F16d32),
            table @ Value::Object(_) => serde_json::from_value(table)
                .map(Self::Other)
                .map_err(D::Error::custom),
            other => Err(D::Error::custom(format!(
                "unknown layout {other}: allowed are \"f8d4\", \"f16d32\" and a table such as \
                 {{ latent_channels = 4, base_channels = 128, channel_multipliers = [1, 2, 4, 4] }}"
            ))),
        }
    }
}

impl Serialize for PerChannel {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [one] => serializer.serialize_f64(*one),
            values => values.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for PerChannel {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let numbers = match &value {
            Value::Array(values) => values.iter().map(Value::as_f64).collect(),
            one => one.as_f64().map(|number| vec![number]),
        };
        numbers.map(Self).ok_or_else(|| {
            D::Error::custom(format!("{value}: expected a number or a list of numbers"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ModelConfig;

    fn parsed(text: &str) -> Result<Autoencoder, String> {
        toml::from_str::<ModelConfig>(text)
            .map(|model| model.autoencoder)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_name_or_a_table_is_read_and_written() {
        assert_eq!(
            parsed("autoencoder = 'identity'"),
            Ok(Autoencoder::Identity)
        );
        for text in [
            "autoencoder = { kind = 'kl', layout = 'f16d32', scale = [1.0, 2.0], bias = 1 }",
            "autoencoder = { kind = 'kl', layout = { latent_channels = 8 }, train = true }",
        ] {
            let model: ModelConfig = toml::from_str(text).unwrap();
            let written = toml::to_string(&model).unwrap();
            assert_eq!(toml::from_str::<ModelConfig>(&written).unwrap(), model);
        }
    }

    #[test]
    fn other_names_and_keys_are_refused() {
        for (text, named) in [
            ("autoencoder = 'vae'", "identity"),
            ("autoencoder = { kind = 'vq' }", "kl"),
            ("autoencoder = { layout = 'f8d4' }", "kind"),
            ("autoencoder = { kind = 'kl', layout = 'f4' }", "f16d32"),
            ("autoencoder = { kind = 'kl', layers = 3 }", "layout"),
            ("autoencoder = { kind = 'kl', scale = 'a' }", "number"),
            (
                "autoencoder = { kind = 'kl', layout = { channels = 3 } }",
                "base_channels",
            ),
        ] {
            let error = parsed(text).unwrap_err();
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
