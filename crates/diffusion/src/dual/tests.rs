//! Comparison of each operation's tangent with the central difference of its value, in float64.

use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;
use tch::{Device, Kind, Tensor};

use super::{Activation, Dual};
use crate::DiffusionError;
use crate::embedding::TimestepEmbedder;
use crate::layers::{Attention, Mlp};
use torch_ext::{Generator, Params};

/// An operation on plain tensors and on duals; a trait, since closures cannot be generic.
trait Operation {
    fn run<V: Activation>(&self, inputs: &[V]) -> Result<V, DiffusionError>;
}

fn normal(size: &[i64], generator: &mut Generator) -> Tensor {
    generator.randn(size, Kind::Double).unwrap()
}

/// Checks that the tangent of the operation at random inputs of these sizes equals the central
/// difference, with and without a gradient.
fn check_tangent(operation: &impl Operation, sizes: &[&[i64]], seed: u64) -> TestCaseResult {
    let mut generator = Generator::new(Device::Cpu, seed).unwrap();
    let mut draw = |sizes: &[&[i64]]| -> Vec<Tensor> {
        sizes
            .iter()
            .map(|size| normal(size, &mut generator))
            .collect()
    };
    let (inputs, directions) = (draw(sizes), draw(sizes));
    let at = |h: f64| {
        let moved: Vec<Tensor> = inputs
            .iter()
            .zip(&directions)
            .map(|(x, d)| x + d * h)
            .collect();
        tch::no_grad(|| operation.run(&moved).unwrap())
    };
    let h = 1e-5;
    let difference = (at(h) - at(-h)) / (2.0 * h);
    let allowed = 1e-7 * (1.0 + difference.abs().max().double_value(&[]));
    for gradient in [false, true] {
        let duals: Vec<Dual> = inputs
            .iter()
            .zip(&directions)
            .map(|(x, d)| Dual::input(x.detach().set_requires_grad(gradient), d).unwrap())
            .collect();
        let result = operation.run(&duals).unwrap();
        let tangent = result.tangent.compute().unwrap();
        prop_assert!(!tangent.requires_grad());
        prop_assert_eq!(tangent.size(), result.value.size());
        prop_assert_eq!(tangent.kind(), Kind::Double);
        let error = (&tangent - &difference).abs().max().double_value(&[]);
        prop_assert!(error <= allowed, "{error:e} > {allowed:e}");
        let value = tch::no_grad(|| operation.run(&inputs).unwrap());
        prop_assert_eq!(result.value.detach(), value);
    }
    Ok(())
}

/// [`check_tangent`] with kernels and with compositions.
fn check_in_both_forms(operation: &impl Operation, sizes: &[&[i64]], seed: u64) -> TestCaseResult {
    check_tangent(operation, sizes, seed)?;
    ops::composed(|| check_tangent(operation, sizes, seed))
}

/// A layer whose weights are all random and float64.
fn layer<T>(make: impl FnOnce(&Params) -> Result<T, DiffusionError>) -> T {
    let params = Params::new(Device::Cpu, 0).unwrap();
    let layer = make(&params).unwrap();
    let mut generator = Generator::new(Device::Cpu, 1).unwrap();
    for mut weight in params.trainable() {
        let value = normal(&weight.size(), &mut generator) * 0.5;
        weight.set_data(&value);
    }
    layer
}

struct Linear(i64);
impl Operation for Linear {
    fn run<V: Activation>(&self, inputs: &[V]) -> Result<V, DiffusionError> {
        let mut generator = Generator::new(Device::Cpu, 0)?;
        let width = inputs[0].value().size3()?.2;
        let weight = normal(&[self.0, width], &mut generator);
        inputs[0].linear(&weight, &normal(&[self.0], &mut generator))
    }
}

struct LayerNorm {
    affine: bool,
}
impl Operation for LayerNorm {
    fn run<V: Activation>(&self, inputs: &[V]) -> Result<V, DiffusionError> {
        let mut generator = Generator::new(Device::Cpu, 0)?;
        let width = inputs[0].value().size3()?.2;
        let mut draw = || normal(&[width], &mut generator);
        let (weight, bias) = (draw(), draw());
        inputs[0].layer_norm(width, self.affine.then_some((&weight, &bias)), 1e-6)
    }
}

struct Silu;
impl Operation for Silu {
    fn run<V: Activation>(&self, inputs: &[V]) -> Result<V, DiffusionError> {
        inputs[0].silu()
    }
}

struct Gelu;
impl Operation for Gelu {
    fn run<V: Activation>(&self, inputs: &[V]) -> Result<V, DiffusionError> {
        inputs[0].gelu()
    }
}

struct Sum;
impl Operation for Sum {
    fn run<V: Activation>(&self, inputs: &[V]) -> Result<V, DiffusionError> {
        let constant = Tensor::ones([1], (Kind::Double, Device::Cpu));
        inputs[0].add(&inputs[1])?.add_constant(&constant)
    }
}

