//! A whole training step with iREPA, the encoder's tokens given, fused and composed: of SiT-S/2 at batch 8 in
//! float32 and bfloat16 on the CPU; where there is a CUDA device, of SiT-S/2, SiT-B/2 and SiT-XL/2 in bfloat16
//! there.

use std::error::Error;
use std::hint::black_box;
use std::time::Duration;

use benches::cells::Cell;
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
        let cell = Cell {
            precision,
            ..Cell::default()
        };
        both_forms(criterion, &format!("training_step/{name}"), &cell)?;
    }
    if let Err(error) = torch_ext::device::load_cuda() {
        eprintln!("training_step: not measured on CUDA: {error}");
        return Ok(());
    }
    for model in ["SiT-S/2", "SiT-B/2", "SiT-XL/2"] {
        let cell = Cell {
            model,
            batch: CUDA_BATCH,
            precision: TrainPrecision::Bf16,
            device: Device::Cuda(0),
            ..Cell::default()
        };
        both_forms(criterion, &format!("training_step_cuda/{model}"), &cell)?;
    }
    Ok(())
}

/// A step, fused and composed.
fn both_forms(criterion: &mut Criterion, name: &str, cell: &Cell) -> Result<(), Box<dyn Error>> {
    let mut group = criterion.benchmark_group(name);
    group
        .throughput(Throughput::Elements(cell.batch as u64))
        .sample_size(10)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(5));
    let (tokens, batch) = (cell.tokens()?, cell.images()?);
    for (form, fused) in [("fused", true), ("composed", false)] {
        let mut trainer = Cell {
            fused,
            ..cell.clone()
        }
        .trainer()?;
        group.bench_function(form, |bencher| {
            bencher.iter(|| {
                let figures = trainer.step(&batch, &[tokens.shallow_clone()]);
                // The device is done with it, too.
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
