//! At least one test for each binding of the shim.

use tch::{Device, Kind, Tensor};
use torch_ext::{Generator, Init, Params, TorchError, autocast, device, optim};

const CPU: Device = Device::Cpu;

fn random(seed: u64, size: &[i64]) -> Tensor {
    Generator::new(CPU, seed)
        .unwrap()
        .randn(size, Kind::Float)
        .unwrap()
}

fn max_difference(left: &Tensor, right: &Tensor) -> f64 {
    (left - right).abs().max().double_value(&[])
}

#[test]
fn generator_returns_the_same_numbers_as_in_python() {
    // torch.Generator().manual_seed(42); torch.rand(3, generator=g)
    let drawn = Generator::new(CPU, 42)
        .unwrap()
        .rand(&[3], Kind::Float)
        .unwrap();
    let python = Tensor::from_slice(&[0.882_269_26_f32, 0.915_003_96, 0.382_863_76]);
    assert_eq!(drawn, python);
}

#[test]
fn generator_state_continues_the_stream_after_odd_draws() {
    let mut generator = Generator::new(CPU, 3).unwrap();
    // An odd number of normals leaves a cached second value in the state.
    let _odd = generator.randn(&[7], Kind::Double).unwrap();
    let state = generator.state().unwrap();
    let expected = generator.randn(&[5], Kind::Double).unwrap();
    let mut other = Generator::new(CPU, 99).unwrap();
    other.set_state(&state).unwrap();
    assert_eq!(other.randn(&[5], Kind::Double).unwrap(), expected);
}

#[test]
fn generators_are_independent_of_the_process_wide_one() {
    let mut generator = Generator::new(CPU, 5).unwrap();
    tch::manual_seed(1);
    let first = generator.rand(&[4], Kind::Float).unwrap();
    generator.manual_seed(5).unwrap();
    let _other = Tensor::rand([1000], (Kind::Float, CPU));
    assert_eq!(generator.rand(&[4], Kind::Float).unwrap(), first);
}

#[test]
fn a_wrong_state_is_an_error_not_a_crash() {
    let mut generator = Generator::new(CPU, 0).unwrap();
    let error = generator.set_state(&Tensor::zeros([3], (Kind::Uint8, CPU)));
    assert!(matches!(error, Err(TorchError::Libtorch(_))), "{error:?}");
    assert!(generator.rand(&[-1], Kind::Float).is_err());
    assert!(generator.rand(&[1], Kind::Int64).is_err());
}

#[test]
fn autocast_nests_and_restores() {
    let x = random(0, &[8, 8]);
    assert_eq!(x.matmul(&x).kind(), Kind::Float);
    {
        let _outer = autocast::enter(CPU, Kind::BFloat16).unwrap();
        assert_eq!(x.matmul(&x).kind(), Kind::BFloat16);
        {
            let _inner = autocast::enter(CPU, Kind::Half).unwrap();
            assert_eq!(x.matmul(&x).kind(), Kind::Half);
        }
        assert_eq!(x.matmul(&x).kind(), Kind::BFloat16);
    }
    assert_eq!(x.matmul(&x).kind(), Kind::Float);
    assert!(autocast::enter(CPU, Kind::Int64).is_err());
}

#[test]
fn autocast_sees_weights_that_changed_between_regions() {
    let x = Tensor::ones([2, 2], (Kind::Float, CPU));
    let w = Tensor::ones([2, 2], (Kind::Float, CPU)).set_requires_grad(true);
    let product = || {
        autocast::run(CPU, Some(Kind::BFloat16), || x.matmul(&w))
            .unwrap()
            .sum(Kind::Float)
            .double_value(&[])
    };
    assert_eq!(product(), 8.0);
    optim::copy_(
        &[w.shallow_clone()],
        &[Tensor::full([2, 2], 2.0, (Kind::Float, CPU))],
    )
    .unwrap();
    assert_eq!(product(), 16.0);
}

