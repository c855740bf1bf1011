//! Dual numbers for forward-mode differentiation: tensors with tangents, and the operations of a denoiser on them.
//!
//! Each operation computes its value as the layers of [`nn`](crate::nn) do, to the same bits, which records a gradient
//! as usual, and a closure that computes its tangent from the activations that the
//! gradient's graph keeps anyway. Tangents are computed when the tangent of the result is requested.
//! They record no gradient, and each is freed after its last use. They are deferred because memory
//! that tangents free between activations would not be reused: libtorch asks the C library for
//! aligned memory, and glibc does not take it from a gap of exactly that size.
//!
//! Layer norm, softmax and the activation functions have symmetric Jacobians. libtorch's backward
//! kernels therefore compute the tangent of the output if they receive the tangent of the input in
//! place of a gradient.

use tch::Tensor;

use super::attention;
use super::tangent::Tangent;
use crate::nn::{
    AffineLayerNorm, LayerNorm, Norm, gated_residual, heads_first, join_heads, sinusoids,
    sinusoids_derivative,
};
use crate::{DiffusionError, check};

/// A value and its tangent: the derivative in the direction in which the network is differentiated. Both
/// have the same shape and dtype. The tangent records no gradient.
#[derive(Debug)]
pub(super) struct Dual {
    pub value: Tensor,
    pub tangent: Tangent,
}

impl Clone for Dual {
    fn clone(&self) -> Self {
        Self {
            value: self.value.shallow_clone(),
            tangent: self.tangent.clone(),
        }
    }
}

impl Dual {
    /// An input of the network with its tangent, in the same shape.
    pub fn input(value: Tensor, tangent: &Tensor) -> Result<Self, DiffusionError> {
        let tangent = tangent.f_detach()?;
        Self::new(value, move || Ok(tangent))
    }

    /// A dual number with a deferred tangent, which is converted to the dtype of `value`: under autocast
    /// the two may differ where a float32 constant was added to the value.
    fn new(
        value: Tensor,
        tangent: impl FnOnce() -> Result<Tensor, DiffusionError> + 'static,
    ) -> Result<Self, DiffusionError> {
        let kind = value.kind();
        let tangent = Tangent::new(move || Ok(tangent()?.f_to_kind(kind)?));
        // Without a gradient's graph, nothing else needs the activations: computing the tangent now
        // frees them.
        if !value.requires_grad() {
            let _computed = tangent.compute()?;
        }
        Ok(Self { value, tangent })
    }

    /// A linear map without weights: a view, a permutation.
    pub fn map(
        &self,
        f: impl Fn(&Tensor) -> Result<Tensor, DiffusionError> + 'static,
    ) -> Result<Self, DiffusionError> {
        let dx = self.tangent.clone();
        Self::new(f(&self.value)?, move || f(&dx.compute()?))
    }

    /// The `N` slices along `dim`. `what` names them in an error.
    pub fn unbind<const N: usize>(
        &self,
        dim: i64,
        what: &'static str,
    ) -> Result<[Self; N], DiffusionError> {
        let slices = self.value.f_unbind(dim)?;
        let slices = slices.into_iter().zip(0..).map(|(value, index)| {
            let dx = self.tangent.clone();
            Self::new(value, move || Ok(dx.compute()?.f_select(dim, index)?))
        });
        check::array(slices.collect::<Result<_, _>>()?, what)
    }

    /// `x W^T + b`.
    pub fn linear(&self, weight: &Tensor, bias: &Tensor) -> Result<Self, DiffusionError> {
        let (dx, w) = (self.tangent.clone(), weight.shallow_clone());
        Self::new(self.value.f_linear(weight, Some(bias))?, move || {
            Ok(dx.compute()?.f_linear::<&Tensor>(&w, None)?)
        })
    }

    /// Layer norm of queries or keys.
    pub fn layer_norm(&self, norm: &AffineLayerNorm) -> Result<Self, DiffusionError> {
        let weight = norm.weight.shallow_clone();
        let (value, mean, reciprocal) = self.value.f_native_layer_norm(
            weight.size(),
            Some(&weight),
            Some(&norm.bias),
            AffineLayerNorm::EPS,
        )?;
        let (x, dx) = (self.value.shallow_clone(), self.tangent.clone());
        Self::new(value, move || {
            let normal = x.f_sub(&mean)?.f_mul_(&reciprocal)?;
            let tangent = layer_norm_tangent(&normal, &reciprocal, &dx.compute()?)?;
            Ok(tangent.f_mul(&weight)?)
        })
    }

    pub fn silu(&self) -> Result<Self, DiffusionError> {
        let (x, dx) = (self.value.shallow_clone(), self.tangent.clone());
        Self::new(self.value.f_silu()?, move || {
            Ok(x.f_silu_backward(&dx.compute()?)?)
        })
    }

    /// The tanh form of GELU.
    pub fn gelu(&self) -> Result<Self, DiffusionError> {
        let (x, dx) = (self.value.shallow_clone(), self.tangent.clone());
        Self::new(ops::gelu(&self.value)?, move || {
            Ok(x.f_gelu_backward(&dx.compute()?, "tanh")?)
        })
    }

