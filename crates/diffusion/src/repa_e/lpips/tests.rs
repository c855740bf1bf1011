//! Comparison with upstream's numbers, including intermediate results.

use tch::{Device, Kind, Tensor};
use torch_ext::Params;

use super::{Lpips, difference, term};
use crate::golden::Golden;

#[test]
fn every_stage_and_the_gradient_follow_upstream() {
    let golden = Golden::open("repae/repae_lpips");
    let widths = golden.config("vgg_channels").as_array().unwrap();
    let widths = [0, 1, 2, 3, 4].map(|index: usize| widths[index].as_i64().unwrap());
    let params = Params::new(Device::Cpu, 0).unwrap();
    let lpips = Lpips::new(&params.root(), widths).unwrap();
    // The constants are checked before loading, which would overwrite wrong ones.
    let constants = params.state_dict().into_iter().take(2);
    for ((name, ours), (_, theirs)) in constants.zip(["shift", "scale"].map(|name| {
        let name = format!("scaling_layer.{name}");
        golden
            .weights()
            .into_iter()
            .find(|(found, _)| *found == name)
            .unwrap()
    })) {
        assert_eq!(ours, theirs, "{name}");
    }
    params.load(&golden.weights()).unwrap();
    assert!(params.trainable().is_empty());

    let image = golden.tensor("in.image");
    let recon = golden.tensor("in.recon").set_requires_grad(true);
    let distance = lpips.forward(&image, &recon).unwrap();
    let mean = distance.mean(None);
    mean.backward();
    golden.check("out.lpips", &distance);
    golden.check("out.mean", &mean);
    golden.check("grad.in.recon", &recon.grad());

    golden.check("out.scaled_image", &lpips.scaled(&image).unwrap());
    let [of_image, of_recon] = [&image, &recon].map(|x| lpips.features(x).unwrap());
    for (layer, (left, right)) in of_image.iter().zip(&of_recon).enumerate() {
        golden.check(&format!("out.feat_image.{layer}"), left);
        golden.check(&format!("out.feat_recon.{layer}"), right);
        let difference = difference(left, right).unwrap();
        golden.check(&format!("out.diff.{layer}"), &difference);
        let term = term(&lpips.heads[layer], &difference).unwrap();
        golden.check(&format!("out.layer.{layer}"), &term);
    }
}

/// Two channels of three pixels: one is all zero, one below the bound, one ordinary.
fn features() -> Tensor {
    let features = Tensor::from_slice(&[0f32, 1e-16, 1., 0., 3e-16, 2.]).view([1, 2, 3, 1]);
    features.set_requires_grad(true)
}

#[test]
fn the_gradient_is_finite_where_all_channels_are_zero() {
    let features = features();
    let unit = super::unit(&features).unwrap();
    unit.sum(Kind::Float).backward();
    assert!(bool::try_from(features.grad().isfinite().all()).unwrap());
}

#[test]
fn the_bound_below_the_root_changes_no_value() {
    let features = features();
    let squares = features.square().sum_dim_intlist(1, true, None::<Kind>);
    let plain = &features / (squares.sqrt() + 1e-10);
    let error = super::unit(&features).unwrap() - plain;
    assert!(error.abs().max().double_value(&[]) < 1e-9);
}
