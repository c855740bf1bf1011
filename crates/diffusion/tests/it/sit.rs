use alignment::{Head, HeadConfig, KernelSize};
use diffusion::{Denoiser, DiffusionError, Dimensions, Mode, Sit, SitConfig, drop_labels};
use tch::{Device, Kind, Tensor};
use torch_ext::{Generator, Params};

use crate::golden::Golden;
use crate::terms::heads;

/// The model and the head of a golden case, with its weights.
pub struct Case {
    pub params: Params,
    pub sit: Sit,
    pub head: Head,
    /// The block whose tokens are aligned.
    pub depth: i64,
}

impl Case {
    pub fn build(golden: &Golden) -> Self {
        let number = |key| golden.config(key).as_i64().unwrap();
        let config = SitConfig {
            input_size: number("input_size"),
            patch_size: number("patch_size"),
            in_channels: number("in_channels"),
            hidden_size: number("hidden_size"),
            depth: number("depth"),
            num_heads: number("num_heads"),
            mlp_ratio: golden.config("mlp_ratio").as_f64().unwrap(),
            num_classes: number("num_classes"),
            class_dropout: golden.config("class_dropout_prob").as_f64().unwrap(),
            qk_norm: golden.config("qk_norm").as_bool().unwrap(),
            train_pos_embed: false,
        };
        let head = match golden.config("projection_layer_type").as_str() {
            Some("mlp") => HeadConfig::Mlp {
                width: number("projector_dim"),
            },
            Some("linear") => HeadConfig::Linear,
            Some("conv") => HeadConfig::Conv {
                kernel: KernelSize::try_from(number("proj_kwargs_kernel_size")).unwrap(),
            },
            other => panic!("{other:?}"),
        };
        let widths: Vec<i64> = golden.config("z_dims").as_array().unwrap()[..]
            .iter()
            .map(|width| width.as_i64().unwrap())
            .collect();
        let params = Params::new(Device::Cpu, 0).unwrap();
        let root = params.root();
        let sit = Sit::new(&root, &config).unwrap();
        let mut heads = heads(&root, &head, config.hidden_size, &widths);
        let weights = golden.weights();
        // The computed position embedding is compared before loading replaces it.
        let (_, upstream) = weights.iter().find(|(n, _)| n == "pos_embed").unwrap();
        let error = (params.get("pos_embed").unwrap() - upstream).abs().max();
        assert!(error.double_value(&[]) < 1e-7);
        // Loading is strict: names and shapes must be exactly upstream's.
        params.load(&weights).unwrap();
        Self {
            sit,
            head: heads.remove(0),
            depth: number("encoder_depth"),
            params,
        }
    }
}

fn forward(name: &str, with_tokens: bool) {
    let golden = Golden::open(name);
    for composed in [false, true] {
        ops::composed_if(composed, || forward_in_form(&golden, with_tokens));
    }
}

fn forward_in_form(golden: &Golden, with_tokens: bool) {
    let case = Case::build(golden);
    let [x, t, y] = ["in.x", "in.t", "in.y"].map(|key| golden.tensor(key));
    let output = case
        .sit
        .forward(&x, &t, &y, &[case.depth], Mode::Eval)
        .unwrap();
    golden.check("out.velocity", &output.prediction);
    golden.check("out.hidden", &output.hidden[0]);
    golden.check("out.zs", &case.head.forward(&output.hidden[0]).unwrap());
    let condition = case.sit.conditioning(&t, &y, Mode::Eval).unwrap();
    golden.check("out.cond", &condition);
    if with_tokens {
        golden.check("out.tokens", &case.sit.tokens(&x).unwrap());
    }
}

#[test]
#[ignore = "its data is not in the repository; IREPA_GOLDEN names a folder that contains it"]
fn forward_with_a_1x1_convolution_follows_upstream() {
    forward("sit_forward_conv1", false);
}

#[test]
fn forward_with_a_3x3_convolution_follows_upstream() {
    forward("sit_forward_conv3", false);
}

#[test]
#[ignore = "its data is not in the repository; IREPA_GOLDEN names a folder that contains it"]
fn forward_with_a_5x5_convolution_follows_upstream() {
    forward("sit_forward_conv5", true);
}

