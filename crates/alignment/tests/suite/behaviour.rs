//! Properties that hold for any weights, and the errors for bad input.

use alignment::{
    AlignmentError, AlignmentLoss, CosineLoss, Head, HeadConfig, KernelSize, LossConfig, LossKind,
    SpatialNorm, TokenLoss,
};
use tch::{Device, Kind, Tensor};
use torch_ext::{Generator, Params};

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

fn cosine(coefficient: f64) -> LossConfig {
    LossConfig {
        kind: LossKind::Cosine,
        coefficient,
    }
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
        let heads = Head::projectors(&params.root(), &config, 4, &[8, 6]).unwrap();
        assert_eq!(heads[1].out_width(), 6);
        assert_eq!(heads[1].in_width(), 4);
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
    let loss = value(&CosineLoss.forward(&target, &projected).unwrap());
    let scaled = CosineLoss
        .forward(&(&target * 7.0), &(&projected * 0.3))
        .unwrap();
    assert!((loss - value(&scaled)).abs() < 1e-6);
    assert!((-1.0..=1.0).contains(&loss));
}

#[test]
fn cosine_names_both_shapes_when_they_differ() {
    let error = CosineLoss
        .forward(&tokens(0, [2, 9, 8]), &tokens(0, [2, 4, 8]))
        .unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("encoder tokens have shape [2, 9, 8], projected tokens [2, 4, 8]: both"),
        "{error}"
    );
}

#[test]
fn losses_are_averaged_over_encoders_and_weighted() {
    let pairs: Vec<(Tensor, Tensor)> = [(0, 8), (2, 4), (4, 6)]
        .map(|(seed, width)| (tokens(seed, [2, 9, width]), tokens(seed + 1, [2, 9, width])))
        .into();
    let targets: Vec<&Tensor> = pairs.iter().map(|(target, _)| target).collect();
    let projected: Vec<&Tensor> = pairs.iter().map(|(_, projected)| projected).collect();
    let single: f64 = pairs
        .iter()
        .map(|(target, projected)| value(&CosineLoss.forward(target, projected).unwrap()))
        .sum::<f64>()
        / 3.0;

    let loss = AlignmentLoss::new(&[cosine(0.5), cosine(2.0)]).unwrap();
    let output = loss.forward(&targets, &projected).unwrap();
    assert!((value(&output.total) - 2.5 * single).abs() < 1e-6);
    assert_eq!(output.terms.len(), 2);
    for (term, coefficient) in output.terms.iter().zip([0.5, 2.0]) {
        assert_eq!((term.name, term.coefficient), ("cosine", coefficient));
        assert!((value(&term.value) - single).abs() < 1e-6);
    }
}

#[test]
fn each_encoder_needs_one_projection() {
    let x = tokens(0, [2, 9, 8]);
    let loss = AlignmentLoss::new(&[cosine(1.0)]).unwrap();
    for (targets, projected) in [
        (vec![&x], vec![]),
        (vec![], vec![]),
        (vec![&x], vec![&x, &x]),
    ] {
        assert!(matches!(
            loss.forward(&targets, &projected),
            Err(AlignmentError::EncoderCount { .. })
        ));
    }
    assert!(matches!(
        AlignmentLoss::new(&[]),
        Err(AlignmentError::NoLoss)
    ));
    assert!(matches!(
        AlignmentLoss::new(&[cosine(f64::NAN)]),
        Err(AlignmentError::Setting { .. })
    ));
}

#[test]
fn a_custom_loss_can_replace_a_built_in_one() {
    #[derive(Debug)]
    struct SquaredDistance;
    impl TokenLoss for SquaredDistance {
        fn name(&self) -> &'static str {
            "squared distance"
        }
        fn forward(&self, target: &Tensor, projected: &Tensor) -> Result<Tensor, AlignmentError> {
            Ok(target.f_mse_loss(projected, tch::Reduction::Mean)?)
        }
    }
    let loss = AlignmentLoss::with_losses(vec![(3.0, Box::new(SquaredDistance))]).unwrap();
    let x = tokens(0, [2, 9, 8]);
    let output = loss.forward(&[&x], &[&(&x + 2.0)]).unwrap();
    assert!((value(&output.total) - 12.0).abs() < 1e-5);
    assert_eq!(output.terms[0].name, "squared distance");
}

#[test]
fn alignment_pulls_projected_tokens_towards_the_encoder() {
    let (target, hidden) = (tokens(0, [4, 16, 12]), tokens(1, [4, 16, 8]));
    let target = SpatialNorm::default().forward(&target).unwrap();
    let (params, head) = head(HeadConfig::default(), 8, 12);
    let loss = AlignmentLoss::new(&[cosine(1.0)]).unwrap();
    let mut history = Vec::new();
    for _ in 0..30 {
        let projected = head.forward(&hidden).unwrap();
        let total = loss.forward(&[&target], &[&projected]).unwrap().total;
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
        Ok(cosine(0.5))
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
