//! Comparison of each operation on dual numbers with the plain operation, in float64: the same value, and the central
//! difference of the value as tangent.

use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;
use tch::{Device, Kind, Tensor};
use torch_ext::{Generator, Init, Params};

use super::dual::Dual;
use super::layers;
use crate::DiffusionError;
use crate::nn::{
    AffineLayerNorm, Attention, LayerNorm, Linear, Mlp, Norm, TimestepEmbedder, gated_residual,
    sinusoids,
};

type Outcome<T> = Result<T, DiffusionError>;

fn normal(size: &[i64], generator: &mut Generator) -> Tensor {
    generator.randn(size, Kind::Double).unwrap()
}

/// Checks that `dual` at random inputs of these sizes has the value of `plain` and its central difference as tangent,
/// with and without a gradient.
fn check_tangent(
    plain: impl Fn(&[Tensor]) -> Outcome<Tensor>,
    dual: impl Fn(&[Dual]) -> Outcome<Dual>,
    sizes: &[&[i64]],
    seed: u64,
) -> TestCaseResult {
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
        tch::no_grad(|| plain(&moved).unwrap())
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
        let result = dual(&duals).unwrap();
        let tangent = result.tangent.compute().unwrap();
        prop_assert!(!tangent.requires_grad());
        prop_assert_eq!(tangent.size(), result.value.size());
        prop_assert_eq!(tangent.kind(), Kind::Double);
        let error = (&tangent - &difference).abs().max().double_value(&[]);
        prop_assert!(error <= allowed, "{error:e} > {allowed:e}");
        let value = tch::no_grad(|| plain(&inputs).unwrap());
        prop_assert_eq!(result.value.detach(), value);
    }
    Ok(())
}

/// [`check_tangent`] with kernels and with compositions.
fn check_in_both_forms(
    plain: impl Fn(&[Tensor]) -> Outcome<Tensor>,
    dual: impl Fn(&[Dual]) -> Outcome<Dual>,
    sizes: &[&[i64]],
    seed: u64,
) -> TestCaseResult {
    check_tangent(&plain, &dual, sizes, seed)?;
    ops::composed(|| check_tangent(&plain, &dual, sizes, seed))
}

/// A layer whose weights are all random and float64.
fn layer<T>(make: impl FnOnce(&Params) -> Outcome<T>) -> T {
    let params = Params::new(Device::Cpu, 0).unwrap();
    let layer = make(&params).unwrap();
    let mut generator = Generator::new(Device::Cpu, 1).unwrap();
    for mut weight in params.trainable() {
        let value = normal(&weight.size(), &mut generator) * 0.5;
        weight.set_data(&value);
    }
    layer
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn tangents_of_operations_on_tokens_are_central_differences(
        batch in 1i64..4, count in 1i64..6, width in 2i64..9, seed in 0u64..1000,
    ) {
        let x: &[i64] = &[batch, count, width];
        let c: &[i64] = &[batch, 1, width];
        let linear = layer(|params| Linear::new(&params.root(), width, 3, Init::Zeros));
        check_tangent(
            |x| linear.forward(&x[0]),
            |x| x[0].linear(&linear.weight, &linear.bias),
            &[x],
            seed,
        )?;
        check_tangent(|x| Ok(x[0].f_silu()?), |x| x[0].silu(), &[x], seed)?;
        check_in_both_forms(|x| Ok(ops::gelu(&x[0])?), |x| x[0].gelu(), &[x], seed)?;
        check_in_both_forms(
            |x| gated_residual(&x[0], &x[1], &x[2]),
            |x| x[0].gated_residual(&x[1], &x[2]),
            &[x, c, x],
            seed,
        )?;
        let mlp = layer(|params| Mlp::new(&params.root(), width, 2 * width));
        check_in_both_forms(|x| mlp.forward(&x[0]), |x| layers::mlp(&mlp, &x[0]), &[x], seed)?;
        let one = Tensor::ones([1], (Kind::Double, Device::Cpu));
        check_tangent(
            |x| Ok(x[0].f_add(&x[1])?.f_add(&one)?),
            |x| x[0].add(&x[1])?.add_constant(&one),
            &[x, x],
            seed,
        )?;
        let halves = move |x: &Tensor| Ok(x.f_repeat([1, 2, 1])?.f_view([batch, 2, count, width])?);
        check_tangent(
            |x| {
                let halves = halves(&x[0])?;
                Ok(halves.f_select(1, 0)?.f_add(&halves.f_select(1, 1)?)?)
            },
            |x| {
                let [first, second] = x[0].map(halves)?.unbind(1, "halves")?;
                first.add(&second)
            },
            &[x],
            seed,
        )?;
    }

    #[test]
    fn tangents_of_layer_norms_are_central_differences(
        batch in 1i64..4, count in 1i64..6, width in 4i64..17, seed in 0u64..1000,
    ) {
        let (x, c): (&[i64], &[i64]) = (&[batch, count, width], &[batch, 1, width]);
        let norm = layer(|params| AffineLayerNorm::new(&params.root(), width));
        check_tangent(|x| norm.forward(&x[0]), |x| x[0].layer_norm(&norm), &[x], seed)?;
        check_in_both_forms(
            |x| LayerNorm.modulated(&x[0], &x[1], &x[2]),
            |x| x[0].modulated(&x[1], &x[2]),
            &[x, c, c],
            seed,
        )?;
    }

    #[test]
    fn tangents_of_attention_are_central_differences(
        batch in 1i64..4, heads in 1i64..4, count in 1i64..8, half in 2i64..4, seed in 0u64..1000,
    ) {
        let size: &[i64] = &[batch, heads, count, 2 * half];
        check_in_both_forms(
            |x| Ok(ops::attention(&x[0], &x[1], &x[2])?),
            |x| Dual::attention([&x[0], &x[1], &x[2]].map(Dual::clone)),
            &[size; 3],
            seed,
        )?;
        let width = 2 * half * heads;
        for qk_norm in [false, true] {
            let attention = layer(|params| Attention::new(&params.root(), width, heads, qk_norm));
            check_in_both_forms(
                |x| attention.forward(&x[0]),
                |x| layers::attention(&attention, &x[0]),
                &[&[batch, count, width]],
                seed,
            )?;
        }
    }

    #[test]
    fn tangents_of_time_embeddings_are_central_differences(
        batch in 1i64..5, width in 2i64..9, seed in 0u64..1000,
    ) {
        let frequencies = Tensor::arange(width / 2, (Kind::Double, Device::Cpu)) + 0.5;
        check_tangent(
            |t| sinusoids(&t[0], &frequencies, width),
            |t| t[0].sinusoids(&frequencies, width),
            &[&[batch]],
            seed,
        )?;
        let embedder = layer(|params| TimestepEmbedder::new(&params.root(), width));
        check_tangent(
            |t| embedder.forward(&t[0]),
            |t| layers::embed_times(&embedder, &t[0]),
            &[&[batch]],
            seed,
        )?;
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
