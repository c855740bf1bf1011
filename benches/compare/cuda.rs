//! The Rust side of `cuda.py`. It reads lines `CASE BATCH ITERATIONS`, and answers each with the seconds of
//! every iteration, followed by the peak memory of the device in MiB. If a case fails, the answer is `failed:`
//! and the reason.

use std::error::Error;
use std::hint::black_box;
use std::io::{self, BufRead, Write};
use std::time::Instant;

use alignment::{HeadConfig, SpatialNorm};
use benches::cosine_alignment::CosineAlignment;
use benches::trainers::TrainerSpec;
use tch::{Cuda, Device, Kind, Tensor};
use torch_ext::{Generator, device, optim};
use training::TrainPrecision;

type Outcome<T> = Result<T, Box<dyn Error>>;
/// One iteration of a case.
type Case = Box<dyn FnMut() -> Outcome<()>>;

const CUDA: Device = Device::Cuda(0);
const TOKENS: i64 = 256;
const WIDTH: i64 = 768;

fn main() -> Outcome<()> {
    if std::env::args().any(|argument| argument == "--bench") {
        eprintln!("compare_cuda: run by benches/compare/cuda.sh");
        return Ok(());
    }
    device::load_cuda()?;
    device::set_tf32(true)?;
    for line in io::stdin().lock().lines() {
        match answer(&line?) {
            Ok(figures) => println!("{}", figures.join(" ")),
            Err(error) => println!("failed: {}", error.to_string().replace('\n', " ")),
        }
        io::stdout().flush()?;
        device::empty_cache(CUDA)?;
    }
    Ok(())
}

fn answer(line: &str) -> Outcome<Vec<String>> {
    let words: Vec<&str> = line.split(' ').collect();
    let [name, batch, iterations] = words[..] else {
        return Err("CASE BATCH ITERATIONS".into());
    };
    let mut case = case(name, batch.parse()?)?;
    for _ in 0..3 {
        case()?;
    }
    Cuda::synchronize(0);
    device::reset_peak_memory(CUDA)?;
    let mut figures = Vec::new();
    for _ in 0..iterations.parse()? {
        let start = Instant::now();
        case()?;
        Cuda::synchronize(0);
        figures.push(start.elapsed().as_secs_f64().to_string());
    }
    let peak = device::peak_memory(CUDA)?.unwrap_or_default();
    figures.push((peak as f64 / f64::from(1 << 20)).to_string());
    Ok(figures)
}

fn case(name: &str, batch: i64) -> Outcome<Case> {
    let (name, fused) = match name.strip_suffix("_composed") {
        Some(name) => (name, false),
        None => (name, true),
    };
    let (name, graphs) = match name.strip_suffix("_graphs") {
        Some(name) => (name, true),
        None => (name, false),
    };
    match name {
        "copy" => copy(batch),
        "loss" => loss(batch, Kind::Float, fused),
        "loss_bf16" => loss(batch, Kind::BFloat16, fused),
        "sit_b2" => step("SiT-B/2", batch, fused, graphs),
        "sit_xl2" => step("SiT-XL/2", batch, fused, graphs),
        other => Err(format!("unknown case {other}").into()),
    }
}

fn random(seed: u64, size: &[i64], kind: Kind) -> Outcome<Tensor> {
    Ok(Generator::new(CUDA, seed)?.randn(size, kind)?)
}

/// Reads a token tensor and writes another.
fn copy(batch: i64) -> Outcome<Case> {
    let source = random(0, &[batch, TOKENS, WIDTH], Kind::Float)?;
    let mut target = source.f_zeros_like()?;
    Ok(Box::new(move || {
        target.f_copy_(black_box(&source))?;
        Ok(())
    }))
}

/// z-score and cosine loss, forward and backward.
fn loss(batch: i64, kind: Kind, fused: bool) -> Outcome<Case> {
    let tokens = random(0, &[batch, TOKENS, WIDTH], kind)?;
    let projected = random(1, &[batch, TOKENS, WIDTH], kind)?.set_requires_grad(true);
    let loss = CosineAlignment::new(SpatialNorm::default(), HeadConfig::default())?;
    Ok(Box::new(move || {
        let output = ops::composed_if(!fused, || loss.forward(&tokens, &projected))?;
        output.total.f_backward()?;
        Ok(optim::clear_grads(&[projected.shallow_clone()])?)
    }))
}

/// A training step with iREPA in bfloat16 on images of 32 pixels (256 tokens), with clipping, AdamW and EMA,
/// and with precomputed encoder tokens of width 768.
fn step(model: &'static str, batch: i64, fused: bool, graphs: bool) -> Outcome<Case> {
    let spec = TrainerSpec {
        model,
        batch,
        precision: TrainPrecision::Bf16,
        fused,
        graphs,
        device: CUDA,
        ..TrainerSpec::default()
    };
    let mut trainer = spec.trainer()?;
    let (batch, tokens) = (spec.images()?, [spec.tokens()?]);
    Ok(Box::new(move || {
        trainer.step(&batch, &tokens)?;
        Ok(())
    }))
}
