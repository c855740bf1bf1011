//! Benchmarks a cohort: 1, 2, 4 and 8 cells that share one forward pass of the encoder, compared with the
//! same number of runs that each run the encoder themselves. Both are measured alternately, and the ratio of
//! their throughputs is printed as Markdown. The benchmark also measures the cohort with the encoder in a
//! separate thread, one batch ahead (`data.encode_ahead`), relative to the cohort in one thread.
//! `OMP_NUM_THREADS` sets the number of libtorch's threads for each.
//!
//! `IREPA_BENCH_ENCODER` names the TorchScript file of an encoder with 16 x 16 tokens of width 768; its
//! sidecar must be in the same folder. `cargo xtask export dinov2-vit-b --random-weights` writes one. The
//! gain of a cohort depends on the denoiser: with E and S the times of the encoder and of a cell's step, the
//! expected gain of n cells is n (E + S) / (E + n S), which is printed beside the measured gain. Arguments
//! select denoisers by name.

use std::env;
use std::error::Error;
use std::hint::black_box;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Instant;

use benches::trainers::{GRID, TrainerSpec, WIDTH};
use encoders::{Encoder, EncoderError, TorchScript};
use tch::{Device, Tensor};
use training::{DeviceBatch, Trainer};

type Outcome<T> = Result<T, Box<dyn Error>>;

const ENCODER: &str = "IREPA_BENCH_ENCODER";
const BATCH: i64 = 4;
/// Denoisers with the height and width of their images; each has 16 x 16 tokens.
const MODELS: [(&str, u32); 2] = [("SiT-XS/4", 64), ("SiT-S/2", 32)];
const CELLS: [usize; 4] = [1, 2, 4, 8];
const ROUNDS: usize = 3;

/// One step of every cell, with one forward pass of the encoder for all.
fn together(cells: &mut [Trainer], encoder: &dyn Encoder, batch: &DeviceBatch) -> Outcome<()> {
    let tokens = [encoder.encode(&batch.images)?.patch];
    for cell in cells {
        cell.step(batch, &tokens)?;
    }
    Ok(())
}

/// One step of every cell, with one forward pass of the encoder for each.
fn apart(cells: &mut [Trainer], encoder: &dyn Encoder, batch: &DeviceBatch) -> Outcome<()> {
    for cell in cells {
        cell.step(batch, &[encoder.encode(&batch.images)?.patch])?;
    }
    Ok(())
}

/// One step of every cell, while another thread encodes the next batch; returns the tokens of that batch.
fn ahead(
    cells: &mut [Trainer],
    encoder: &EncoderThread,
    batch: &DeviceBatch,
    tokens: &[Tensor],
) -> Outcome<Tensor> {
    encoder.requests.send(())?;
    for cell in cells {
        cell.step(batch, tokens)?;
    }
    Ok(encoder.tokens.recv()??)
}

/// An encoder in its own thread, which encodes the images on each request.
struct EncoderThread {
    requests: Sender<()>,
    tokens: Receiver<Result<Tensor, EncoderError>>,
}

impl EncoderThread {
    fn start(encoder: TorchScript, images: Tensor) -> Self {
        let (requests, received) = mpsc::channel();
        let (sender, tokens) = mpsc::channel();
        thread::spawn(move || {
            for () in received {
                let patch = encoder.encode(&images).map(|tokens| tokens.patch);
                if sender.send(patch).is_err() {
                    break;
                }
            }
        });
        Self { requests, tokens }
    }
}

fn seconds<T>(call: impl FnOnce() -> Outcome<T>) -> Outcome<f64> {
    let start = Instant::now();
    black_box(call()?);
    Ok(start.elapsed().as_secs_f64())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn cohorts(path: &Path) -> Outcome<()> {
    torch_ext::device::keep_freed_memory();
    let encoder = TorchScript::load(path, Device::Cpu, encoders::Precision::Fp32)?;
    let spec = encoder.spec();
    let (width, grid) = (
        spec.width as i64,
        (spec.grid.height as i64, spec.grid.width as i64),
    );
    if (width, grid) != (WIDTH, GRID) {
        return Err(format!(
            "its tokens have width {width} and grid {grid:?}, expected {WIDTH} and {GRID:?}"
        )
        .into());
    }
    println!("batch {BATCH}, {} threads\n", tch::get_num_threads());
    println!(
        "| denoiser | cells | together, s | apart, s | gain | expected gain | gain ahead |\n\
         | --- | --- | --- | --- | --- | --- | --- |"
    );
    let wanted: Vec<String> = env::args()
        .skip(1)
        .filter(|a| !a.starts_with('-'))
        .collect();
    for (model, resolution) in MODELS {
        if !(wanted.is_empty() || wanted.iter().any(|name| name == model)) {
            continue;
        }
        let setup = TrainerSpec {
            model,
            resolution,
            batch: BATCH,
            ..TrainerSpec::default()
        };
        let batch = setup.images()?;
        let mut cells: Vec<Trainer> = Vec::new();
        let tokens = [encoder.encode(&batch.images)?.patch];
        let encoder_thread = EncoderThread::start(
            TorchScript::load(path, Device::Cpu, encoders::Precision::Fp32)?,
            batch.images.copy(),
        );
        for count in CELLS {
            while cells.len() < count {
                let mut trainer = setup.trainer()?;
                // Warm-up: the first step is slower.
                trainer.step(&batch, &tokens)?;
                cells.push(trainer);
            }
            // Alternately, so that other load on the machine affects all of them.
            let [mut all, mut each, mut gain, mut expected, mut gain_ahead] =
                [(); 5].map(|()| Vec::new());
            for _ in 0..ROUNDS {
                let apart = seconds(|| apart(&mut cells, &encoder, &batch))?;
                let together = seconds(|| together(&mut cells, &encoder, &batch))?;
                let ahead = seconds(|| ahead(&mut cells, &encoder_thread, &batch, &tokens))?;
                let encoding = seconds(|| Ok(encoder.encode(&batch.images)?))?;
                let step = seconds(|| Ok(cells[0].step(&batch, &tokens)?))?;
                let n = count as f64;
                expected.push(n * (encoding + step) / (encoding + n * step));
                gain.push(apart / together);
                gain_ahead.push(together / ahead);
                all.push(together);
                each.push(apart);
            }
            let [all, each, gain, expected, gain_ahead] =
                [all, each, gain, expected, gain_ahead].map(median);
            println!(
                "| {model} | {count} | {all:.2} | {each:.2} | {gain:.2} | {expected:.2} | {gain_ahead:.2} |"
            );
        }
    }
    Ok(())
}

fn main() -> Outcome<()> {
    let Some(path) = env::var_os(ENCODER) else {
        eprintln!(
            "cohort: not measured: {ENCODER} does not name a TorchScript encoder; \
             `cargo xtask export dinov2-vit-b --random-weights` writes pretrained/dinov2-vit-b.pt"
        );
        return Ok(());
    };
    let path = Path::new(&path);
    cohorts(path).map_err(|error| format!("{}: {error}", path.display()).into())
}
