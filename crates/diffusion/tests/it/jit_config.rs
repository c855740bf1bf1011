use diffusion::{DiffusionError, Jit, JitConfig};
use tch::Device;
use torch_ext::Params;

use crate::jit::{built, tiny};

/// The number of weights, computed from the shapes in the paper.
fn count(config: &JitConfig) -> i64 {
    let (width, head) = (config.hidden_size, config.hidden_size / config.num_heads);
    let linear = |from: i64, to: i64| from * to + to;
    let inner = (width as f64 * config.mlp_ratio) as i64 * 2 / 3;
    let pixels = config.patch_size * config.patch_size * config.in_channels;
    let embedders = pixels * config.bottleneck_dim
        + linear(config.bottleneck_dim, width)
        + linear(256, width)
        + linear(width, width)
        + (config.num_classes + 1 + config.in_context_len) * width;
    let attention = linear(width, 3 * width) + linear(width, width) + 2 * head;
    let mlp = linear(width, 2 * inner) + linear(inner, width);
    let block = attention + mlp + linear(width, 6 * width) + 2 * width;
    let last = width + linear(width, 2 * width) + linear(width, pixels);
    embedders + config.depth * block + last
}

#[test]
fn models_have_the_published_number_of_weights() {
    for config in [tiny(), JitConfig::named("JiT-XS/4").unwrap()] {
        let (params, _) = built(&config);
        assert_eq!(params.count() as i64, count(&config));
    }
    for (name, millions) in [
        ("JiT-B/16", 131),
        ("JiT-L/16", 459),
        ("JiT-H/16", 953),
        ("JiT-B/32", 133),
        ("JiT-L/32", 462),
        ("JiT-H/32", 956),
    ] {
        let found = count(&JitConfig::named(name).unwrap()) as f64 / 1e6;
        assert!((found - f64::from(millions)).abs() < 1.0, "{name}: {found}");
    }
}

#[test]
fn every_name_is_a_valid_model_of_the_published_shape() {
    assert_eq!(JitConfig::names().len(), 8);
    for name in JitConfig::names() {
        let config = JitConfig::named(&name).unwrap();
        config.validate().unwrap();
        assert!(name.ends_with(&format!("/{}", config.patch_size)));
    }
    let shape = |name| {
        let config = JitConfig::named(name).unwrap();
        let JitConfig {
            input_size,
            depth,
            hidden_size,
            num_heads,
            bottleneck_dim,
            in_context_start,
            ..
        } = config;
        assert_eq!(config.in_context_len, 32);
        let size = (depth, hidden_size, num_heads);
        (input_size, size, bottleneck_dim, in_context_start)
    };
    assert_eq!(shape("JiT-B/16"), (256, (12, 768, 12), 128, 4));
    assert_eq!(shape("JiT-L/32"), (512, (24, 1024, 16), 128, 8));
    assert_eq!(shape("JiT-H/16"), (256, (32, 1280, 16), 256, 10));
    assert_eq!(JitConfig::named("JiT-B/16").unwrap(), JitConfig::default());
    let small = JitConfig::named("JiT-XS/4").unwrap();
    assert_eq!((small.input_size, small.hidden_size), (32, 128));
}

#[test]
fn an_unknown_model_error_names_the_nearest_model() {
    for (name, nearest) in [
        ("JiT-B16", "JiT-B/16"),
        ("jit-h/32", "JiT-H/32"),
        ("JiT-XS4", "JiT-XS/4"),
    ] {
        let error = JitConfig::named(name).unwrap_err().to_string();
        let expected =
            format!("unknown model {name:?}; did you mean {nearest:?}? known models: JiT-XS/4,");
        assert!(error.starts_with(&expected), "{error}");
    }
}

#[test]
fn invalid_settings_are_named() {
    let change = |name: &str, value: f64| -> JitConfig {
        let mut settings = serde_json::to_value(tiny()).unwrap();
        settings[name] = match settings[name].is_f64() {
            true => value.into(),
            false => (value as i64).into(),
        };
        serde_json::from_value(settings).unwrap()
    };
    for (name, value) in [
        ("input_size", 9.0),
        ("patch_size", 0.0),
        ("in_channels", -3.0),
        ("hidden_size", 40.0), // heads of 10
        ("hidden_size", 30.0),
        ("depth", 0.0),
        ("num_heads", 0.0),
        ("num_classes", 0.0),
        ("bottleneck_dim", 0.0),
        ("mlp_ratio", 0.0),
        ("in_context_len", -1.0),
        ("in_context_start", 4.0),
        ("in_context_start", -1.0),
        ("attn_dropout", 1.0),
        ("proj_dropout", -0.1),
    ] {
        let params = Params::new(Device::Cpu, 0).unwrap();
        match Jit::new(&params.root(), &change(name, value)) {
            Err(DiffusionError::Setting { name: found, .. }) => assert_eq!(found, name),
            other => panic!("{name} = {value}: {other:?}"),
        }
    }
    let nan = JitConfig {
        mlp_ratio: f64::NAN,
        ..tiny()
    };
    assert!(nan.validate().is_err());
    assert_eq!(
        change("hidden_size", 40.0)
            .validate()
            .unwrap_err()
            .to_string(),
        "hidden_size is 40, must be a multiple of 4 num_heads = 16, for the rotary embedding"
    );
}

#[test]
fn configuration_rejects_unknown_keys() {
    let config: JitConfig = serde_json::from_str(r#"{"depth": 16}"#).unwrap();
    assert_eq!(
        config,
        JitConfig {
            depth: 16,
            ..JitConfig::default()
        }
    );
    assert!(serde_json::from_str::<JitConfig>(r#"{"dept": 3}"#).is_err());
}
