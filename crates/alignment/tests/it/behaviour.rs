//! Properties that hold for any weights, and the errors for bad input.

use alignment::{
    AlignmentError, AlignmentLoss, CosineLoss, Head, HeadConfig, Heads, KernelSize, LossConfig,
    LossKind, Source, SpatialNorm, Term, TokenLoss, Tokens,
};
use tch::{Device, Kind, Tensor};
use torch_ext::{Generator, Params};

use crate::fused::term;

const KERNELS: [KernelSize; 4] = [
    KernelSize::One,
    KernelSize::Three,
    KernelSize::Five,
    KernelSize::Seven,
];

fn tokens(seed: u64, size: [i64; 3]) -> Tensor {
    let mut generator = Generator::new(Device::Cpu, seed).unwrap();
    generator.randn(&size, Kind::Float).unwrap()
}

fn value(tensor: &Tensor) -> f64 {
    tensor.double_value(&[])
}

fn head(config: HeadConfig, in_width: i64, out_width: i64) -> (Params, Head) {
    let params = Params::new(Device::Cpu, 3).unwrap();
    let head = Head::new(&params.root(), &config, in_width, out_width).unwrap();
    (params, head)
}

#[test]
fn every_kernel_keeps_the_number_of_tokens() {
    for kernel in KERNELS {
        let (_params, head) = head(HeadConfig::Conv { kernel }, 6, 10);
        let projected = head.forward(&tokens(0, [2, 16, 6])).unwrap();
        assert_eq!(projected.size(), [2, 16, 10], "{kernel:?}");
    }
}

#[test]
fn a_one_by_one_convolution_is_a_linear_layer() {
    let (conv_params, conv) = head(
        HeadConfig::Conv {
            kernel: KernelSize::One,
        },
        6,
        10,
    );
    let (linear_params, linear) = head(HeadConfig::Linear, 6, 10);
    let weights: Vec<_> = conv_params
        .state_dict()
        .into_iter()
        .map(|(name, weight)| {
            let shape = linear_params.get(&name).unwrap().size();
            (name, weight.reshape(shape))
        })
        .collect();
    linear_params.load(&weights).unwrap();
    let x = tokens(1, [2, 9, 6]);
    let difference = conv.forward(&x).unwrap() - linear.forward(&x).unwrap();
    assert!(value(&difference.abs().max()) < 1e-6);
}

#[test]
fn a_rectangular_grid_must_be_passed_explicitly() {
    let (_params, head) = head(HeadConfig::default(), 6, 10);
    let x = tokens(2, [2, 12, 6]);
    let error = head.forward(&x).unwrap_err();
    assert!(matches!(error, AlignmentError::NotSquare { tokens: 12 }));
    assert_eq!(
        head.forward_on_grid(&x, (3, 4)).unwrap().size(),
        [2, 12, 10]
    );
    let error = head.forward_on_grid(&x, (3, 5)).unwrap_err();
    assert!(matches!(error, AlignmentError::Grid { tokens: 12, .. }));
}

#[test]
fn a_convolution_reads_tokens_in_row_major_order() {
    let (params, head) = head(HeadConfig::default(), 1, 1);
    let mut weight = params.get("projection_layer.weight").unwrap();
    let mut bias = params.get("projection_layer.bias").unwrap();
    // This kernel returns each token's right neighbour.
    tch::no_grad(|| {
        let kernel = [0f32, 0., 0., 0., 0., 1., 0., 0., 0.];
        weight.copy_(&Tensor::from_slice(&kernel).view([1, 1, 3, 3]));
        let _ = bias.zero_();
    });
    let x = Tensor::arange(6, (Kind::Float, Device::Cpu)).view([1, 6, 1]);
    let y = head.forward_on_grid(&x, (2, 3)).unwrap();
    assert_eq!(
        Vec::<f32>::try_from(y.flatten(0, -1)).unwrap(),
        [1., 2., 0., 4., 5., 0.]
    );
}

