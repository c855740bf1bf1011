use std::collections::HashSet;
use std::error::Error;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::Duration;

use data::{
    Background, Batch, Cursor, DataError, Dataset, Image, Loader, LoaderConfig, OpenOptions, Peers,
    Sample, open, seed,
};
use proptest::prelude::*;

use crate::support::{copy_of_emoji_val, emoji};

/// Images of 3x2 pixels whose values encode their index. Some of them are damaged.
#[derive(Debug, Default)]
struct Synthetic {
    len: u64,
    corrupt: HashSet<u64>,
    panicking: HashSet<u64>,
    unreadable: HashSet<u64>,
    /// Whether decoding takes a different time for each sample.
    slow: bool,
    reads: AtomicUsize,
    classes: Vec<String>,
}

impl Dataset for Synthetic {
    fn name(&self) -> &str {
        "synthetic"
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn class_names(&self) -> &[String] {
        &self.classes
    }

    fn read(&self, index: u64) -> Result<Sample, DataError> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        if self.slow {
            thread::sleep(Duration::from_micros(
                seed::derive(0, "slow", &[index]) % 300,
            ));
        }
        assert!(
            !self.panicking.contains(&index),
            "the test makes the decoder panic"
        );
        if self.unreadable.contains(&index) {
            let (action, source) = ("read", io::Error::other("the disk is gone"));
            return Err(DataError::Io {
                path: "disk".into(),
                action,
                source,
            });
        }
        if self.corrupt.contains(&index) {
            let reason = "damaged".to_owned();
            return Err(DataError::Sample {
                dataset: "synthetic".into(),
                index,
                reason,
            });
        }
        let rgb = (0..18).map(|i| (index * 31 + i) as u8).collect();
        let alpha = index.is_multiple_of(2).then(|| vec![index as u8; 6]);
        let image = Image::new(3, 2, rgb, alpha).unwrap();
        Ok(Sample {
            index,
            image,
            label: (index % 10) as i64,
        })
    }

    fn fingerprint(&self) -> &str {
        "synthetic"
    }
}

fn synthetic(len: u64, corrupt: impl IntoIterator<Item = u64>) -> Arc<Synthetic> {
    Arc::new(Synthetic {
        len,
        corrupt: corrupt.into_iter().collect(),
        ..Synthetic::default()
    })
}

fn config(batch_size: usize, workers: usize) -> LoaderConfig {
    LoaderConfig {
        batch_size,
        workers,
        resolution: 2,
        seed: 7,
        flip: true,
        max_corrupt_share: 1.0,
        ..LoaderConfig::default()
    }
}

fn batches(dataset: &Arc<Synthetic>, config: LoaderConfig, from: Cursor, n: usize) -> Vec<Batch> {
    let loader = Loader::new(dataset.clone(), config, from).unwrap();
    loader.take(n).map(|batch| batch.unwrap()).collect()
}

/// The ids of the stream according to its definition: the order of each epoch without corrupt samples,
/// in complete batches.
fn ids_by_definition(dataset: &Synthetic, config: &LoaderConfig, n: usize) -> Vec<Vec<u64>> {
    let epochs = (0..).map(|epoch| {
        let mut order = seed::permutation(
            seed::derive(config.seed, "epoch", &[epoch]),
            dataset.len as usize,
        );
        order.retain(|index| !dataset.corrupt.contains(index));
        order
    });
    let batches = epochs.flat_map(|order| {
        order
            .chunks_exact(config.batch_size)
            .map(<[u64]>::to_vec)
            .collect::<Vec<_>>()
    });
    batches.take(n).collect()
}