#[test]
fn gradients_flow_through_autocast_in_float32() {
    let w = random(1, &[4, 4]).set_requires_grad(true);
    let x = random(2, &[4, 4]);
    let loss = autocast::run(CPU, Some(Kind::BFloat16), || x.matmul(&w))
        .unwrap()
        .to_kind(Kind::Float)
        .sum(Kind::Float);
    loss.backward();
    assert_eq!(w.grad().kind(), Kind::Float);
}

#[test]
fn a_model_uses_copies_of_cast_weights() {
    let params = Params::new(CPU, 0).unwrap();
    let scope = params.root();
    let weight = scope
        .cast_var("weight", &[4, 4], Init::XavierUniform)
        .unwrap();
    let scale = scope.var("scale", &[4], Init::Ones).unwrap();
    let handle = weight.shallow_clone();
    let drawn = weight.detach().copy();
    params.keep_copies(Kind::BFloat16).unwrap();
    params.keep_copies(Kind::BFloat16).unwrap();

    assert_eq!(handle.kind(), Kind::BFloat16);
    assert_eq!(weight.detach(), drawn.to_kind(Kind::BFloat16));
    assert_eq!(scale.kind(), Kind::Float);
    let masters = params.state_dict();
    assert_eq!(masters[0].1, drawn);
    let x = random(2, &[2, 4]);
    let product = autocast::run(CPU, Some(Kind::BFloat16), || x.matmul(&weight)).unwrap();
    product.to_kind(Kind::Float).sum(Kind::Float).backward();
    let entries = params.entries();
    assert_eq!(entries[0].leaf().grad().kind(), Kind::BFloat16);
    assert!(!entries[0].tensor.requires_grad());
    assert!(entries[1].copy.is_none());

    // A float32 number that is rounded in bfloat16.
    let loaded = Tensor::full([4, 4], 1.0 + 1.0 / 300.0, (Kind::Float, CPU));
    let other = vec![("weight".to_owned(), loaded.shallow_clone())];
    let _without_scale = params.load_partial(&other).unwrap();
    assert_eq!(entries[0].tensor, loaded);
    assert_eq!(handle.detach(), loaded.to_kind(Kind::BFloat16));
}

/// The update of the paper (Loshchilov and Hutter), in float64.
fn adamw_by_hand(w: f64, grads: &[f64], s: &optim::AdamW) -> f64 {
    let (mut w, mut m, mut v) = (w, 0.0, 0.0);
    for (i, g) in grads.iter().enumerate() {
        let t = i as i32 + 1;
        w -= s.lr * s.weight_decay * w;
        m = s.betas.0 * m + (1.0 - s.betas.0) * g;
        v = s.betas.1 * v + (1.0 - s.betas.1) * g * g;
        let (m_hat, v_hat) = (m / (1.0 - s.betas.0.powi(t)), v / (1.0 - s.betas.1.powi(t)));
        w -= s.lr * m_hat / (v_hat.sqrt() + s.eps);
    }
    w
}

#[test]
fn fused_adamw_is_adamw() {
    let settings = optim::AdamW {
        lr: 0.05,
        betas: (0.9, 0.95),
        weight_decay: 0.1,
        eps: 1e-8,
    };
    let grads = [0.3, -1.2, 0.0, 2.5];
    let w = Tensor::full([3], 1.5, (Kind::Float, CPU));
    let (m, v) = (w.zeros_like(), w.zeros_like());
    let step = Tensor::zeros([], (Kind::Float, CPU));
    for grad in grads {
        let _ = step.shallow_clone().g_add_scalar_(1.0);
        optim::fused_adamw_(
            &[w.shallow_clone()],
            &[Tensor::full([3], grad, (Kind::Float, CPU))],
            &[m.shallow_clone()],
            &[v.shallow_clone()],
            &[step.shallow_clone()],
            &settings,
        )
        .unwrap();
    }
    let expected = adamw_by_hand(1.5, &grads, &settings);
    assert!((w.double_value(&[0]) - expected).abs() < 1e-6);
}

