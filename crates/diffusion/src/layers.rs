//! Layers that several denoisers share.

use tch::Tensor;
use torch_ext::{Init, Scope};

use crate::DiffusionError;
use crate::dual::Activation;

/// `x W^T + b`.
#[derive(Debug)]
pub(crate) struct Linear {
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    /// Declares `weight` `[out, in]`, initialised with `init`, and a zero `bias` `[out]`.
    pub fn new(
        scope: &Scope,
        in_width: i64,
        out_width: i64,
        init: Init,
    ) -> Result<Self, DiffusionError> {
        Ok(Self {
            weight: scope.cast_var("weight", &[out_width, in_width], init)?,
            bias: scope.cast_var("bias", &[out_width], Init::Zeros)?,
        })
    }

    pub fn forward<V: Activation>(&self, x: &V) -> Result<V, DiffusionError> {
        x.linear(&self.weight, &self.bias)
    }
}

/// Layer norm of queries or keys over the width of a head, with weight and bias.
#[derive(Debug)]
struct HeadNorm {
    weight: Tensor,
    bias: Tensor,
    width: i64,
}

impl HeadNorm {
    fn new(scope: &Scope, width: i64) -> Result<Self, DiffusionError> {
        Ok(Self {
            weight: scope.var("weight", &[width], Init::Ones)?,
            bias: scope.var("bias", &[width], Init::Zeros)?,
            width,
        })
    }

    fn forward<V: Activation>(&self, x: &V) -> Result<V, DiffusionError> {
        x.layer_norm(self.width, Some((&self.weight, &self.bias)), 1e-5)
    }
}

/// Multi-head self-attention (`Attention` of timm).
#[derive(Debug)]
pub(crate) struct Attention {
    qkv: Linear,
    norms: Option<(HeadNorm, HeadNorm)>,
    proj: Linear,
    heads: i64,
}

/// Splits `qkv` `[B, T, 3 D]` into queries, keys and values, `[B, heads, T, D / heads]` each.
pub(crate) fn split_heads<V: Activation>(qkv: &V, heads: i64) -> Result<[V; 3], DiffusionError> {
    let (batch, count, width) = qkv.value().size3()?;
    let qkv = qkv.map(move |qkv| {
        qkv.f_view([batch, count, 3, heads, width / (3 * heads)])?
            .f_permute([2, 0, 3, 1, 4])
    })?;
    let select = |index| qkv.map(move |qkv| qkv.f_select(0, index));
    Ok([select(0)?, select(1)?, select(2)?])
}

/// Maps `[B, heads, T, d]` to `[B, T, heads d]`.
pub(crate) fn join_heads<V: Activation>(mixed: &V) -> Result<V, DiffusionError> {
    let (batch, heads, count, width) = mixed.value().size4()?;
    mixed.map(move |mixed| {
        mixed
            .f_transpose(1, 2)?
            .f_reshape([batch, count, heads * width])
    })
}

impl Attention {
    pub fn new(
        scope: &Scope,
        width: i64,
        heads: i64,
        qk_norm: bool,
    ) -> Result<Self, DiffusionError> {
        let head_width = width / heads;
        let qkv = Linear::new(&scope.sub("qkv"), width, 3 * width, Init::XavierUniform)?;
        let norms = if qk_norm {
            Some((
                HeadNorm::new(&scope.sub("q_norm"), head_width)?,
                HeadNorm::new(&scope.sub("k_norm"), head_width)?,
            ))
        } else {
            None
        };
        let proj = Linear::new(&scope.sub("proj"), width, width, Init::XavierUniform)?;
        Ok(Self {
            qkv,
            norms,
            proj,
            heads,
        })
    }

    /// `x` is `[B, T, D]`.
    pub fn forward<V: Activation>(&self, x: &V) -> Result<V, DiffusionError> {
        let qkv = self.qkv.forward(x)?;
        let mixed = match &self.norms {
            None => qkv.self_attention(self.heads)?,
            Some((q_norm, k_norm)) => {
                let [q, k, v] = split_heads(&qkv, self.heads)?;
                let (q, k) = (q_norm.forward(&q)?, k_norm.forward(&k)?);
                V::attention(&q, &k, &v)?
            }
        };
        self.proj.forward(&mixed)
    }
}

/// Two linear layers with the tanh form of GELU between them (`Mlp` of timm).
#[derive(Debug)]
pub(crate) struct Mlp {
    fc1: Linear,
    fc2: Linear,
}

impl Mlp {
    pub fn new(scope: &Scope, width: i64, inner: i64) -> Result<Self, DiffusionError> {
        Ok(Self {
            fc1: Linear::new(&scope.sub("fc1"), width, inner, Init::XavierUniform)?,
            fc2: Linear::new(&scope.sub("fc2"), inner, width, Init::XavierUniform)?,
        })
    }

    pub fn forward<V: Activation>(&self, x: &V) -> Result<V, DiffusionError> {
        self.fc2.forward(&self.fc1.forward(x)?.gelu()?)
    }
}