#[test]
fn forward_with_a_linear_head_follows_upstream() {
    forward("sit_forward_linear", false);
}

#[test]
fn forward_with_an_mlp_head_follows_upstream() {
    forward("sit_forward_mlp", true);
}

#[test]
fn forward_with_normalised_queries_and_keys_follows_upstream() {
    forward("sit_qknorm", true);
}

/// A model small enough to train in a test, on 8 x 8 images of 3 classes.
pub fn tiny() -> SitConfig {
    SitConfig {
        input_size: 8,
        patch_size: 2,
        in_channels: 3,
        hidden_size: 32,
        depth: 3,
        num_heads: 4,
        num_classes: 3,
        ..SitConfig::default()
    }
}

/// A model whose weights are all random, since the output of an untrained one is zero.
pub fn randomised(config: &SitConfig) -> (Params, Sit) {
    let params = Params::new(Device::Cpu, 0).unwrap();
    let sit = Sit::new(&params.root(), config).unwrap();
    let mut generator = Generator::new(Device::Cpu, 1).unwrap();
    for mut weight in params.trainable() {
        generator.normal_(&mut weight, 0.0, 0.1).unwrap();
    }
    (params, sit)
}

fn batch(config: &SitConfig, size: i64) -> (Tensor, Tensor, Tensor) {
    let mut generator = Generator::new(Device::Cpu, 5).unwrap();
    let shape = [
        size,
        config.in_channels,
        config.input_size,
        config.input_size,
    ];
    let x = generator.randn(&shape, Kind::Float).unwrap();
    let t = generator.rand(&[size], Kind::Float).unwrap();
    let labels = Tensor::arange(size, (Kind::Int64, Device::Cpu)).remainder(config.num_classes);
    (x, t, labels)
}

fn largest(tensor: &Tensor) -> f64 {
    tensor.abs().max().double_value(&[])
}

#[test]
fn an_untrained_model_predicts_zero_and_its_blocks_do_nothing() {
    let config = tiny();
    let params = Params::new(Device::Cpu, 0).unwrap();
    let sit = Sit::new(&params.root(), &config).unwrap();
    let (x, t, labels) = batch(&config, 4);
    let output = sit.forward(&x, &t, &labels, &[3], Mode::Eval).unwrap();
    assert_eq!(largest(&output.prediction), 0.0);
    assert_eq!(output.hidden[0], sit.tokens(&x).unwrap());
}

#[test]
fn weights_are_initialised_as_upstream() {
    let config = SitConfig {
        input_size: 16,
        ..SitConfig::named("SiT-XS/2").unwrap()
    };
    let params = Params::new(Device::Cpu, 0).unwrap();
    Sit::new(&params.root(), &config).unwrap();
    let weight = |name| params.get(name).unwrap();
    for (name, fans) in [
        ("x_embedder.proj.weight", 128 + 4 * 2 * 2),
        ("blocks.3.attn.qkv.weight", 128 + 3 * 128),
        ("blocks.0.mlp.fc1.weight", 128 + 512),
    ] {
        let bound = (6.0 / f64::from(fans)).sqrt();
        let found = largest(&weight(name));
        assert!(found <= bound && found > 0.97 * bound, "{name}");
    }
    for name in [
        "t_embedder.mlp.0.weight",
        "t_embedder.mlp.2.weight",
        "y_embedder.embedding_table.weight",
    ] {
        let std = weight(name).std(true).double_value(&[]);
        assert!((std - 0.02).abs() < 5e-4, "{name} {std}");
    }
    for param in params.entries().iter() {
        let zero = param.name.ends_with("bias")
            || param.name.contains("adaLN_modulation")
            || param.name.starts_with("final_layer");
        assert_eq!(largest(&param.tensor) == 0.0, zero, "{}", param.name);
        assert_eq!(param.trainable, param.name != "pos_embed", "{}", param.name);
    }
}

