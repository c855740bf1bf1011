//! The Rust side of `run.py`: reads lines `CASE ITERATIONS` and answers each with the seconds of every
//! iteration. As arguments instead: `memory CASE`, the memory in MiB that one call of the case takes on
//! top; `inputs FOLDER`, to write what `spatial` and `loader` read, which are told of the folder by
//! `INPUTS`; `values spatial`, the numbers that it computes.

mod loader;
mod spatial;

use std::error::Error;
use std::fs;
use std::hint::black_box;
use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use alignment::{AlignmentLoss, LossConfig, LossKind, SpatialNorm};
use benches::cells::Cell;
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
        eprintln!(
            "compare: run by benches/compare/run.py, which gives it a PyTorch to compare with"
        );
        return Ok(());
    }
    if let Some(index) = arguments.iter().position(|argument| argument == "memory") {
        let case = arguments.get(index + 1).ok_or("memory of which case?")?;
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
            let mut made = case(name)?;
            for _ in 0..3 {
                made()?;
            }
            cases.push((name.to_owned(), made));
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
        other => Err(format!("no case {other}").into()),
    }
}

/// Where `inputs` has written.
fn inputs_folder() -> Outcome<PathBuf> {
    Ok(std::env::var_os("INPUTS")
        .ok_or("INPUTS is not set")?
        .into())
}

fn random(seed: u64, size: [i64; 3]) -> Outcome<Tensor> {
    Ok(Generator::new(Device::Cpu, seed)?.randn(&size, Kind::Float)?)
}

/// The least that can be done with a token tensor: to read it and write another.
fn copy() -> Outcome<Case> {
    let source = random(0, [32, 256, WIDTH])?;
    let mut target = source.f_zeros_like()?;
    Ok(Box::new(move || {
        target.copy_(black_box(&source));
        Ok(())
    }))
}

/// z-score and cosine of 32 images, forward and backward.
fn loss(fused: bool) -> Outcome<Case> {
    let tokens = random(0, [32, 256, WIDTH])?;
    let projected = random(1, [32, 256, WIDTH])?.set_requires_grad(true);
    let norm = SpatialNorm::default();
    let loss = AlignmentLoss::new(&[LossConfig {
        kind: LossKind::Cosine,
        coefficient: 1.0,
    }])?
    .with_fused(fused);
    Ok(Box::new(move || {
        let output = loss.forward_tokens(&norm, &[&tokens], &[&projected])?;
        output.total.f_backward()?;
        Ok(optim::clear_grads(&[projected.shallow_clone()])?)
    }))
}

/// SiT-S/2 on 8 images of 32 pixels (256 tokens).
fn sit() -> Cell {
    Cell::default()
}

/// JiT-B/16 on 2 images of 256 pixels (256 tokens, from the fifth block on with 32 more).
fn jit() -> Cell {
    Cell {
        model: "JiT-B/16",
        resolution: 256,
        batch: 2,
        ..Cell::default()
    }
}

/// A training step with iREPA, clipping, AdamW and EMA, for tokens of width 768 that are given.
fn step(cell: Cell, precision: TrainPrecision, fused: bool) -> Outcome<Case> {
    let cell = Cell {
        precision,
        fused,
        ..cell
    };
    let mut trainer = cell.trainer()?;
    let (batch, tokens) = (cell.images()?, [cell.tokens()?]);
    Ok(Box::new(move || {
        trainer.step(&batch, &tokens)?;
        Ok(())
    }))
}

/// Peak of resident memory during one call, less what was there before. Linux only.
fn memory(name: &str) -> Outcome<f64> {
    // Threads, kernels and pools, with tensors of another size.
    let small = random(3, [2, 256, 64])?;
    let leaf = random(4, [2, 256, 64])?.set_requires_grad(true);
    for fused in [true, false] {
        let loss = AlignmentLoss::new(&[LossConfig {
            kind: LossKind::Cosine,
            coefficient: 1.0,
        }])?;
        let loss = loss.with_fused(fused);
        let output = loss.forward_tokens(&SpatialNorm::default(), &[&small], &[&leaf])?;
        output.total.f_backward()?;
    }
    let mut case = case(name)?;
    fs::write("/proc/self/clear_refs", "5")?;
    let before = status("VmRSS")?;
    case()?;
    Ok((status("VmHWM")? - before) / 1024.0)
}

/// A figure of `/proc/self/status`, in KiB.
fn status(key: &str) -> Outcome<f64> {
    let text = fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find(|line| line.starts_with(key));
    let figure = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(figure.ok_or("no such figure")?.parse()?)
}
