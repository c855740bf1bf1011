//! A cohort: 1, 2, 4 and 8 cells that share one forward pass of the encoder, and as many runs that
//! each have their own, in turns; prints the ratio of their throughputs as Markdown. And the cohort with the
//! encoder in a thread of its own, one batch ahead (`data.encode_ahead`): its throughput against the cohort's
//! in one thread. `OMP_NUM_THREADS` says how many threads libtorch has for each.
//!
//! `IREPA_BENCH_ENCODER` names the TorchScript file, with its sidecar beside it and 16 x 16 tokens of
//! width 768: `cargo xtask export dinov2-vit-b --random-weights` makes one. What a cohort saves
//! depends on the denoiser: with E and S the times of the encoder and of a cell's step, n cells gain
//! n (E + S) / (E + n S), which is printed beside what was measured. A denoiser's name as argument takes
//! that one alone.

use std::env;
use std::error::Error;
use std::hint::black_box;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Instant;

use benches::cells::{Cell, GRID, WIDTH};
use encoders::{Encoder, EncoderError, TorchScript};
use tch::{Device, Tensor};
use training::{DeviceBatch, Trainer};

type Outcome<T> = Result<T, Box<dyn Error>>;

const ENCODER: &str = "IREPA_BENCH_ENCODER";
const BATCH: i64 = 4;
/// Denoisers and the side of their images; each has 16 x 16 tokens.
const MODELS: [(&str, u32); 2] = [("SiT-XS/4", 64), ("SiT-S/2", 32)];
const CELLS: [usize; 4] = [1, 2, 4, 8];
const TURNS: usize = 3;

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

/// Has the next batch encoded while every cell steps; gives its tokens.
fn ahead(
    cells: &mut [Trainer],
    encoder: &Ahead,
    batch: &DeviceBatch,
    tokens: &[Tensor],
) -> Outcome<Tensor> {
    encoder.orders.send(())?;
    for cell in cells {
        cell.step(batch, tokens)?;
    }
    Ok(encoder.tokens.recv()??)
}

/// An encoder in a thread, which encodes each time it is told to.
struct Ahead {
    orders: Sender<()>,
    tokens: Receiver<Result<Tensor, EncoderError>>,
}

impl Ahead {
    fn start(encoder: TorchScript, images: Tensor) -> Self {
        let (orders, ordered) = mpsc::channel();
        let (send, tokens) = mpsc::channel();
        thread::spawn(move || {
            for () in ordered {
                let patch = encoder.encode(&images).map(|tokens| tokens.patch);
                if send.send(patch).is_err() {
                    break;
                }
            }
        });
        Self { orders, tokens }
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
        return Err(
            format!("its tokens are {width} wide on {grid:?}, not {WIDTH} on {GRID:?}").into(),
        );
    }
    println!("batch {BATCH}, {} threads\n", tch::get_num_threads());
    println!(
        "| denoiser | cells | together, s | apart, s | gain | by E and S | gain ahead |\n\
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
        let cell = Cell {
            model,
            resolution,
            batch: BATCH,
            ..Cell::default()
        };
        let batch = cell.images()?;
        let mut cells: Vec<Trainer> = Vec::new();
        let tokens = [encoder.encode(&batch.images)?.patch];
        let beside = Ahead::start(
            TorchScript::load(path, Device::Cpu, encoders::Precision::Fp32)?,
            batch.images.copy(),
        );
        for count in CELLS {
            while cells.len() < count {
                let mut trainer = cell.trainer()?;
                // The first step is slower.
                trainer.step(&batch, &tokens)?;
                cells.push(trainer);
            }
            // In turns, so that what slows one slows the others.
            let [mut all, mut each, mut gain, mut expected, mut gain_ahead] =
                [(); 5].map(|()| Vec::new());
            for _ in 0..TURNS {
                let apart = seconds(|| apart(&mut cells, &encoder, &batch))?;
                let together = seconds(|| together(&mut cells, &encoder, &batch))?;
                let ahead = seconds(|| ahead(&mut cells, &beside, &batch, &tokens))?;
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
             `cargo xtask export dinov2-vit-b --random-weights` makes pretrained/dinov2-vit-b.pt"
        );
        return Ok(());
    };
    let path = Path::new(&path);
    cohorts(path).map_err(|error| format!("{}: {error}", path.display()).into())
}
