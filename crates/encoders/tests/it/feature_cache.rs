//! The feature cache: reading stored features, refusing wrong or damaged files, resuming after an
//! interruption.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use encoders::feature_cache::{
    CacheError, CacheKey, CacheLayout, CacheWriter, Claim, ClaimedShard, FeatureCache,
};
use encoders::{Encoder, LoadOptions, Precision, Registry, Tokens};
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};

const SAMPLES: u64 = 7;

/// A TorchScript test encoder with a class token.
fn encoder() -> Box<dyn Encoder> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/broken");
    let registry = Registry::new(&[folder]);
    registry.load("good", &LoadOptions::default()).unwrap()
}

fn images() -> Tensor {
    let count = (SAMPLES * 3 * 32 * 32) as i64;
    (Tensor::arange(count, (Kind::Int64, Device::Cpu)) * 7919)
        .remainder(251)
        .to_kind(Kind::Uint8)
        .view([SAMPLES as i64, 3, 32, 32])
}

fn key(encoder: &dyn Encoder) -> CacheKey {
    CacheKey {
        data: "some images".to_owned(),
        samples: SAMPLES,
        resolution: 32,
        background: "white".to_owned(),
        ..CacheKey::of_encoder(encoder.spec(), "abc".to_owned(), Precision::Fp32)
    }
}

/// Three samples per shard, with mirrored images: three shards, the last with one sample.
fn layout(encoder: &dyn Encoder, stored: Precision) -> CacheLayout {
    let layout = CacheLayout::of_encoder(encoder.spec(), stored, true, "cpu", 0);
    let bytes = 2 * layout.row_bytes() as u64;
    CacheLayout::of_encoder(encoder.spec(), stored, true, "cpu", 3 * bytes)
}

/// Tokens of the unchanged and of the mirrored images.
fn tokens(encoder: &dyn Encoder) -> [Tokens; 2] {
    let images = images();
    [images.shallow_clone(), images.flip([-1])].map(|images| encoder.encode(&images).unwrap())
}

fn narrow(tokens: &Tokens, start: u64, count: u64) -> Tokens {
    let narrow = |tensor: &Tensor| tensor.narrow(0, start as i64, count as i64);
    Tokens {
        patch: narrow(&tokens.patch),
        class: tokens.class.as_ref().map(narrow),
    }
}

/// Writes the missing shards, but at most `max_shards`.
fn fill(folder: &Path, encoder: &dyn Encoder, stored: Precision, max_shards: usize) {
    let tokens = tokens(encoder);
    let writer = CacheWriter::open(folder, key(encoder), layout(encoder, stored)).unwrap();
    for samples in writer.missing().unwrap().into_iter().take(max_shards) {
        let mut rows = writer.rows(&samples);
        let count = samples.end - samples.start;
        for (tokens, mirrored) in tokens.iter().zip([false, true]) {
            let tokens = narrow(tokens, samples.start, count);
            rows.put(samples.start, mirrored, &tokens).unwrap();
        }
        writer.write(rows, claimed(&writer, &samples)).unwrap();
    }
}

fn full(stored: Precision) -> (tempfile::TempDir, Box<dyn Encoder>) {
    let folder = tempfile::tempdir().unwrap();
    let encoder = encoder();
    fill(folder.path(), encoder.as_ref(), stored, usize::MAX);
    (folder, encoder)
}

fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read(entry.path()).unwrap())
        })
        .collect();
    files.sort();
    files
}

fn shard(folder: &Path, index: usize) -> PathBuf {
    folder.join(format!("tokens-{index:05}.safetensors"))
}

/// The message of the error when the cache is opened.
fn open_error(folder: &Path, key: &CacheKey) -> String {
    FeatureCache::open(folder, key, true)
        .unwrap_err()
        .to_string()
}

