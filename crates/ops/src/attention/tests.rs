use tch::{Device, Kind, Tensor};
use torch_ext::autograd::check_gradients;
use torch_ext::{TorchError, operators};

use super::{attention_kernel, compose, self_attention, self_attention_kernel};
use crate::test_support::{assert_close, random, run};

fn fused(qkv: &Tensor, heads: i64) -> Tensor {
    self_attention_kernel(qkv, heads)
        .unwrap()
        .expect("a kernel")
}

fn split_heads(qkv: &Tensor, heads: i64) -> [Tensor; 3] {
    super::split_heads(qkv, heads).unwrap()
}

fn composed(qkv: &Tensor, heads: i64) -> Tensor {
    let [q, k, v] = split_heads(qkv, heads);
    compose(&q, &k, &v).unwrap()
}

#[test]
fn gradients_agree_with_finite_differences() {
    let qkv = random(1, [1, 34, 12], Kind::Double);
    let function = |inputs: &[Tensor]| Ok(vec![fused(&inputs[0], 2)]);
    check_gradients(function, &[qkv], 1e-6, 1e-6).unwrap();
}

#[test]
fn the_composition_joins_the_gradients_of_the_heads_once() {
    let qkv = random(1, [2, 5, 24], Kind::Float);
    let loss = composed(&qkv, 2).sum(Kind::Float);
    let ((), counts) = operators::count(|| loss.backward()).unwrap();
    assert_eq!(counts["aten::stack"], 1);
    for name in ["aten::select_backward", "aten::add"] {
        assert!(!counts.contains_key(name), "{name} in {counts:?}");
    }
}

#[test]
fn the_composition_has_the_bits_of_slices() {
    for kind in [Kind::Float, Kind::BFloat16] {
        let qkv = [random(1, [2, 5, 24], kind)];
        let sliced = run(&qkv, |i| {
            let heads = i[0].view([2, 5, 3, 2, 4]).permute([2, 0, 3, 1, 4]);
            let [q, k, v] = [0, 1, 2].map(|part| heads.select(0, part));
            compose(&q, &k, &v).unwrap()
        });
        assert_eq!(run(&qkv, |i| composed(&i[0], 2)), sliced);
    }
}

#[test]
fn kernel_and_composition_agree() {
    for (batch, count, heads, width) in [
        (1, 1, 1, 2),
        (2, 33, 3, 8),
        (1, 64, 2, 72),
        (2, 100, 1, 64),
        (3, 49, 2, 24),
    ] {
        let size = [batch, count, 3 * heads * width];
        for (kind, limit) in [(Kind::Float, 3e-6), (Kind::BFloat16, 8e-3)] {
            let qkv = random(1, size, kind);
            let what = [qkv];
            let fused = run(&what, |i| {
                let o = fused(&i[0], heads);
                assert_eq!(
                    (o.kind(), o.size()),
                    (kind, vec![batch, count, heads * width])
                );
                o
            });
            // The reference is in float32: a reference in bfloat16 would have rounding errors of its own.
            let exact = run(&[what[0].detach().to_kind(Kind::Float)], |i| {
                composed(&i[0], heads)
            });
            assert_close(&fused, &exact, limit);
        }
    }
}

#[test]
fn separate_heads_have_the_same_bits() {
    for kind in [Kind::Float, Kind::BFloat16] {
        let packed = [random(1, [2, 37, 72], kind)];
        let apart = split_heads(&packed[0].detach(), 3);
        let packed = run(&packed, |i| fused(&i[0], 3));
        let apart = run(&apart, |i| {
            let o = attention_kernel(&i[0], &i[1], &i[2]).unwrap();
            o.expect("a kernel")
        });
        assert_eq!(apart[0], packed[0]);
        let gradients = split_heads(&packed[1], 3);
        assert_eq!(apart[1..], gradients);
    }
    let [q, k] = [1, 2].map(|seed| random(seed, [2, 3, 8], Kind::Float).unsqueeze(0));
    assert!(
        attention_kernel(&q, &k, &q.to_kind(Kind::Double))
            .unwrap()
            .is_none()
    );
    assert!(
        attention_kernel(&q, &k.narrow(2, 0, 2), &q)
            .unwrap()
            .is_none()
    );
}

#[test]
fn large_scores_do_not_overflow() {
    let qkv = random(1, [1, 40, 48], Kind::Float) * 30.0;
    let qkv = [qkv.detach()];
    let fused = run(&qkv, |i| fused(&i[0], 2));
    let plain = run(&qkv, |i| composed(&i[0], 2));
    // The logarithms of sums are several thousand, with rounding errors of this size.
    assert_close(&fused, &plain, 1e-3);
}

#[test]
fn nan_stays_nan() {
    let qkv = random(1, [1, 40, 48], Kind::Float).detach();
    let _ = qkv.narrow(1, 7, 1).narrow(2, 16, 1).fill_(f64::NAN);
    let o = fused(&qkv, 2);
    // A key of the first head is NaN, which affects all queries of the first head and none of the second.
    assert_eq!(o.isnan().sum(Kind::Int64).int64_value(&[]), 40 * 8);
}

#[test]
fn the_bits_do_not_depend_on_threads_or_other_images() {
    let before = tch::get_num_threads();
    for kind in [Kind::Float, Kind::BFloat16] {
        let qkv = [random(1, [3, 50, 72], kind)];
        let results = [1, 2, 5].map(|threads| {
            tch::set_num_threads(threads);
            run(&qkv, |i| fused(&i[0], 3))
        });
        tch::set_num_threads(before);
        assert_eq!(results[0], results[1]);
        assert_eq!(results[0], results[2]);
        let alone = fused(&qkv[0].detach().narrow(0, 1, 1), 3);
        assert_eq!(alone.to_kind(Kind::Float), results[0][0].narrow(0, 1, 1));
    }
}

#[test]
fn nothing_is_recorded_without_gradients() {
    let qkv = random(1, [2, 20, 24], Kind::Float);
    let recorded = fused(&qkv, 2);
    let plain = tch::no_grad(|| fused(&qkv, 2));
    assert!(recorded.requires_grad() && !plain.requires_grad());
    assert_eq!(recorded, plain);
}

#[test]
fn unsupported_inputs_have_no_kernel() {
    let none = |qkv: &Tensor, heads| assert!(self_attention_kernel(qkv, heads).unwrap().is_none());
    let qkv = random(1, [2, 4, 18], Kind::Float);
    none(&qkv.to_kind(Kind::Half), 2);
    none(&qkv.to_kind(Kind::BFloat16), 2);
    none(&qkv, 4);
    none(&qkv.flatten(0, 1), 2);
    none(&Tensor::zeros([0, 4, 18], (Kind::Float, Device::Cpu)), 2);
}

#[test]
fn a_width_that_the_heads_do_not_divide_is_refused() {
    let qkv = random(1, [2, 4, 18], Kind::Float);
    for (qkv, heads) in [(&qkv, 4), (&qkv, 0), (&qkv.flatten(0, 1), 2)] {
        let error = self_attention(qkv, heads);
        assert!(matches!(error, Err(TorchError::Shape { .. })), "{error:?}");
    }
}