#[test]
fn ema_rounds_as_mul_then_add() {
    let average = random(1, &[1000]);
    let value = random(2, &[1000]);
    let expected = &average * 0.9999 + &value * (1.0 - 0.9999);
    let by_hand = {
        let copy = average.copy();
        let mut scaled = copy * 0.9999;
        let _ = scaled.g_add_(&(&value * (1.0 - 0.9999)));
        scaled
    };
    optim::ema_(&[average.shallow_clone()], &[value], 0.9999).unwrap();
    assert!(max_difference(&average, &expected) < 1e-6);
    assert!(max_difference(&average, &by_hand) < 1e-6);
}

#[test]
fn gradients_are_clipped_by_their_common_norm() {
    let grads = [random(1, &[50]), random(2, &[3, 4])];
    let all = Tensor::cat(&[grads[0].flatten(0, -1), grads[1].flatten(0, -1)], 0);
    let norm = optim::grad_norm(&grads).unwrap();
    assert!(max_difference(&norm, &all.norm()) < 1e-5);
    optim::clip_grads_(&grads, &norm, 1.0).unwrap();
    let clipped = optim::grad_norm(&grads).unwrap().double_value(&[]);
    assert!((clipped - 1.0).abs() < 1e-5, "{clipped}");
    let before = grads[0].copy();
    optim::clip_grads_(&grads, &norm.full_like(0.5), 1.0).unwrap();
    assert_eq!(
        grads[0], before,
        "gradients with a small norm do not change"
    );
}

#[test]
fn cleared_gradients_are_gone() {
    let w = random(1, &[2]).set_requires_grad(true);
    (&w * 2.0).sum(Kind::Float).backward();
    assert!(w.grad().defined());
    optim::clear_grads(&[w.shallow_clone()]).unwrap();
    assert!(!w.grad().defined());
}

#[test]
fn lists_of_different_lengths_are_an_error() {
    let one = [random(1, &[2])];
    assert!(matches!(
        optim::ema_(&one, &[], 0.5),
        Err(TorchError::Length {
            left: 1,
            right: 0,
            ..
        })
    ));
}

#[test]
fn a_shape_mismatch_is_an_error_with_libtorchs_text() {
    let error = optim::copy_(&[random(1, &[2])], &[random(1, &[3])]).unwrap_err();
    assert!(error.to_string().contains("size"), "{error}");
}

#[test]
fn device_names_resolve_or_the_error_lists_the_allowed_names() {
    assert_eq!(device::resolve("cpu").unwrap(), CPU);
    let error = device::resolve("gpu").unwrap_err().to_string();
    assert!(error.contains("auto, cpu, cuda or cuda:N"), "{error}");
    match device::load_cuda() {
        Ok(()) => {
            assert!(matches!(device::resolve("auto").unwrap(), Device::Cuda(0)));
            assert!(device::resolve("cuda:4096").is_err());
        }
        Err(_) => {
            assert_eq!(device::resolve("auto").unwrap(), CPU);
            assert!(matches!(device::resolve("cuda"), Err(TorchError::Cuda(_))));
        }
    }
}

#[test]
fn libtorchs_folder_and_version_are_known() {
    assert!(
        device::library_dir()
            .unwrap()
            .join("libtorch_cpu.so")
            .exists()
    );
    assert!(device::torch_version().starts_with("2.11."));
    let peak = device::peak_memory(CPU).unwrap();
    assert!(peak.is_none_or(|bytes| bytes > 1 << 20));
}

#[test]
fn freed_memory_is_kept_if_the_c_library_supports_it() {
    assert_eq!(device::keep_freed_memory(), cfg!(target_env = "gnu"));
    // Still usable afterwards.
    assert_eq!(random(1, &[1 << 20]).size(), [1 << 20]);
}

#[test]
fn peak_memory_excludes_memory_freed_before_the_reset() {
    const MIB: i64 = 1 << 20;
    let _kept = device::keep_freed_memory();
    // Small enough for the allocator to keep their memory.
    let many: Vec<Tensor> = (0..40)
        .map(|_| Tensor::ones([8 * MIB], (Kind::Uint8, CPU)))
        .collect();
    let with = device::peak_memory(CPU).unwrap();
    drop(many);
    if !device::reset_peak_memory(CPU).unwrap() {
        eprintln!("skipped, since this system cannot reset the peak memory");
        return;
    }
    let (Some(with), Some(after)) = (with, device::peak_memory(CPU).unwrap()) else {
        panic!("no peak memory");
    };
    assert!(after + (200 << 20) < with, "{after} bytes after {with}");
}