#[test]
fn float32_tokens_are_bit_identical_in_any_order() {
    let (folder, encoder) = full(Precision::Fp32);
    let [plain, mirrored] = tokens(encoder.as_ref());
    let mut cache = FeatureCache::open(folder.path(), &key(encoder.as_ref()), true).unwrap();
    let ids = [6, 0, 3, 3, 2];
    let flips = [false, true, true, false, true];
    let found = cache.tokens(&ids, &flips, Device::Cpu).unwrap();
    let class = found.class.unwrap();
    assert_eq!(found.patch.kind(), Kind::Float);
    for (row, (&id, &flip)) in ids.iter().zip(&flips).enumerate() {
        let expected = if flip { &mirrored } else { &plain };
        let row = row as i64;
        assert_eq!(found.patch.get(row), expected.patch.get(id as i64));
        let expected = expected.class.as_ref().unwrap();
        assert_eq!(class.get(row), expected.get(id as i64));
    }
    assert!(plain.patch != mirrored.patch);
}

#[test]
fn half_precision_rounds_once() {
    for stored in [Precision::Fp16, Precision::Bf16] {
        let (folder, encoder) = full(stored);
        let [plain, _] = tokens(encoder.as_ref());
        let mut cache = FeatureCache::open(folder.path(), &key(encoder.as_ref()), true).unwrap();
        let ids: Vec<u64> = (0..SAMPLES).collect();
        let found = cache.tokens(&ids, &[], Device::Cpu).unwrap();
        let rounded = plain.patch.to_kind(stored.kind()).to_kind(Kind::Float);
        assert_eq!(found.patch, rounded);
        assert!(found.patch != plain.patch);
    }
}

#[test]
fn a_shard_is_plain_safetensors() {
    // No code of this crate is needed to read one.
    let (folder, encoder) = full(Precision::Fp16);
    let tensors = Tensor::read_safetensors(shard(folder.path(), 2)).unwrap();
    let patch = tensors.iter().find(|(name, _)| name == "patch").unwrap();
    let spec = encoder.spec();
    let shape = [1, 2, spec.grid.tokens() as i64, spec.width as i64];
    assert_eq!(
        (patch.1.size(), patch.1.kind()),
        (shape.to_vec(), Kind::Half)
    );
}

#[test]
fn resumed_writing_produces_the_same_bytes() {
    let (whole, encoder) = full(Precision::Fp16);
    let parts = tempfile::tempdir().unwrap();
    for written in 0..3 {
        let error = open_error(parts.path(), &key(encoder.as_ref()));
        if written > 0 {
            assert!(error.contains(&format!("{written} of 3 shards")), "{error}");
        }
        fill(parts.path(), encoder.as_ref(), Precision::Fp16, 1);
    }
    assert_eq!(files(parts.path()), files(whole.path()));
    // A temporary file of a killed process is not used as a shard.
    let left = parts.path().join(".tokens-00001.safetensors.killed.tmp");
    fs::rename(shard(parts.path(), 1), &left).unwrap();
    fill(parts.path(), encoder.as_ref(), Precision::Fp16, usize::MAX);
    fs::remove_file(left).unwrap();
    assert_eq!(files(parts.path()), files(whole.path()));
}

#[test]
fn error_of_a_mismatched_cache_names_the_difference() {
    let (folder, encoder) = full(Precision::Fp16);
    let ours = key(encoder.as_ref());
    let others = [
        (
            "encoder",
            CacheKey {
                encoder: "other".into(),
                ..ours.clone()
            },
        ),
        (
            "SHA-256",
            CacheKey {
                identity: "def".into(),
                ..ours.clone()
            },
        ),
        (
            "precision",
            CacheKey {
                precision: Precision::Bf16,
                ..ours.clone()
            },
        ),
        (
            "input",
            CacheKey {
                input_size: 48,
                ..ours.clone()
            },
        ),
        (
            "data set",
            CacheKey {
                data: "others".into(),
                ..ours.clone()
            },
        ),
        (
            "samples",
            CacheKey {
                samples: 8,
                ..ours.clone()
            },
        ),
        (
            "resolution",
            CacheKey {
                resolution: 64,
                ..ours.clone()
            },
        ),
        (
            "background",
            CacheKey {
                background: "black".into(),
                ..ours.clone()
            },
        ),
    ];
    for (word, other) in others {
        let error = open_error(folder.path(), &other);
        assert!(error.contains(word), "{word}: {error}");
        let writer = CacheWriter::open(
            folder.path(),
            other,
            layout(encoder.as_ref(), Precision::Fp16),
        );
        assert!(matches!(writer, Err(CacheError::Mismatch { .. })), "{word}");
    }
    let mut preprocessing = ours.clone();
    preprocessing.preprocessing.antialias = !preprocessing.preprocessing.antialias;
    assert!(open_error(folder.path(), &preprocessing).contains("preprocessing"));
    // Resuming with another dtype would mix two dtypes.
    let bf16 = CacheWriter::open(
        folder.path(),
        ours,
        layout(encoder.as_ref(), Precision::Bf16),
    );
    let error = bf16.unwrap_err().to_string();
    assert!(error.contains("fp16") && error.contains("bf16"), "{error}");
}

