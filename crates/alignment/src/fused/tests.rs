//! The CUDA kernels against the composition and the CPU's: emulated on the host, and on a CUDA device
//! where there is one.

use tch::{Device, Kind, Tensor};
use torch_ext::{Generator, autograd, device};

use super::cuda::{Cosine, Shape};
use super::kernel::ZScore;
use super::{Form, FusedCosine, cosine};
use crate::{AlignmentLoss, LossConfig, LossKind, SpatialNorm};

fn random(seed: u64, size: [i64; 3], kind: Kind) -> Tensor {
    let mut generator = Generator::new(Device::Cpu, seed).unwrap();
    generator.randn(&size, Kind::Float).unwrap().to_kind(kind)
}

/// Of one, two and more warps a token; whole vectors and single numbers; tiles of tokens and columns that
/// are not full; more images than blocks look ahead.
const SIZES: [[i64; 3]; 7] = [
    [1, 2, 1],
    [2, 7, 33],
    [1, 300, 36],
    [9, 17, 112],
    [5, 64, 768],
    [2, 9, 1540],
    [1, 11, 4096],
];

const KINDS: [(Kind, Kind); 4] = [
    (Kind::Float, Kind::Float),
    (Kind::Float, Kind::BFloat16),
    (Kind::BFloat16, Kind::Float),
    (Kind::BFloat16, Kind::BFloat16),
];

fn shape(target: &Tensor, projected: &Tensor, norm: &SpatialNorm) -> Shape {
    Shape {
        target: target.kind(),
        projected: projected.kind(),
        zscore: *norm != SpatialNorm::None,
        width: target.size()[2],
    }
}

/// Loss and gradient of the kernels, for a gradient of the loss of `given`.
fn emulated(
    norm: &SpatialNorm,
    target: &Tensor,
    projected: &Tensor,
    expected: f64,
    given: f64,
) -> (f64, Tensor) {
    let kernels = Cosine::emulated(shape(target, projected, norm))
        .unwrap()
        .unwrap();
    let function = FusedCosine {
        norm: match *norm {
            SpatialNorm::None => None,
            SpatialNorm::ZScore { alpha, eps } => Some(ZScore { alpha, eps }),
        },
        expected,
        form: Form::Cuda(kernels),
    };
    let projected = projected.detach().set_requires_grad(true);
    let loss = autograd::apply(function, &[target, &projected])
        .unwrap()
        .remove(0);
    (&loss * given).f_backward().unwrap();
    assert_eq!(projected.grad().kind(), projected.kind());
    (loss.double_value(&[]), projected.grad())
}

/// Loss and gradient, composed in float64, for a gradient of the loss of `given`.
fn exact(norm: &SpatialNorm, target: &Tensor, projected: &Tensor, given: f64) -> (f64, Tensor) {
    let loss = AlignmentLoss::new(&[LossConfig {
        kind: LossKind::Cosine,
        coefficient: given,
    }]);
    let cpu = |tensor: &Tensor| tensor.to_device(Device::Cpu).to_kind(Kind::Double);
    let (target, projected) = (cpu(target), cpu(projected).detach().set_requires_grad(true));
    let loss = loss.unwrap().with_fused(false);
    let output = loss
        .forward_tokens(norm, &[&target], &[&projected])
        .unwrap();
    output.total.f_backward().unwrap();
    (output.terms[0].value.double_value(&[]), projected.grad())
}

/// As close to the composition in float64 as float32 comes; gradients relative to their size before the
/// part along the token is taken away.
fn assert_close(found: &(f64, Tensor), exact: &(f64, Tensor), projected: &Tensor, given: f64) {
    assert!(
        (found.0 - exact.0).abs() < 1e-6,
        "{} against {}",
        found.0,
        exact.0
    );
    let (batch, count, _) = projected.size3().unwrap();
    let projected = projected.to_device(Device::Cpu).to_kind(Kind::Double);
    let lengths = projected.norm_scalaropt_dim(2.0, -1, true);
    let scale = lengths.reciprocal() * (given.abs() / (batch * count) as f64);
    let gradient = found.1.to_device(Device::Cpu);
    let difference = (gradient.to_kind(Kind::Double) - &exact.1).abs() / scale;
    let limit = match gradient.kind() {
        Kind::BFloat16 => 4e-3,
        _ => 4e-6,
    };
    let error = difference.max().double_value(&[]);
    assert!(error <= limit, "gradient off by {error} of {limit}");
}

#[test]
fn emulated_kernels_equal_the_composition() {
    // Compiling takes most of the time: float32 at all sizes, each other pair at two.
    for (index, size) in SIZES.into_iter().enumerate() {
        for kinds in [KINDS[0], KINDS[1 + index % 3]] {
            let plain = index % 3 == 1;
            for norm in [SpatialNorm::default(), SpatialNorm::None] {
                if norm == SpatialNorm::None && !plain {
                    continue;
                }
                let target = (random(1, size, Kind::Float) + 3.0).to_kind(kinds.0);
                let projected = random(2, size, kinds.1);
                let found = emulated(&norm, &target, &projected, 0.5, 0.5);
                let exact = exact(&norm, &target, &projected, 0.5);
                assert_close(&found, &exact, &projected, 0.5);
            }
        }
    }
}

#[test]
fn an_unexpected_gradient_scales_the_prepared_one() {
    let (target, projected) = (
        random(3, [2, 10, 36], Kind::Float),
        random(4, [2, 10, 36], Kind::Float),
    );
    let norm = SpatialNorm::default();
    for given in [0.5, -3.0] {
        let found = emulated(&norm, &target, &projected, 0.5, given);
        assert_close(
            &found,
            &exact(&norm, &target, &projected, given),
            &projected,
            given,
        );
    }
}

