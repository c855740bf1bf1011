use tch::{Device, Kind, Tensor};
use torch_ext::autograd::{self, check_gradients};
use torch_ext::{Generator, TorchError, device};

use super::cuda::Modulation;
use super::{FusedGate, FusedNormModulate, Passes, gate, norm_modulate};
use crate::DiffusionError;
use crate::dual::Activation;

pub(super) fn random(seed: u64, size: [i64; 3], kind: Kind) -> Tensor {
    let mut generator = Generator::new(Device::Cpu, seed).unwrap();
    let tensor = generator.randn(&size, Kind::Float).unwrap().to_kind(kind);
    tensor.set_requires_grad(true)
}

fn torch(error: DiffusionError) -> TorchError {
    TorchError::Libtorch(error.to_string())
}

/// Value and gradients, in float32.
pub(super) fn run(inputs: &[Tensor], function: impl Fn(&[Tensor]) -> Tensor) -> Vec<Tensor> {
    let inputs: Vec<Tensor> = inputs
        .iter()
        .map(|input| input.detach().copy().set_requires_grad(true))
        .collect();
    let output = function(&inputs).to_kind(Kind::Float);
    let weights = random(9, output.size().try_into().unwrap(), Kind::Float).detach();
    let weights = weights.to_device(output.device());
    (&output * weights).sum(Kind::Float).f_backward().unwrap();
    let gradients = inputs.iter().map(|input| {
        assert_eq!(input.grad().kind(), input.kind());
        input.grad().to_kind(Kind::Float)
    });
    [output].into_iter().chain(gradients).collect()
}

pub(super) fn assert_close(left: &[Tensor], right: &[Tensor], limit: f64) {
    for (index, (left, right)) in left.iter().zip(right).enumerate() {
        let scale = right.abs().max().double_value(&[]).max(1.0);
        let error = (left - right).abs().max().double_value(&[]);
        assert!(error <= limit * scale, "tensor {index}: {error} of {scale}");
    }
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let (x, y) = (
        random(1, [2, 3, 17], Kind::Double),
        random(2, [2, 3, 17], Kind::Double),
    );
    let (a, b) = (
        random(3, [2, 1, 17], Kind::Double),
        random(4, [2, 1, 17], Kind::Double),
    );
    let inputs = [x.shallow_clone(), a.shallow_clone(), b];
    let function = |i: &[Tensor]| {
        let fused = norm_modulate(&i[0], &i[1], &i[2], 1e-6).map_err(torch)?;
        Ok(vec![fused.unwrap()])
    };
    check_gradients(function, &inputs, 1e-6, 1e-6).unwrap();
    let function = |i: &[Tensor]| Ok(vec![gate(&i[0], &i[1], &i[2]).map_err(torch)?.unwrap()]);
    check_gradients(function, &[x, a, y], 1e-6, 1e-6).unwrap();
}

#[test]
fn they_equal_the_composition() {
    for size @ [batch, _, width] in [[1, 1, 1], [2, 65, 24], [3, 200, 48], [2, 64, 33]] {
        for (kind, limit) in [(Kind::Float, 3e-6), (Kind::BFloat16, 8e-3)] {
            let [a, b] = [3, 4].map(|seed| random(seed, [batch, 1, width], kind));
            let x = random(1, size, Kind::Float);
            let inputs = [x.shallow_clone(), a.shallow_clone(), b];
            let fused = run(&inputs, |i| {
                let y = norm_modulate(&i[0], &i[1], &i[2], 1e-6).unwrap().unwrap();
                assert_eq!(y.kind(), kind);
                y
            });
            let plain = run(&inputs, |i| {
                i[0].layer_norm([width], None::<&Tensor>, None::<&Tensor>, 1e-6, true)
                    .modulate(&i[1], &i[2])
                    .unwrap()
            });
            assert_close(&fused, &plain, limit);
            let inputs = [x, a, random(2, size, kind)];
            let fused = run(&inputs, |i| gate(&i[0], &i[1], &i[2]).unwrap().unwrap());
            let plain = run(&inputs, |i| i[0].add_product(&i[1], &i[2]).unwrap());
            assert_close(&fused, &plain, limit);
        }
    }
}

#[test]
fn slices_of_a_modulation_are_taken_as_they_are() {
    let parts = random(1, [4, 3, 20], Kind::Float);
    let (shift, scale) = (parts.narrow(1, 0, 1), parts.narrow(1, 2, 1));
    let x = random(2, [4, 20, 6], Kind::Float).transpose(1, 2);
    let fused = norm_modulate(&x, &shift, &scale, 1e-6).unwrap().unwrap();
    let plain = x
        .layer_norm([20], None::<&Tensor>, None::<&Tensor>, 1e-6, true)
        .modulate(&shift, &scale)
        .unwrap();
    assert_close(&[fused], &[plain], 3e-6);
}

#[test]
fn the_bits_do_not_depend_on_the_number_of_threads() {
    let before = tch::get_num_threads();
    let inputs = [
        random(1, [3, 150, 40], Kind::Float),
        random(2, [3, 1, 40], Kind::Float),
        random(3, [3, 1, 40], Kind::Float),
    ];
    let results = [1, 2, 5].map(|threads| {
        tch::set_num_threads(threads);
        run(&inputs, |i| {
            norm_modulate(&i[0], &i[1], &i[2], 1e-6).unwrap().unwrap()
        })
    });
    tch::set_num_threads(before);
    assert_eq!(results[0], results[1]);
    assert_eq!(results[0], results[2]);
}

