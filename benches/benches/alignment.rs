//! The alignment part of a training step: spatial normalisation, head and cosine loss, forward and
//! backward, for REPA and iREPA at the sizes of SiT-B/2 and DINOv2-B.

use std::hint::black_box;
use std::time::Duration;

use alignment::{AlignmentLoss, Head, HeadConfig, Kernel, LossConfig, LossKind, SpatialNorm};
use criterion::{Criterion, criterion_group, criterion_main};
use tch::{Device, Kind, Tensor};
use torch_ext::{Params, optim};

const BATCH: i64 = 8;
const TOKENS: i64 = 256;
const WIDTH: i64 = 768;

fn benchmark(criterion: &mut Criterion) {
    torch_ext::device::keep_freed_memory();
    let float = (Kind::Float, Device::Cpu);
    let tokens = Tensor::randn([BATCH, TOKENS, WIDTH], float);
    let hidden = Tensor::randn([BATCH, TOKENS, WIDTH], float).set_requires_grad(true);
    let mut group = criterion.benchmark_group("alignment");
    group
        .sample_size(10)
        .measurement_time(Duration::from_secs(5));

    let norm = SpatialNorm::default();
    group.bench_function("spatial_norm", |bencher| {
        bencher.iter(|| norm.forward(black_box(&tokens)));
    });
    let losses = [LossConfig {
        kind: LossKind::Cosine,
        coefficient: 1.0,
    }];
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
        let (Ok(heads), Ok(loss)) = (heads, AlignmentLoss::new(&losses)) else {
            continue;
        };
        let step = || -> Result<(), alignment::AlignmentError> {
            let target = norm.forward(&tokens)?;
            let projected = heads[0].forward(&hidden)?;
            loss.forward(&[&target], &[&projected])?
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

criterion_group!(benches, benchmark);
criterion_main!(benches);