/// A data set with at least one batch of valid samples, and a configuration to load it.
fn streams() -> impl Strategy<Value = (Arc<Synthetic>, LoaderConfig)> {
    (
        1_usize..6,
        0_u64..25,
        0_u64..8,
        any::<u64>(),
        any::<bool>(),
        0_usize..4,
    )
        .prop_map(|(batch_size, more, corrupt, seed, flip, prefetch)| {
            let len = batch_size as u64 + more + corrupt;
            let damaged = seed::permutation(seed, len as usize)
                .into_iter()
                .take(corrupt as usize);
            let config = LoaderConfig {
                seed,
                flip,
                prefetch,
                ..config(batch_size, 0)
            };
            (synthetic(len, damaged), config)
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn a_resumed_stream_equals_the_uninterrupted_one(
        (dataset, config) in streams(), cut in 1_usize..15, workers in 0_usize..5, resumed in 0_usize..5,
    ) {
        let whole = batches(&dataset, LoaderConfig { workers, ..config.clone() }, Cursor::default(), 20);
        // Serialised as in a checkpoint.
        let saved = serde_json::to_string(&whole[cut - 1].cursor).unwrap();
        let cursor: Cursor = serde_json::from_str(&saved).unwrap();
        let rest = batches(&dataset, LoaderConfig { workers: resumed, ..config }, cursor, 20 - cut);
        prop_assert_eq!(&whole[cut..], rest.as_slice());
    }

    #[test]
    fn batches_follow_the_definition_for_any_number_of_workers(
        (dataset, config) in streams(), workers in 0_usize..5,
    ) {
        let expected = ids_by_definition(&dataset, &config, 12);
        let config = LoaderConfig { workers, ..config };
        let read = batches(&dataset, config.clone(), Cursor::default(), 12);
        for (batch, ids) in read.iter().zip(&expected) {
            prop_assert_eq!(&batch.ids, ids);
            let labels: Vec<_> = ids.iter().map(|id| (id % 10) as i64).collect();
            prop_assert_eq!(&batch.labels, &labels);
            let flips = ids.iter().map(|&id| config.flip
                && seed::derive(config.seed, "flip", &[batch.cursor.epoch, id]) % 2 == 1);
            prop_assert_eq!(&batch.flipped, &flips.collect::<Vec<_>>());
            prop_assert_eq!(batch.masks.is_some(), ids.iter().any(|id| id % 2 == 0));
            prop_assert!(batch.cursor.position <= dataset.len);
        }
    }
}

#[test]
fn a_batch_has_crops_in_planes_that_are_mirrored_where_flipped_is_set() {
    let dataset = synthetic(8, []);
    for batch in batches(&dataset, config(4, 2), Cursor::default(), 6) {
        assert_eq!(batch.images.len(), 4 * 3 * 2 * 2);
        let masks = batch.masks.as_ref().unwrap();
        for (i, (&id, &flipped)) in batch.ids.iter().zip(&batch.flipped).enumerate() {
            // The centre crop of a 3x2 image starts at column (3 - 2) / 2 = 0.
            let pixel = |x: u64, y: u64, c: u64| (id * 31 + (y * 3 + x) * 3 + c) as u8;
            let columns = if flipped { [1, 0] } else { [0, 1] };
            let mut expected = Vec::new();
            for c in 0..3 {
                for y in 0..2 {
                    expected.extend(columns.map(|x| pixel(x, y, c)));
                }
            }
            assert_eq!(batch.images[i * 12..(i + 1) * 12], expected);
            let opacity = if id % 2 == 0 { id as u8 } else { 255 };
            assert_eq!(masks[i * 4..(i + 1) * 4], [opacity; 4]);
        }
    }
}

#[test]
fn every_epoch_has_each_sample_once_in_its_own_order() {
    let dataset = synthetic(12, []);
    let read = batches(&dataset, config(4, 3), Cursor::default(), 9);
    let mut orders = HashSet::new();
    for (epoch, epoch_batches) in read.chunks_exact(3).enumerate() {
        let order: Vec<u64> = epoch_batches
            .iter()
            .flat_map(|batch| batch.ids.clone())
            .collect();
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..12).collect::<Vec<_>>());
        assert!(
            epoch_batches
                .iter()
                .all(|batch| batch.cursor.epoch == epoch as u64)
        );
        orders.insert(order);
    }
    assert_eq!(orders.len(), 3);
    assert!(read.iter().any(|batch| batch.flipped.contains(&true)));
    assert!(read.iter().any(|batch| batch.flipped.contains(&false)));
}

