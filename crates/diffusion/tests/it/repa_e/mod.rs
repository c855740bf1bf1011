//! Tests of REPA-E: the parts of its step, and the whole step.

mod discriminator;
mod isolation;
mod latent_norm;
mod loss;
mod lpips;
mod sit;
mod step;

use alignment::{Head, HeadConfig};
use diffusion::repa_e::{Discriminator, LatentNorm, Lpips};
use diffusion::{Sit, SitConfig};
use serde_json::Value;
use tch::{Device, Kind, Tensor};
use torch_ext::{Generator, Params};

use crate::terms::heads;

/// The weights whose names start with `prefix`, which is removed.
fn below(weights: &[(String, Tensor)], prefix: &str) -> Vec<(String, Tensor)> {
    let named = weights.iter().filter_map(|(name, tensor)| {
        let rest = name.strip_prefix(prefix)?;
        Some((rest.to_owned(), tensor.shallow_clone()))
    });
    named.collect()
}

fn integers(value: &Value) -> Vec<i64> {
    let entries = value.as_array().unwrap();
    entries.iter().map(|n| n.as_i64().unwrap()).collect()
}

fn state(params: &Params, name: &str) -> Tensor {
    let found = params.get(name);
    found.unwrap_or_else(|| panic!("no {name}"))
}

/// Images in [-1, 1].
fn images(batch: i64, side: i64) -> Tensor {
    let mut generator = Generator::new(Device::Cpu, 7).unwrap();
    generator
        .rand(&[batch, 3, side, side], Kind::Float)
        .unwrap()
        * 2
        - 1
}

fn discriminator(params: &Params) -> Discriminator {
    Discriminator::new(&params.root(), 8, 3).unwrap()
}

/// LPIPS with the narrow VGG of the golden cases, and the weights below `prefix`.
fn lpips(weights: &[(String, Tensor)], prefix: &str) -> Lpips {
    let params = Params::new(Device::Cpu, 0).unwrap();
    let lpips = Lpips::new(&params.root(), [4, 8, 16, 32, 32]).unwrap();
    params.load(&below(weights, prefix)).unwrap();
    lpips
}

/// Upstream's SiT, whose state dict contains denoiser, latent norm and heads.
struct Model {
    params: Params,
    sit: Sit,
    latent_norm: LatentNorm,
    heads: Vec<Head>,
}

/// The settings of a case's denoiser, with a trained position embedding as upstream.
fn sit_config(net: &Value) -> SitConfig {
    let number = |key: &str| net[key].as_i64().unwrap();
    SitConfig {
        input_size: number("input_size"),
        patch_size: number("patch_size"),
        in_channels: number("in_channels"),
        hidden_size: number("hidden_size"),
        depth: number("depth"),
        num_heads: number("num_heads"),
        mlp_ratio: net["mlp_ratio"].as_f64().unwrap(),
        num_classes: number("num_classes"),
        class_dropout: net["class_dropout_prob"].as_f64().unwrap(),
        train_pos_embed: true,
        ..SitConfig::default()
    }
}

/// Converts a name of REPA-E's state dict to a name here. Heads are `projectors.0.0` in REPA-E and
/// `projectors.0.projection_layer.0` in iREPA, which this project follows.
fn head_name(name: &str) -> String {
    match *name.splitn(3, '.').collect::<Vec<_>>() {
        ["projectors", index, rest] => format!("projectors.{index}.projection_layer.{rest}"),
        _ => name.to_owned(),
    }
}

impl Model {
    fn new(net: &Value, config: &SitConfig, weights: &[(String, Tensor)]) -> Self {
        let params = Params::new(Device::Cpu, 0).unwrap();
        let root = params.root();
        let sit = Sit::new(&root, config).unwrap();
        let width = net["projector_dim"].as_i64().unwrap();
        let head = HeadConfig::Mlp { width };
        let widths = integers(&net["z_dims"]);
        let heads = heads(&root, &head, config.hidden_size, &widths);
        let momentum = net["bn_momentum"].as_f64().unwrap();
        let latent_norm = LatentNorm::new(&root, config.in_channels, momentum).unwrap();
        let weights: Vec<(String, Tensor)> = weights
            .iter()
            .map(|(name, tensor)| (head_name(name), tensor.shallow_clone()))
            .collect();
        params.load(&weights).unwrap();
        Self {
            params,
            sit,
            latent_norm,
            heads,
        }
    }
}
