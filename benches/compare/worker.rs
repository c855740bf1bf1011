//! The Rust side of `run.py`. It reads lines `CASE ITERATIONS` and answers each with the seconds of every
//! iteration. With arguments, it does one of the following instead:
//!
//! - `memory CASE` prints the memory in MiB that one call of the case takes in addition;
//! - `inputs FOLDER` writes the inputs of `spatial` and `loader`, which find the folder in the variable
//!   `INPUTS`;
//! - `values spatial` prints the computed metrics.

mod loader;
mod spatial;

use std::error::Error;
use std::fs;
use std::hint::black_box;
use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use alignment::{HeadConfig, SpatialNorm};
use benches::cosine_alignment::CosineAlignment;
use benches::trainers::TrainerSpec;
use tch::{Device, Kind, Tensor};
use torch_ext::{Generator, optim};
use training::TrainPrecision;

type Outcome<T> = Result<T, Box<dyn Error>>;
/// One iteration of a case.
type Case = Box<dyn FnMut() -> Outcome<()>>;

const WIDTH: i64 = 768;

fn main() -> Outcome<()> {
    if let Some(threads) = std::env::var("THREADS").ok().and_then(|t| t.parse().ok()) {
        tch::set_num_threads(threads);
    }
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.iter().any(|argument| argument == "--bench") {
        eprintln!("compare: run by benches/compare/run.py, which compares it with PyTorch");
        return Ok(());
    }
    if let Some(index) = arguments.iter().position(|argument| argument == "memory") {
        let case = arguments
            .get(index + 1)
            .ok_or("`memory` needs the name of a case")?;
        println!("{:.1}", memory(case)?);
        return Ok(());
    }
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [_, "inputs", folder] => {
            loader::write_inputs(Path::new(folder))?;
            return spatial::write_inputs(Path::new(folder));
        }
        [_, "values", "spatial"] => {
            println!("{}", spatial::values()?);
            return Ok(());
        }
        _ => {}
    }
    torch_ext::device::keep_freed_memory();
    let mut cases: Vec<(String, Case)> = Vec::new();
    for line in io::stdin().lock().lines() {
        let line = line?;
        let (name, iterations) = line.split_once(' ').ok_or("CASE ITERATIONS")?;
        if !cases.iter().any(|(known, _)| known == name) {
            let mut case = case(name)?;
            for _ in 0..3 {
                case()?;
            }
            cases.push((name.to_owned(), case));
        }
        let case = cases.iter_mut().find(|(known, _)| known == name);
        let (_, case) = case.ok_or("unknown case")?;
        let mut seconds = Vec::new();
        for _ in 0..iterations.parse()? {
            let start = Instant::now();
            case()?;
            seconds.push(start.elapsed().as_secs_f64().to_string());
        }
        println!("{}", seconds.join(" "));
        io::stdout().flush()?;
    }
    Ok(())
}

fn case(name: &str) -> Outcome<Case> {
    match name {
        "copy" => copy(),
        "loss" => loss(true),
        "loss_composed" => loss(false),
        "step_fp32" => step(sit(), TrainPrecision::Fp32, true),
        "step_fp32_composed" => step(sit(), TrainPrecision::Fp32, false),
        "step_bf16" => step(sit(), TrainPrecision::Bf16, true),
        "step_bf16_composed" => step(sit(), TrainPrecision::Bf16, false),
        "step_jit_fp32" => step(jit(), TrainPrecision::Fp32, true),
        "step_jit_fp32_composed" => step(jit(), TrainPrecision::Fp32, false),
        "step_jit_bf16" => step(jit(), TrainPrecision::Bf16, true),
        "step_jit_bf16_composed" => step(jit(), TrainPrecision::Bf16, false),
        "spatial" => spatial::case(),
        "loader" => loader::case(),
        other => Err(format!("unknown case {other}").into()),
    }
}

/// The folder of the inputs.
fn inputs_folder() -> Outcome<PathBuf> {
    Ok(std::env::var_os("INPUTS")
        .ok_or("INPUTS is not set")?
        .into())
}

fn random(seed: u64, size: [i64; 3]) -> Outcome<Tensor> {
    Ok(Generator::new(Device::Cpu, seed)?.randn(&size, Kind::Float)?)
}

/// Copies a token tensor, as a lower bound for any operation on it.
fn copy() -> Outcome<Case> {
    let source = random(0, [32, 256, WIDTH])?;
    let mut target = source.f_zeros_like()?;
    Ok(Box::new(move || {
        target.copy_(black_box(&source));
        Ok(())
    }))
}

/// z-score and cosine loss of 32 images, forward and backward.
fn loss(fused: bool) -> Outcome<Case> {
    let tokens = random(0, [32, 256, WIDTH])?;
    let projected = random(1, [32, 256, WIDTH])?.set_requires_grad(true);
    let loss = CosineAlignment::new(SpatialNorm::default(), HeadConfig::default())?;
    Ok(Box::new(move || {
        let output = ops::composed_if(!fused, || loss.forward(&tokens, &projected))?;
        output.total.f_backward()?;
        Ok(optim::clear_grads(&[projected.shallow_clone()])?)
    }))
}

/// SiT-S/2 on 8 images of 32 pixels (256 tokens).
fn sit() -> TrainerSpec {
    TrainerSpec::default()
}

/// JiT-B/16 on 2 images of 256 pixels (256 tokens, with 32 more from the fifth block on).
fn jit() -> TrainerSpec {
    TrainerSpec {
        model: "JiT-B/16",
        resolution: 256,
        batch: 2,
        ..TrainerSpec::default()
    }
}

/// A training step with iREPA, clipping, AdamW and EMA, with precomputed encoder tokens of width 768.
fn step(spec: TrainerSpec, precision: TrainPrecision, fused: bool) -> Outcome<Case> {
    let spec = TrainerSpec {
        precision,
        fused,
        ..spec
    };
    let mut trainer = spec.trainer()?;
    let (batch, tokens) = (spec.images()?, [spec.tokens()?]);
    Ok(Box::new(move || {
        trainer.step(&batch, &tokens)?;
        Ok(())
    }))
}

/// Peak resident memory during one call, minus the resident memory before it, in MiB. Linux only.
fn memory(name: &str) -> Outcome<f64> {
    // Warms up threads, kernels and pools, with tensors of another size.
    let small = random(3, [2, 256, 64])?;
    let leaf = random(4, [2, 256, 64])?.set_requires_grad(true);
    for fused in [true, false] {
        let loss = CosineAlignment::new(SpatialNorm::default(), HeadConfig::default())?;
        let output = ops::composed_if(!fused, || loss.forward(&small, &leaf))?;
        output.total.f_backward()?;
    }
    let mut case = case(name)?;
    fs::write("/proc/self/clear_refs", "5")?;
    let before = status("VmRSS")?;
    case()?;
    Ok((status("VmHWM")? - before) / 1024.0)
}

/// An entry of `/proc/self/status`, in KiB.
fn status(key: &str) -> Outcome<f64> {
    let text = fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find(|line| line.starts_with(key));
    let figure = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(figure.ok_or("no such figure")?.parse()?)
}