#[test]
fn non_contiguous_tokens_have_the_same_projection() {
    let x = tokens(3, [2, 6, 16]).transpose(1, 2);
    for config in [
        HeadConfig::Mlp { width: 12 },
        HeadConfig::Linear,
        HeadConfig::default(),
    ] {
        let (_params, head) = head(config, 6, 10);
        let difference = head.forward(&x).unwrap() - head.forward(&x.contiguous()).unwrap();
        assert!(value(&difference.abs().max()) < 1e-6, "{config:?}");
    }
}

#[test]
fn head_weights_have_upstreams_names() {
    let names = |config| {
        let params = Params::new(Device::Cpu, 0).unwrap();
        let projections = [0, 1].map(|encoder| {
            let term = Term {
                head: config,
                ..term(encoder, SpatialNorm::None, 1.0)
            };
            term.projection()
        });
        let heads = Heads::new(&params.root(), &projections, 4, &[8, 6]).unwrap();
        let widths: Vec<_> = heads
            .iter()
            .map(|h| (h.in_width(), h.out_width()))
            .collect();
        assert_eq!(widths, [(4, 8), (4, 6)]);
        let names: Vec<_> = params.state_dict().into_iter().map(|(n, _)| n).collect();
        names
    };
    assert_eq!(
        names(HeadConfig::default()),
        [
            "projectors.0.projection_layer.weight",
            "projectors.0.projection_layer.bias",
            "projectors.1.projection_layer.weight",
            "projectors.1.projection_layer.bias",
        ]
    );
    assert_eq!(
        names(HeadConfig::Mlp { width: 5 })[..6],
        [
            "projectors.0.projection_layer.0.weight",
            "projectors.0.projection_layer.0.bias",
            "projectors.0.projection_layer.2.weight",
            "projectors.0.projection_layer.2.bias",
            "projectors.0.projection_layer.4.weight",
            "projectors.0.projection_layer.4.bias",
        ]
    );
}

#[test]
fn heads_are_initialised_as_upstream_initialises_them() {
    let (params, _head) = head(HeadConfig::default(), 32, 64);
    let bound = 1.0 / (32.0f64 * 9.0).sqrt();
    for (name, weight) in params.state_dict() {
        let largest = value(&weight.abs().max());
        assert!(largest <= bound && largest > 0.9 * bound, "{name}");
    }
    let (params, _head) = head(HeadConfig::Linear, 32, 64);
    let bound = (6.0f64 / (32.0 + 64.0)).sqrt();
    let largest = value(&params.get("projection_layer.weight").unwrap().abs().max());
    assert!(largest <= bound && largest > 0.99 * bound);
    assert_eq!(
        value(&params.get("projection_layer.bias").unwrap().abs().max()),
        0.0
    );
}

#[test]
fn a_head_refuses_other_widths() {
    let (_params, head) = head(HeadConfig::Linear, 6, 10);
    let error = head.forward(&tokens(0, [2, 4, 7])).unwrap_err();
    assert_eq!(
        error.to_string(),
        "hidden tokens have shape [2, 4, 7]; this head takes width 6"
    );
    let error = head.forward(&Tensor::zeros([4, 6], (Kind::Float, Device::Cpu)));
    assert!(matches!(error, Err(AlignmentError::NotTokens { .. })));
    let params = Params::new(Device::Cpu, 0).unwrap();
    for (config, in_width, out_width) in [
        (HeadConfig::Linear, 0, 3),
        (HeadConfig::Linear, 3, -1),
        (HeadConfig::Mlp { width: 0 }, 3, 3),
    ] {
        let error = Head::new(&params.root(), &config, in_width, out_width);
        assert!(matches!(error, Err(AlignmentError::Setting { .. })));
    }
}

