use alignment::{Head, HeadConfig, KernelSize};
use diffusion::{Denoiser, Dimensions, Jit, JitConfig, Mode, Output};
use tch::{Device, Kind, Tensor};
use torch_ext::{Generator, Params};

use crate::golden::Golden;
use crate::terms::heads;

/// The model and the heads of a golden case, with its weights.
pub struct Case {
    pub params: Params,
    pub jit: Jit,
    pub heads: Vec<Head>,
    /// The block whose tokens are aligned.
    pub depth: i64,
}

impl Case {
    pub fn build(golden: &Golden) -> Self {
        let net = golden.config("net");
        let number = |key: &str| net[key].as_i64().unwrap();
        let config = JitConfig {
            input_size: number("input_size"),
            patch_size: number("patch_size"),
            in_channels: number("in_channels"),
            hidden_size: number("hidden_size"),
            depth: number("depth"),
            num_heads: number("num_heads"),
            mlp_ratio: net["mlp_ratio"].as_f64().unwrap(),
            num_classes: number("num_classes"),
            bottleneck_dim: number("bottleneck_dim"),
            in_context_len: number("in_context_len"),
            in_context_start: number("in_context_start"),
            attn_dropout: 0.0,
            proj_dropout: 0.0,
        };
        let head = match net["projection_layer_type"].as_str() {
            Some("mlp") => HeadConfig::Mlp {
                width: number("projector_dim"),
            },
            Some("conv") => HeadConfig::Conv {
                kernel: KernelSize::try_from(number("proj_kwargs_kernel_size")).unwrap(),
            },
            other => panic!("{other:?}"),
        };
        let widths: Vec<i64> = net["z_dims"].as_array().unwrap()[..]
            .iter()
            .map(|width| width.as_i64().unwrap())
            .collect();
        let params = Params::new(Device::Cpu, 0).unwrap();
        let root = params.root();
        let jit = Jit::new(&root, &config).unwrap();
        let heads = heads(&root, &head, config.hidden_size, &widths);
        // Loading is strict: names and shapes must be exactly upstream's.
        params.load(&golden.weights()).unwrap();
        Self {
            params,
            jit,
            heads,
            depth: number("encoder_depth"),
        }
    }
}

fn forward(name: &str) {
    let golden = Golden::open(name);
    for composed in [false, true] {
        ops::composed_if(composed, || forward_in_form(&golden));
    }
}

fn forward_in_form(golden: &Golden) {
    let case = Case::build(golden);
    let [x, t, y] = ["in.x", "in.t", "in.y"].map(|key| golden.tensor(key));
    let output = all_depths(
        &case.jit,
        &[x.shallow_clone(), t.shallow_clone(), y.shallow_clone()],
        Mode::Eval,
    );
    for (index, hidden) in output.hidden.iter().enumerate() {
        // The file has the in-context tokens too.
        golden.check_last_tokens(&format!("out.block.{index}"), hidden);
    }
    golden.check("out.x_pred", &output.prediction);
    let hidden = &output.hidden[case.depth as usize - 1];
    golden.check("out.hidden.0", hidden);
    let projected = case.heads[0].forward(hidden).unwrap();
    golden.check("out.zs_tilde.0", &projected);
    golden.check("out.t_embed", &case.jit.time_embedding(&t).unwrap());
    golden.check("out.y_embed", &case.jit.class_embedding(&y).unwrap());
    let positions = case.params.get("pos_embed").unwrap();
    golden.check("out.x_embed", &(case.jit.tokens(&x).unwrap() - positions));
}

#[test]
fn forward_aligned_before_the_in_context_tokens_follows_upstream() {
    forward("jit/jit_forward_small_enc1_mlp");
}

#[test]
fn forward_aligned_after_the_in_context_tokens_start_follows_upstream() {
    forward("jit/jit_forward_small_enc2_conv");
}