#[test]
fn order_does_not_depend_on_how_long_decoding_takes() {
    let quick = synthetic(40, [3, 4, 5]);
    let slow = Arc::new(Synthetic {
        len: 40,
        corrupt: quick.corrupt.clone(),
        slow: true,
        ..Synthetic::default()
    });
    let expected = batches(&quick, config(6, 0), Cursor::default(), 30);
    assert_eq!(
        batches(&slow, config(6, 8), Cursor::default(), 30),
        expected
    );
}

#[test]
fn corrupt_samples_are_counted_each_time() {
    let dataset = synthetic(11, [2, 9]);
    let mut loader = Loader::new(dataset, config(3, 2), Cursor::default()).unwrap();
    // Each epoch has three batches with all of its valid samples.
    for batch in loader.by_ref().take(9) {
        batch.unwrap();
    }
    let cursor = loader.cursor();
    assert_eq!(cursor.epoch, 2);
    assert_eq!(loader.skipped(), cursor.seen - 27);
    assert!((2..=6).contains(&loader.skipped()), "{}", loader.skipped());
}

/// The loaders of a test, each in a thread, that read one stream.
struct Threads {
    /// Indices from each loader, in the round that is being collected.
    rounds: Arc<(Barrier, Mutex<HashSet<u64>>)>,
}

impl Peers for Threads {
    fn union(&mut self, corrupt: &[u64]) -> Result<Vec<u64>, Box<dyn Error + Send + Sync>> {
        let (barrier, found) = &*self.rounds;
        found.lock().unwrap().extend(corrupt);
        barrier.wait();
        let union = found.lock().unwrap().iter().copied().collect();
        if barrier.wait().is_leader() {
            found.lock().unwrap().clear();
        }
        barrier.wait();
        Ok(union)
    }
}

/// The batches of `processes` loaders that share a stream, each with its rows; put together again.
fn shared_batches(
    dataset: &Arc<Synthetic>,
    config: &LoaderConfig,
    processes: usize,
    n: usize,
) -> Vec<Result<Batch, String>> {
    let rounds = Arc::new((Barrier::new(processes), Mutex::default()));
    let share = config.batch_size / processes;
    let loaders = (0..processes).map(|process| {
        let rows = (process * share..(process + 1) * share).collect();
        let peers = Box::new(Threads {
            rounds: Arc::clone(&rounds),
        });
        let loader = Loader::new(dataset.clone(), config.clone(), Cursor::default()).unwrap();
        let loader = loader.shared(rows, peers).unwrap();
        thread::spawn(move || loader.take(n).collect::<Vec<_>>())
    });
    let threads: Vec<_> = loaders.collect();
    let mut streams: Vec<_> = threads
        .into_iter()
        .map(|thread| thread.join().unwrap().into_iter())
        .collect();
    let mut together = Vec::new();
    while let Some(first) = streams[0].next() {
        let mut batch = first.map_err(|error| error.to_string());
        for stream in &mut streams[1..] {
            let part = stream.next().unwrap().map_err(|error| error.to_string());
            match (&mut batch, part) {
                (Ok(batch), Ok(part)) => {
                    assert_eq!(batch.cursor, part.cursor);
                    // A loader knows nothing of the masks of other rows.
                    batch.masks = None;
                    batch.images.extend(part.images);
                    batch.labels.extend(part.labels);
                    batch.ids.extend(part.ids);
                    batch.flipped.extend(part.flipped);
                }
                (Err(error), Err(other)) => assert_eq!(*error, other),
                (batch, part) => panic!("{batch:?} and {part:?}"),
            }
        }
        together.push(batch);
    }
    together
}

#[test]
fn several_loaders_read_the_batches_of_one() {
    for (corrupt, workers) in [(vec![], 2), (vec![2, 9, 17, 18], 0), (vec![0, 5, 39], 3)] {
        let dataset = synthetic(43, corrupt);
        let config = LoaderConfig {
            flip: true,
            max_corrupt_share: 0.2,
            ..config(8, workers)
        };
        let mut expected = batches(&dataset, config.clone(), Cursor::default(), 15);
        expected.iter_mut().for_each(|batch| batch.masks = None);
        for processes in [2, 4] {
            let found = shared_batches(&dataset, &config, processes, 15);
            let found: Vec<Batch> = found.into_iter().map(Result::unwrap).collect();
            assert_eq!(found, expected);
        }
    }
    // Each process decodes only its rows.
    let dataset = synthetic(16, []);
    shared_batches(&dataset, &config(8, 0), 2, 2);
    assert_eq!(dataset.reads.load(Ordering::SeqCst), 16);
}