    pub fn add(&self, other: &Self) -> Result<Self, DiffusionError> {
        let (dx, dy) = (self.tangent.clone(), other.tangent.clone());
        Self::new(self.value.f_add(&other.value)?, move || {
            Ok(dx.compute()?.f_add(&dy.compute()?)?)
        })
    }

    /// `x + constant`.
    pub fn add_constant(&self, constant: &Tensor) -> Result<Self, DiffusionError> {
        let dx = self.tangent.clone();
        Self::new(self.value.f_add(constant)?, move || dx.compute())
    }

    /// As [`Norm::modulated`] of [`LayerNorm`], for tokens `[B, T, D]` with `shift` and `scale` `[B, 1, D]`.
    pub fn modulated(&self, shift: &Self, scale: &Self) -> Result<Self, DiffusionError> {
        let value = LayerNorm.modulated(&self.value, &shift.value, &scale.value)?;
        let (x, dshift, scale) = (self.clone(), shift.tangent.clone(), scale.clone());
        Self::new(value, move || {
            // The normalised tokens are recomputed: a kernel does not keep them.
            let none: Option<&Tensor> = None;
            let (.., width) = x.value.size3()?;
            let (normal, _, reciprocal) =
                x.value
                    .f_native_layer_norm([width], none, none, LayerNorm::EPS)?;
            let dnormal = layer_norm_tangent(&normal, &reciprocal, &x.tangent.compute()?)?;
            let dscale = scale.tangent.compute()?;
            Ok(dshift
                .compute()?
                .f_addcmul(&dnormal, &scale.value.f_add_scalar(1.0)?)?
                .f_addcmul_(&normal, &dscale)?)
        })
    }

    /// `self + gate x` for tokens `[B, T, D]` and `gate` `[B, 1, D]`.
    pub fn gated_residual(&self, factor: &Self, x: &Self) -> Result<Self, DiffusionError> {
        let value = gated_residual(&self.value, &factor.value, &x.value)?;
        let (dx, factor, y) = (self.tangent.clone(), factor.clone(), x.clone());
        Self::new(value, move || {
            let (dfactor, dy) = (factor.tangent.compute()?, y.tangent.compute()?);
            Ok(dx
                .compute()?
                .f_addcmul(&dfactor, &y.value)?
                .f_addcmul_(&factor.value, &dy)?)
        })
    }

    /// Queries, keys and values `[B, heads, T, D / heads]` of `self` `[B, T, 3 D]`.
    pub fn split_heads(&self, heads: i64) -> Result<[Self; 3], DiffusionError> {
        self.map(move |qkv| heads_first(qkv, heads))?
            .unbind(0, "queries, keys and values")
    }

    /// `softmax(q k^T / sqrt(d)) v`, `[B, T, heads d]`, for `q`, `k` and `v` `[B, heads, T, d]`.
    pub fn attention([q, k, v]: [Self; 3]) -> Result<Self, DiffusionError> {
        let value = ops::attention(&q.value, &k.value, &v.value)?;
        Self::new(value, move || attention_tangent([q, k, v]))
    }

    /// [`Dual::attention`], `[B, T, D]`, of the heads in `self` `[B, T, 3 D]`.
    pub fn self_attention(&self, heads: i64) -> Result<Self, DiffusionError> {
        let qkv = self.clone();
        Self::new(ops::self_attention(&self.value, heads)?, move || {
            attention_tangent(qkv.split_heads(heads)?)
        })
    }

    /// Sinusoids `[B, width]` of times `[B]`, in the dtype of the times; see
    /// [`timestep_sinusoids`](crate::nn::timestep_sinusoids).
    pub fn sinusoids(&self, frequencies: &Tensor, width: i64) -> Result<Self, DiffusionError> {
        let value = sinusoids(&self.value, frequencies, width)?.f_to_kind(self.value.kind())?;
        let (y, frequencies) = (value.shallow_clone(), frequencies.shallow_clone());
        let dt = self.tangent.clone();
        Self::new(value, move || {
            let slope = sinusoids_derivative(&y, &frequencies)?;
            Ok(slope.f_mul(&dt.compute()?.f_unsqueeze(1)?)?)
        })
    }
}

/// The tangent of [`Dual::attention`].
fn attention_tangent(heads: [Dual; 3]) -> Result<Tensor, DiffusionError> {
    let [q, k, v] = heads;
    let tangents = [
        q.tangent.compute()?,
        k.tangent.compute()?,
        v.tangent.compute()?,
    ];
    let values = [&q.value, &k.value, &v.value];
    join_heads(&attention::tangent(values, tangents.each_ref())?)
}

/// The tangent of `n = (x - mean) r`, with `r` the reciprocal deviation:
/// `dn = r (dx - mean(dx) - n mean(n dx))`.
fn layer_norm_tangent(
    normal: &Tensor,
    reciprocal: &Tensor,
    dx: &Tensor,
) -> Result<Tensor, DiffusionError> {
    let average = |x: &Tensor| x.f_mean_dim(-1, true, None);
    let slope = average(&normal.f_mul(dx)?)?.f_neg_()?;
    Ok(dx
        .f_sub(&average(dx)?)?
        .f_addcmul_(normal, &slope)?
        .f_mul_(reciprocal)?)
}
