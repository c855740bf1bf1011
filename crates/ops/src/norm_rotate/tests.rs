use tch::{Device, Kind, Tensor};
use torch_ext::TorchError;
use torch_ext::autograd::check_gradients;

use super::{Rotations, compose, kernel, norm_rotate};
use crate::test_support::{assert_close, random, run};

const EPS: f64 = 1e-6;

/// Queries, keys and values in one tensor, and the weights of queries and keys.
fn inputs(size: [i64; 2], heads: i64, head: i64, kind: Kind) -> [Tensor; 3] {
    let [batch, count] = size;
    let of_weights = match kind {
        Kind::Double => Kind::Double,
        _ => Kind::Float,
    };
    let weight = |seed| {
        let weight = random(seed, [1, 1, head], of_weights) * 0.3 + 1.0;
        weight.view(head).detach().set_requires_grad(true)
    };
    let qkv = random(1, [batch, count, 3 * heads * head], kind);
    [qkv, weight(2), weight(3)]
}

/// Rotations by random angles.
fn random_rotations(count: i64, head: i64) -> Rotations {
    let angles = random(4, [1, count, head / 2], Kind::Float).detach() * 3.0;
    let angles = angles.view([count, head / 2]);
    Rotations::new(&angles.cos(), &angles.sin(), Device::Cpu).unwrap()
}

fn fused(i: &[Tensor], rotations: &Rotations) -> Tensor {
    let y = kernel(&i[0], [&i[1], &i[2]], rotations, EPS).unwrap();
    y.expect("a kernel")
}

/// The composition in float32, as one tensor of queries, keys and values.
fn composed(i: &[Tensor], rotations: &Rotations) -> Tensor {
    let heads = i[0].size()[2] / (3 * i[1].size()[0]);
    let qkv = i[0].to_kind(Kind::Float);
    let heads = compose(&qkv, heads, [&i[1], &i[2]], rotations, EPS).unwrap();
    let joined = Tensor::stack(&heads, 0).permute([1, 3, 0, 2, 4]);
    joined.reshape(i[0].size())
}

#[test]
fn gradients_agree_with_finite_differences() {
    for (heads, head) in [(2, 4), (1, 20)] {
        let rotations = random_rotations(9, head);
        let inputs = inputs([2, 9], heads, head, Kind::Double);
        let function = |i: &[Tensor]| Ok::<_, TorchError>(vec![fused(i, &rotations)]);
        check_gradients(function, &inputs, 1e-6, 1e-6).unwrap();
    }
}

#[test]
fn kernel_and_composition_agree() {
    for (kind, limit) in [(Kind::Float, 4e-6), (Kind::BFloat16, 1.2e-2)] {
        for (batch, count, heads, head) in [
            (2, 81, 3, 64),
            (1, 69, 1, 32),
            (3, 1, 2, 4),
            (2, 19, 2, 36),
            (1, 5, 2, 6),
        ] {
            let rotations = random_rotations(count, head);
            let inputs = inputs([batch, count], heads, head, kind);
            let found = run(&inputs, |i| {
                let y = fused(i, &rotations);
                assert_eq!(y.kind(), kind);
                y
            });
            assert_close(&found, &run(&inputs, |i| composed(i, &rotations)), limit);
        }
    }
}

#[test]
fn the_bits_do_not_depend_on_the_number_of_threads() {
    let before = tch::get_num_threads();
    let rotations = random_rotations(83, 32);
    let inputs = inputs([3, 83], 2, 32, Kind::Float);
    let results = [1, 2, 5].map(|threads| {
        tch::set_num_threads(threads);
        run(&inputs, |i| fused(i, &rotations))
    });
    tch::set_num_threads(before);
    assert_eq!(results[0], results[1]);
    assert_eq!(results[0], results[2]);
}

#[test]
fn unsupported_inputs_have_no_kernel() {
    let rotations = random_rotations(4, 8);
    let [qkv, of_queries, of_keys] = inputs([1, 4], 2, 8, Kind::Float);
    let weights = [&of_queries, &of_keys];
    let form = |qkv: &Tensor, weights| kernel(qkv, weights, &rotations, EPS).unwrap();
    assert!(form(&qkv, weights).is_some());
    assert!(form(&qkv.to_kind(Kind::Half), weights).is_none());
    assert!(form(&qkv.narrow(1, 0, 3), weights).is_none());
    assert!(form(&qkv.narrow(2, 0, 40), weights).is_none());
    let narrow = of_keys.narrow(0, 0, 4);
    assert!(form(&qkv, [&of_queries, &narrow]).is_none());
    let halves = weights.map(|weight| weight.to_kind(Kind::BFloat16));
    assert!(form(&qkv, [&halves[0], &halves[1]]).is_none());
}

#[test]
fn attention_of_both_forms_agrees() {
    let rotations = random_rotations(19, 8);
    let [qkv, of_queries, of_keys] = inputs([2, 19], 3, 8, Kind::Float);
    let rotated = || norm_rotate(&qkv, 3, [&of_queries, &of_keys], &rotations, EPS).unwrap();
    let (packed, separate) = (rotated(), crate::composed(rotated));
    let [left, right] = [&packed, &separate].map(|heads| heads.attention().unwrap());
    assert_close(&[left.detach()], &[right.detach()], 4e-6);
    let [left, right] = [packed, separate].map(|heads| heads.split().unwrap());
    for (left, right) in left.iter().zip(&right) {
        assert_close(&[left.detach()], &[right.detach()], 4e-6);
    }
}