#[test]
fn spatial_norm_of_constant_tokens_is_finite() {
    let constant = tokens(0, [2, 1, 8]).expand([2, 49, 8], false);
    let norm = SpatialNorm::ZScore {
        alpha: 1.0,
        eps: 1e-6,
    };
    // A constant channel equals its mean, so the result is not only finite but exactly 0.
    assert_eq!(value(&norm.forward(&constant).unwrap().abs().max()), 0.0);
    let kept = SpatialNorm::default().forward(&constant).unwrap();
    assert!(kept.isfinite().all().int64_value(&[]) == 1);
}

#[test]
fn spatial_norm_of_one_token_is_an_error() {
    let one = tokens(0, [2, 1, 8]);
    let error = SpatialNorm::default().forward(&one).unwrap_err();
    assert!(matches!(error, AlignmentError::TooFewTokens(1)));
    assert_eq!(SpatialNorm::None.forward(&one).unwrap(), one);
}

#[test]
fn spatial_norm_keeps_dtype_and_shape() {
    for kind in [Kind::BFloat16, Kind::Float, Kind::Double] {
        let x = tokens(0, [2, 9, 8]).to_kind(kind);
        let normalised = SpatialNorm::default().forward(&x).unwrap();
        assert_eq!((normalised.kind(), normalised.size()), (kind, x.size()));
    }
}

#[test]
fn spatial_norm_refuses_invalid_settings() {
    let x = tokens(0, [2, 9, 8]);
    for (alpha, eps) in [
        (f64::NAN, 1e-6),
        (0.6, 0.0),
        (0.6, -1.0),
        (0.6, f64::INFINITY),
    ] {
        let norm = SpatialNorm::ZScore { alpha, eps };
        assert!(matches!(
            norm.forward(&x),
            Err(AlignmentError::Setting { .. })
        ));
    }
}

#[test]
fn cosine_does_not_depend_on_token_lengths() {
    let (target, projected) = (tokens(0, [2, 9, 8]), tokens(1, [2, 9, 8]));
    let loss = value(&CosineLoss.compare(&target, &projected).unwrap());
    let scaled = CosineLoss
        .compare(&(&target * 7.0), &(&projected * 0.3))
        .unwrap();
    assert!((loss - value(&scaled)).abs() < 1e-6);
    assert!((-1.0..=1.0).contains(&loss));
}

#[test]
fn cosine_names_both_shapes_when_they_differ() {
    let error = CosineLoss
        .compare(&tokens(0, [2, 9, 8]), &tokens(0, [2, 4, 8]))
        .unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("encoder tokens have shape [2, 9, 8], projected tokens [2, 4, 8]: both"),
        "{error}"
    );
}

#[test]
fn terms_are_weighted_and_summed() {
    let pairs: Vec<(Tensor, Tensor)> = [(0, 8), (2, 4), (4, 6)]
        .map(|(seed, width)| (tokens(seed, [2, 9, width]), tokens(seed + 1, [2, 9, width])))
        .into();
    let sources: Vec<&Tensor> = pairs.iter().map(|(target, _)| target).collect();
    let projected: Vec<&Tensor> = pairs.iter().map(|(_, projected)| projected).collect();
    let single: Vec<f64> = pairs
        .iter()
        .map(|(target, projected)| value(&CosineLoss.compare(target, projected).unwrap()))
        .collect();

    let coefficients = [0.5, 2.0, -1.0];
    let terms = (0..).zip(coefficients);
    let terms = terms.map(|(encoder, coefficient)| term(encoder, SpatialNorm::None, coefficient));
    let loss = AlignmentLoss::new(terms.collect()).unwrap();
    let output = loss.forward(&sources, &projected[..1], &projected).unwrap();
    let total: f64 = single.iter().zip(coefficients).map(|(s, c)| s * c).sum();
    assert!((value(&output.total) - total).abs() < 1e-6);
    let mean = single.iter().sum::<f64>() / 3.0;
    assert!((value(&output.mean().unwrap()) - mean).abs() < 1e-6);
    for ((term, coefficient), single) in output.terms.iter().zip(coefficients).zip(single) {
        assert_eq!((term.name, term.coefficient), ("cosine", coefficient));
        assert!((value(&term.value) - single).abs() < 1e-6);
    }
}

