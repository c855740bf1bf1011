//! Forward-mode differentiation: layers that compute on tensors, or on tensors with tangents.
//!
//! Layers are generic over [`Activation`]. On a [`Tensor`] they are the plain network. On a [`Dual`]
//! they also compute a directional derivative. Each operation computes its value, which records a
//! gradient as usual, and a closure that computes its tangent from the activations that the
//! gradient's graph keeps anyway. Tangents are computed when the tangent of the result is requested.
//! They record no gradient, and each is freed after its last use. They are deferred because memory
//! that tangents free between activations would not be reused: libtorch asks the C library for
//! aligned memory, and glibc does not take it from a gap of exactly that size.
//!
//! Layer norm, softmax and the activation functions have symmetric Jacobians. libtorch's backward
//! kernels therefore compute the tangent of the output if they receive the tangent of the input in
//! place of a gradient.

mod attention;
mod tangent;
#[cfg(test)]
mod tests;

use ops::Norm;
use tch::{TchError, Tensor};

use crate::DiffusionError;
use crate::embedding::{sinusoids, sinusoids_derivative};
use crate::layers::{join_heads, split_heads};
use tangent::Tangent;

/// Added to the variance by layer norms without weights.
const NORM_EPS: f64 = 1e-6;

/// The operations that denoisers are made of.
pub(crate) trait Activation: Sized {
    /// The value, without a tangent.
    fn value(&self) -> &Tensor;

    /// A linear map without weights: a view, a permutation, a selection.
    fn map(
        &self,
        f: impl Fn(&Tensor) -> Result<Tensor, TchError> + 'static,
    ) -> Result<Self, DiffusionError>;

    /// The slices along `dim`.
    fn unbind(&self, dim: i64) -> Result<Vec<Self>, DiffusionError>;

    /// `x W^T + b`.
    fn linear(&self, weight: &Tensor, bias: &Tensor) -> Result<Self, DiffusionError>;

    /// Layer norm over the last dimension, of size `width`, with a weight and a bias or without.
    fn layer_norm(
        &self,
        width: i64,
        affine: Option<(&Tensor, &Tensor)>,
        eps: f64,
    ) -> Result<Self, DiffusionError>;

    fn silu(&self) -> Result<Self, DiffusionError>;

    /// The tanh form of GELU.
    fn gelu(&self) -> Result<Self, DiffusionError>;

    fn add(&self, other: &Self) -> Result<Self, DiffusionError>;

    /// `x + constant`.
    fn add_constant(&self, constant: &Tensor) -> Result<Self, DiffusionError>;

    /// Layer norm without weights over the last dimension, of size `width`, then `x (1 + scale) + shift`, for
    /// tokens `[B, T, D]` with `shift` and `scale` `[B, 1, D]`.
    fn norm_modulate(&self, width: i64, shift: &Self, scale: &Self)
    -> Result<Self, DiffusionError>;

    /// `self + gate x` for tokens `[B, T, D]` and `gate` `[B, 1, D]`.
    fn add_gated(&self, gate: &Self, x: &Self) -> Result<Self, DiffusionError>;

    /// `softmax(q k^T / sqrt(d)) v`, `[B, T, heads d]`, for `q`, `k` and `v` `[B, heads, T, d]`.
    fn attention(q: &Self, k: &Self, v: &Self) -> Result<Self, DiffusionError>;

    /// [`Activation::attention`], `[B, T, D]`, for `self` `[B, T, 3 D]` with the heads of the queries, then
    /// of the keys, then of the values.
    fn self_attention(&self, heads: i64) -> Result<Self, DiffusionError>;

    /// Sinusoids `[B, width]` of times `[B]`, in the dtype of the times; see
    /// [`timestep_sinusoids`](crate::timestep_sinusoids).
    fn sinusoids(&self, frequencies: &Tensor, width: i64) -> Result<Self, DiffusionError>;
}

impl Activation for Tensor {
    fn value(&self) -> &Tensor {
        self
    }

    fn map(
        &self,
        f: impl Fn(&Tensor) -> Result<Tensor, TchError> + 'static,
    ) -> Result<Self, DiffusionError> {
        Ok(f(self)?)
    }