#[test]
fn missing_mirrored_tokens_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let encoder = encoder();
    let encoder = encoder.as_ref();
    let layout = CacheLayout::of_encoder(encoder.spec(), Precision::Fp32, false, "cpu", 1 << 20);
    let writer = CacheWriter::open(folder.path(), key(encoder), layout).unwrap();
    for samples in writer.missing().unwrap() {
        let mut rows = writer.rows(&samples);
        rows.put(0, false, &tokens(encoder)[0]).unwrap();
        writer.write(rows, claimed(&writer, &samples)).unwrap();
    }
    let error = open_error(folder.path(), &key(encoder));
    assert!(
        error.contains("mirrored") && error.contains("data.flip"),
        "{error}"
    );
    let mut cache = FeatureCache::open(folder.path(), &key(encoder), false).unwrap();
    assert!(cache.tokens(&[0], &[false], Device::Cpu).is_ok());
    assert!(cache.tokens(&[0], &[true], Device::Cpu).is_err());
}

#[test]
fn errors_name_damaged_files() {
    let (folder, encoder) = full(Precision::Fp16);
    let path = shard(folder.path(), 1);
    let whole = fs::read(&path).unwrap();
    for kept in [0, 5, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..kept]).unwrap();
        let error = open_error(folder.path(), &key(encoder.as_ref()));
        assert!(
            error.contains("tokens-00001") && error.contains("damaged"),
            "{kept}: {error}"
        );
    }
    fs::write(&path, b"{\"not\": \"safetensors\"} ".repeat(200)).unwrap();
    let error = open_error(folder.path(), &key(encoder.as_ref()));
    assert!(error.contains("not a safetensors file"), "{error}");
    fs::copy(shard(folder.path(), 0), &path).unwrap();
    let error = open_error(folder.path(), &key(encoder.as_ref()));
    assert!(error.contains("another cache"), "{error}");
    fs::write(folder.path().join("cache.json"), "{").unwrap();
    let error = open_error(folder.path(), &key(encoder.as_ref()));
    assert!(
        error.contains("cache.json") && error.contains("damaged"),
        "{error}"
    );
}

#[test]
fn a_flipped_bit_is_found_when_its_sample_is_read() {
    let (folder, encoder) = full(Precision::Fp16);
    let path = shard(folder.path(), 1);
    let mut bytes = fs::read(&path).unwrap();
    // A byte of the last sample's patch tokens, before `present`.
    let at = bytes.len() - 100;
    bytes[at] ^= 1;
    fs::write(&path, bytes).unwrap();
    let mut cache = FeatureCache::open(folder.path(), &key(encoder.as_ref()), true).unwrap();
    assert!(cache.tokens(&[0, 1, 2, 3, 4, 6], &[], Device::Cpu).is_ok());
    let error = cache
        .tokens(&[0, 5], &[false, true], Device::Cpu)
        .unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("tokens-00001") && text.contains("sample 5"),
        "{text}"
    );
}

