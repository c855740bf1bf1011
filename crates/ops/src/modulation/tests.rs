use tch::{Device, Kind, Tensor};
use torch_ext::autograd::{self, check_gradients};
use torch_ext::{cuda, device, operators};

use super::cuda::Modulation;
use super::gated_residual::{self, FusedGate};
use super::norm_modulate::{self, FusedNormModulate, Norm};
use crate::test_support::{assert_close, random, run};

/// Weights of an RMS norm.
fn weights(width: i64, kind: Kind) -> Tensor {
    let weights = random(5, [1, 1, width], kind) * 0.3 + 1.0;
    weights.view(width).detach().set_requires_grad(true)
}

/// The composed form for tokens, shift and scale, and optionally the weights of an RMS norm.
fn composed(i: &[Tensor]) -> Tensor {
    let norm = i.get(3).map_or(Norm::Layer, Norm::Rms);
    norm_modulate::compose(&i[0], norm, &i[1], &i[2], 1e-6).unwrap()
}

/// The fused form for the same inputs.
fn fused(i: &[Tensor]) -> Tensor {
    let norm = i.get(3).map_or(Norm::Layer, Norm::Rms);
    let y = norm_modulate::kernel(&i[0], norm, &i[1], &i[2], 1e-6).unwrap();
    let y = y.expect("a kernel");
    assert_eq!(y.kind(), i[1].kind());
    y
}

/// The inputs without and with the weights of an RMS norm.
fn both_norms(inputs: [Tensor; 3]) -> [Vec<Tensor>; 2] {
    let layer = Vec::from(inputs);
    let mut rms: Vec<Tensor> = layer.iter().map(Tensor::shallow_clone).collect();
    rms.push(weights(layer[0].size()[2], layer[0].kind()).to_device(layer[0].device()));
    [layer, rms]
}

#[test]
fn gradients_agree_with_finite_differences() {
    let (x, y) = (
        random(1, [2, 3, 17], Kind::Double),
        random(2, [2, 3, 17], Kind::Double),
    );
    let (a, b) = (
        random(3, [2, 1, 17], Kind::Double),
        random(4, [2, 1, 17], Kind::Double),
    );
    for inputs in both_norms([x.shallow_clone(), a.shallow_clone(), b]) {
        check_gradients(|i: &[Tensor]| Ok(vec![fused(i)]), &inputs, 1e-6, 1e-6).unwrap();
    }
    let function = |i: &[Tensor]| Ok(vec![gated_residual::kernel(&i[0], &i[1], &i[2])?.unwrap()]);
    check_gradients(function, &[x, a, y], 1e-6, 1e-6).unwrap();
}

#[test]
fn kernels_and_compositions_agree() {
    for size @ [batch, _, width] in [[1, 1, 1], [2, 65, 24], [3, 200, 48], [2, 64, 33]] {
        for (kind, limit) in [(Kind::Float, 3e-6), (Kind::BFloat16, 8e-3)] {
            let [a, b] = [3, 4].map(|seed| random(seed, [batch, 1, width], kind));
            let x = random(1, size, Kind::Float);
            for inputs in both_norms([x.shallow_clone(), a.shallow_clone(), b]) {
                assert_close(&run(&inputs, fused), &run(&inputs, composed), limit);
            }
            let inputs = [x, a, random(2, size, kind)];
            let fused = run(&inputs, |i| {
                gated_residual::kernel(&i[0], &i[1], &i[2])
                    .unwrap()
                    .unwrap()
            });
            let plain = run(&inputs, |i| {
                gated_residual::compose(&i[0], &i[1], &i[2]).unwrap()
            });
            assert_close(&fused, &plain, limit);
        }
    }
}

/// Applies `function` to slices of a modulation and to non-contiguous tokens; returns the result in the layout of the
/// tokens.
fn slices(on: Device, function: impl Fn(&[Tensor]) -> Tensor) -> Vec<Tensor> {
    let inputs = [
        random(2, [4, 24, 6], Kind::Float).to_device(on),
        random(1, [4, 3, 24], Kind::Float).to_device(on),
        weights(24, Kind::Float).to_device(on),
    ];
    run(&inputs, |i| {
        let (shift, scale) = (i[1].narrow(1, 0, 1), i[1].narrow(1, 2, 1));
        let inputs = [i[0].transpose(1, 2), shift, scale, i[2].shallow_clone()];
        function(&inputs).transpose(1, 2)
    })
}

#[test]
fn slices_and_non_contiguous_tokens_are_supported() {
    let (found, plain) = (slices(Device::Cpu, fused), slices(Device::Cpu, composed));
    assert_close(&found, &plain, 3e-6);
}

/// Applies both operations to slices of one modulation `[B, 3 D]`.
fn modulate(
    x: &Tensor,
    modulation: &Tensor,
    norm: impl Fn(&[Tensor]) -> Tensor,
    gated: impl Fn(&[Tensor]) -> Tensor,
) -> Tensor {
    let (batch, _, width) = x.size3().unwrap();
    let parts = modulation.view([batch, 3, 1, width]).unbind(1);
    let [shift, scale, gate] = [0, 1, 2].map(|index| parts[index].shallow_clone());
    let y = norm(&[x.shallow_clone(), shift, scale]);
    gated(&[x.shallow_clone(), gate, y])
}