#[test]
fn loaders_that_share_a_stream_end_with_the_same_error() {
    let config = LoaderConfig {
        max_corrupt_share: 0.1,
        ..config(8, 2)
    };
    let dataset = synthetic(100, 0..30);
    let mut alone = Loader::new(dataset.clone(), config.clone(), Cursor::default()).unwrap();
    let expected = alone.find_map(Result::err).unwrap().to_string();
    let found = shared_batches(&dataset, &config, 2, 30);
    assert_eq!(found.last().unwrap().as_ref().unwrap_err(), &expected);
}

#[test]
fn a_stream_without_images_has_the_same_samples() {
    let dataset = synthetic(43, [2, 9, 17]);
    let config = LoaderConfig {
        flip: true,
        max_corrupt_share: 0.2,
        ..config(8, 2)
    };
    let expected = batches(&dataset, config.clone(), Cursor::default(), 15);
    let reads = dataset.reads.swap(0, Ordering::SeqCst);
    assert!(reads >= 120);
    let loader = Loader::new(dataset.clone(), config, Cursor::default()).unwrap();
    let loader = loader.without_images(HashSet::from([2, 9, 17])).unwrap();
    for (batch, expected) in loader.zip(expected) {
        let batch = batch.unwrap();
        assert!(batch.images.is_empty() && batch.masks.is_none());
        assert_eq!((&batch.ids, batch.cursor), (&expected.ids, expected.cursor));
        assert_eq!(
            (&batch.labels, &batch.flipped),
            (&expected.labels, &expected.flipped)
        );
    }
}

#[test]
fn a_row_outside_the_batch_is_refused() {
    let loader = Loader::new(synthetic(20, []), config(4, 0), Cursor::default()).unwrap();
    let rounds = Arc::new((Barrier::new(1), Mutex::default()));
    let error = loader.shared(vec![1, 4], Box::new(Threads { rounds }));
    let message = error.err().unwrap().to_string();
    assert!(
        message.contains("rows") && message.contains('4'),
        "{message}"
    );
}

#[test]
fn too_many_corrupt_samples_end_the_stream() {
    for workers in [0, 3] {
        let dataset = synthetic(100, 0..30);
        let config = LoaderConfig {
            max_corrupt_share: 0.1,
            ..config(4, workers)
        };
        let mut loader = Loader::new(dataset, config, Cursor::default()).unwrap();
        let error = loader.by_ref().find_map(Result::err).unwrap();
        let DataError::TooManyCorrupt { skipped, seen, .. } = &error else {
            panic!("{error}");
        };
        // A tenth of the epoch is 10 samples, so that the 11th corrupt sample is the first that is too many.
        assert_eq!(*skipped, 11);
        assert!(*seen < 100);
        let text = error.to_string();
        assert!(
            text.contains("max_corrupt_share") && text.contains("damaged"),
            "{text}"
        );
        assert!(
            loader.next().is_none(),
            "the stream continues after an error"
        );
    }
}

#[test]
fn with_an_allowed_share_of_zero_the_first_corrupt_sample_ends_the_stream() {
    let config = LoaderConfig {
        max_corrupt_share: 0.0,
        ..config(4, 1)
    };
    let mut loader = Loader::new(synthetic(20, [11]), config.clone(), Cursor::default()).unwrap();
    let error = loader.find_map(Result::err).unwrap();
    assert!(
        matches!(error, DataError::TooManyCorrupt { skipped: 1, .. }),
        "{error}"
    );
    assert_eq!(
        batches(&synthetic(20, []), config, Cursor::default(), 12).len(),
        12
    );
}

