//! Multi-head self-attention.

use tch::Tensor;
use torch_ext::{Init, Scope};

use super::linear::Linear;
use super::norm::AffineLayerNorm;
use crate::{DiffusionError, check};

/// Multi-head self-attention (`Attention` of timm).
#[derive(Debug)]
pub struct Attention {
    /// From `D` to `3 D`: the heads of the queries, then of the keys, then of the values.
    pub qkv: Linear,
    /// Norms of queries and keys.
    pub norms: Option<[AffineLayerNorm; 2]>,
    /// From `D` to `D`.
    pub proj: Linear,
    /// Number of heads.
    pub heads: i64,
}

impl Attention {
    /// Declares the weights, Xavier-uniform, for tokens of `width`, a multiple of `heads`. `qk_norm` adds a layer norm
    /// of queries and keys.
    ///
    /// # Errors
    /// A weight name is already declared.
    pub fn new(
        scope: &Scope,
        width: i64,
        heads: i64,
        qk_norm: bool,
    ) -> Result<Self, DiffusionError> {
        let qkv = Linear::new(&scope.sub("qkv"), width, 3 * width, Init::XavierUniform)?;
        let norm = |name| AffineLayerNorm::new(&scope.sub(name), width / heads);
        let norms = match qk_norm {
            true => Some([norm("q_norm")?, norm("k_norm")?]),
            false => None,
        };
        let proj = Linear::new(&scope.sub("proj"), width, width, Init::XavierUniform)?;
        Ok(Self {
            qkv,
            norms,
            proj,
            heads,
        })
    }

    /// Maps tokens `[B, T, D]` to tokens of the same shape.
    ///
    /// # Errors
    /// `x` has another shape.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, DiffusionError> {
        let qkv = self.qkv.forward(x)?; // [B, T, 3 D]
        let mixed = match &self.norms {
            None => ops::self_attention(&qkv, self.heads)?,
            Some([q_norm, k_norm]) => {
                // The backward pass of one `unbind` stacks three gradients. Those of three `select`s would each
                // fill a whole tensor with zeros.
                let parts = heads_first(&qkv, self.heads)?.f_unbind(0)?;
                let [q, k, v] = check::array(parts, "queries, keys and values")?;
                ops::attention(&q_norm.forward(&q)?, &k_norm.forward(&k)?, &v)?
            }
        }; // [B, T, D]
        self.proj.forward(&mixed)
    }
}

/// Views `qkv` `[B, T, 3 D]` as queries, keys and values, `[3, B, heads, T, D / heads]`.
pub(crate) fn heads_first(qkv: &Tensor, heads: i64) -> Result<Tensor, DiffusionError> {
    let (batch, count, width) = qkv.size3()?;
    Ok(qkv
        .f_view([batch, count, 3, heads, width / (3 * heads)])?
        .f_permute([2, 0, 3, 1, 4])?)
}

/// Maps `[B, heads, T, d]` to `[B, T, heads d]`.
pub(crate) fn join_heads(mixed: &Tensor) -> Result<Tensor, DiffusionError> {
    let (batch, heads, count, width) = mixed.size4()?;
    Ok(mixed
        .f_transpose(1, 2)?
        .f_reshape([batch, count, heads * width])?)
}
