//! A cohort: 1, 2, 4 and 8 cells that share one forward pass of the encoder, and as many runs that
//! each have their own. Images a second, summed over the cells.
//!
//! `IREPA_BENCH_ENCODER` names the TorchScript file, with its sidecar beside it and 16 x 16 tokens of
//! width 768: `cargo xtask export mocov3-vit-b --random-weights` makes one. What a cohort saves
//! depends on the denoiser: with E and S the times of the encoder and of a cell's step, n cells gain
//! n (E + S) / (E + n S), which is printed from E and S beside what was measured.

use std::env;
use std::error::Error;
use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use benches::cells::{GRID, WIDTH, batch, trainer};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use encoders::{Encoder, TorchScript};
use tch::Device;
use training::{DeviceBatch, Precision, Trainer};

type Outcome<T> = Result<T, Box<dyn Error>>;

const ENCODER: &str = "IREPA_BENCH_ENCODER";
const BATCH: i64 = 4;
/// Denoisers and the side of their images; each has 16 x 16 tokens.
const MODELS: [(&str, u32); 2] = [("SiT-XS/4", 64), ("SiT-S/2", 32)];
const CELLS: [usize; 4] = [1, 2, 4, 8];

/// One step of every cell.
fn together(cells: &mut [Trainer], encoder: &dyn Encoder, batch: &DeviceBatch) -> Outcome<()> {
    let tokens = [encoder.encode(&batch.images)?.patch];
    for cell in cells {
        cell.step(batch, &tokens)?;
    }
    Ok(())
}

fn apart(cells: &mut [Trainer], encoder: &dyn Encoder, batch: &DeviceBatch) -> Outcome<()> {
    for cell in cells {
        cell.step(batch, &[encoder.encode(&batch.images)?.patch])?;
    }
    Ok(())
}

/// The median of some calls' seconds.
fn seconds(mut call: impl FnMut() -> Outcome<()>) -> Outcome<f64> {
    let mut times = Vec::new();
    for _ in 0..4 {
        let start = Instant::now();
        call()?;
        times.push(start.elapsed().as_secs_f64());
    }
    // The first call is slower.
    times.remove(0);
    times.sort_by(f64::total_cmp);
    Ok(times[1])
}

fn cohorts(criterion: &mut Criterion, path: &Path) -> Outcome<()> {
    torch_ext::device::keep_freed_memory();
    let encoder = TorchScript::load(path, Device::Cpu, encoders::Precision::Fp32)?;
    let spec = encoder.spec();
    let (width, grid) = (
        spec.width as i64,
        (spec.grid.height as i64, spec.grid.width as i64),
    );
    if (width, grid) != (WIDTH, GRID) {
        return Err(
            format!("its tokens are {width} wide on {grid:?}, not {WIDTH} on {GRID:?}").into(),
        );
    }
    let mut group = criterion.benchmark_group("cohort");
    group
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_secs(2));
    for (model, resolution) in MODELS {
        let batch = batch(BATCH, resolution)?;
        let cell = || trainer(model, resolution, BATCH, Precision::Fp32, true);
        let mut one = cell()?;
        let tokens = [encoder.encode(&batch.images)?.patch];
        let encoding = seconds(|| Ok(drop(black_box(encoder.encode(&batch.images)?))))?;
        let step = seconds(|| Ok(drop(one.step(&batch, &tokens)?)))?;
        println!("{model}: encoder {encoding:.3} s, step {step:.3} s");
        for count in CELLS {
            let mut cells = (0..count).map(|_| cell()).collect::<Result<Vec<_>, _>>()?;
            // In turn, so that what slows one slows the other.
            let mut ratios = Vec::new();
            for _ in 0..3 {
                let start = Instant::now();
                apart(&mut cells, &encoder, &batch)?;
                let apart = start.elapsed().as_secs_f64();
                let start = Instant::now();
                together(&mut cells, &encoder, &batch)?;
                ratios.push(apart / start.elapsed().as_secs_f64());
            }
            ratios.sort_by(f64::total_cmp);
            let n = count as f64;
            println!(
                "{model}: {count} cells together have {:.2} times the throughput of {count} runs ({:.2} by \
                 those times)",
                ratios[1],
                n * (encoding + step) / (encoding + n * step)
            );
            group.throughput(Throughput::Elements(count as u64 * BATCH as u64));
            group.bench_function(format!("{model}/{count}"), |bencher| {
                bencher.iter(|| black_box(together(&mut cells, &encoder, &batch).is_ok()));
            });
        }
    }
    group.finish();
    Ok(())
}

fn benchmark(criterion: &mut Criterion) {
    let Some(path) = env::var_os(ENCODER) else {
        eprintln!(
            "cohort: not measured: {ENCODER} does not name a TorchScript encoder; \
             `cargo xtask export mocov3-vit-b --random-weights` makes pretrained/mocov3-vit-b.pt"
        );
        return;
    };
    if let Err(error) = cohorts(criterion, Path::new(&path)) {
        eprintln!(
            "cohort: not measured: {}: {error}",
            Path::new(&path).display()
        );
    }
}

criterion_group!(benches, benchmark);
criterion_main!(benches);
