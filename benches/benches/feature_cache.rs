//! Benchmarks the tokens of a batch, computed by an encoder and read from its feature cache, in images per
//! second.
//!
//! The default encoders are `hog` and `efficientnet-lite0`. `IREPA_BENCH_ENCODERS=dinov2-vit-b,...` selects
//! other encoders from the folder `pretrained`.

use std::env;
use std::hint::black_box;
use std::path::Path;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use data::{Background, OpenOptions};
use encoders::feature_cache::{CacheKey, CacheLayout, CacheWriter, Claim, FeatureCache};
use encoders::{Encoder, LoadOptions, Precision, Registry};
use tch::{Device, Kind, Tensor};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Number of images of the data set.
const IMAGES: u64 = 64;
/// The paper's resolution, in pixels.
const RESOLUTION: u32 = 256;
/// Number of images per batch.
const BATCH: usize = 32;

fn images() -> Outcome<Tensor> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let options = OpenOptions {
        split: Some("val".into()),
        ..OpenOptions::default()
    };
    let dataset = data::open(root.join("experiments/data/emoji64"), &options)?;
    let ids: Vec<u64> = (0..IMAGES).collect();
    let batch = data::read_batch(dataset.as_ref(), &ids, RESOLUTION, Background::White)?;
    let side = i64::from(RESOLUTION);
    let shape = [IMAGES as i64, 3, side, side];
    Ok(Tensor::f_from_data_size(
        &batch.images,
        &shape,
        Kind::Uint8,
    )?)
}

fn cache(
    folder: &Path,
    encoder: &dyn Encoder,
    images: &Tensor,
    stored: Precision,
) -> Outcome<FeatureCache> {
    let key = CacheKey {
        samples: IMAGES,
        resolution: RESOLUTION,
        ..CacheKey::of_encoder(encoder.spec(), "bench".to_owned(), Precision::Fp32)
    };
    let layout = CacheLayout::of_encoder(encoder.spec(), stored, false, "cpu", 256 << 20);
    let writer = CacheWriter::open(folder, key.clone(), layout)?;
    for samples in writer.missing().unwrap() {
        let mut rows = writer.rows(&samples);
        let (start, count) = (samples.start as i64, (samples.end - samples.start) as i64);
        let tokens = encoder.encode(&images.f_narrow(0, start, count)?)?;
        rows.put(samples.start, false, &tokens)?;
        if let Claim::Own(shard) = writer.claim(&samples)? {
            writer.write(rows, shard)?;
        }
    }
    Ok(FeatureCache::open(folder, &key, false)?)
}

fn bench_encoder(criterion: &mut Criterion, name: &str, images: &Tensor) -> Outcome<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let registry = Registry::new(&[root.join("experiments/encoders"), root.join("pretrained")]);
    let encoder = registry.load(name, &LoadOptions::default())?;
    let mut group = criterion.benchmark_group(name);
    group
        .throughput(Throughput::Elements(BATCH as u64))
        .sample_size(10)
        .measurement_time(Duration::from_secs(5));
    // Consecutive images are not neighbours in the cache, as in training.
    let ids: Vec<u64> = (0..BATCH as u64).map(|index| index * 37 % IMAGES).collect();
    for stored in [Precision::Fp16, Precision::Bf16, Precision::Fp32] {
        let folder = tempfile::tempdir()?;
        let mut cache = cache(folder.path(), encoder.as_ref(), images, stored)?;
        cache.tokens(&ids, &[], Device::Cpu)?;
        group.bench_function(format!("cache {}", stored.name()), |bencher| {
            bencher.iter(|| black_box(cache.tokens(&ids, &[], Device::Cpu)));
        });
    }
    let batch = images.f_narrow(0, 0, BATCH as i64)?;
    group.bench_function("encoder", |bencher| {
        bencher.iter(|| black_box(encoder.encode(&batch)));
    });
    group.finish();
    Ok(())
}

fn benchmark(criterion: &mut Criterion) {
    torch_ext::device::keep_freed_memory();
    let names = env::var("IREPA_BENCH_ENCODERS");
    let names = names.unwrap_or_else(|_| "hog,efficientnet-lite0".to_owned());
    for name in encoders::split_names(&names) {
        let outcome = images().and_then(|images| bench_encoder(criterion, &name, &images));
        if let Err(error) = outcome {
            eprintln!("{name}: not measured: {error}");
        }
    }
}

criterion_group!(benches, benchmark);
criterion_main!(benches);