#[test]
fn what_has_no_fused_form_is_left_to_the_composition() {
    let (x, a) = (
        random(1, [2, 3, 8], Kind::Float),
        random(2, [2, 1, 8], Kind::Float),
    );
    let half = a.to_kind(Kind::Half);
    assert!(norm_modulate(&x, &half, &half, 1e-6).unwrap().is_none());
    assert!(
        norm_modulate(&x, &a, &a.to_kind(Kind::BFloat16), 1e-6)
            .unwrap()
            .is_none()
    );
    assert!(norm_modulate(&x, &x, &x, 1e-6).unwrap().is_none());
    assert!(gate(&x, &a, &x.to_kind(Kind::BFloat16)).unwrap().is_none());
}

/// Widths of one and of several warps, of whole vectors and single numbers; parts of an image that are
/// not full.
const CUDA_SIZES: [[i64; 3]; 5] = [
    [1, 1, 1],
    [2, 65, 24],
    [3, 20, 384],
    [2, 9, 1150],
    [2, 7, 33],
];

/// Fused by `norm` and `gated`, against the composition; where they return the tensors is all the same.
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
    let inputs = [x.shallow_clone(), a.shallow_clone(), b];
    let plain = run(&inputs, |i| {
        i[0].layer_norm([width], None::<&Tensor>, None::<&Tensor>, 1e-6, true)
            .modulate(&i[1], &i[2])
            .unwrap()
    });
    let fused = run(&inputs, &norm);
    assert_close(&fused, &plain, limit);
    assert_eq!(run(&inputs, &norm), fused, "the same bits again");
    let inputs = [x, a, random(2, size, kind).to_device(on)];
    let plain = run(&inputs, |i| i[0].add_product(&i[1], &i[2]).unwrap());
    let fused = run(&inputs, &gated);
    assert_close(&fused, &plain, limit);
    assert_eq!(run(&inputs, &gated), fused, "the same bits again");
}

#[test]
fn emulated_cuda_kernels_equal_the_composition() {
    for size in CUDA_SIZES {
        for kind in [Kind::Float, Kind::BFloat16] {
            let passes = || Passes::Cuda(Modulation::emulated(kind, size[2]).unwrap());
            let apply_norm = |i: &[Tensor]| {
                let function = FusedNormModulate {
                    eps: 1e-6,
                    passes: passes(),
                };
                let y = autograd::apply(function, &[&i[0], &i[1], &i[2]]);
                let y = y.unwrap().remove(0);
                assert_eq!(y.kind(), kind);
                y
            };
            let apply_gate = |i: &[Tensor]| {
                let function = FusedGate { passes: passes() };
                let y = autograd::apply(function, &[&i[0], &i[1], &i[2]]);
                y.unwrap().remove(0)
            };
            assert_cuda_agrees(size, kind, apply_norm, apply_gate, Device::Cpu);
        }
    }
    // Slices of a modulation, and tokens and gradients that are not contiguous.
    let parts = random(1, [4, 3, 24], Kind::Float);
    let x = random(2, [4, 24, 6], Kind::Float).transpose(1, 2);
    let inputs = [x, parts.narrow(1, 0, 1), parts.narrow(1, 2, 1)];
    let on_leaves = |function: &dyn Fn(&[Tensor]) -> Tensor| {
        let leaves = [0, 1, 2].map(|index| inputs[index].detach().set_requires_grad(true));
        let y = function(&leaves).transpose(1, 2);
        let weights = random(9, [4, 24, 6], Kind::Float).detach();
        (y * weights).sum(Kind::Float).f_backward().unwrap();
        leaves.map(|leaf| leaf.grad())
    };
    let fused = on_leaves(&|i| {
        let function = FusedNormModulate {
            eps: 1e-6,
            passes: Passes::Cuda(Modulation::emulated(Kind::Float, 24).unwrap()),
        };
        let y = autograd::apply(function, &[&i[0], &i[1], &i[2]]);
        y.unwrap().remove(0)
    });
    let plain = on_leaves(&|i| {
        i[0].layer_norm([24], None::<&Tensor>, None::<&Tensor>, 1e-6, true)
            .modulate(&i[1], &i[2])
            .unwrap()
    });
    assert_close(&fused, &plain, 3e-6);
    assert!(Modulation::emulated(Kind::Double, 384).is_none());
    assert!(Modulation::emulated(Kind::Float, 6000).is_none());
}

#[test]
fn a_cuda_device_computes_what_the_composition_does() {
    if let Err(error) = device::load_cuda() {
        eprintln!("modulation did not run on a GPU: {error}");
        return;
    }
    let fused = "a fused form on CUDA";
    for size in CUDA_SIZES
        .into_iter()
        .chain([[64, 256, 768], [8, 256, 1152]])
    {
        for kind in [Kind::Float, Kind::BFloat16] {
            assert_cuda_agrees(
                size,
                kind,
                |i| {
                    norm_modulate(&i[0], &i[1], &i[2], 1e-6)
                        .unwrap()
                        .expect(fused)
                },
                |i| gate(&i[0], &i[1], &i[2]).unwrap().expect(fused),
                Device::Cuda(0),
            );
        }
    }
    // Slices of a modulation, and tokens that are not contiguous.
    let on = Device::Cuda(0);
    let parts = random(1, [4, 3, 20], Kind::Float).to_device(on);
    let (shift, scale) = (parts.narrow(1, 0, 1), parts.narrow(1, 2, 1));
    let x = random(2, [4, 20, 6], Kind::Float)
        .to_device(on)
        .transpose(1, 2);
    let y = norm_modulate(&x, &shift, &scale, 1e-6)
        .unwrap()
        .expect(fused);
    let plain = x
        .layer_norm([20], None::<&Tensor>, None::<&Tensor>, 1e-6, true)
        .modulate(&shift, &scale)
        .unwrap();
    assert_close(&[y], &[plain], 3e-6);
}
