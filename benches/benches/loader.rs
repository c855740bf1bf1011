//! Benchmarks the loader, in images per second, for batches of 256 pixels from JPEGs of ImageNet's size, decoded
//! in the calling thread or ahead by two threads; and the two steps for each image, decoding and cropping.

use std::error::Error;
use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use data::{Cursor, Image, Loader, LoaderConfig, OpenOptions, center_crop};

const FILES: usize = 96;
const BATCH: usize = 32;
const RESOLUTION: u32 = 256;

fn loader(criterion: &mut Criterion) -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    benches::inputs::write_jpegs(folder.path(), FILES, 0)?;
    let dataset = data::open(folder.path(), &OpenOptions::default())?;

    let mut group = criterion.benchmark_group("loader");
    group
        .throughput(Throughput::Elements(BATCH as u64))
        .sample_size(20)
        .measurement_time(Duration::from_secs(3));
    for workers in [0, 2] {
        let config = LoaderConfig {
            batch_size: BATCH,
            resolution: RESOLUTION,
            workers,
            ..LoaderConfig::default()
        };
        let mut loader = Loader::new(dataset.clone(), config, Cursor::default())?;
        group.bench_function(format!("{workers} workers"), |bencher| {
            bencher.iter(|| black_box(loader.next()));
        });
    }
    group.finish();

    let bytes = std::fs::read(folder.path().join("0000.jpg"))?;
    let image = Image::decode(&bytes)?;
    let mut group = criterion.benchmark_group("image");
    group
        .sample_size(20)
        .measurement_time(Duration::from_secs(2));
    group.bench_function("decode", |bencher| {
        bencher.iter(|| black_box(Image::decode(&bytes)));
    });
    group.bench_function("crop", |bencher| {
        bencher.iter(|| black_box(center_crop::adm(&image, RESOLUTION)));
    });
    group.finish();
    Ok(())
}

fn benchmark(criterion: &mut Criterion) {
    if let Err(error) = loader(criterion) {
        eprintln!("loader: not measured: {error}");
    }
}

criterion_group!(benches, benchmark);
criterion_main!(benches);
