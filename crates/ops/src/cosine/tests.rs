//! The CUDA kernels against the composed loss: emulated on the host, and on a CUDA device if the machine
//! has one.

use tch::{Device, Kind, Tensor};
use torch_ext::{Generator, autograd, cuda, device};

use super::cuda::{Cosine, Shape};
use super::function::{Form, FusedCosine};
use super::{ZScore, compose, kernel};

/// iREPA's spatial norm for SiT.
const ZSCORE: Option<ZScore> = Some(ZScore {
    alpha: 0.6,
    eps: 1e-6,
});

fn random(seed: u64, size: [i64; 3], kind: Kind) -> Tensor {
    let mut generator = Generator::new(Device::Cpu, seed).unwrap();
    generator.randn(&size, Kind::Float).unwrap().to_kind(kind)
}

/// Sizes `[B, T, D]` that cover one, two and more warps per token, whole vectors and single elements,
/// partially filled tiles of tokens and columns, and more images than the lag of the statistics.
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

fn shape(target: &Tensor, projected: &Tensor, norm: Option<ZScore>) -> Shape {
    Shape {
        target: target.kind(),
        projected: projected.kind(),
        zscore: norm.is_some(),
        width: target.size()[2],
    }
}

/// Returns loss and gradient of the emulated kernels, prepared for `expected_grad` and with
/// `output_grad` as the gradient of the loss.
fn emulated(
    norm: Option<ZScore>,
    target: &Tensor,
    projected: &Tensor,
    expected_grad: f64,
    output_grad: f64,
) -> (f64, Tensor) {
    let kernels = Cosine::emulated(shape(target, projected, norm)).unwrap();
    let function = FusedCosine {
        norm,
        expected_grad,
        form: Form::Cuda(kernels),
    };
    let projected = projected.detach().set_requires_grad(true);
    let loss = autograd::apply(function, &[target, &projected])
        .unwrap()
        .remove(0);
    (&loss * output_grad).f_backward().unwrap();
    assert_eq!(projected.grad().kind(), projected.kind());
    (loss.double_value(&[]), projected.grad())
}

/// Returns loss and gradient of the composed loss in float64, with `output_grad` as the gradient of the
/// loss.
fn exact(
    norm: Option<ZScore>,
    target: &Tensor,
    projected: &Tensor,
    output_grad: f64,
) -> (f64, Tensor) {
    let cpu = |tensor: &Tensor| tensor.to_device(Device::Cpu).to_kind(Kind::Double);
    let (target, projected) = (cpu(target), cpu(projected).detach().set_requires_grad(true));
    let loss = compose(norm, &target, &projected).unwrap();
    (&loss * output_grad).f_backward().unwrap();
    (loss.double_value(&[]), projected.grad())
}