#[test]
fn emulated_kernels_keep_what_the_composition_promises_at_its_edges() {
    let norm = SpatialNorm::ZScore {
        alpha: 1.0,
        eps: 1e-6,
    };
    // Nothing is left of constant tokens, and a mean that is large against its deviation spoils nothing.
    for count in [2, 9, 300] {
        let target = Tensor::full([1, count, 36], 0.1, (Kind::Float, Device::Cpu));
        let projected = random(5, [1, count, 36], Kind::Float);
        assert_eq!(emulated(&norm, &target, &projected, 1.0, 1.0).0, 0.0);
    }
    let target = random(6, [1, 300, 36], Kind::Float) + 100.0;
    let projected = random(7, [1, 300, 36], Kind::Float);
    let found = emulated(&norm, &target, &projected, 1.0, 1.0);
    let exact = exact(&norm, &target, &projected, 1.0);
    assert_close(&found, &exact, &projected, 1.0);
    // A zero token has cosine 0; NaN is not hidden.
    let target = random(8, [1, 300, 36], Kind::Float);
    let _zero = projected.narrow(1, 4, 1).zero_();
    let found = emulated(&SpatialNorm::None, &target, &projected, 1.0, 1.0);
    let others = super::tests::exact(&SpatialNorm::None, &target, &projected, 1.0);
    assert!((found.0 - others.0).abs() < 1e-6);
    assert!(bool::try_from(found.1.isfinite().all()).unwrap());
    let _nan = projected.narrow(1, 200, 1).fill_(f64::NAN);
    assert!(
        emulated(&SpatialNorm::None, &target, &projected, 1.0, 1.0)
            .0
            .is_nan()
    );
}

#[test]
fn the_bits_are_the_same_whichever_block_does_what() {
    let (target, projected) = (
        random(1, [9, 17, 112], Kind::Float),
        random(2, [9, 17, 112], Kind::Float),
    );
    let run = || emulated(&SpatialNorm::default(), &target, &projected, 1.0, 1.0);
    let first = run();
    for _ in 0..5 {
        assert_eq!(run(), first);
    }
    // Nor does the loss depend on whether there is a gradient to write.
    let kernels = Cosine::emulated(shape(&target, &projected, &SpatialNorm::default()));
    let norm = ZScore {
        alpha: 0.6,
        eps: 1e-6,
    };
    let (loss, gradient) = kernels
        .unwrap()
        .unwrap()
        .cosines(&target, &projected, Some(norm), None)
        .unwrap();
    assert_eq!(loss.double_value(&[]), first.0);
    assert!(gradient.is_none());
}

#[test]
fn tokens_that_are_not_contiguous_are_compared_alike() {
    let target = random(1, [9, 112, 17], Kind::Float).transpose(1, 2);
    // Contiguous, but beginning between two 16-byte words.
    let flat = random(2, [1, 1, 9 * 17 * 112 + 1], Kind::Float);
    let projected = flat.view(-1).narrow(0, 1, 9 * 17 * 112).view([9, 17, 112]);
    let norm = SpatialNorm::default();
    let found = emulated(&norm, &target, &projected, 1.0, 1.0);
    assert_close(
        &found,
        &exact(&norm, &target, &projected, 1.0),
        &projected,
        1.0,
    );
}

mod needs_cuda {
    use super::*;

    #[test]
    #[ignore = "needs a CUDA device: `cargo xtask test --cuda`"]
    fn a_cuda_device_computes_what_the_cpu_does() {
        device::load_cuda().unwrap();
        let cuda = Device::Cuda(0);
        for size in SIZES.into_iter().chain([[40, 256, 768], [300, 64, 384]]) {
            for kinds in KINDS {
                for norm in [SpatialNorm::default(), SpatialNorm::None] {
                    let target = (random(1, size, Kind::Float) + 3.0).to_kind(kinds.0);
                    let projected = random(2, size, kinds.1);
                    let run = || {
                        let projected = projected.to_device(cuda).set_requires_grad(true);
                        let loss = cosine(&norm, &target.to_device(cuda), &projected, 0.5);
                        let loss = loss.unwrap().expect("a fused form on CUDA");
                        (&loss * 0.5).f_backward().unwrap();
                        (
                            loss.double_value(&[]),
                            projected.grad().to_device(Device::Cpu),
                        )
                    };
                    let first = run();
                    assert_close(
                        &first,
                        &exact(&norm, &target, &projected, 0.5),
                        &projected,
                        0.5,
                    );
                    assert_eq!(run(), first, "the same bits again");
                    let own = projected.detach().set_requires_grad(true);
                    let loss = cosine(&norm, &target, &own, 0.5).unwrap().unwrap();
                    assert!((loss.double_value(&[]) - first.0).abs() < 1e-6);
                }
            }
        }
        let wide = random(1, [1, 3, 20_000], Kind::Float).to_device(cuda);
        assert!(
            cosine(&SpatialNorm::None, &wide, &wide, 1.0)
                .unwrap()
                .is_none()
        );
    }
}

#[test]
fn what_has_no_kernel_is_left_to_the_composition() {
    let shape = |kind, width| Shape {
        target: kind,
        projected: Kind::Float,
        zscore: true,
        width,
    };
    for shape in [
        shape(Kind::Double, 768),
        shape(Kind::Half, 768),
        shape(Kind::Float, 20_000),
    ] {
        assert!(Cosine::emulated(shape).is_none());
    }
}