/// Asserts that the forms read slices of a modulation in place in both passes, and keep no copy for the backward pass.
fn assert_no_copy(
    kind: Kind,
    norm: impl Fn(&[Tensor]) -> Tensor,
    gated: impl Fn(&[Tensor]) -> Tensor,
) {
    let x = random(1, [4, 7, 24], Kind::Float);
    let modulation = random(2, [4, 1, 72], kind);
    let weights = random(3, [4, 7, 24], Kind::Float).detach();
    let count = |counts: &operators::Counts, name: &str| counts.get(name).copied().unwrap_or(0);
    let (z, forward) =
        operators::count(|| modulate(&x, &modulation.view([4, 72]), &norm, &gated)).unwrap();
    let loss = (&z * weights).sum(Kind::Float);
    let ((), backward) = operators::count(|| loss.backward()).unwrap();
    assert_eq!(count(&forward, "aten::copy_"), 0, "{forward:?}");
    // The backward pass only converts the three gradients to the dtype of the modulation.
    let converted = if kind == Kind::Float { 0 } else { 3 };
    assert_eq!(count(&backward, "aten::copy_"), converted, "{backward:?}");

    let contiguous = |i: &[Tensor]| -> Vec<Tensor> { i.iter().map(Tensor::contiguous).collect() };
    let inputs = [x.shallow_clone(), modulation.shallow_clone()];
    let copied = run(&inputs, |i| {
        let norm = |i: &[Tensor]| norm(&contiguous(i));
        modulate(&i[0], &i[1].view([4, 72]), norm, |i: &[Tensor]| {
            gated(&contiguous(i))
        })
    });
    let sliced = run(&inputs, |i| {
        modulate(&i[0], &i[1].view([4, 72]), &norm, &gated)
    });
    assert_eq!(sliced, copied, "the same bits");
    assert_eq!(copied[0], z.detach());

    // What is kept for the backward pass is the slice itself: libtorch notices that its memory has changed.
    let parts = modulation.view([4, 3, 1, 24]).unbind(1);
    let [shift, scale, gate] = [0, 1, 2].map(|index| parts[index].shallow_clone());
    let y = norm(&[x.shallow_clone(), shift, scale]);
    let z = gated(&[x.shallow_clone(), gate, y.detach()]);
    let _changed = tch::no_grad(|| modulation.detach().fill_(0.0));
    for result in [y, z] {
        let error = result
            .sum(Kind::Float)
            .f_backward()
            .unwrap_err()
            .to_string();
        assert!(error.contains("modified inplace"), "{error}");
    }
}

#[test]
fn slices_of_a_modulation_are_not_copied() {
    let gated = |i: &[Tensor]| {
        gated_residual::kernel(&i[0], &i[1], &i[2])
            .unwrap()
            .unwrap()
    };
    for kind in [Kind::Float, Kind::BFloat16] {
        assert_no_copy(kind, fused, gated);
    }
}

#[test]
fn the_bits_do_not_depend_on_the_number_of_threads() {
    let before = tch::get_num_threads();
    let inputs = [
        random(1, [3, 150, 40], Kind::Float),
        random(2, [3, 1, 40], Kind::Float),
        random(3, [3, 1, 40], Kind::Float),
    ];
    for inputs in both_norms(inputs) {
        let results = [1, 2, 5].map(|threads| {
            tch::set_num_threads(threads);
            run(&inputs, fused)
        });
        tch::set_num_threads(before);
        assert_eq!(results[0], results[1]);
        assert_eq!(results[0], results[2]);
    }
}

#[test]
fn unsupported_inputs_have_no_kernel() {
    let (x, a) = (
        random(1, [2, 3, 8], Kind::Float),
        random(2, [2, 1, 8], Kind::Float),
    );
    let form = |norm, shift: &Tensor, scale: &Tensor| {
        norm_modulate::kernel(&x, norm, shift, scale, 1e-6).unwrap()
    };
    let half = a.to_kind(Kind::Half);
    assert!(form(Norm::Layer, &half, &half).is_none());
    assert!(form(Norm::Layer, &a, &a.to_kind(Kind::BFloat16)).is_none());
    assert!(form(Norm::Layer, &x, &x).is_none());
    for (width, kind, has_one) in [
        (8, Kind::Float, true),
        (7, Kind::Float, false),
        (8, Kind::BFloat16, false),
    ] {
        let y = norm_modulate::kernel(&x, Norm::Rms(&weights(width, kind)), &a, &a, 1e-6);
        assert_eq!(y.unwrap().is_some(), has_one);
    }
    assert!(
        gated_residual::kernel(&x, &a, &x.to_kind(Kind::BFloat16))
            .unwrap()
            .is_none()
    );
}