#[test]
#[ignore = "its data is not in the repository; IREPA_GOLDEN names a folder that contains it"]
fn a_larger_forward_aligned_before_the_in_context_tokens_follows_upstream() {
    forward("jit/jit_forward_enc2_mlp");
}

#[test]
#[ignore = "its data is not in the repository; IREPA_GOLDEN names a folder that contains it"]
fn a_larger_forward_aligned_after_the_in_context_tokens_start_follows_upstream() {
    forward("jit/jit_forward_enc3_conv");
}

/// A model small enough to train in a test, on 8 x 8 images of 3 classes.
pub fn tiny() -> JitConfig {
    JitConfig {
        input_size: 8,
        patch_size: 2,
        hidden_size: 32,
        depth: 4,
        num_heads: 4,
        num_classes: 3,
        bottleneck_dim: 8,
        in_context_len: 3,
        in_context_start: 2,
        ..JitConfig::default()
    }
}

/// An untrained model.
pub fn built(config: &JitConfig) -> (Params, Jit) {
    let params = Params::new(Device::Cpu, 0).unwrap();
    let jit = Jit::new(&params.root(), config).unwrap();
    (params, jit)
}

/// A model whose weights are all random, since the output of an untrained one is zero.
pub fn randomised(config: &JitConfig) -> (Params, Jit) {
    let (params, jit) = built(config);
    let mut generator = Generator::new(Device::Cpu, 1).unwrap();
    for mut weight in params.trainable() {
        generator.normal_(&mut weight, 0.0, 0.1).unwrap();
    }
    (params, jit)
}

fn batch(config: &JitConfig, size: i64) -> [Tensor; 3] {
    let mut generator = Generator::new(Device::Cpu, 5).unwrap();
    let side = config.input_size;
    let shape = [size, config.in_channels, side, side];
    let x = generator.randn(&shape, Kind::Float).unwrap();
    let t = generator.rand(&[size], Kind::Float).unwrap();
    let labels = Tensor::arange(size, (Kind::Int64, Device::Cpu)).remainder(config.num_classes);
    [x, t, labels]
}

/// The output of the model, with the hidden tokens of every block.
fn all_depths(jit: &Jit, [x, t, labels]: &[Tensor; 3], mode: Mode<'_>) -> Output {
    let depths: Vec<i64> = (1..=jit.dimensions().depth).collect();
    jit.forward(x, t, labels, &depths, mode).unwrap()
}

fn largest(tensor: &Tensor) -> f64 {
    tensor.abs().max().double_value(&[])
}

#[test]
fn weights_are_initialised_as_upstream() {
    let (params, jit) = built(&JitConfig::named("JiT-XS/4").unwrap());
    let weight = |name| params.get(name).unwrap();
    for (name, fans) in [
        ("x_embedder.proj1.weight", 32 + 3 * 4 * 4),
        ("x_embedder.proj2.weight", 128 + 32),
        ("blocks.3.attn.qkv.weight", 128 + 3 * 128),
        ("blocks.0.mlp.w12.weight", 128 + 2 * 341),
        ("blocks.0.mlp.w3.weight", 341 + 128),
    ] {
        let bound = (6.0 / f64::from(fans)).sqrt();
        let found = largest(&weight(name));
        assert!(found <= bound && found > 0.97 * bound, "{name}");
    }
    for name in [
        "t_embedder.mlp.0.weight",
        "t_embedder.mlp.2.weight",
        "y_embedder.embedding_table.weight",
        "in_context_posemb",
    ] {
        let std = weight(name).std(true).double_value(&[]);
        assert!((std - 0.02).abs() < 1.5e-3, "{name} {std}");
    }
    for param in params.entries().iter() {
        let one = param.name.contains("norm");
        let zero = param.name.ends_with("bias")
            || param.name.contains("adaLN_modulation")
            || param.name.starts_with("final_layer.linear");
        assert_eq!(largest(&param.tensor) == 0.0, zero, "{}", param.name);
        assert_eq!(
            largest(&(&param.tensor - 1.0)) == 0.0,
            one,
            "{}",
            param.name
        );
        assert_eq!(param.trainable, param.name != "pos_embed", "{}", param.name);
    }
    let input = batch(jit.config(), 2);
    let output = all_depths(&jit, &input, Mode::Eval);
    assert_eq!(largest(&output.prediction), 0.0);
    // The blocks of an untrained model do nothing: the hidden tokens are the embedded patches.
    for hidden in output.hidden {
        assert_eq!(hidden, jit.tokens(&input[0]).unwrap());
    }
}

