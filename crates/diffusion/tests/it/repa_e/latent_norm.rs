use diffusion::DiffusionError;
use diffusion::latents::LatentScaling;
use diffusion::repa_e::{LatentNorm, Statistics};
use tch::{Device, Kind, Tensor};
use torch_ext::Params;

use super::state;
use crate::golden::Golden;

fn norm(channels: i64) -> (Params, LatentNorm) {
    let params = Params::new(Device::Cpu, 0).unwrap();
    let norm = LatentNorm::new(&params.root(), channels, LatentNorm::MOMENTUM).unwrap();
    (params, norm)
}

fn values(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(tensor.to_kind(Kind::Double)).unwrap()
}

#[test]
fn outputs_and_statistics_follow_upstream() {
    let golden = Golden::open("repae/repae_bn");
    let (params, norm) = norm(4);
    let [x1, x2] = ["in.x1", "in.x2"].map(|key| golden.tensor(key));
    let check_state = |stage: &str| {
        for name in ["running_mean", "running_var", "num_batches_tracked"] {
            let found = state(&params, &format!("bn.{name}"));
            golden.check(&format!("out.{stage}.{name}"), &found);
        }
        let scaling = norm.scaling().unwrap();
        let flat = |tensor: &Tensor| tensor.flatten(0, -1);
        golden.check(
            &format!("out.{stage}.latents_scale"),
            &flat(scaling.scale()),
        );
        golden.check(&format!("out.{stage}.latents_bias"), &flat(scaling.bias()));
    };

    let [scale, bias] = ["scale", "bias"].map(|name| {
        let tensor = golden.tensor(&format!("in.latents_{name}"));
        values(&tensor)
    });
    let scaling = LatentScaling::new(&scale, &bias, Device::Cpu).unwrap();
    norm.set_statistics(&scaling).unwrap();
    let y = norm.forward(&x1, Statistics::Running).unwrap();
    golden.check("out.init.eval_y", &y);
    check_state("init");
    let y = norm.forward(&x1, Statistics::Batch).unwrap();
    golden.check("out.train1.y", &y);
    check_state("train1");
    let y = norm.forward(&x2, Statistics::Batch).unwrap();
    golden.check("out.train2.y", &y);
    check_state("train2");
    let y = norm.forward(&x1, Statistics::Running).unwrap();
    golden.check("out.train2.eval_y", &y);
}

#[test]
fn statistics_are_buffers_and_not_weights() {
    let (params, _norm) = norm(4);
    assert!(params.trainable().is_empty());
    let names: Vec<String> = params.state_dict().into_iter().map(|(n, _)| n).collect();
    let expected = [
        "bn.running_mean",
        "bn.running_var",
        "bn.num_batches_tracked",
    ];
    assert_eq!(names, expected);
}

#[test]
fn its_scaling_inverts_it_up_to_eps() {
    let (_params, norm) = norm(2);
    let scaling = LatentScaling::new(&[0.5, 0.25], &[1.0, -2.0], Device::Cpu).unwrap();
    norm.set_statistics(&scaling).unwrap();
    let latents = Tensor::randn([3, 2, 4, 4], (Kind::Float, Device::Cpu)) * 3;
    let z = norm.forward(&latents, Statistics::Running).unwrap();
    let back = norm.scaling().unwrap().to_decoder(&z).unwrap();
    assert!((back - latents).abs().max().double_value(&[]) < 1e-3);
    // One entry for all channels.
    let scaling = LatentScaling::new(&[0.5], &[0.0], Device::Cpu).unwrap();
    norm.set_statistics(&scaling).unwrap();
    assert_eq!(
        values(&norm.scaling().unwrap().scale().flatten(0, -1)),
        [0.5, 0.5]
    );
}

#[test]
fn invalid_settings_and_inputs_are_errors() {
    let (params, norm) = norm(4);
    let error = LatentNorm::new(&params.root().sub("other"), 4, 0.0).unwrap_err();
    assert!(error.to_string().contains("momentum"), "{error}");
    let zeros = |size: &[i64]| Tensor::zeros(size, (Kind::Float, Device::Cpu));
    let error = norm.forward(&zeros(&[2, 3, 4, 4]), Statistics::Running);
    assert!(matches!(error, Err(DiffusionError::Shape { .. })));
    let error = norm.forward(&zeros(&[1, 4, 1, 1]), Statistics::Batch);
    assert!(matches!(error, Err(DiffusionError::Setting { .. })));
    assert!(
        norm.forward(&zeros(&[1, 4, 1, 1]), Statistics::Running)
            .is_ok()
    );
    let scaling = LatentScaling::new(&[1.0; 3], &[0.0], Device::Cpu).unwrap();
    assert!(norm.set_statistics(&scaling).is_err());
}