#[test]
fn an_epoch_without_a_complete_batch_is_an_error_and_not_an_endless_loop() {
    for workers in [0, 2] {
        let dataset = synthetic(10, 0..7);
        let mut loader = Loader::new(dataset, config(4, workers), Cursor::default()).unwrap();
        let error = loader.next().unwrap().unwrap_err();
        let text = error.to_string();
        assert!(
            matches!(
                error,
                DataError::EmptyEpoch {
                    epoch: 0,
                    batch_size: 4,
                    ..
                }
            ),
            "{text}"
        );
        assert!(
            text.contains("at most 3") && text.contains("`batch_size` is 4"),
            "{text}"
        );
    }
}

#[test]
fn a_panic_in_a_decoder_is_a_corrupt_sample() {
    for workers in [0, 2] {
        let panicking = HashSet::from([1, 5]);
        let dataset = Arc::new(Synthetic {
            len: 9,
            panicking,
            ..Synthetic::default()
        });
        let same = synthetic(9, [1, 5]);
        let read = batches(&dataset, config(3, workers), Cursor::default(), 8);
        assert_eq!(read, batches(&same, config(3, 0), Cursor::default(), 8));

        let strict = LoaderConfig {
            max_corrupt_share: 0.0,
            ..config(3, workers)
        };
        let mut loader = Loader::new(dataset, strict, Cursor::default()).unwrap();
        let error = loader.find_map(Result::err).unwrap().to_string();
        assert!(
            error.contains("panicked: the test makes the decoder panic"),
            "{error}"
        );
    }
}

#[test]
fn failures_of_the_file_system_are_not_skipped() {
    for workers in [0, 2] {
        let unreadable = HashSet::from([4]);
        let dataset = Arc::new(Synthetic {
            len: 9,
            unreadable,
            ..Synthetic::default()
        });
        let mut loader = Loader::new(dataset, config(3, workers), Cursor::default()).unwrap();
        let error = loader.by_ref().find_map(Result::err).unwrap();
        assert!(error.to_string().contains("the disk is gone"), "{error}");
        assert!(loader.next().is_none());
    }
}

#[test]
fn prefetching_is_bounded() {
    let dataset = synthetic(1000, []);
    let config = LoaderConfig {
        prefetch: 2,
        ..config(10, 4)
    };
    let mut loader = Loader::new(dataset.clone(), config, Cursor::default()).unwrap();
    loader.next().unwrap().unwrap();
    let reads = || dataset.reads.load(Ordering::SeqCst);
    // The batch that was taken, and two batches ahead.
    while reads() < 30 {
        thread::sleep(Duration::from_millis(1));
    }
    thread::sleep(Duration::from_millis(30));
    assert_eq!(reads(), 30);
}

#[test]
fn dropping_a_loader_ends_its_threads() {
    let dataset = Arc::new(Synthetic {
        len: 20_000,
        slow: true,
        ..Synthetic::default()
    });
    let config = LoaderConfig {
        prefetch: 1000,
        ..config(10, 3)
    };
    let mut loader = Loader::new(dataset.clone(), config, Cursor::default()).unwrap();
    loader.next().unwrap().unwrap();
    // The test, the loader, and the reader of its threads.
    assert_eq!(Arc::strong_count(&dataset), 3);
    drop(loader);
    assert_eq!(Arc::strong_count(&dataset), 1);
    // Ten thousand samples were queued, which would take half a second; most of them were not decoded.
    assert!(dataset.reads.load(Ordering::SeqCst) < 5000);
}

