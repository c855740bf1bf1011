//! Tests of MeanFlow: the network and its derivative, the objective, the sampler.

mod network;
mod objective;
mod sampler;

use diffusion::SitConfig;
use diffusion::models::meanflow::MeanFlowSit;
use serde_json::Value;
use tch::{Device, Kind, Tensor};
use torch_ext::{Generator, Params};

use crate::golden::Golden;

fn open(case: &str) -> Golden {
    Golden::open(&format!("meanflow/meanflow_{case}"))
}

/// The network of a golden case with its weights.
fn build(golden: &Golden) -> (Params, MeanFlowSit) {
    let net = golden.config("net");
    let number = |key: &str| net[key].as_i64().unwrap();
    let config = SitConfig {
        input_size: number("input_size"),
        patch_size: number("patch_size"),
        in_channels: number("in_channels"),
        hidden_size: number("hidden_size"),
        depth: number("depth"),
        num_heads: number("num_heads"),
        mlp_ratio: net["mlp_ratio"].as_f64().unwrap(),
        num_classes: number("num_classes"),
        class_dropout: net["class_dropout_prob"].as_f64().unwrap(),
        qk_norm: golden.config("qk_norm") == &Value::Bool(true),
        train_pos_embed: false,
    };
    let params = Params::new(Device::Cpu, 0).unwrap();
    let network = MeanFlowSit::new(&params.root(), &config).unwrap();
    let weights = golden.weights();
    let (_, upstream) = weights.iter().find(|(n, _)| n == "pos_embed").unwrap();
    let error = (params.get("pos_embed").unwrap() - upstream).abs().max();
    assert!(error.double_value(&[]) < 1e-7);
    // Loading is strict: names and shapes must be exactly upstream's.
    params.load(&weights).unwrap();
    (params, network)
}

/// A network whose weights are all random, in float64.
fn in_double(config: &SitConfig) -> (Params, MeanFlowSit) {
    let (params, network) = randomised(config);
    for param in params.entries().iter() {
        let mut tensor = param.tensor.shallow_clone();
        let double = tensor.detach().to_kind(Kind::Double);
        tensor.set_data(&double);
    }
    (params, network)
}

/// A network whose weights are all random, since the output of an untrained one is zero.
fn randomised(config: &SitConfig) -> (Params, MeanFlowSit) {
    let params = Params::new(Device::Cpu, 0).unwrap();
    let network = MeanFlowSit::new(&params.root(), config).unwrap();
    let mut generator = generator(1);
    for mut weight in params.trainable() {
        generator.normal_(&mut weight, 0.0, 0.2).unwrap();
    }
    (params, network)
}

fn tiny() -> SitConfig {
    crate::sit::tiny()
}

fn generator(seed: u64) -> Generator {
    Generator::new(Device::Cpu, seed).unwrap()
}

/// A batch of 4 for [`tiny`]: `z`, `r`, `t`, labels and a direction.
fn batch(kind: Kind) -> [Tensor; 5] {
    let mut generator = generator(5);
    let z = generator.randn(&[4, 3, 8, 8], kind).unwrap();
    let v = generator.randn(&[4, 3, 8, 8], kind).unwrap();
    let r = Tensor::from_slice(&[0.0, 0.2, 0.5, 0.3]).to_kind(kind);
    let t = Tensor::from_slice(&[1.0, 0.7, 0.5, 0.9]).to_kind(kind);
    [z, r, t, Tensor::from_slice(&[0i64, 1, 2, 3]), v]
}

fn largest(tensor: &Tensor) -> f64 {
    tensor.abs().max().double_value(&[])
}