    fn unbind(&self, dim: i64) -> Result<Vec<Self>, DiffusionError> {
        Ok(self.f_unbind(dim)?)
    }

    fn linear(&self, weight: &Tensor, bias: &Tensor) -> Result<Self, DiffusionError> {
        Ok(self.f_linear(weight, Some(bias))?)
    }

    fn layer_norm(
        &self,
        width: i64,
        affine: Option<(&Tensor, &Tensor)>,
        eps: f64,
    ) -> Result<Self, DiffusionError> {
        let (weight, bias) = affine.unzip();
        Ok(self.f_layer_norm([width], weight, bias, eps, true)?)
    }

    fn silu(&self) -> Result<Self, DiffusionError> {
        Ok(self.f_silu()?)
    }

    fn gelu(&self) -> Result<Self, DiffusionError> {
        Ok(ops::gelu(self)?)
    }

    fn add(&self, other: &Self) -> Result<Self, DiffusionError> {
        Ok(self.f_add(other)?)
    }

    fn add_constant(&self, constant: &Tensor) -> Result<Self, DiffusionError> {
        Ok(self.f_add(constant)?)
    }

    fn norm_modulate(
        &self,
        _width: i64,
        shift: &Self,
        scale: &Self,
    ) -> Result<Self, DiffusionError> {
        Ok(ops::norm_modulate(
            self,
            Norm::Layer,
            shift,
            scale,
            NORM_EPS,
        )?)
    }

    fn add_gated(&self, gate: &Self, x: &Self) -> Result<Self, DiffusionError> {
        Ok(ops::gated_residual(self, gate, x)?)
    }

    fn attention(q: &Self, k: &Self, v: &Self) -> Result<Self, DiffusionError> {
        Ok(ops::attention(q, k, v)?)
    }

    fn self_attention(&self, heads: i64) -> Result<Self, DiffusionError> {
        Ok(ops::self_attention(self, heads)?)
    }

    fn sinusoids(&self, frequencies: &Tensor, width: i64) -> Result<Self, DiffusionError> {
        Ok(sinusoids(self, frequencies, width)?.f_to_kind(self.kind())?)
    }
}

/// A value and its tangent: the derivative in the direction in which the network is differentiated. Both
/// have the same shape and dtype. The tangent records no gradient.
#[derive(Debug)]
pub(crate) struct Dual {
    pub value: Tensor,
    pub tangent: Tangent,
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

impl Activation for Dual {
    fn value(&self) -> &Tensor {
        &self.value
    }

    fn map(
        &self,
        f: impl Fn(&Tensor) -> Result<Tensor, TchError> + 'static,
    ) -> Result<Self, DiffusionError> {
        let dx = self.tangent.clone();
        Self::new(f(&self.value)?, move || Ok(f(&dx.compute()?)?))
    }

    fn unbind(&self, dim: i64) -> Result<Vec<Self>, DiffusionError> {
        let slices = self.value.f_unbind(dim)?;
        let slices = slices.into_iter().zip(0..).map(|(value, index)| {
            let dx = self.tangent.clone();
            Self::new(value, move || Ok(dx.compute()?.f_select(dim, index)?))
        });
        slices.collect()
    }

    fn linear(&self, weight: &Tensor, bias: &Tensor) -> Result<Self, DiffusionError> {
        let (dx, w) = (self.tangent.clone(), weight.shallow_clone());
        Self::new(self.value.f_linear(weight, Some(bias))?, move || {
            Ok(dx.compute()?.f_linear::<&Tensor>(&w, None)?)
        })
    }

    fn layer_norm(
        &self,
        width: i64,
        affine: Option<(&Tensor, &Tensor)>,
        eps: f64,
    ) -> Result<Self, DiffusionError> {
        let (weight, bias) = affine.unzip();
        let (value, mean, reciprocal) =
            self.value.f_native_layer_norm([width], weight, bias, eps)?;
        let dx = self.tangent.clone();
        let (x, y) = (self.value.shallow_clone(), value.shallow_clone());
        let weight = weight.map(Tensor::shallow_clone);
        Self::new(value, move || {
            let normal = match weight {
                None => y,
                Some(_) => x.f_sub(&mean)?.f_mul_(&reciprocal)?,
            };
            let tangent = layer_norm_tangent(&normal, &reciprocal, &dx.compute()?)?;
            Ok(match weight {
                None => tangent,
                Some(weight) => tangent.f_mul(&weight)?,
            })
        })
    }

