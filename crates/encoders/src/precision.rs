//! The dtypes of weights, and the precision in which encoders compute and features are stored.

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tch::Kind;

/// The dtype that an encoder's weights are cast to and that it computes in, or the dtype of stored
/// features. An encoder's tokens are float32 for every precision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// float32.
    #[default]
    Fp32,
    /// bfloat16: half the memory; tokens differ from float32 by about 1 %.
    Bf16,
    /// float16: half the memory; closer to float32 than bfloat16 if no value exceeds 65504.
    Fp16,
}

impl Precision {
    /// Largest difference of an image's tokens between batches that rounding can cause, relative to the largest
    /// value.
    pub(crate) fn tolerance(self) -> f64 {
        match self {
            Self::Fp32 => 1e-3,
            Self::Bf16 => 5e-2,
            Self::Fp16 => 1e-2,
        }
    }

    /// Returns the dtype of libtorch.
    pub fn kind(self) -> Kind {
        match self {
            Self::Fp32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
            Self::Fp16 => Kind::Half,
        }
    }

    /// Returns the name in configurations.
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

/// Dtype of the weights in an encoder file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightDtype {
    /// float32.
    #[default]
    Float32,
    /// bfloat16.
    BFloat16,
    /// float16.
    Float16,
}

impl From<WeightDtype> for Precision {
    fn from(dtype: WeightDtype) -> Self {
        match dtype {
            WeightDtype::Float32 => Self::Fp32,
            WeightDtype::BFloat16 => Self::Bf16,
            WeightDtype::Float16 => Self::Fp16,
        }
    }
}