#[test]
fn the_error_of_a_value_out_of_range_names_its_key() {
    let refused = |config: LoaderConfig, cursor| {
        Loader::new(synthetic(10, []), config, cursor)
            .err()
            .unwrap()
    };
    let start = Cursor::default();
    let good = config(4, 0);
    for (key, config) in [
        (
            "batch_size",
            LoaderConfig {
                batch_size: 0,
                ..good.clone()
            },
        ),
        (
            "resolution",
            LoaderConfig {
                resolution: 0,
                ..good.clone()
            },
        ),
        (
            "resolution",
            LoaderConfig {
                resolution: 100_000,
                ..good.clone()
            },
        ),
        (
            "workers",
            LoaderConfig {
                workers: 100_000,
                ..good.clone()
            },
        ),
        (
            "prefetch",
            LoaderConfig {
                prefetch: 100_000,
                ..good.clone()
            },
        ),
        (
            "max_corrupt_share",
            LoaderConfig {
                max_corrupt_share: 1.5,
                ..good.clone()
            },
        ),
        (
            "max_corrupt_share",
            LoaderConfig {
                max_corrupt_share: f64::NAN,
                ..good.clone()
            },
        ),
    ] {
        let error = refused(config, start);
        assert!(
            matches!(error, DataError::Config { key: found, .. } if found == key),
            "{error}"
        );
    }
    let text = refused(
        LoaderConfig {
            batch_size: 11,
            ..good.clone()
        },
        start,
    )
    .to_string();
    assert!(
        text.contains("synthetic has 10 samples") && text.contains("is 11"),
        "{text}"
    );
    let text = refused(
        good,
        Cursor {
            position: 11,
            ..start
        },
    )
    .to_string();
    assert!(text.contains("saved with another data set"), "{text}");
}

#[test]
fn configuration_refuses_unknown_keys_and_uses_defaults_for_missing_ones() {
    let config: LoaderConfig =
        toml::from_str("batch_size = 8\nbackground = 'black'\nflip = true").unwrap();
    assert_eq!(
        (config.batch_size, config.background),
        (8, Background::Black)
    );
    assert_eq!(config.resolution, 256);
    let error = toml::from_str::<LoaderConfig>("bach_size = 8")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("bach_size") && error.contains("batch_size"),
        "{error}"
    );
    let text = toml::to_string(&config).unwrap();
    assert_eq!(toml::from_str::<LoaderConfig>(&text).unwrap(), config);
}

#[test]
fn batches_of_the_embedded_set_do_not_depend_on_the_number_of_workers() {
    let options = OpenOptions {
        split: Some("val".to_owned()),
        ..OpenOptions::default()
    };
    let dataset = open(emoji(), &options).unwrap();
    let read = |workers| {
        let config = LoaderConfig {
            batch_size: 64,
            resolution: 32,
            workers,
            background: Background::White,
            ..config(0, 0)
        };
        let loader = Loader::new(Arc::clone(&dataset), config, Cursor::default()).unwrap();
        loader
            .take(7)
            .map(|batch| batch.unwrap())
            .collect::<Vec<_>>()
    };
    let alone = read(0);
    assert!(alone.iter().all(|batch| batch.masks.is_some()));
    assert_eq!(alone, read(1));
    assert_eq!(alone, read(5));
}

#[test]
fn a_damaged_image_in_an_arrow_file_is_skipped() {
    let folder = tempfile::tempdir().unwrap();
    let root = copy_of_emoji_val(folder.path());
    let path = root.join("data-00000-of-00001.arrow");
    let mut bytes = std::fs::read(&path).unwrap();
    let whole = open(&root, &OpenOptions::default()).unwrap();
    // The signature of the first PNG in the file.
    let start = bytes
        .windows(8)
        .position(|window| window == b"\x89PNG\r\n\x1a\n")
        .unwrap();
    bytes[start..start + 8].fill(0);
    std::fs::write(&path, bytes).unwrap();

    let dataset = open(&root, &OpenOptions::default()).unwrap();
    assert_eq!(dataset.fingerprint(), whole.fingerprint());
    let config = LoaderConfig {
        max_corrupt_share: 0.05,
        resolution: 64,
        ..config(16, 2)
    };
    let mut loader = Loader::new(Arc::clone(&dataset), config, Cursor::default()).unwrap();
    let epoch: Vec<_> = loader
        .by_ref()
        .take(10)
        .map(|batch| batch.unwrap())
        .collect();
    assert!(epoch.iter().all(|batch| !batch.ids.contains(&0)));
    while loader.cursor().epoch == 0 {
        loader.next().unwrap().unwrap();
    }
    assert_eq!(loader.skipped(), 1);
}