#[test]
fn every_name_is_a_valid_model_of_the_published_shape() {
    assert_eq!(SitConfig::names().len(), 15);
    for name in SitConfig::names() {
        let config = SitConfig::named(&name).unwrap();
        config.validate().unwrap();
        assert!(name.ends_with(&format!("/{}", config.patch_size)));
    }
    let shape = |name| {
        let config = SitConfig::named(name).unwrap();
        let SitConfig {
            depth,
            hidden_size,
            num_heads,
            ..
        } = config;
        let alignment_depth = SitConfig::alignment_depth(name).unwrap();
        (depth, hidden_size, num_heads, alignment_depth)
    };
    assert_eq!(shape("SiT-S/2"), (12, 384, 6, 4));
    assert_eq!(shape("SiT-B/4"), (12, 768, 12, 4));
    assert_eq!(shape("SiT-L/8"), (24, 1024, 16, 8));
    assert_eq!(shape("SiT-XL/2"), (28, 1152, 16, 8));
    assert_eq!(SitConfig::named("SiT-XL/2").unwrap(), SitConfig::default());
}

#[test]
fn small_models_have_the_published_number_of_weights() {
    for (name, count) in [("SiT-XS/4", 1_414_464), ("SiT-S/2", 32_858_896)] {
        let params = Params::new(Device::Cpu, 0).unwrap();
        Sit::new(&params.root(), &SitConfig::named(name).unwrap()).unwrap();
        assert_eq!(params.count(), count, "{name}");
    }
}

#[test]
fn xs_models_work_on_pixels_and_latents() {
    for (name, in_channels) in [("SiT-XS/2", 4), ("SiT-XS/4", 3), ("SiT-XS/8", 3)] {
        let config = SitConfig {
            input_size: 16,
            in_channels,
            ..SitConfig::named(name).unwrap()
        };
        let (_params, sit) = randomised(&config);
        let (x, t, labels) = batch(&config, 2);
        let output = sit.forward(&x, &t, &labels, &[1], Mode::Eval).unwrap();
        let side = 16 / config.patch_size;
        assert_eq!(output.prediction.size(), x.size());
        assert_eq!(output.hidden[0].size(), [2, side * side, 128]);
        let dimensions = Dimensions {
            image: [in_channels, 16, 16],
            num_classes: 1000,
            null_class: Some(1000),
            depth: 4,
            token_grid: (side, side),
            hidden_width: 128,
        };
        assert_eq!(sit.dimensions(), dimensions);
    }
}

#[test]
fn hidden_tokens_are_those_of_the_requested_depths() {
    let config = tiny();
    let (_params, sit) = randomised(&config);
    let (x, t, labels) = batch(&config, 2);
    let hidden = |depths: &[i64]| {
        let output = sit.forward(&x, &t, &labels, depths, Mode::Eval).unwrap();
        let alone = sit.hidden(&x, &t, &labels, depths, Mode::Eval).unwrap();
        assert_eq!(alone, output.hidden);
        alone
    };
    let [first, second, third] = [1, 2, 3].map(|depth| hidden(&[depth]).remove(0));
    assert_ne!(first, second);
    assert_ne!(second, third);
    assert_eq!(
        hidden(&[3, 1, 3]),
        [&third, &first, &third].map(Tensor::shallow_clone)
    );
    assert!(hidden(&[]).is_empty());
    for depth in [0, -1, 4] {
        let error = sit.forward(&x, &t, &labels, &[1, depth], Mode::Eval);
        assert_eq!(
            error.unwrap_err().to_string(),
            format!("the depth of hidden tokens is {depth}, must be the number of a block, 1 to 3")
        );
    }
}

#[test]
fn samples_of_a_batch_are_independent() {
    let config = tiny();
    let (_params, sit) = randomised(&config);
    let (x, t, labels) = batch(&config, 3);
    let all = sit
        .forward(&x, &t, &labels, &[], Mode::Eval)
        .unwrap()
        .prediction;
    for index in 0..3 {
        let one = |tensor: &Tensor| tensor.narrow(0, index, 1);
        let output = sit.forward(&one(&x), &one(&t), &one(&labels), &[], Mode::Eval);
        let difference = output.unwrap().prediction - one(&all);
        assert!(largest(&difference) < 1e-5);
    }
}

#[test]
fn a_non_contiguous_image_has_the_same_prediction() {
    let config = tiny();
    let (_params, sit) = randomised(&config);
    let (x, t, labels) = batch(&config, 2);
    let strided = x.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]);
    let [plain, strided] = [x, strided].map(|x| {
        let output = sit.forward(&x, &t, &labels, &[], Mode::Eval).unwrap();
        output.prediction
    });
    assert_eq!(plain, strided);
}