#[test]
fn terms_share_the_projections_that_they_have_in_common() {
    let linear = |encoder, depth, coefficient| Term {
        depth,
        ..term(encoder, SpatialNorm::None, coefficient)
    };
    let conv = Term {
        head: HeadConfig::default(),
        ..linear(0, 4, 1.0)
    };
    let terms = vec![
        linear(0, 8, 0.5),
        linear(1, 8, 0.5),
        linear(0, 8, 2.0),
        linear(0, 4, 1.0),
        conv,
    ];
    let loss = AlignmentLoss::new(terms).unwrap();
    assert_eq!(loss.depths(), [8, 4]);
    let places: Vec<(Source, i64)> = loss
        .projections()
        .iter()
        .map(|p| (p.source, p.depth))
        .collect();
    let [first, second] = [0, 1].map(Source::Encoder);
    assert_eq!(places, [(first, 8), (second, 8), (first, 4), (first, 4)]);

    let params = Params::new(Device::Cpu, 0).unwrap();
    let heads = Heads::new(&params.root(), loss.projections(), 4, &[8, 6]).unwrap();
    let hidden = [tokens(1, [2, 9, 4]), tokens(2, [2, 9, 4])]; // after blocks 8 and 4
    let projected = heads.project(&hidden).unwrap();
    let widths: Vec<i64> = projected.iter().map(|p| p.size()[2]).collect();
    assert_eq!(widths, [8, 6, 8, 8]);
    for (projected, (head, depth)) in projected.iter().zip(heads.iter().zip([0, 0, 1, 1])) {
        assert_eq!(*projected, head.forward(&hidden[depth]).unwrap());
    }
    let sources = [tokens(3, [2, 9, 8]), tokens(4, [2, 9, 6])];
    let output = loss
        .forward(
            &sources.each_ref(),
            &hidden.each_ref(),
            &projected.iter().collect::<Vec<_>>(),
        )
        .unwrap();
    assert_eq!(output.terms.len(), 5);
    assert_eq!(output.terms[0].value, output.terms[2].value);
}

#[test]
fn each_term_needs_its_tensors() {
    let x = tokens(0, [2, 9, 8]);
    let loss = AlignmentLoss::new(vec![term(0, SpatialNorm::None, 1.0)]).unwrap();
    for (sources, hidden, projected, what) in [
        (vec![], vec![&x], vec![&x], "0 encoders"),
        (vec![&x], vec![], vec![&x], "0 depths"),
        (vec![&x], vec![&x, &x], vec![&x], "2 depths"),
        (vec![&x], vec![&x], vec![], "0 projections"),
    ] {
        let error = loss.forward(&sources, &hidden, &projected).unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
    }
    let error = AlignmentLoss::new(vec![]).unwrap().forward(&[], &[], &[]);
    assert!(matches!(error, Err(AlignmentError::NoTerm)));
    for wrong in [
        term(0, SpatialNorm::None, f64::NAN),
        Term {
            depth: 0,
            ..term(0, SpatialNorm::None, 1.0)
        },
    ] {
        let error = AlignmentLoss::new(vec![wrong]);
        assert!(matches!(error, Err(AlignmentError::Setting { .. })));
    }
    let params = Params::new(Device::Cpu, 0).unwrap();
    let error = Heads::new(&params.root(), loss.projections(), 4, &[]).unwrap_err();
    assert!(error.to_string().contains("0 encoders"), "{error}");
}

