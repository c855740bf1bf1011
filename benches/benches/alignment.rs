//! The alignment part of a training step: the loss alone, fused and composed, at the widths of the
//! paper's encoders; and with head, for REPA and iREPA at the sizes of SiT-B/2 and DINOv2-B.

use std::hint::black_box;
use std::time::Duration;

use alignment::{
    AlignmentError, AlignmentLoss, Head, HeadConfig, Kernel, LossConfig, LossKind, SpatialNorm,
};
use criterion::{Criterion, criterion_group, criterion_main};
use tch::{Device, Kind, Tensor};
use torch_ext::{Params, optim};

const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);
const COSINE: [LossConfig; 1] = [LossConfig {
    kind: LossKind::Cosine,
    coefficient: 1.0,
}];

/// Batch and tokens of the loss alone.
const BATCH: i64 = 32;
const TOKENS: i64 = 256;
/// Widths of the paper's encoders, from ViT-B to a seven-billion-parameter DINOv3.
const WIDTHS: [i64; 4] = [768, 1024, 1536, 4096];

/// z-score and cosine, forward and with the backward pass, beside one copy of a token tensor.
fn loss(criterion: &mut Criterion) {
    torch_ext::device::keep_freed_memory();
    let mut group = criterion.benchmark_group("loss");
    group
        .sample_size(20)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(3));
    let norm = SpatialNorm::default();
    for width in WIDTHS {
        let tokens = Tensor::randn([BATCH, TOKENS, width], FLOAT);
        let projected = Tensor::randn([BATCH, TOKENS, width], FLOAT).set_requires_grad(true);
        let mut copy = tokens.copy();
        group.bench_function(format!("copy/{width}"), |bencher| {
            bencher.iter(|| copy.copy_(black_box(&tokens)));
        });
        for (form, fused) in [("fused", true), ("composed", false)] {
            let Ok(loss) = AlignmentLoss::new(&COSINE) else {
                return;
            };
            let loss = loss.with_fused(fused);
            let forward = || loss.forward_tokens(&norm, &[black_box(&tokens)], &[&projected]);
            group.bench_function(format!("forward/{form}/{width}"), |bencher| {
                bencher.iter(|| tch::no_grad(forward));
            });
            let step = || -> Result<(), AlignmentError> {
                forward()?.total.f_backward()?;
                Ok(optim::clear_grads(&[projected.shallow_clone()])?)
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
    let kernel = Kernel::Three;
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
        let heads = Head::projectors(&params.root(), &head, WIDTH, &[WIDTH]);
        let (Ok(heads), Ok(loss)) = (heads, AlignmentLoss::new(&COSINE)) else {
            continue;
        };
        let step = || -> Result<(), AlignmentError> {
            let projected = heads[0].forward(&hidden)?;
            loss.forward_tokens(&norm, &[&tokens], &[&projected])?
                .total
                .f_backward()?;
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