#[test]
fn hidden_tokens_are_patch_tokens_at_every_depth() {
    let config = tiny();
    let (_params, jit) = randomised(&config);
    let input = batch(&config, 2);
    let output = all_depths(&jit, &input, Mode::Eval);
    let sizes: Vec<_> = output.hidden.iter().map(Tensor::size).collect();
    assert_eq!(sizes, [[2, 16, 32]; 4]);
    let [x, t, labels] = &input;
    let hidden = jit.hidden(x, t, labels, &[4, 2], Mode::Eval).unwrap();
    assert_eq!(hidden[0], output.hidden[3]);
    assert_eq!(hidden[1], output.hidden[1]);
    let dimensions = Dimensions {
        image: [3, 8, 8],
        num_classes: 3,
        null_class: Some(3),
        depth: 4,
        token_grid: (4, 4),
        hidden_width: 32,
    };
    assert_eq!(jit.dimensions(), dimensions);
    let error = jit.forward(x, t, labels, &[5], Mode::Eval).unwrap_err();
    assert!(error.to_string().ends_with("a block, 1 to 4"), "{error}");
}

#[test]
fn in_context_tokens_are_optional_and_can_start_at_any_block() {
    let input = batch(&tiny(), 2);
    let outputs = [(0, 2), (3, 0), (3, 3)].map(|(in_context_len, in_context_start)| {
        let config = JitConfig {
            in_context_len,
            in_context_start,
            ..tiny()
        };
        let (params, jit) = randomised(&config);
        assert_eq!(
            params.get("in_context_posemb").is_some(),
            in_context_len > 0
        );
        all_depths(&jit, &input, Mode::Eval)
    });
    let [without, early, late] = outputs;
    assert_eq!(without.prediction.size(), [2, 3, 8, 8]);
    // The weights of both models are the same, and so are the tokens before the late in-context tokens.
    assert_ne!(early.hidden[0], late.hidden[0]);
    assert_ne!(early.prediction, late.prediction);
}

#[test]
fn samples_of_a_batch_are_independent() {
    let config = tiny();
    let (_params, jit) = randomised(&config);
    let [x, t, labels] = batch(&config, 3);
    let all = jit
        .forward(&x, &t, &labels, &[], Mode::Eval)
        .unwrap()
        .prediction;
    for index in 0..3 {
        let one = |tensor: &Tensor| tensor.narrow(0, index, 1);
        let output = jit.forward(&one(&x), &one(&t), &one(&labels), &[], Mode::Eval);
        let difference = output.unwrap().prediction - one(&all);
        assert!(largest(&difference) < 1e-5);
    }
}

#[test]
fn bfloat16_autocast_stays_near_float32() {
    for attn_dropout in [0.0, 1e-9] {
        let config = JitConfig {
            attn_dropout,
            ..tiny()
        };
        let (params, jit) = randomised(&config);
        let [x, t, labels] = batch(&config, 4);
        let full = jit.forward(&x, &t, &labels, &[2], Mode::Eval).unwrap();
        let mut generator = Generator::new(Device::Cpu, 0).unwrap();
        let run = || jit.forward(&x, &t, &labels, &[2], Mode::Train(&mut generator));
        let half = torch_ext::autocast::run(Device::Cpu, Some(Kind::BFloat16), run);
        let half = half.unwrap().unwrap();
        assert_eq!(half.prediction.kind(), Kind::BFloat16);
        // The residual stream stays in float32, as upstream.
        assert_eq!(half.hidden[0].kind(), Kind::Float);
        for (full, half) in [
            (&full.prediction, &half.prediction),
            (&full.hidden[0], &half.hidden[0]),
        ] {
            assert!(largest(&(full - half)) < 0.03 * largest(full));
        }
        let loss = half.prediction.to_kind(Kind::Float).square().mean(None);
        loss.backward();
        for weight in params.trainable() {
            assert_eq!(weight.grad().kind(), Kind::Float);
        }
    }
}