#[test]
fn bfloat16_autocast_stays_near_float32() {
    let config = tiny();
    let (params, sit) = randomised(&config);
    let (x, t, labels) = batch(&config, 4);
    let full = sit.forward(&x, &t, &labels, &[2], Mode::Eval).unwrap();
    let run = || sit.forward(&x, &t, &labels, &[2], Mode::Eval);
    let half = torch_ext::autocast::run(Device::Cpu, Some(Kind::BFloat16), run);
    let half = half.unwrap().unwrap();
    assert_eq!(half.prediction.kind(), Kind::BFloat16);
    // The residual stream stays in float32, as upstream.
    assert_eq!(half.hidden[0].kind(), Kind::Float);
    for (full, half) in [
        (&full.prediction, &half.prediction),
        (&full.hidden[0], &half.hidden[0]),
    ] {
        assert!(largest(&(full - half)) < 0.02 * largest(full));
    }
    half.prediction
        .to_kind(Kind::Float)
        .square()
        .mean(None)
        .backward();
    for weight in params.trainable() {
        assert_eq!(weight.grad().kind(), Kind::Float);
    }
}

#[test]
fn training_drops_labels_according_to_the_generator() {
    let config = SitConfig {
        class_dropout: 0.5,
        ..tiny()
    };
    let (_params, sit) = randomised(&config);
    let (x, t, labels) = batch(&config, 16);
    let generator = || Generator::new(Device::Cpu, 9).unwrap();

    let draws = generator().rand(&[16], Kind::Float).unwrap();
    let dropped = drop_labels(&labels, &draws, 0.5, 3).unwrap();
    let share = dropped
        .eq(3)
        .to_kind(Kind::Float)
        .mean(None)
        .double_value(&[]);
    assert!(share > 0.0 && share < 1.0);

    let trained = sit
        .forward(&x, &t, &labels, &[], Mode::Train(&mut generator()))
        .unwrap();
    let expected = sit.forward(&x, &t, &dropped, &[], Mode::Eval).unwrap();
    assert_eq!(trained.prediction, expected.prediction);
    let kept = sit.forward(&x, &t, &labels, &[], Mode::Eval).unwrap();
    assert_ne!(trained.prediction, kept.prediction);
}

#[test]
fn labels_are_dropped_only_below_the_probability() {
    let labels = Tensor::from_slice(&[0i64, 1, 2, 0]);
    let draws = Tensor::from_slice(&[0.0f32, 0.25, 0.5, 0.75]);
    let dropped = |probability| {
        let dropped = drop_labels(&labels, &draws, probability, 3).unwrap();
        assert_eq!(dropped.kind(), Kind::Int64);
        Vec::<i64>::try_from(dropped).unwrap()
    };
    assert_eq!(dropped(0.0), [0, 1, 2, 0]);
    assert_eq!(dropped(0.5), [3, 3, 2, 0]);
    assert_eq!(dropped(1.0), [3, 3, 3, 3]);
    assert!(drop_labels(&labels, &draws.narrow(0, 0, 3), 0.5, 3).is_err());
}

#[test]
fn without_dropout_there_is_no_null_class_and_nothing_is_drawn() {
    let config = SitConfig {
        class_dropout: 0.0,
        ..tiny()
    };
    let (params, sit) = randomised(&config);
    assert_eq!(sit.dimensions().null_class, None);
    let table = params.get("y_embedder.embedding_table.weight").unwrap();
    assert_eq!(table.size(), [3, 32]);
    let (x, t, labels) = batch(&config, 4);
    let mut generator = Generator::new(Device::Cpu, 9).unwrap();
    let before = generator.state().unwrap();
    sit.forward(&x, &t, &labels, &[], Mode::Train(&mut generator))
        .unwrap();
    assert_eq!(generator.state().unwrap(), before);

    let null = Tensor::from_slice(&[0i64, 1, 2, 3]);
    let error = sit.forward(&x, &t, &null, &[], Mode::Eval).unwrap_err();
    assert_eq!(error.to_string(), "label 3 is not in 0..=2");
}

