//! The kernel of the loss against its composition, and its own guarantees.

use alignment::{
    AlignmentError, AlignmentLoss, AlignmentOutput, HeadConfig, LossKind, Source, SpatialNorm, Term,
};
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};
use torch_ext::autograd::check_gradients;
use torch_ext::{Generator, TorchError};

pub fn random(seed: u64, size: [i64; 3], kind: Kind) -> Tensor {
    let mut generator = Generator::new(Device::Cpu, seed).unwrap();
    generator.randn(&size, Kind::Float).unwrap().to_kind(kind)
}

/// The cosine loss of an encoder's tokens.
pub fn term(encoder: usize, norm: SpatialNorm, coefficient: f64) -> Term {
    Term {
        source: Source::Encoder(encoder),
        depth: 1,
        head: HeadConfig::Linear,
        norm,
        loss: LossKind::Cosine.build(),
        coefficient,
    }
}

/// The loss of one encoder whose tokens are compared with `projected`.
pub fn compare(
    coefficient: f64,
    norm: &SpatialNorm,
    tokens: &Tensor,
    projected: &Tensor,
) -> Result<AlignmentOutput, AlignmentError> {
    let loss = AlignmentLoss::new(vec![term(0, *norm, coefficient)])?;
    loss.forward(&[tokens], &[projected], &[projected])
}

/// Returns the total loss, and the gradient of `projected` in the dtype of `projected`.
pub fn run(
    coefficient: f64,
    norm: &SpatialNorm,
    tokens: &Tensor,
    projected: &Tensor,
) -> (f64, Tensor) {
    let projected = projected.detach().set_requires_grad(true);
    let output = compare(coefficient, norm, tokens, &projected).unwrap();
    output.total.f_backward().unwrap();
    assert_eq!(projected.grad().kind(), projected.kind());
    assert_eq!(projected.grad().size(), projected.size());
    (output.total.double_value(&[]), projected.grad())
}

fn zscore(alpha: f64) -> SpatialNorm {
    SpatialNorm::ZScore { alpha, eps: 1e-6 }
}

/// Asserts that the fused form is as close to the float64 result as the composed form is, up to the
/// tolerances of the golden cases. The gradient's tolerance is relative to 1 / (B T |p|), the
/// gradient's size before its component along the token is subtracted.
pub fn assert_agree(norm: &SpatialNorm, tokens: &Tensor, projected: &Tensor, coefficient: f64) {
    let composed = |kind| {
        let (tokens, projected) = (tokens.to_kind(kind), projected.to_kind(kind));
        ops::composed(|| run(coefficient, norm, &tokens, &projected))
    };
    let (fused, gradient) = run(coefficient, norm, tokens, projected);
    let ((plain, plain_gradient), (exact, exact_gradient)) =
        (composed(Kind::Float), composed(Kind::Double));
    let limit = 4e-7 * coefficient.abs().max(1.0) + 2.0 * (plain - exact).abs();
    assert!((fused - exact).abs() <= limit, "{fused}, {plain}, {exact}");

    let (batch, count, _) = projected.size3().unwrap();
    let lengths = projected
        .to_kind(Kind::Double)
        .norm_scalaropt_dim(2.0, -1, true);
    let scale = lengths.reciprocal() * (coefficient.abs().max(1e-3) / (batch * count) as f64);
    let error = |gradient: &Tensor| {
        let difference = (gradient.to_kind(Kind::Double) - &exact_gradient).abs();
        (difference / &scale).max().double_value(&[])
    };
    let rounding = match projected.kind() {
        Kind::BFloat16 => 4e-3,
        _ => 2e-6,
    };
    let (found, limit) = (error(&gradient), rounding + 2.0 * error(&plain_gradient));
    assert!(found <= limit, "gradient off by {found}, {limit} allowed");
}

