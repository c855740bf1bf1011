//! Tests the log messages of the loader. They need a process of their own, because tracing caches for
//! all threads whether a message is enabled.

use std::fs;
use std::io;
use std::sync::{Arc, Mutex};

use data::{Cursor, Loader, LoaderConfig, OpenOptions, open};

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn each_corrupt_sample_is_logged_once_with_its_index() {
    let folder = tempfile::tempdir().unwrap();
    for index in 0..11 {
        let path = folder.path().join(format!("{index:02}.png"));
        match index {
            2 | 9 => fs::write(path, "not an image").unwrap(),
            _ => image::RgbImage::new(2, 2).save(path).unwrap(),
        }
    }
    let dataset = open(folder.path(), &OpenOptions::default()).unwrap();

    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, || {
        let config = LoaderConfig {
            batch_size: 3,
            resolution: 2,
            workers: 2,
            max_corrupt_share: 0.5,
            ..LoaderConfig::default()
        };
        let loader = Loader::new(dataset, config, Cursor::default()).unwrap();
        // Four epochs, each of three batches.
        for batch in loader.take(12) {
            batch.unwrap();
        }
    });

    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert_eq!(text.lines().count(), 2, "{text}");
    for index in ["index=2", "index=9"] {
        assert_eq!(text.matches(index).count(), 1, "{text}");
    }
    assert!(text.contains("WARN") && text.contains("02.png"), "{text}");
}