    fn silu(&self) -> Result<Self, DiffusionError> {
        let (x, dx) = (self.value.shallow_clone(), self.tangent.clone());
        Self::new(self.value.f_silu()?, move || {
            Ok(x.f_silu_backward(&dx.compute()?)?)
        })
    }

    fn gelu(&self) -> Result<Self, DiffusionError> {
        let (x, dx) = (self.value.shallow_clone(), self.tangent.clone());
        Self::new(ops::gelu(&self.value)?, move || {
            Ok(x.f_gelu_backward(&dx.compute()?, "tanh")?)
        })
    }

    fn add(&self, other: &Self) -> Result<Self, DiffusionError> {
        let (dx, dy) = (self.tangent.clone(), other.tangent.clone());
        Self::new(self.value.f_add(&other.value)?, move || {
            Ok(dx.compute()?.f_add(&dy.compute()?)?)
        })
    }

    fn add_constant(&self, constant: &Tensor) -> Result<Self, DiffusionError> {
        let dx = self.tangent.clone();
        Self::new(self.value.f_add(constant)?, move || dx.compute())
    }

    fn norm_modulate(
        &self,
        width: i64,
        shift: &Self,
        scale: &Self,
    ) -> Result<Self, DiffusionError> {
        let value = self
            .value
            .norm_modulate(width, &shift.value, &scale.value)?;
        let (x, dshift, scale) = (self.clone(), shift.tangent.clone(), scale.clone());
        Self::new(value, move || {
            // The normalised tokens are recomputed: a kernel does not keep them.
            let none: Option<&Tensor> = None;
            let (normal, _, reciprocal) =
                x.value.f_native_layer_norm([width], none, none, NORM_EPS)?;
            let dnormal = layer_norm_tangent(&normal, &reciprocal, &x.tangent.compute()?)?;
            let dscale = scale.tangent.compute()?;
            Ok(dshift
                .compute()?
                .f_addcmul(&dnormal, &scale.value.f_add_scalar(1.0)?)?
                .f_addcmul_(&normal, &dscale)?)
        })
    }

    fn add_gated(&self, gate: &Self, x: &Self) -> Result<Self, DiffusionError> {
        let value = self.value.add_gated(&gate.value, &x.value)?;
        let (dx, gate, y) = (self.tangent.clone(), gate.clone(), x.clone());
        Self::new(value, move || {
            let (dgate, dy) = (gate.tangent.compute()?, y.tangent.compute()?);
            Ok(dx
                .compute()?
                .f_addcmul(&dgate, &y.value)?
                .f_addcmul_(&gate.value, &dy)?)
        })
    }

    fn attention(q: &Self, k: &Self, v: &Self) -> Result<Self, DiffusionError> {
        let value = Tensor::attention(&q.value, &k.value, &v.value)?;
        let (q, k, v) = (q.clone(), k.clone(), v.clone());
        Self::new(value, move || join_heads(&attention::tangent(&q, &k, &v)?))
    }

    fn self_attention(&self, heads: i64) -> Result<Self, DiffusionError> {
        let value = self.value.self_attention(heads)?;
        let qkv = self.clone();
        Self::new(value, move || {
            let [q, k, v] = split_heads(&qkv, heads)?;
            join_heads(&attention::tangent(&q, &k, &v)?)
        })
    }

    fn sinusoids(&self, frequencies: &Tensor, width: i64) -> Result<Self, DiffusionError> {
        let value = self.value.sinusoids(frequencies, width)?;
        let (y, frequencies) = (value.shallow_clone(), frequencies.shallow_clone());
        let dt = self.tangent.clone();
        Self::new(value, move || {
            let slope = sinusoids_derivative(&y, &frequencies)?;
            Ok(slope.f_mul(&dt.compute()?.f_unsqueeze(1)?)?)
        })
    }
}

impl Clone for Dual {
    fn clone(&self) -> Self {
        Self {
            value: self.value.shallow_clone(),
            tangent: self.tangent.clone(),
        }
    }
}