#[test]
fn constant_tokens_equal_their_mean() {
    // With alpha 1 the normalised tokens are exactly 0 for any value and any number of tokens, and so
    // is the loss.
    for count in [2, 7, 8, 9, 64, 257] {
        let tokens = Tensor::full([1, count, 20], 0.1, (Kind::Float, Device::Cpu));
        let projected = random(5, [1, count, 20], Kind::Float);
        let (value, _) = run(1.0, &zscore(1.0), &tokens, &projected);
        assert_eq!(value, 0.0, "{count} tokens");
    }
}

#[test]
fn gradients_equal_finite_differences() {
    for (norm, size) in [
        (SpatialNorm::None, [2, 3, 5]),
        (zscore(0.6), [2, 5, 19]),
        (zscore(1.0), [1, 9, 33]),
    ] {
        let tokens = random(1, size, Kind::Double);
        let projected = random(2, size, Kind::Double).set_requires_grad(true);
        let function = |inputs: &[Tensor]| {
            let output = compare(0.7, &norm, &tokens, &inputs[0]);
            match output {
                Ok(output) => Ok(vec![output.total]),
                Err(AlignmentError::Torch(error)) => Err(error),
                Err(other) => Err(TorchError::Libtorch(other.to_string())),
            }
        };
        check_gradients(function, &[projected], 1e-5, 1e-8).unwrap();
    }
}

