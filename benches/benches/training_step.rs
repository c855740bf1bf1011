//! Benchmarks a whole training step with iREPA and precomputed encoder tokens, fused and composed: SiT-S/2 at
//! batch size 8 in float32 and bfloat16 on the CPU; and, if a CUDA device is available, SiT-S/2, SiT-B/2 and
//! SiT-XL/2 in bfloat16 on it.

use std::error::Error;
use std::hint::black_box;
use std::time::Duration;

use benches::trainers::TrainerSpec;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tch::Device;
use training::TrainPrecision;

const CUDA_BATCH: i64 = 64;

fn steps(criterion: &mut Criterion) -> Result<(), Box<dyn Error>> {
    torch_ext::device::keep_freed_memory();
    for (name, precision) in [
        ("fp32", TrainPrecision::Fp32),
        ("bf16", TrainPrecision::Bf16),
    ] {
        let spec = TrainerSpec {
            precision,
            ..TrainerSpec::default()
        };
        both_forms(criterion, &format!("training_step/{name}"), &spec)?;
    }
    if let Err(error) = torch_ext::device::load_cuda() {
        eprintln!("training_step: not measured on CUDA: {error}");
        return Ok(());
    }
    for model in ["SiT-S/2", "SiT-B/2", "SiT-XL/2"] {
        let spec = TrainerSpec {
            model,
            batch: CUDA_BATCH,
            precision: TrainPrecision::Bf16,
            device: Device::Cuda(0),
            ..TrainerSpec::default()
        };
        both_forms(criterion, &format!("training_step_cuda/{model}"), &spec)?;
    }
    Ok(())
}

/// Benchmarks a step, fused and composed.
fn both_forms(
    criterion: &mut Criterion,
    name: &str,
    spec: &TrainerSpec,
) -> Result<(), Box<dyn Error>> {
    let mut group = criterion.benchmark_group(name);
    group
        .throughput(Throughput::Elements(spec.batch as u64))
        .sample_size(10)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(5));
    let (tokens, batch) = (spec.tokens()?, spec.images()?);
    for (form, fused) in [("fused", true), ("composed", false)] {
        let mut trainer = TrainerSpec {
            fused,
            ..spec.clone()
        }
        .trainer()?;
        group.bench_function(form, |bencher| {
            bencher.iter(|| {
                let figures = trainer.step(&batch, &[tokens.shallow_clone()]);
                // `finish_step` waits for the device.
                black_box((figures, trainer.finish_step()))
            });
        });
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