struct AddGated;
impl Operation for AddGated {
    fn run<V: Activation>(&self, inputs: &[V]) -> Result<V, DiffusionError> {
        inputs[0].add_gated(&inputs[1], &inputs[2])
    }
}

struct NormModulate(i64);
impl Operation for NormModulate {
    fn run<V: Activation>(&self, inputs: &[V]) -> Result<V, DiffusionError> {
        inputs[0].norm_modulate(self.0, &inputs[1], &inputs[2])
    }
}

struct ScaledDotProduct;
impl Operation for ScaledDotProduct {
    fn run<V: Activation>(&self, inputs: &[V]) -> Result<V, DiffusionError> {
        V::attention(&inputs[0], &inputs[1], &inputs[2])
    }
}

struct Rearranged;
impl Operation for Rearranged {
    fn run<V: Activation>(&self, inputs: &[V]) -> Result<V, DiffusionError> {
        let parts = inputs[0].map(|x| x.f_transpose(0, 1))?.unbind(0)?;
        parts[0].add(&parts[parts.len() - 1])
    }
}

impl Operation for Attention {
    fn run<V: Activation>(&self, inputs: &[V]) -> Result<V, DiffusionError> {
        self.forward(&inputs[0])
    }
}

impl Operation for Mlp {
    fn run<V: Activation>(&self, inputs: &[V]) -> Result<V, DiffusionError> {
        self.forward(&inputs[0])
    }
}

impl Operation for TimestepEmbedder {
    fn run<V: Activation>(&self, inputs: &[V]) -> Result<V, DiffusionError> {
        self.forward(&inputs[0])
    }
}

/// Sinusoids of an even and of an odd width.
struct Sinusoids(i64);
impl Operation for Sinusoids {
    fn run<V: Activation>(&self, inputs: &[V]) -> Result<V, DiffusionError> {
        let frequencies = Tensor::arange(self.0 / 2, (Kind::Double, Device::Cpu)) + 0.5;
        inputs[0].sinusoids(&frequencies, self.0)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn tangents_of_operations_on_tokens_are_central_differences(
        batch in 1i64..4, count in 1i64..6, width in 2i64..9, seed in 0u64..1000,
    ) {
        let x: &[i64] = &[batch, count, width];
        let c: &[i64] = &[batch, 1, width];
        check_tangent(&Linear(3), &[x], seed)?;
        check_tangent(&Silu, &[x], seed)?;
        check_in_both_forms(&Gelu, &[x], seed)?;
        check_in_both_forms(&AddGated, &[x, c, x], seed)?;
        let mlp = layer(|params| Mlp::new(&params.root(), width, 2 * width));
        check_in_both_forms(&mlp, &[x], seed)?;
        check_tangent(&Sum, &[x, x], seed)?;
        check_tangent(&Rearranged, &[x], seed)?;
    }

    #[test]
    fn tangents_of_layer_norms_are_central_differences(
        batch in 1i64..4, count in 1i64..6, width in 4i64..17, seed in 0u64..1000,
    ) {
        let (x, c): (&[i64], &[i64]) = (&[batch, count, width], &[batch, 1, width]);
        for affine in [false, true] {
            check_tangent(&LayerNorm { affine }, &[x], seed)?;
        }
        check_in_both_forms(&NormModulate(width), &[x, c, c], seed)?;
    }

    #[test]
    fn tangents_of_attention_are_central_differences(
        batch in 1i64..4, heads in 1i64..4, count in 1i64..8, half in 2i64..4, seed in 0u64..1000,
    ) {
        let size: &[i64] = &[batch, heads, count, 2 * half];
        check_in_both_forms(&ScaledDotProduct, &[size; 3], seed)?;
        let width = 2 * half * heads;
        for qk_norm in [false, true] {
            let attention = layer(|params| Attention::new(&params.root(), width, heads, qk_norm));
            check_in_both_forms(&attention, &[&[batch, count, width]], seed)?;
        }
    }

    #[test]
    fn tangents_of_time_embeddings_are_central_differences(
        batch in 1i64..5, width in 2i64..9, seed in 0u64..1000,
    ) {
        check_tangent(&Sinusoids(width), &[&[batch]], seed)?;
        check_tangent(&layer(|params| TimestepEmbedder::new(&params.root(), width)), &[&[batch]], seed)?;
    }
}

#[test]
fn a_failed_tangent_stays_an_error() {
    let float = (Kind::Double, Device::Cpu);
    let x = Tensor::ones([2, 3], float).set_requires_grad(true);
    let wrong = Tensor::ones([2, 4], float);
    let dual = Dual::input(x, &wrong).unwrap();
    let weight = Tensor::ones([5, 3], float);
    let dual = dual.linear(&weight, &Tensor::ones([5], float)).unwrap();
    assert!(dual.tangent.compute().is_err());
    let error = dual.tangent.compute().unwrap_err().to_string();
    assert!(error.contains("after its computation failed"), "{error}");
}
