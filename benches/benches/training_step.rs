//! A whole training step of SiT-S/2 with iREPA at batch 8, the encoder's tokens given: fused and
//! composed, in float32 and bfloat16.

use std::error::Error;
use std::hint::black_box;
use std::time::Duration;

use benches::cells::{WIDTH, batch, trainer};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tch::{Device, Kind};
use torch_ext::Generator;
use training::Precision;

const BATCH: i64 = 8;
const RESOLUTION: u32 = 32;

fn steps(criterion: &mut Criterion) -> Result<(), Box<dyn Error>> {
    torch_ext::device::keep_freed_memory();
    let mut group = criterion.benchmark_group("training_step");
    group
        .throughput(Throughput::Elements(BATCH as u64))
        .sample_size(10)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(5));
    let tokens = Generator::new(Device::Cpu, 1)?.randn(&[BATCH, 256, WIDTH], Kind::Float)?;
    let batch = batch(BATCH, RESOLUTION)?;
    for (precision_name, precision) in [("fp32", Precision::Fp32), ("bf16", Precision::Bf16)] {
        for (form, fused) in [("fused", true), ("composed", false)] {
            let mut trainer = trainer("SiT-S/2", RESOLUTION, BATCH, precision, fused)?;
            let name = format!("{precision_name}/{form}");
            group.bench_function(name, |bencher| {
                bencher.iter(|| {
                    let figures = trainer.step(&batch, &[tokens.shallow_clone()]);
                    black_box(figures)
                });
            });
        }
    }
    group.finish();
    Ok(())
}

fn benchmark(criterion: &mut Criterion) {
    if let Err(error) = steps(criterion) {
        eprintln!("training_step: not measured: {error}");
    }
}

criterion_group!(benches, benchmark);
criterion_main!(benches);
