//! Benchmarks LDS, CDS, SRSS and RMSC of 64 images of 256 tokens of width 768, on one thread and on all threads.

use std::hint::black_box;
use std::time::Duration;

use benches::inputs::{GRID, tokens};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use metrics::spatial::{Grid, SpatialOptions, evaluate};

const IMAGES: usize = 64;

fn benchmark(criterion: &mut Criterion) {
    let (tokens, masks) = tokens(IMAGES, 0);
    let grid = Grid {
        height: GRID,
        width: GRID,
    };
    let options = SpatialOptions::default();
    let mut group = criterion.benchmark_group("spatial_metrics");
    group
        .throughput(Throughput::Elements(IMAGES as u64))
        .sample_size(20)
        .measurement_time(Duration::from_secs(3));
    let run = || black_box(evaluate(tokens.view(), grid, Some(masks.view()), &options));
    match rayon::ThreadPoolBuilder::new().num_threads(1).build() {
        Ok(pool) => {
            group.bench_function("one thread", |bencher| {
                pool.install(|| bencher.iter(run));
            });
        }
        Err(error) => eprintln!("one thread: not measured: {error}"),
    }
    group.bench_function("all threads", |bencher| bencher.iter(run));
    group.finish();
}

criterion_group!(benches, benchmark);
criterion_main!(benches);
