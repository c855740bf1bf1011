//! Multi-head self-attention with rotary position embedding.

use tch::{Kind, Tensor};
use torch_ext::{Init, Scope};

use super::attention::join_heads;
use super::dropout::Dropout;
use super::linear::Linear;
use super::norm::RmsNorm;
use super::rotary::Rotary;
use crate::{DiffusionError, Mode};

/// Multi-head self-attention with RMS norm and rotary embedding of queries and keys (`Attention` of JiT).
#[derive(Debug)]
pub struct RotaryAttention {
    /// From `D` to `3 D`: the heads of the queries, then of the keys, then of the values.
    pub qkv: Linear,
    /// Norm of the queries over the width of a head.
    pub q_norm: RmsNorm,
    /// Norm of the keys over the width of a head.
    pub k_norm: RmsNorm,
    /// Dropout of attention weights.
    pub attn_drop: Dropout,
    /// From `D` to `D`.
    pub proj: Linear,
    /// Dropout after `proj`.
    pub proj_drop: Dropout,
    /// Number of heads.
    pub heads: i64,
}

impl RotaryAttention {
    /// Declares the weights, Xavier-uniform, for tokens of `width`, a multiple of `heads`.
    ///
    /// # Errors
    /// A weight name is already declared.
    pub fn new(
        scope: &Scope,
        width: i64,
        heads: i64,
        (attn_dropout, proj_dropout): (f64, f64),
    ) -> Result<Self, DiffusionError> {
        let head_width = width / heads;
        let init = Init::XavierUniform;
        Ok(Self {
            qkv: Linear::new(&scope.sub("qkv"), width, 3 * width, init)?,
            q_norm: RmsNorm::new(&scope.sub("q_norm"), head_width)?,
            k_norm: RmsNorm::new(&scope.sub("k_norm"), head_width)?,
            attn_drop: Dropout { rate: attn_dropout },
            proj: Linear::new(&scope.sub("proj"), width, width, init)?,
            proj_drop: Dropout { rate: proj_dropout },
            heads,
        })
    }

    /// Maps tokens `[B, T, D]` to tokens of the same shape. `rotary` knows the positions of `T` tokens.
    ///
    /// # Errors
    /// `x` has another shape, or `rotary` another number of tokens or width of a head.
    pub fn forward(
        &self,
        x: &Tensor,
        rotary: &Rotary,
        mode: &mut Mode<'_>,
    ) -> Result<Tensor, DiffusionError> {
        let qkv = self.qkv.forward(x)?; // [B, T, 3 D]
        let heads = ops::norm_rotate(
            &qkv,
            self.heads,
            [&self.q_norm.weight, &self.k_norm.weight],
            &rotary.rotations(qkv.size3()?.1)?,
            RmsNorm::EPS,
        )?;
        let mixed = match self.attn_drop.is_active(mode) {
            true => self.attention_with_dropout(heads.split()?, mode)?,
            false => heads.attention()?,
        }; // [B, T, D]
        self.proj_drop.forward(self.proj.forward(&mixed)?, mode)
    }

    /// `q`, `k` and `v` are `[B, heads, T, d]`.
    fn attention_with_dropout(
        &self,
        [q, k, v]: [Tensor; 3],
        mode: &mut Mode<'_>,
    ) -> Result<Tensor, DiffusionError> {
        // libtorch's attention would draw dropout from the process-wide generator.
        let (.., head_width) = q.size4()?;
        let weights = q
            .f_matmul(&k.f_transpose(-2, -1)?)?
            .f_div_scalar((head_width as f64).sqrt())?
            .f_softmax(-1, Kind::Float)?; // [B, heads, T, T]
        let weights = self.attn_drop.forward(weights, mode)?;
        join_heads(&weights.f_to_kind(v.kind())?.f_matmul(&v)?)
    }
}