#[test]
fn training_without_dropout_draws_nothing_and_equals_evaluation() {
    let config = tiny();
    let (_params, jit) = randomised(&config);
    let input = batch(&config, 4);
    let mut generator = Generator::new(Device::Cpu, 9).unwrap();
    let before = generator.state().unwrap();
    let trained = all_depths(&jit, &input, Mode::Train(&mut generator));
    let evaluated = all_depths(&jit, &input, Mode::Eval);
    assert_eq!(trained.prediction, evaluated.prediction);
    assert_eq!(generator.state().unwrap(), before);
}

#[test]
fn only_the_middle_blocks_draw_dropout_in_order_of_use() {
    let config = JitConfig {
        attn_dropout: 0.3,
        proj_dropout: 0.2,
        ..tiny()
    };
    let (_params, jit) = randomised(&config);
    let input = batch(&config, 2);
    let train = |seed| {
        let mut generator = Generator::new(Device::Cpu, seed).unwrap();
        let output = all_depths(&jit, &input, Mode::Train(&mut generator));
        (output, generator.state().unwrap())
    };
    let (output, state) = train(4);
    let kept = all_depths(&jit, &input, Mode::Eval);
    // Of four blocks, the second and the third have dropout.
    assert_eq!(output.hidden[0], kept.hidden[0]);
    assert_ne!(output.hidden[1], kept.hidden[1]);
    assert_ne!(output.prediction, kept.prediction);

    let mut generator = Generator::new(Device::Cpu, 4).unwrap();
    for tokens in [16, 16 + 3] {
        for size in [
            vec![2, 4, tokens, tokens],
            vec![2, tokens, 32],
            vec![2, tokens, 128 * 2 / 3],
        ] {
            let _ = generator.rand(&size, Kind::Float).unwrap();
        }
    }
    assert_eq!(generator.state().unwrap(), state);

    assert_eq!(train(4).0.prediction, output.prediction);
    assert_ne!(train(5).0.prediction, output.prediction);
    // In evaluation, the rates have no effect.
    let (_params, plain) = randomised(&tiny());
    let plain = all_depths(&plain, &input, Mode::Eval);
    assert_eq!(kept.prediction, plain.prediction);
}

#[test]
fn a_tiny_dropout_rate_has_almost_no_effect() {
    let config = JitConfig {
        attn_dropout: 1e-9,
        proj_dropout: 1e-9,
        ..tiny()
    };
    let (_params, jit) = randomised(&config);
    let input = batch(&config, 2);
    let mut generator = Generator::new(Device::Cpu, 3).unwrap();
    let dropped = all_depths(&jit, &input, Mode::Train(&mut generator));
    let kept = all_depths(&jit, &input, Mode::Eval);
    assert!(largest(&(dropped.prediction - kept.prediction)) < 1e-5);
}

#[test]
fn invalid_inputs_are_named() {
    let config = tiny();
    let (_params, jit) = randomised(&config);
    let [x, t, labels] = batch(&config, 2);
    let refused = |x: &Tensor, t: &Tensor, labels: &Tensor| {
        let error = jit.forward(x, t, labels, &[], Mode::Eval).unwrap_err();
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
    let labels = Tensor::from_slice(&[1i64, 4]);
    assert_eq!(
        refused(&x, &t, &labels),
        "label 4 is not in 0..=3 (3 is the null class)"
    );
}