#[test]
fn params_with_the_same_seed_are_equal_and_names_are_in_order() {
    let build = |seed| {
        let params = Params::new(CPU, seed).unwrap();
        let root = params.root();
        let _declared = [
            root.var("a", &[3, 2], Init::XavierUniform).unwrap(),
            root.sub("b")
                .var("w", &[2], Init::Normal { std: 0.02 })
                .unwrap(),
            root.buffer("c", Tensor::ones([1], (Kind::Float, CPU)))
                .unwrap(),
        ];
        params
    };
    let (one, same, other) = (build(1), build(1), build(2));
    let names: Vec<String> = one.state_dict().into_iter().map(|(n, _)| n).collect();
    assert_eq!(names, ["a", "b.w", "c"]);
    assert_eq!(one.get("a"), same.get("a"));
    assert_ne!(one.get("a"), other.get("a"));
    assert_eq!(one.count(), 8);
    assert_eq!(one.trainable().len(), 2);
}

#[test]
fn xavier_weights_fill_the_range_within_the_bound() {
    let params = Params::new(CPU, 0).unwrap();
    let w = params
        .root()
        .var("w", &[64, 4, 3, 3], Init::XavierUniform)
        .unwrap();
    let bound = (6.0_f64 / (64.0 + 36.0)).sqrt();
    let max = w.abs().max().double_value(&[]);
    assert!(max <= bound && max > 0.9 * bound);
}

#[test]
fn loading_is_strict_and_errors_name_the_nearest_match() {
    let params = Params::new(CPU, 0).unwrap();
    let _weight = params
        .root()
        .sub("attn")
        .var("weight", &[2], Init::Zeros)
        .unwrap();
    let error = params
        .load(&[(
            "attn.weigth".to_owned(),
            Tensor::ones([2], (Kind::Float, CPU)),
        )])
        .unwrap_err()
        .to_string();
    assert!(error.contains("1 missing: attn.weight"), "{error}");
    assert!(error.contains("nearest: attn.weight"), "{error}");
    let wrong = [(
        "attn.weight".to_owned(),
        Tensor::ones([3], (Kind::Float, CPU)),
    )];
    assert!(matches!(
        params.load(&wrong),
        Err(TorchError::LoadShape { .. })
    ));
    let right = [(
        "attn.weight".to_owned(),
        Tensor::ones([2], (Kind::Double, CPU)),
    )];
    params.load(&right).unwrap();
    assert_eq!(params.get("attn.weight").unwrap().double_value(&[1]), 1.0);
    assert!(matches!(
        params.root().sub("attn").var("weight", &[2], Init::Zeros),
        Err(TorchError::DuplicateName(_))
    ));
}

#[test]
fn a_partial_load_copies_matching_entries_and_lists_the_rest() {
    let params = Params::new(Device::Cpu, 0).unwrap();
    let root = params.root();
    for name in ["fits", "reshaped", "missing"] {
        let _weight = root.var(name, &[2], Init::Ones).unwrap();
    }
    let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
    let state_dict = [
        ("fits".to_owned(), zeros(&[2])),
        ("reshaped".to_owned(), zeros(&[3])),
        ("missin".to_owned(), zeros(&[2])),
    ];
    let mismatch = params.load_partial(&state_dict).unwrap();
    assert_eq!(mismatch.missing, ["missing"]);
    assert_eq!(
        mismatch.unexpected,
        [("missin".to_owned(), Some("missing".to_owned()))]
    );
    assert_eq!(
        mismatch.reshaped,
        [("reshaped".to_owned(), vec![3], vec![2])]
    );
    let sum = |name: &str| params.get(name).unwrap().sum(Kind::Float).double_value(&[]);
    assert_eq!(
        (sum("fits"), sum("reshaped"), sum("missing")),
        (0.0, 2.0, 2.0)
    );
}