#[test]
fn errors_of_tokens_that_cannot_be_stored_name_the_sample() {
    let folder = tempfile::tempdir().unwrap();
    let encoder = encoder();
    let encoder = encoder.as_ref();
    for (value, words) in [(f64::NAN, "NaN"), (1e6, "beyond the range of fp16")] {
        let writer = CacheWriter::open(
            folder.path(),
            key(encoder),
            layout(encoder, Precision::Fp16),
        );
        let writer = writer.unwrap();
        let mut rows = writer.rows(&(0..3));
        let [plain, _] = tokens(encoder);
        let bad = narrow(&plain, 0, 3);
        let _ = bad.patch.get(1).get(0).get(0).fill_(value);
        let error = rows.put(0, false, &bad).unwrap_err().to_string();
        assert!(
            error.contains("sample 1") && error.contains(words),
            "{error}"
        );
    }
}

#[test]
fn tokens_of_another_shape_or_shard_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let encoder = encoder();
    let encoder = encoder.as_ref();
    let writer = CacheWriter::open(
        folder.path(),
        key(encoder),
        layout(encoder, Precision::Fp32),
    );
    let writer = writer.unwrap();
    let mut rows = writer.rows(&(0..3));
    let [plain, _] = tokens(encoder);
    assert!(rows.put(1, false, &narrow(&plain, 0, 3)).is_err());
    let no_class = Tokens {
        class: None,
        ..narrow(&plain, 0, 3)
    };
    assert!(rows.put(0, false, &no_class).is_err());
    let short = Tokens {
        patch: plain.patch.narrow(1, 0, 3),
        class: plain.class,
    };
    assert!(rows.put(0, false, &short).is_err());
}

#[test]
fn an_absent_sample_has_no_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let encoder = encoder();
    let encoder = encoder.as_ref();
    let [plain, mirrored] = tokens(encoder);
    let layout = layout(encoder, Precision::Fp32);
    let writer = CacheWriter::open(folder.path(), key(encoder), layout).unwrap();
    for samples in writer.missing().unwrap() {
        let mut rows = writer.rows(&samples);
        for sample in samples.clone().filter(|&sample| sample != 4) {
            rows.put(sample, false, &narrow(&plain, sample, 1)).unwrap();
            rows.put(sample, true, &narrow(&mirrored, sample, 1))
                .unwrap();
        }
        writer.write(rows, claimed(&writer, &samples)).unwrap();
    }
    let mut cache = FeatureCache::open(folder.path(), &key(encoder), true).unwrap();
    assert!(cache.tokens(&[3, 5], &[], Device::Cpu).is_ok());
    for (sample, words) in [(4, "could not be read"), (SAMPLES, "fewer samples")] {
        let error = cache
            .tokens(&[sample], &[], Device::Cpu)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(words) && error.contains(&sample.to_string()),
            "{error}"
        );
    }
}

#[test]
fn several_writers_of_a_cache_write_different_shards() {
    let folder = tempfile::tempdir().unwrap();
    let encoder = encoder();
    let encoder = encoder.as_ref();
    let open = || {
        let (key, layout) = (key(encoder), layout(encoder, Precision::Fp32));
        CacheWriter::open(folder.path(), key, layout).unwrap()
    };
    let (first, second) = (open(), open());
    let shards = first.missing().unwrap();
    assert_eq!(second.missing().unwrap(), shards);
    let shard = claimed(&first, &shards[0]);
    assert!(matches!(second.claim(&shards[0]), Ok(Claim::Held(_))));
    let other = claimed(&second, &shards[1]);
    drop(other);
    // A claim that was given up is free again.
    claimed(&first, &shards[1]);
    first.write(first.rows(&shards[0]), shard).unwrap();
    assert!(matches!(second.claim(&shards[0]), Ok(Claim::Written)));
    assert_eq!(second.missing().unwrap(), shards[1..]);
    let locks = std::fs::read_dir(folder.path()).unwrap();
    let locks = locks.filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        name.to_string_lossy().contains("00000.safetensors.lock")
    });
    assert_eq!(locks.count(), 0);
}