/// Asserts that `found` equals `exact`, computed in float64, up to float32 rounding. Gradient errors are
/// relative to the gradient's size before its component along the token is subtracted.
fn assert_close(
    found: &(f64, Tensor),
    exact: &(f64, Tensor),
    projected: &Tensor,
    output_grad: f64,
) {
    assert!(
        (found.0 - exact.0).abs() < 1e-6,
        "{} against {}",
        found.0,
        exact.0
    );
    let (batch, count, _) = projected.size3().unwrap();
    let projected = projected.to_device(Device::Cpu).to_kind(Kind::Double);
    let lengths = projected.norm_scalaropt_dim(2.0, -1, true);
    let scale = lengths.reciprocal() * (output_grad.abs() / (batch * count) as f64);
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
fn emulated_kernels_equal_the_composed_loss() {
    // Compilation takes most of the time, so float32 runs at all sizes, and each other pair of dtypes at
    // two or three of them.
    for (index, size) in SIZES.into_iter().enumerate() {
        for kinds in [KINDS[0], KINDS[1 + index % 3]] {
            let plain = index % 3 == 1;
            for norm in [ZSCORE, None] {
                if norm.is_none() && !plain {
                    continue;
                }
                let target = (random(1, size, Kind::Float) + 3.0).to_kind(kinds.0);
                let projected = random(2, size, kinds.1);
                let found = emulated(norm, &target, &projected, 0.5, 0.5);
                let exact = exact(norm, &target, &projected, 0.5);
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
    let norm = ZSCORE;
    for output_grad in [0.5, -3.0] {
        let found = emulated(norm, &target, &projected, 0.5, output_grad);
        assert_close(
            &found,
            &exact(norm, &target, &projected, output_grad),
            &projected,
            output_grad,
        );
    }
}

#[test]
fn emulated_kernels_handle_edge_cases_like_the_composed_loss() {
    let norm = Some(ZScore {
        alpha: 1.0,
        eps: 1e-6,
    });
    // With alpha 1, constant tokens become exactly 0.
    for count in [2, 9, 300] {
        let target = Tensor::full([1, count, 36], 0.1, (Kind::Float, Device::Cpu));
        let projected = random(5, [1, count, 36], Kind::Float);
        assert_eq!(emulated(norm, &target, &projected, 1.0, 1.0).0, 0.0);
    }
    // A mean that is large relative to the deviation causes no loss of accuracy.
    let target = random(6, [1, 300, 36], Kind::Float) + 100.0;
    let projected = random(7, [1, 300, 36], Kind::Float);
    let found = emulated(norm, &target, &projected, 1.0, 1.0);
    let exact = exact(norm, &target, &projected, 1.0);
    assert_close(&found, &exact, &projected, 1.0);
    // A zero token has cosine 0.
    let target = random(8, [1, 300, 36], Kind::Float);
    let _zero = projected.narrow(1, 4, 1).zero_();
    let found = emulated(None, &target, &projected, 1.0, 1.0);
    let others = super::tests::exact(None, &target, &projected, 1.0);
    assert!((found.0 - others.0).abs() < 1e-6);
    assert!(bool::try_from(found.1.isfinite().all()).unwrap());
    // NaN propagates.
    let _nan = projected.narrow(1, 200, 1).fill_(f64::NAN);
    assert!(emulated(None, &target, &projected, 1.0, 1.0).0.is_nan());
}

#[test]
fn results_do_not_depend_on_the_order_of_the_blocks() {
    let (target, projected) = (
        random(1, [9, 17, 112], Kind::Float),
        random(2, [9, 17, 112], Kind::Float),
    );
    let run = || emulated(ZSCORE, &target, &projected, 1.0, 1.0);
    let first = run();
    let before = cuda::resolutions();
    for _ in 0..5 {
        assert_eq!(run(), first);
    }
    assert_eq!(
        cuda::resolutions(),
        before,
        "a repeated launch looks nothing up"
    );
    // The loss is the same without a gradient.
    let kernels = Cosine::emulated(shape(&target, &projected, ZSCORE));
    let (loss, gradient) = kernels
        .unwrap()
        .cosines(&target, &projected, ZSCORE, None)
        .unwrap();
    assert_eq!(loss.double_value(&[]), first.0);
    assert!(gradient.is_none());
}

#[test]
fn non_contiguous_and_unaligned_tokens_have_the_same_loss() {
    let target = random(1, [9, 112, 17], Kind::Float).transpose(1, 2);
    // Contiguous, but not aligned to 16 bytes.
    let flat = random(2, [1, 1, 9 * 17 * 112 + 1], Kind::Float);
    let projected = flat.view(-1).narrow(0, 1, 9 * 17 * 112).view([9, 17, 112]);
    let norm = ZSCORE;
    let found = emulated(norm, &target, &projected, 1.0, 1.0);
    assert_close(
        &found,
        &exact(norm, &target, &projected, 1.0),
        &projected,
        1.0,
    );
}

mod needs_cuda {
    use super::*;

    #[test]
    #[ignore = "needs a CUDA device: `cargo xtask test --cuda`"]
    fn cuda_kernels_equal_the_composed_loss_on_the_cpu() {
        device::load_cuda().unwrap();
        let on = Device::Cuda(0);
        for size in SIZES.into_iter().chain([[40, 256, 768], [300, 64, 384]]) {
            for kinds in KINDS {
                for norm in [ZSCORE, None] {
                    let target = (random(1, size, Kind::Float) + 3.0).to_kind(kinds.0);
                    let projected = random(2, size, kinds.1);
                    let run = || {
                        let projected = projected.to_device(on).set_requires_grad(true);
                        let loss = kernel(norm, &target.to_device(on), &projected, 0.5);
                        let loss = loss.unwrap().expect("a kernel on CUDA");
                        (&loss * 0.5).f_backward().unwrap();
                        (
                            loss.double_value(&[]),
                            projected.grad().to_device(Device::Cpu),
                        )
                    };
                    let first = run();
                    assert_close(
                        &first,
                        &exact(norm, &target, &projected, 0.5),
                        &projected,
                        0.5,
                    );
                    assert_eq!(run(), first, "a second run differs");
                    let leaf = projected.detach().set_requires_grad(true);
                    let loss = kernel(norm, &target, &leaf, 0.5).unwrap().unwrap();
                    assert!((loss.double_value(&[]) - first.0).abs() < 1e-6);
                }
            }
        }
        let wide = random(1, [1, 3, 20_000], Kind::Float).to_device(on);
        assert!(kernel(None, &wide, &wide, 1.0).unwrap().is_none());
    }
}

#[test]
fn unsupported_dtypes_and_widths_have_no_kernel() {
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
