use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tch::Kind;

use crate::encoder::Dtype;

/// The dtype an encoder's weights are cast to when it is loaded, and that it computes in. Its
/// tokens are float32 whatever it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// float32.
    #[default]
    Fp32,
    /// bfloat16: half the memory, tokens about 1 % off.
    Bf16,
    /// float16: half the memory, closer to float32 where nothing exceeds 65504.
    Fp16,
}

impl Precision {
    /// By how much of the largest value an image's tokens may differ between batches, by rounding alone.
    pub(crate) fn tolerance(self) -> f64 {
        match self {
            Self::Fp32 => 1e-3,
            Self::Bf16 => 5e-2,
            Self::Fp16 => 1e-2,
        }
    }

    /// The dtype.
    pub fn kind(self) -> Kind {
        match self {
            Self::Fp32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
            Self::Fp16 => Kind::Half,
        }
    }

    /// Its name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Bf16 => "bf16",
            Self::Fp16 => "fp16",
        }
    }
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Fp32, Self::Bf16, Self::Fp16]
            .into_iter()
            .find(|precision| precision.name() == text)
            .ok_or_else(|| format!("`{text}` is not fp32, bf16 or fp16"))
    }
}

impl From<Dtype> for Precision {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::Float32 => Self::Fp32,
            Dtype::BFloat16 => Self::Bf16,
            Dtype::Float16 => Self::Fp16,
        }
    }
}