fn any_kind() -> impl Strategy<Value = Kind> {
    prop_oneof![Just(Kind::Float), Just(Kind::BFloat16)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_fused_loss_equals_the_composed_one_at_any_shape(
        batch in 1i64..4,
        count in 2i64..40,
        width in 1i64..70,
        seed in any::<u64>(),
        alpha in prop_oneof![Just(None), (0.0..1.0f64).prop_map(Some)],
        coefficient in prop_oneof![Just(1.0), -2.0..2.0f64],
        offset in prop_oneof![Just(0.0), -20.0..20.0f64],
        (target_kind, projected_kind) in (any_kind(), any_kind()),
    ) {
        let size = [batch, count, width];
        let tokens = (random(seed, size, Kind::Float) + offset).to_kind(target_kind);
        let projected = random(seed ^ 1, size, projected_kind);
        let norm = alpha.map_or(SpatialNorm::None, zscore);
        assert_agree(&norm, &tokens, &projected, coefficient);
    }
}

#[test]
fn non_contiguous_tokens_have_the_same_loss() {
    let tokens = random(1, [3, 24, 10], Kind::Float).transpose(1, 2);
    let projected = random(2, [10, 3, 24], Kind::Float).transpose(0, 1);
    assert_agree(&zscore(0.6), &tokens, &projected, 1.0);
    // Every second sample, and a part of the width.
    let tokens = random(3, [4, 10, 24], Kind::Float)
        .slice(0, 0, 4, 2)
        .narrow(2, 1, 20);
    let projected = random(4, [2, 10, 20], Kind::Float);
    assert_agree(&zscore(0.6), &tokens, &projected, 1.0);
}

#[test]
fn large_gradients_equal_small_ones() {
    // Large gradients are written past the cache: in whole cache lines, in parts of lines or, where rows
    // do not begin at a multiple of 16 bytes, through the cache. The batch size is a power of two, so the
    // gradients differ in the exponent only.
    const BATCH: i64 = 64;
    for (width, kind) in [
        (768, Kind::Float),
        (772, Kind::Float),
        (769, Kind::Float),
        (770, Kind::BFloat16),
        (776, Kind::BFloat16),
        (384, Kind::Double),
    ] {
        let (tokens, projected) = (
            random(1, [1, 128, width], kind),
            random(2, [1, 128, width], kind),
        );
        let (value, gradient) = run(1.0, &zscore(0.6), &tokens, &projected);
        let copies = |tensor: &Tensor| tensor.repeat([BATCH, 1, 1]);
        let (tokens, projected) = (copies(&tokens), copies(&projected));
        let (repeated_value, repeated_gradient) = run(1.0, &zscore(0.6), &tokens, &projected);
        assert!(
            (repeated_value - value).abs() < 1e-6,
            "{repeated_value}, {value}"
        );
        assert_eq!(
            repeated_gradient * BATCH,
            copies(&gradient),
            "{width}, {kind:?}"
        );
    }
}

#[test]
fn zero_tokens_have_cosine_zero() {
    let tokens = random(1, [2, 6, 18], Kind::Float);
    let projected = random(2, [2, 6, 18], Kind::Float);
    let _ = tokens.get(0).get(1).fill_(0.0);
    let _ = projected.get(1).get(3).fill_(0.0);
    let _ = projected.get(1).get(4).fill_(1e-14);
    // The gradient of a token below the bound is up to 1e12 / (B T), so each token is compared relative
    // to its own largest gradient.
    let norm = SpatialNorm::None;
    let (fused, gradient) = run(1.0, &norm, &tokens, &projected);
    let (plain, expected) = ops::composed(|| run(1.0, &norm, &tokens, &projected));
    assert!((fused - plain).abs() < 4e-7);
    let scale = expected.abs().amax(-1, true) + 1e-20;
    let error = ((gradient - expected).abs() / scale)
        .max()
        .double_value(&[]);
    assert!(error < 2e-5, "{error}");
}

#[test]
fn nan_propagates_as_in_the_composed_loss() {
    for norm in [SpatialNorm::None, zscore(0.6)] {
        for in_tokens in [true, false] {
            let tokens = random(1, [2, 6, 18], Kind::Float);
            let projected = random(2, [2, 6, 18], Kind::Float);
            let broken = if in_tokens { &tokens } else { &projected };
            let _ = broken.get(1).get(2).narrow(0, 17, 1).fill_(f64::NAN);
            let (fused, gradient) = run(1.0, &norm, &tokens, &projected);
            let (plain, expected) = ops::composed(|| run(1.0, &norm, &tokens, &projected));
            assert!(fused.is_nan() && plain.is_nan());
            assert_eq!(gradient.isnan(), expected.isnan(), "{norm:?} {in_tokens}");
        }
    }
}

#[test]
fn one_token_can_be_compared_but_not_normalised() {
    let (tokens, projected) = (
        random(1, [3, 1, 20], Kind::Float),
        random(2, [3, 1, 20], Kind::Float),
    );
    assert_agree(&SpatialNorm::None, &tokens, &projected, 1.0);
    let error = compare(1.0, &zscore(0.6), &tokens, &projected);
    assert!(matches!(error, Err(AlignmentError::TooFewTokens(1))));
}

#[test]
fn both_forms_refuse_shapes_that_differ() {
    let (tokens, projected) = (
        random(1, [2, 4, 8], Kind::Float),
        random(2, [2, 4, 6], Kind::Float),
    );
    for composed in [false, true] {
        let refuse = |projected: &[&Tensor]| {
            let loss = AlignmentLoss::new(vec![term(0, zscore(0.6), 1.0)]).unwrap();
            ops::composed_if(composed, || loss.forward(&[&tokens], &[&tokens], projected))
        };
        let error = refuse(&[&projected]);
        assert!(
            matches!(error, Err(AlignmentError::ShapeMismatch { .. })),
            "{error:?}"
        );
        let error = refuse(&[]);
        assert!(
            matches!(error, Err(AlignmentError::Count { .. })),
            "{error:?}"
        );
    }
}

#[test]
fn encoder_tokens_that_require_a_gradient_receive_one() {
    let tokens = random(1, [2, 6, 18], Kind::Float);
    let projected = random(2, [2, 6, 18], Kind::Float);
    let [fused, plain] = [false, true].map(|composed| {
        let tokens = tokens.copy().set_requires_grad(true);
        let output = ops::composed_if(composed, || compare(1.0, &zscore(0.6), &tokens, &projected));
        output.unwrap().total.f_backward().unwrap();
        tokens.grad()
    });
    assert_eq!(fused, plain);
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let tokens = random(1, [7, 33, 50], Kind::Float);
    let projected = random(2, [7, 33, 50], Kind::Float);
    let before = tch::get_num_threads();
    let results: Vec<_> = [1, 2, 5]
        .into_iter()
        .map(|threads| {
            tch::set_num_threads(threads);
            run(0.3, &zscore(0.6), &tokens, &projected)
        })
        .collect();
    tch::set_num_threads(before);
    assert_eq!(results[0], results[1]);
    assert_eq!(results[0], results[2]);
}

#[test]
fn both_forms_sum_terms_alike() {
    let tokens = [
        random(1, [2, 6, 18], Kind::Float),
        random(2, [2, 6, 30], Kind::Float),
    ];
    let projected = [
        random(3, [2, 6, 18], Kind::Float),
        random(4, [2, 6, 30], Kind::Float),
    ];
    let results = [false, true].map(|composed| {
        let terms = [0.25, 0.0]
            .map(|coefficient| [0, 1].map(|encoder| term(encoder, zscore(0.6), coefficient)));
        let loss = AlignmentLoss::new(terms.into_iter().flatten().collect()).unwrap();
        let projected: Vec<Tensor> = projected
            .iter()
            .map(|p| p.copy().set_requires_grad(true))
            .collect();
        let output = ops::composed_if(composed, || {
            let projected: Vec<&Tensor> = projected.iter().collect();
            loss.forward(&tokens.each_ref(), &projected[..1], &projected)
        })
        .unwrap();
        output.total.f_backward().unwrap();
        let gradients: Vec<Tensor> = projected.iter().map(Tensor::grad).collect();
        (
            output.total.double_value(&[]),
            output.terms[3].value.double_value(&[]),
            gradients,
        )
    });
    let [
        (total, term, gradients),
        (plain_total, plain_term, expected),
    ] = results;
    assert!((total - plain_total).abs() < 4e-7 && (term - plain_term).abs() < 4e-7);
    for (gradient, expected) in gradients.iter().zip(&expected) {
        let scale = expected.abs().max().double_value(&[]);
        assert!((gradient - expected).abs().max().double_value(&[]) < 2e-5 * scale);
    }
}

#[test]
fn a_retained_graph_returns_the_same_gradient_again() {
    let tokens = random(1, [2, 6, 18], Kind::Float);
    let projected = random(2, [2, 6, 18], Kind::Float).set_requires_grad(true);
    // The output gradient is 3 instead of the expected 1, so the prepared gradient is scaled each time.
    let total = compare(1.0, &zscore(0.6), &tokens, &projected)
        .unwrap()
        .total
        * 3.0;
    let gradients: Vec<Tensor> = [true, true, false]
        .into_iter()
        .map(|keep| {
            Tensor::f_run_backward(&[&total], &[&projected], keep, false)
                .unwrap()
                .remove(0)
        })
        .collect();
    assert_eq!(gradients[0], gradients[1]);
    assert_eq!(gradients[0], gradients[2]);
    // While the graph is retained, the saved gradient is not changed.
    let total = compare(1.0, &zscore(0.6), &tokens, &projected)
        .unwrap()
        .total;
    let once = Tensor::f_run_backward(&[&total], &[&projected], true, false)
        .unwrap()
        .remove(0);
    let again = Tensor::f_run_backward(&[&total], &[&projected], true, false)
        .unwrap()
        .remove(0);
    assert_eq!(once, again);
}

#[test]
fn no_gradient_is_prepared_under_no_grad() {
    let tokens = random(1, [2, 6, 18], Kind::Float);
    let projected = random(2, [2, 6, 18], Kind::Float).set_requires_grad(true);
    let output = tch::no_grad(|| compare(1.0, &zscore(0.6), &tokens, &projected));
    let total = output.unwrap().total;
    assert!(!total.requires_grad());
    let (with_gradient, _) = run(1.0, &zscore(0.6), &tokens, &projected);
    assert_eq!(total.double_value(&[]), with_gradient);
}