/// The claim of a shard that no one else has claimed.
fn claimed(writer: &CacheWriter, samples: &Range<u64>) -> ClaimedShard {
    match writer.claim(samples).unwrap() {
        Claim::Own(shard) => shard,
        other => panic!("{other:?}"),
    }
}

/// The key of moments of latents `[2, 3, 4]`, and moments `[N, 4, 3, 4]` with distinct values.
fn moments() -> (CacheKey, CacheLayout, Tensor) {
    let key = CacheKey {
        data: "some images".to_owned(),
        samples: SAMPLES,
        background: "white".to_owned(),
        ..CacheKey::of_autoencoder("f2d2".to_owned(), "abc".to_owned(), 32)
    };
    let layout = CacheLayout::of_moments([2, 3, 4], Precision::Fp32, false, "cpu", 3 * 4 * 48);
    let values = Tensor::arange(SAMPLES as i64 * 48, (Kind::Float, Device::Cpu));
    (key, layout, values.view([SAMPLES as i64, 4, 3, 4]))
}

#[test]
fn moments_are_bit_identical_after_reading() {
    let folder = tempfile::tempdir().unwrap();
    let (key, layout, moments) = moments();
    assert_eq!(layout.shard_samples, 3);
    let writer = CacheWriter::open(folder.path(), key.clone(), layout).unwrap();
    for samples in writer.missing().unwrap() {
        let mut rows = writer.rows(&samples);
        let (start, count) = (samples.start, samples.end - samples.start);
        let some = moments.narrow(0, start as i64, count as i64);
        rows.put_moments(start, false, &some).unwrap();
        for wrong in [some.view([-1, 4, 12]), some.transpose(2, 3)] {
            let error = rows.put_moments(start, false, &wrong).unwrap_err();
            let error = error.to_string();
            assert!(error.contains("autoencoder f2d2, sample"), "{error}");
        }
        writer.write(rows, claimed(&writer, &samples)).unwrap();
    }
    let mut cache = FeatureCache::open(folder.path(), &key, false).unwrap();
    let found = cache.moments(&[6, 0, 4], &[], Device::Cpu).unwrap();
    assert_eq!(
        found,
        moments.index_select(0, &Tensor::from_slice(&[6i64, 0, 4]))
    );
    assert!(folder.path().join("moments-00002.safetensors").is_file());

    let encoder = encoder();
    let tokens = CacheKey {
        samples: SAMPLES,
        ..self::key(encoder.as_ref())
    };
    let error = FeatureCache::open(folder.path(), &tokens, false).unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("the kind of features is moments, expected tokens"),
        "{error}"
    );
    let error = FeatureCache::open(&folder.path().join("none"), &key, false).unwrap_err();
    assert!(
        error.to_string().contains("runner prepare latents"),
        "{error}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Reading a damaged shard either fails or returns what was written.
    #[test]
    fn damaged_shards_never_yield_wrong_tokens(
        at in any::<prop::sample::Index>(), value in any::<u8>(), cut in any::<bool>(),
    ) {
        let (folder, encoder) = full(Precision::Fp16);
        let [plain, _] = tokens(encoder.as_ref());
        let expected = plain.patch.to_kind(Kind::Half).to_kind(Kind::Float);
        let path = shard(folder.path(), 0);
        let mut bytes = fs::read(&path).unwrap();
        let at = at.index(bytes.len());
        let unchanged = !cut && bytes[at] == value;
        if cut { bytes.truncate(at) } else { bytes[at] = value }
        fs::write(&path, bytes).unwrap();
        let tokens = FeatureCache::open(folder.path(), &key(encoder.as_ref()), true)
            .and_then(|mut cache| cache.tokens(&[0, 1, 2], &[], Device::Cpu));
        prop_assert!(tokens.is_err() || !cut);
        match tokens {
            Ok(tokens) => prop_assert_eq!(tokens.patch, expected.narrow(0, 0, 3)),
            Err(error) => prop_assert!(!unchanged, "{}", error),
        }
    }
}
