//! Every setting is known to affect the weights, the results or neither, and the hashes depend on it
//! accordingly.

use std::collections::BTreeMap;

use alignment::SpatialNorm;
use diffusion::samplers::SamplerConfig;
use serde_json::{Value, json};
use training::{
    Autoencoder, Config, JointTraining, KlSettings, Objective, ReduceDtype, SettingEffect,
};

use SettingEffect::{Nothing, Results, Weights};

/// All settings. A new setting must be added here with its effect. Unless `Config::effect_of` lists it, its effect is
/// `Weights`.
const EXPECTED: &[(&str, SettingEffect)] = &[
    ("alignment.encoder", Weights),
    ("alignment.encoder_precision", Weights),
    ("alignment.head.kernel", Weights),
    ("alignment.head.kind", Weights),
    ("alignment.losses", Weights),
    ("alignment.pool_tokens", Weights),
    ("alignment.spatial_norm.alpha", Weights),
    ("alignment.spatial_norm.eps", Weights),
    ("alignment.spatial_norm.method", Weights),
    ("data.background", Weights),
    ("data.encode_ahead", Nothing),
    ("data.flip", Weights),
    ("data.image_column", Weights),
    ("data.images", Weights),
    ("data.label_column", Weights),
    ("data.latent_cache", Nothing),
    ("data.max_corrupt_share", Nothing),
    ("data.path", Nothing),
    ("data.prefetch", Nothing),
    ("data.reference_split", Results),
    ("data.resolution", Weights),
    ("data.split", Weights),
    ("data.token_cache", Nothing),
    ("data.token_memory_mib", Nothing),
    ("data.workers", Nothing),
    ("evaluate.every", Results),
    ("evaluate.fd_encoder", Results),
    ("evaluate.inception", Results),
    ("evaluate.probe_images", Results),
    ("evaluate.reference", Nothing),
    ("evaluate.reference_images", Results),
    ("evaluate.spatial_images", Results),
    ("model.alignment_depth", Weights),
    ("model.attn_dropout", Weights),
    ("model.autoencoder.bias", Weights),
    ("model.autoencoder.kind", Weights),
    ("model.autoencoder.layout", Weights),
    ("model.autoencoder.scale", Weights),
    ("model.autoencoder.train", Weights),
    ("model.autoencoder.weights", Nothing),
    ("model.label_dropout", Weights),
    ("model.name", Weights),
    ("model.proj_dropout", Weights),
    ("model.qk_norm", Weights),
    ("objective.adaptive_p", Weights),
    ("objective.autoencoder_alignment", Weights),
    ("objective.autoencoder_lr", Weights),
    ("objective.cfg_kappa", Weights),
    ("objective.cfg_max_t", Weights),
    ("objective.cfg_min_t", Weights),
    ("objective.cfg_omega", Weights),
    ("objective.discriminator_channels", Weights),
    ("objective.discriminator_layers", Weights),
    ("objective.discriminator_lr", Weights),
    ("objective.discriminator_weights", Nothing),
    ("objective.kind", Weights),
    ("objective.latent_norm_momentum", Weights),
    ("objective.loss.discriminator_factor", Weights),
    ("objective.loss.discriminator_start", Weights),
    ("objective.loss.discriminator_weight", Weights),
    ("objective.loss.kl_weight", Weights),
    ("objective.loss.lecam_decay", Weights),
    ("objective.loss.lecam_weight", Weights),
    ("objective.loss.log_variance", Weights),
    ("objective.loss.perceptual_weight", Weights),
    ("objective.loss.reconstruction", Weights),
    ("objective.loss.reconstruction_weight", Weights),
    ("objective.lpips", Nothing),
    ("objective.noise_scale", Weights),
    ("objective.path", Weights),
    ("objective.t_eps", Weights),
    ("objective.time", Weights),
    ("objective.time.distribution", Weights),
    ("objective.time.mu", Weights),
    ("objective.time.ratio_r_not_equal_t", Weights),
    ("objective.time.sigma", Weights),
    ("objective.time_mean", Weights),
    ("objective.time_std", Weights),
    ("objective.weighting", Weights),
    ("optimizer.betas", Weights),
    ("optimizer.blr", Weights),
    ("optimizer.eps", Weights),
    ("optimizer.lr", Weights),
    ("optimizer.max_grad_norm", Weights),
    ("optimizer.min_lr", Weights),
    ("optimizer.schedule", Weights),
    ("optimizer.warmup_steps", Weights),
    ("optimizer.weight_decay", Weights),
    ("sample.batch_size", Results),
    ("sample.count", Results),
    ("sample.grid", Results),
    ("sample.sampler.cfg_scale", Results),
    ("sample.sampler.guidance_high", Results),
    ("sample.sampler.guidance_low", Results),
    ("sample.sampler.method", Results),
    ("sample.sampler.num_steps", Results),
    ("sample.seed", Results),
    ("train.accumulation", Weights),
    ("train.batch_size", Weights),
    ("train.checkpoint_every", Nothing),
    ("train.cuda_graphs", Nothing),
    ("train.deterministic", Weights),
    ("train.ema_decay", Weights),
    ("train.fused", Weights),
    ("train.keep_checkpoints", Nothing),
    ("train.log_every", Results),
    ("train.log_speed", Nothing),
    ("train.precision", Weights),
    ("train.reduce_dtype", Weights),
    ("train.second_ema_decay", Weights),
    ("train.seed", Weights),
    ("train.stop_on_collapse", Nothing),
    ("train.tf32", Weights),
];