/// Sizes with one or several warps per token, with vectors or single numbers, and with incomplete parts of an image.
const CUDA_SIZES: [[i64; 3]; 5] = [
    [1, 1, 1],
    [2, 65, 24],
    [3, 20, 384],
    [2, 9, 1150],
    [2, 7, 33],
];

/// Compares the fused forms `norm` and `gated` with the composed forms, and checks that they are reproducible.
fn assert_cuda_agrees(
    size: [i64; 3],
    kind: Kind,
    norm: impl Fn(&[Tensor]) -> Tensor,
    gated: impl Fn(&[Tensor]) -> Tensor,
    on: Device,
) {
    let limit = match kind {
        Kind::BFloat16 => 8e-3,
        _ => 3e-6,
    };
    let [batch, _, width] = size;
    let [a, b] = [3, 4].map(|seed| random(seed, [batch, 1, width], kind).to_device(on));
    let x = random(1, size, Kind::Float).to_device(on);
    for inputs in both_norms([x.shallow_clone(), a.shallow_clone(), b]) {
        let found = run(&inputs, &norm);
        assert_close(&found, &run(&inputs, composed), limit);
        assert_eq!(run(&inputs, &norm), found, "the same bits again");
    }
    let inputs = [x, a, random(2, size, kind).to_device(on)];
    let plain = run(&inputs, |i| {
        gated_residual::compose(&i[0], &i[1], &i[2]).unwrap()
    });
    let found = run(&inputs, &gated);
    assert_close(&found, &plain, limit);
    assert_eq!(run(&inputs, &gated), found, "the same bits again");
}

#[test]
fn emulated_cuda_kernels_agree_with_the_composed_form() {
    let kernels = |kind, width| Modulation::emulated(kind, width).unwrap();
    let apply = |i: &[Tensor]| {
        let function = FusedNormModulate {
            weighted: i.len() == 4,
            eps: 1e-6,
            passes: norm_modulate::Passes::Cuda(kernels(i[1].kind(), i[0].size()[2])),
        };
        let inputs: Vec<&Tensor> = i.iter().collect();
        let y = autograd::apply(function, &inputs).unwrap().remove(0);
        assert_eq!(y.kind(), i[1].kind());
        y
    };
    for size in CUDA_SIZES {
        for kind in [Kind::Float, Kind::BFloat16] {
            let apply_gate = |i: &[Tensor]| {
                let function = FusedGate {
                    passes: gated_residual::Passes::Cuda(kernels(kind, size[2])),
                };
                let y = autograd::apply(function, &[&i[0], &i[1], &i[2]]);
                y.unwrap().remove(0)
            };
            assert_cuda_agrees(size, kind, apply, apply_gate, Device::Cpu);
        }
    }
    let (found, plain) = (slices(Device::Cpu, apply), slices(Device::Cpu, composed));
    assert_close(&found, &plain, 3e-6);
    for kind in [Kind::Float, Kind::BFloat16] {
        let apply_gate = |i: &[Tensor]| {
            let function = FusedGate {
                passes: gated_residual::Passes::Cuda(kernels(kind, 24)),
            };
            let y = autograd::apply(function, &[&i[0], &i[1], &i[2]]);
            y.unwrap().remove(0)
        };
        assert_no_copy(kind, apply, apply_gate);
        // Rows that vectors cannot be read from are copied first.
        let inputs = [
            random(1, [4, 7, 24], Kind::Float),
            random(2, [4, 1, 49], kind),
        ];
        let modulated = |layout: fn(&Tensor) -> Tensor| {
            run(&inputs, |i| {
                let [shift, scale] = [1, 25].map(|start| layout(&i[1].narrow(2, start, 24)));
                apply(&[i[0].shallow_clone(), shift, scale])
            })
        };
        let unaligned = modulated(Tensor::shallow_clone);
        assert_eq!(unaligned, modulated(Tensor::contiguous));
    }
    let before = cuda::resolutions();
    assert_eq!(slices(Device::Cpu, apply), found);
    assert_eq!(
        cuda::resolutions(),
        before,
        "a repeated launch looks nothing up"
    );
    assert!(Modulation::emulated(Kind::Double, 384).is_none());
    assert!(Modulation::emulated(Kind::Float, 6000).is_none());
}

mod needs_cuda {
    use super::*;

    #[test]
    #[ignore = "needs a CUDA device: `cargo xtask test --cuda`"]
    fn kernels_on_a_cuda_device_agree_with_the_composed_form() {
        device::load_cuda().unwrap();
        let on = Device::Cuda(0);
        let gated = |i: &[Tensor]| {
            gated_residual::kernel(&i[0], &i[1], &i[2])
                .unwrap()
                .expect("a kernel")
        };
        for size in CUDA_SIZES
            .into_iter()
            .chain([[64, 256, 768], [8, 256, 1152]])
        {
            for kind in [Kind::Float, Kind::BFloat16] {
                assert_cuda_agrees(size, kind, fused, gated, on);
            }
        }
        assert_close(&slices(on, fused), &slices(on, composed), 3e-6);
    }
}
