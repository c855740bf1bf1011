//! Outputs and gradients of every golden case.

use alignment::{CosineLoss, Head, HeadConfig, KernelSize, SpatialNorm, token_statistics};
use tch::{Device, Kind, Tensor};
use torch_ext::Params;

use crate::fused;
use crate::golden::Golden;

fn leaf(tensor: &Tensor) -> Tensor {
    tensor.detach().copy().set_requires_grad(true)
}

fn projector(case: &str, config: HeadConfig) {
    let golden = Golden::open(case);
    let params = Params::new(Device::Cpu, 0).unwrap();
    let head = Head::new(&params.root(), &config, 32, 20).unwrap();
    params.load(&golden.weights()).unwrap();

    let x = leaf(&golden.tensor("in.x"));
    let y = head.forward(&x).unwrap();
    (&y * golden.tensor("in.cotangent"))
        .sum(Kind::Float)
        .backward();

    golden.check("out.y", &y);
    golden.check("grad.in.x", &x.grad());
    for (name, weight) in params.state_dict() {
        golden.check(&format!("grad.{name}"), &weight.grad());
    }
}

fn conv(kernel: KernelSize) -> HeadConfig {
    HeadConfig::Conv { kernel }
}

#[test]
fn conv3_head_follows_upstream() {
    projector("projector_conv3", conv(KernelSize::Three));
}

#[test]
fn conv5_head_follows_upstream() {
    projector("projector_conv5", conv(KernelSize::Five));
}

#[test]
fn linear_head_follows_upstream() {
    projector("projector_linear", HeadConfig::Linear);
}

#[test]
fn mlp_head_follows_upstream() {
    projector("projector_mlp", HeadConfig::Mlp { width: 48 });
}

#[test]
fn spatial_norm_follows_upstream() {
    let golden = Golden::open("spatial_norm");
    let (feat, constant) = (golden.tensor("in.feat"), golden.tensor("in.feat_constant"));
    let eps = golden.config("eps").as_f64().unwrap();
    for alpha in golden.config("alphas").as_array().unwrap() {
        let norm = SpatialNorm::ZScore {
            alpha: alpha.as_f64().unwrap(),
            eps,
        };
        golden.check(&format!("out.alpha_{alpha}"), &norm.forward(&feat).unwrap());
        let normalised = norm.forward(&constant).unwrap();
        if alpha.as_f64() == Some(1.0) {
            golden.check_within("out.constant.alpha_1.0", &normalised, 0.0, 0.0);
        } else {
            golden.check(&format!("out.constant.alpha_{alpha}"), &normalised);
        }
    }
    let (mean, std) = token_statistics(&feat).unwrap();
    golden.check("out.mean", &mean);
    // The fused loss does not return its normalised tokens, so the resulting losses are compared.
    for alpha in golden.config("alphas").as_array().unwrap() {
        let norm = SpatialNorm::ZScore {
            alpha: alpha.as_f64().unwrap(),
            eps,
        };
        let expected = golden.tensor(&format!("out.alpha_{alpha}"));
        let size: [i64; 3] = feat.size().try_into().unwrap();
        let projected = fused::random(4, size, Kind::Float);
        let (value, _) = fused::run(1.0, &norm, &feat, &projected);
        let reference = CosineLoss.compare(&expected, &projected).unwrap();
        assert!(
            (value - reference.double_value(&[])).abs() <= 4e-7,
            "{alpha}"
        );
        let size: [i64; 3] = constant.size().try_into().unwrap();
        let projected = fused::random(5, size, Kind::Float);
        fused::assert_agree(&norm, &constant, &projected, 1.0);
    }
    golden.check("out.std", &std);
}

#[test]
fn cosine_loss_follows_upstream() {
    let golden = Golden::open("cosine_loss");
    let target = leaf(&golden.tensor("in.zs"));
    let projected = leaf(&golden.tensor("in.zs_tilde"));
    let loss = CosineLoss.compare(&target, &projected).unwrap();
    loss.backward();
    golden.check("out.loss", &loss);
    golden.check(
        "out.cos_per_token",
        &CosineLoss.similarity(&target, &projected).unwrap(),
    );
    golden.check("grad.in.zs", &target.grad());
    golden.check("grad.in.zs_tilde", &projected.grad());

    let (value, gradient) = fused::run(1.0, &SpatialNorm::None, &target.detach(), &projected);
    golden.check("out.loss", &Tensor::from(value as f32));
    golden.check("grad.in.zs_tilde", &gradient);
}

/// All inputs are representable in bfloat16. The kernel widens them, so its results equal those of
/// float32 inputs.
fn the_fused_loss_widens_bfloat16(golden: &Golden) {
    let (target, projected) = (golden.tensor("in.zs"), golden.tensor("in.zs_tilde"));
    let norm = SpatialNorm::None;
    for kind in [Kind::Float, Kind::BFloat16] {
        let (value, gradient) = fused::run(1.0, &norm, &target.to_kind(kind), &projected);
        golden.check("out.fp32.loss", &Tensor::from(value as f32));
        golden.check("grad.in.fp32.zs_tilde", &gradient);
    }
    // Upstream rounds each step to bfloat16; the fused result lies within that rounding.
    let (target, projected) = (
        target.to_kind(Kind::BFloat16),
        projected.to_kind(Kind::BFloat16),
    );
    let (value, gradient) = fused::run(1.0, &norm, &target, &projected);
    golden.check("out.all_bf16.loss", &Tensor::from(value as f32));
    golden.check("grad.in.all_bf16.zs_tilde", &gradient.to_kind(Kind::Float));
}

#[test]
fn cosine_loss_follows_upstream_in_each_mix_of_dtypes() {
    let golden = Golden::open("cosine_loss_bf16");
    let settings = [
        ("fp32", Kind::Float, Kind::Float),
        ("zs_bf16", Kind::BFloat16, Kind::Float),
        ("all_bf16", Kind::BFloat16, Kind::BFloat16),
    ];
    for (setting, target_kind, projected_kind) in settings {
        let target = leaf(&golden.tensor("in.zs").to_kind(target_kind));
        let projected = leaf(&golden.tensor("in.zs_tilde").to_kind(projected_kind));
        let loss = CosineLoss.compare(&target, &projected).unwrap();
        loss.backward();
        let cosine = CosineLoss.similarity(&target, &projected).unwrap();
        // The file holds bfloat16 results widened to float32; the JSON file lists their own dtypes.
        let dtypes = &golden.config("dtype_of_result")[setting];
        for (key, entry, tensor) in [
            ("out", "loss", &loss),
            ("out", "cos_per_token", &cosine),
            ("grad.in", "zs", &target.grad()),
            ("grad.in", "zs_tilde", &projected.grad()),
        ] {
            let dtype = match key {
                "out" => &dtypes[entry],
                _ => &dtypes[format!("grad_{entry}")],
            };
            let found = match tensor.kind() {
                Kind::BFloat16 => "bfloat16",
                Kind::Float => "float32",
                other => panic!("{other:?}"),
            };
            assert_eq!(dtype, found, "{setting} {entry}");
            golden.check(
                &format!("{key}.{setting}.{entry}"),
                &tensor.to_kind(Kind::Float),
            );
        }
    }
    the_fused_loss_widens_bfloat16(&golden);
}