/// Configurations of each kind of objective, which together serialise every setting.
fn configurations() -> Vec<Config> {
    let mut base = Config::default();
    base.data.images = 1000;
    base.data.workers = Some(3);
    base.data.token_cache = "tokens".into();
    base.data.latent_cache = "latents".into();
    base.data.encode_ahead = Some(true);
    base.model.autoencoder = Autoencoder::Kl(KlSettings {
        weights: "vae.safetensors".into(),
        ..KlSettings::default()
    });
    base.model.attn_dropout = 0.1;
    base.model.proj_dropout = 0.1;
    base.model.alignment_depth = Some(4);
    base.alignment.encoder_precision = Some(encoders::Precision::Fp32);
    base.alignment.spatial_norm = SpatialNorm::default();
    base.optimizer.blr = Some(1e-3);
    base.optimizer.min_lr = 1e-5;
    base.train.fused = false;
    base.train.cuda_graphs = true;
    base.train.reduce_dtype = ReduceDtype::Bf16;
    base.train.tf32 = true;
    base.train.deterministic = true;
    base.train.stop_on_collapse = true;
    base.train.second_ema_decay = Some(0.99);
    base.sample.sampler = SamplerConfig::default();
    base.evaluate.inception = serde_json::from_value(json!(["fid"])).unwrap();
    base.evaluate.every = 100;
    base.evaluate.reference = "statistics.npz".into();
    base.evaluate.probe_images = 10;
    // `schedule` and `min_lr` are only serialised if they differ from the default.
    let cosine: Config =
        serde_json::from_value(json!({"optimizer": {"schedule": "cosine"}})).unwrap();
    let mut scheduled = base.clone();
    scheduled.optimizer.schedule = cosine.optimizer.schedule;
    let objectives = ["velocity", "x-prediction", "meanflow"].map(|kind| {
        let config: Config = serde_json::from_value(json!({"objective": {"kind": kind}})).unwrap();
        config.objective
    });
    let joint = Objective::RepaE(Box::new(JointTraining {
        autoencoder_lr: Some(1e-4),
        discriminator_lr: Some(1e-4),
        discriminator_weights: "discriminator.safetensors".into(),
        ..JointTraining::default()
    }));
    let mut all: Vec<Config> = objectives
        .into_iter()
        .chain([joint])
        .map(|objective| Config {
            objective,
            ..base.clone()
        })
        .collect();
    all.push(scheduled);
    all
}

