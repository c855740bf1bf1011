//! Benchmarks the alignment part of a training step: the loss alone, fused and composed, at the widths of
//! the paper's encoders, on the CPU and on a CUDA device if available; and the loss with its projection head,
//! for REPA and iREPA at the sizes of SiT-B/2 and DINOv2-B.

use std::hint::black_box;
use std::time::Duration;

use alignment::{AlignmentError, HeadConfig, Heads, KernelSize, SpatialNorm};
use benches::cosine_alignment::CosineAlignment;
use criterion::{Criterion, criterion_group, criterion_main};
use tch::{Cuda, Device, Kind, Tensor};
use torch_ext::{Params, optim};

const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);

/// Number of tokens per image.
const TOKENS: i64 = 256;
/// Widths of the paper's encoders, from ViT-B to a seven-billion-parameter DINOv3.
const WIDTHS: [i64; 4] = [768, 1024, 1536, 4096];

fn loss(criterion: &mut Criterion) {
    torch_ext::device::keep_freed_memory();
    loss_on(criterion, "loss", Device::Cpu, 32);
    match torch_ext::device::load_cuda() {
        Ok(()) => loss_on(criterion, "loss_cuda", Device::Cuda(0), 256),
        Err(error) => eprintln!("loss_cuda: not measured: {error}"),
    }
}

/// Benchmarks z-score and cosine loss, forward pass alone and with backward pass. For reference, one copy of a
/// token tensor.
fn loss_on(criterion: &mut Criterion, name: &str, device: Device, batch: i64) {
    let mut group = criterion.benchmark_group(name);
    group
        .sample_size(20)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(3));
    // CUDA operators return before their work is done.
    let wait = || {
        if let Device::Cuda(index) = device {
            Cuda::synchronize(index as i64);
        }
    };
    for width in WIDTHS {
        let tokens = Tensor::randn([batch, TOKENS, width], (Kind::Float, device));
        let projected = Tensor::randn([batch, TOKENS, width], (Kind::Float, device));
        let projected = projected.set_requires_grad(true);
        let mut copy = tokens.copy();
        group.bench_function(format!("copy/{width}"), |bencher| {
            bencher.iter(|| {
                copy.copy_(black_box(&tokens));
                wait();
            });
        });
        for (form, fused) in [("fused", true), ("composed", false)] {
            let loss = CosineAlignment::new(SpatialNorm::default(), HeadConfig::default());
            let Ok(loss) = loss else {
                return;
            };
            let forward =
                || ops::composed_if(!fused, || loss.forward(black_box(&tokens), &projected));
            group.bench_function(format!("forward/{form}/{width}"), |bencher| {
                bencher.iter(|| {
                    let output = tch::no_grad(forward);
                    wait();
                    output
                });
            });
            let step = || -> Result<(), AlignmentError> {
                forward()?.total.f_backward()?;
                optim::clear_grads(&[projected.shallow_clone()])?;
                wait();
                Ok(())
            };
            group.bench_function(format!("forward_backward/{form}/{width}"), |bencher| {
                bencher.iter(step);
            });
        }
    }
    group.finish();
}

fn with_head(criterion: &mut Criterion) {
    const BATCH: i64 = 8;
    const WIDTH: i64 = 768;
    torch_ext::device::keep_freed_memory();
    let tokens = Tensor::randn([BATCH, TOKENS, WIDTH], FLOAT);
    let hidden = Tensor::randn([BATCH, TOKENS, WIDTH], FLOAT).set_requires_grad(true);
    let mut group = criterion.benchmark_group("alignment");
    group
        .sample_size(10)
        .measurement_time(Duration::from_secs(5));

    let norm = SpatialNorm::default();
    group.bench_function("spatial_norm", |bencher| {
        bencher.iter(|| norm.forward(black_box(&tokens)));
    });
    let kernel = KernelSize::Three;
    for (name, norm, head) in [
        (
            "repa_step",
            SpatialNorm::None,
            HeadConfig::Mlp { width: 2048 },
        ),
        ("irepa_step", norm, HeadConfig::Conv { kernel }),
    ] {
        let Ok(params) = Params::new(Device::Cpu, 0) else {
            continue;
        };
        let Ok(loss) = CosineAlignment::new(norm, head) else {
            continue;
        };
        let projections = loss.terms().projections();
        let Ok(heads) = Heads::new(&params.root(), projections, WIDTH, &[WIDTH]) else {
            continue;
        };
        let step = || -> Result<(), AlignmentError> {
            let projected = heads.project(&[hidden.shallow_clone()])?;
            let output = loss.forward(&tokens, &projected[0])?;
            output.total.f_backward()?;
            optim::clear_grads(&params.trainable())?;
            optim::clear_grads(&[hidden.shallow_clone()])?;
            Ok(())
        };
        group.bench_function(name, |bencher| bencher.iter(|| black_box(step())));
    }
    group.finish();
}

criterion_group!(benches, loss, with_head);
criterion_main!(benches);