#[test]
fn invalid_inputs_are_named() {
    let config = tiny();
    let (_params, sit) = randomised(&config);
    let (x, t, labels) = batch(&config, 2);
    let refused = |x: &Tensor, t: &Tensor, labels: &Tensor| {
        let error = sit.forward(x, t, labels, &[], Mode::Eval).unwrap_err();
        error.to_string()
    };
    assert_eq!(
        refused(&x.narrow(2, 0, 7), &t, &labels),
        "shape of the noisy image is [2, 3, 7, 8], expected [_, 3, 8, 8]"
    );
    assert_eq!(
        refused(&x, &t.narrow(0, 0, 1), &labels),
        "shape of t is [1], expected [2]"
    );
    assert_eq!(
        refused(&x, &t, &labels.view([2, 1])),
        "shape of labels is [2, 1], expected [2]"
    );
    assert_eq!(
        refused(&x, &t, &labels.to_kind(Kind::Float)),
        "dtype of labels is Float, expected Int64"
    );
    for wrong in [-1i64, 4] {
        let labels = Tensor::from_slice(&[1, wrong]);
        assert_eq!(
            refused(&x, &t, &labels),
            format!("label {wrong} is not in 0..=3 (3 is the null class)")
        );
    }
}

#[test]
fn invalid_settings_are_named() {
    let name = |config: SitConfig| match config.validate() {
        Err(DiffusionError::Setting { name, .. }) => name,
        other => panic!("{other:?}"),
    };
    let tiny = tiny();
    for (expected, config) in [
        (
            "input_size",
            SitConfig {
                input_size: 9,
                ..tiny.clone()
            },
        ),
        (
            "patch_size",
            SitConfig {
                patch_size: 0,
                ..tiny.clone()
            },
        ),
        (
            "in_channels",
            SitConfig {
                in_channels: -3,
                ..tiny.clone()
            },
        ),
        (
            "hidden_size",
            SitConfig {
                hidden_size: 30,
                ..tiny.clone()
            },
        ),
        (
            "hidden_size",
            SitConfig {
                num_heads: 5,
                ..tiny.clone()
            },
        ),
        (
            "depth",
            SitConfig {
                depth: 0,
                ..tiny.clone()
            },
        ),
        (
            "num_classes",
            SitConfig {
                num_classes: 0,
                ..tiny.clone()
            },
        ),
        (
            "mlp_ratio",
            SitConfig {
                mlp_ratio: f64::NAN,
                ..tiny.clone()
            },
        ),
        (
            "mlp_ratio",
            SitConfig {
                mlp_ratio: 0.0,
                ..tiny.clone()
            },
        ),
        (
            "class_dropout",
            SitConfig {
                class_dropout: 1.5,
                ..tiny.clone()
            },
        ),
        (
            "class_dropout",
            SitConfig {
                class_dropout: f64::NAN,
                ..tiny.clone()
            },
        ),
    ] {
        assert_eq!(name(config), expected);
    }
    let error = SitConfig {
        input_size: 9,
        ..tiny
    }
    .validate()
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "input_size is 9, must be a multiple of patch_size = 2"
    );
}

#[test]
fn an_unknown_model_error_names_the_nearest_model() {
    for (name, nearest) in [
        ("SiT-XL2", "SiT-XL/2"),
        ("sit-b/2", "SiT-B/2"),
        ("SiT-B/3", "SiT-B/2"),
        ("SiT-XS4", "SiT-XS/4"),
        ("SiT_L_2", "SiT-L/2"),
    ] {
        let error = SitConfig::named(name).unwrap_err().to_string();
        let expected =
            format!("unknown model {name:?}; did you mean {nearest:?}? known models: SiT-XS/2,");
        assert!(error.starts_with(&expected), "{error}");
    }
    let error = SitConfig::named("UNet").unwrap_err().to_string();
    assert!(
        error.starts_with("unknown model \"UNet\"; known models:"),
        "{error}"
    );
}

#[test]
fn configuration_rejects_unknown_keys() {
    let config: SitConfig = serde_json::from_str(r#"{"depth": 3}"#).unwrap();
    assert_eq!(
        config,
        SitConfig {
            depth: 3,
            ..SitConfig::default()
        }
    );
    let error = serde_json::from_str::<SitConfig>(r#"{"dept": 3}"#).unwrap_err();
    assert!(
        error.to_string().contains("unknown field `dept`"),
        "{error}"
    );
}
