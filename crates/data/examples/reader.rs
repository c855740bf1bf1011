//! Measures how fast a data set opens and how fast single images are read in random order.
//!
//! `cargo run -p data --example reader -- FOLDER [SPLIT] [IMAGES]` prints one line of JSON: the number of samples, the
//! seconds to open the data set, the anonymous memory of the process before and after that and at the end in MiB, and the
//! images per second, read and decoded on one thread. By default 20,000 images are read.

use std::error::Error;
use std::fs;
use std::hint::black_box;
use std::time::Instant;

use data::{OpenOptions, seed};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments
        .next()
        .ok_or("usage: reader FOLDER [SPLIT] [IMAGES]")?;
    let options = OpenOptions {
        split: arguments.next().filter(|split| !split.is_empty()),
        ..OpenOptions::default()
    };
    let images: usize = arguments.next().as_deref().unwrap_or("20000").parse()?;

    let before = anonymous_mib()?;
    let start = Instant::now();
    let dataset = data::open(folder, &options)?;
    let open = start.elapsed().as_secs_f64();
    let opened = anonymous_mib()?;

    let order = seed::permutation(0, dataset.len() as usize);
    let start = Instant::now();
    for &index in order.iter().cycle().take(images) {
        black_box(dataset.read(index)?);
    }
    let rate = images as f64 / start.elapsed().as_secs_f64();
    println!(
        "{{\"samples\": {}, \"open_s\": {open:.3}, \"mib\": [{before:.0}, {opened:.0}, {:.0}], \"images_per_s\": {rate:.0}}}",
        dataset.len(),
        anonymous_mib()?,
    );
    Ok(())
}

/// The memory of this process that holds no file.
fn anonymous_mib() -> Result<f64, Box<dyn Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.ok_or("no RssAnon in /proc/self/status")?;
    Ok(kib.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
}
