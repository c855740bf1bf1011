//! Benchmarks projection heads from SiT-B/2 to ViT-B, and spatial normalisation, for 32 images of 256 tokens.

use std::hint::black_box;
use std::time::Duration;

use alignment::{AlignmentError, Head, HeadConfig, KernelSize, SpatialNorm};
use criterion::{Criterion, criterion_group, criterion_main};
use tch::{Device, Kind, Tensor};
use torch_ext::{Params, optim};

const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);
const BATCH: i64 = 32;
const TOKENS: i64 = 256;
const WIDTH: i64 = 768;

fn heads(criterion: &mut Criterion) {
    torch_ext::device::keep_freed_memory();
    let mut group = criterion.benchmark_group("head");
    group
        .sample_size(10)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(3));
    let hidden = Tensor::randn([BATCH, TOKENS, WIDTH], FLOAT).set_requires_grad(true);
    let kernel = KernelSize::Three;
    for (name, config) in [
        ("linear", HeadConfig::Linear),
        ("conv", HeadConfig::Conv { kernel }),
        ("mlp", HeadConfig::Mlp { width: 2048 }),
    ] {
        let head = Params::new(Device::Cpu, 0).map_err(AlignmentError::from);
        let head = head.and_then(|params| {
            let head = Head::new(&params.root(), &config, WIDTH, WIDTH)?;
            Ok((params, head))
        });
        let (params, head) = match head {
            Ok(head) => head,
            Err(error) => {
                eprintln!("{name}: not measured: {error}");
                continue;
            }
        };
        group.bench_function(format!("forward/{name}"), |bencher| {
            bencher.iter(|| tch::no_grad(|| black_box(head.forward(&hidden))));
        });
        let gradient = Tensor::randn([BATCH, TOKENS, WIDTH], FLOAT);
        let step = || -> Result<(), AlignmentError> {
            let projected = head.forward(&hidden)?;
            projected
                .f_mul(&gradient)?
                .f_sum(Kind::Float)?
                .f_backward()?;
            optim::clear_grads(&params.trainable())?;
            Ok(optim::clear_grads(&[hidden.shallow_clone()])?)
        };
        group.bench_function(format!("forward_backward/{name}"), |bencher| {
            bencher.iter(|| black_box(step()));
        });
    }
    group.finish();
}

fn spatial_norm(criterion: &mut Criterion) {
    torch_ext::device::keep_freed_memory();
    let mut group = criterion.benchmark_group("spatial_norm");
    group
        .sample_size(10)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(3));
    let norm = SpatialNorm::default();
    for width in [768, 1024, 1536, 4096] {
        let tokens = Tensor::randn([BATCH, TOKENS, width], FLOAT);
        group.bench_function(format!("{width}"), |bencher| {
            bencher.iter(|| tch::no_grad(|| black_box(norm.forward(&tokens))));
        });
    }
    group.finish();
}

criterion_group!(benches, heads, spatial_norm);
criterion_main!(benches);