/// Returns the configuration with another valid value for the setting `key`.
fn changed(config: &Config, key: &str) -> Config {
    let pointer = format!("/{}", key.replace('.', "/"));
    let whole = serde_json::to_value(config).unwrap();
    let old = whole.pointer(&pointer).unwrap().clone();
    let mut others: Vec<Value> = match &old {
        Value::Bool(flag) => vec![json!(!flag)],
        Value::Number(number) => {
            let number = number.as_f64().unwrap();
            vec![
                json!(number as u64 + 1),
                // Keeps an odd number odd.
                json!(number as u64 + 2),
                json!(number * 0.5 + 0.125),
            ]
        }
        Value::Array(list) => vec![
            json!(
                list.iter()
                    .map(|x| x.as_f64().unwrap_or(0.0) * 0.5)
                    .collect::<Vec<_>>()
            ),
            json!(["fid", "kid"]),
            json!([{"kind": "cosine", "coefficient": 0.25}]),
        ],
        _ => Vec::new(),
    };
    // Valid names of all kinds of settings, and free texts.
    let names = [
        "black",
        "bf16",
        "fp32",
        "cosine",
        "constant",
        "linear",
        "euler",
        "heun",
        "logit-normal",
        "lognormal",
        "log-normal",
        "uniform",
        "f16d32",
        "f8d4",
        "none",
        "zscore",
        "conv",
        "mlp",
        "velocity",
        "x-prediction",
        "ode",
        "sde",
        "lpips",
        "other",
        "SiT-L/2",
        "kl",
        "hinge",
        "vanilla",
        "l1",
        "l2",
        "adaptive",
        "fixed",
    ];
    others.extend(names.iter().map(|name| json!(name)));
    others
        .into_iter()
        .find_map(|other| {
            let mut whole = whole.clone();
            *whole.pointer_mut(&pointer)? = other;
            let config_with: Config = serde_json::from_value(whole).ok()?;
            (config_with != *config).then_some(config_with)
        })
        .unwrap_or_else(|| panic!("no other value for {key}, which is {old}"))
}

#[test]
fn every_setting_is_known_to_affect_weights_results_or_nothing() {
    let mut found = BTreeMap::new();
    for config in configurations() {
        for (key, _) in config.settings() {
            // The effect of `train.steps` depends on the schedule; it is tested below.
            if key != "train.steps" {
                found.insert(key.clone(), config.effect_of(&key));
            }
        }
    }
    let expected: BTreeMap<String, SettingEffect> = EXPECTED
        .iter()
        .map(|(key, effect)| ((*key).to_owned(), *effect))
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn the_hashes_depend_on_what_affects_weights_and_results() {
    for config in configurations() {
        let (weights, results) = (config.training_hash("x"), config.hash("x"));
        for (key, _) in config.settings() {
            let effect = config.effect_of(&key);
            // Another kind would need other settings in its section.
            if key.ends_with(".kind") || key.ends_with(".method") && effect == Weights {
                assert_eq!(effect, Weights, "{key}");
                continue;
            }
            let other = changed(&config, &key);
            let same = (
                other.training_hash("x") == weights,
                other.hash("x") == results,
            );
            let expected = match effect {
                Weights => (false, false),
                Results => (true, false),
                Nothing => (true, true),
            };
            assert_eq!(same, expected, "{key}");
        }
        assert_ne!(config.training_hash("y"), weights);
        assert_ne!(config.hash("y"), results);
    }
}

#[test]
fn the_length_of_a_run_affects_its_weights_if_the_schedule_ends_with_it() {
    let config = Config::default();
    assert_eq!(config.effect_of("train.steps"), Results);
    let cosine = configurations().pop().unwrap();
    assert_eq!(cosine.effect_of("train.steps"), Weights);
}