#[test]
fn a_custom_loss_sees_the_tokens_of_both_sides() {
    #[derive(Debug)]
    struct SquaredDistances;
    impl TokenLoss for SquaredDistances {
        fn name(&self) -> &'static str {
            "squared distances"
        }
        fn forward(&self, tokens: &Tokens<'_>) -> Result<Tensor, AlignmentError> {
            let mse = |a: &Tensor, b: &Tensor| a.f_mse_loss(b, tch::Reduction::Mean);
            let normalised = mse(tokens.target()?, &tokens.projected()?)?;
            Ok(normalised.f_add(&mse(tokens.source(), tokens.hidden())?)?)
        }
    }
    let x = tokens(0, [2, 9, 8]);
    let norm = SpatialNorm::default();
    let loss = AlignmentLoss::new(vec![Term {
        loss: Box::new(SquaredDistances),
        ..term(0, norm, 3.0)
    }]);
    let projected = norm.forward(&x).unwrap() + 2.0;
    let hidden = &x - 1.0;
    let output = loss
        .unwrap()
        .forward(&[&x], &[&hidden], &[&projected])
        .unwrap();
    assert!((value(&output.total) - 15.0).abs() < 1e-4);
    assert_eq!(output.terms[0].name, "squared distances");
}

#[test]
fn alignment_pulls_projected_tokens_towards_the_encoder() {
    let (target, hidden) = (tokens(0, [4, 16, 12]), tokens(1, [4, 16, 8]));
    let (params, head) = head(HeadConfig::default(), 8, 12);
    let loss = AlignmentLoss::new(vec![term(0, SpatialNorm::default(), 1.0)]).unwrap();
    let mut history = Vec::new();
    for _ in 0..30 {
        let projected = head.forward(&hidden).unwrap();
        let output = loss.forward(&[&target], &[&hidden], &[&projected]);
        let total = output.unwrap().total;
        history.push(value(&total));
        total.backward();
        tch::no_grad(|| {
            for mut weight in params.trainable() {
                let step = weight.grad() * -1.0;
                let _ = weight.f_add_(&step).unwrap();
                weight.zero_grad();
            }
        });
    }
    assert!(history.iter().all(|loss| loss.is_finite()));
    assert!(history[29] < history[0] - 0.2, "{history:?}");
}

#[test]
fn configuration_reads_as_documented_and_refuses_the_rest() {
    fn read<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }
    assert_eq!(
        read(r#"{"kind": "mlp"}"#),
        Ok(HeadConfig::Mlp { width: 2048 })
    );
    assert_eq!(read(r#"{"kind": "conv"}"#), Ok(HeadConfig::default()));
    assert_eq!(read(r#"{"kind": "linear"}"#), Ok(HeadConfig::Linear));
    assert_eq!(read(r#"{"method": "none"}"#), Ok(SpatialNorm::None));
    assert_eq!(read(r#"{"method": "zscore"}"#), Ok(SpatialNorm::default()));
    assert_eq!(
        read(r#"{"kind": "cosine", "coefficient": 0.5}"#),
        Ok(LossConfig {
            kind: LossKind::Cosine,
            coefficient: 0.5
        })
    );

    let error = read::<HeadConfig>(r#"{"kind": "conv", "kernel": 4}"#).unwrap_err();
    assert!(error.contains("allowed are 1, 3, 5 and 7"), "{error}");
    for wrong in [
        r#"{"kind": "conv", "width": 3}"#,
        r#"{"kind": "linear", "kernel": 3}"#,
        r#"{"kind": "deconv"}"#,
    ] {
        assert!(read::<HeadConfig>(wrong).is_err(), "{wrong}");
    }
    assert!(read::<SpatialNorm>(r#"{"method": "none", "alpha": 0.6}"#).is_err());
    assert!(read::<SpatialNorm>(r#"{"method": "zscore", "beta": 0.6}"#).is_err());
    assert!(read::<LossConfig>(r#"{"kind": "cosine"}"#).is_err());

    for config in [
        HeadConfig::Mlp { width: 7 },
        HeadConfig::Linear,
        HeadConfig::default(),
    ] {
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(read(&text), Ok(config));
    }
    for norm in [SpatialNorm::None, SpatialNorm::default()] {
        let text = serde_json::to_string(&norm).unwrap();
        assert_eq!(read(&text), Ok(norm));
    }
}
