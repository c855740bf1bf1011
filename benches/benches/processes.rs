//! Training by two processes on one machine: the time of a step against that of one process with as many threads, and
//! the part of the reduction of gradients that the backward pass hides.
//!
//! `cargo bench -p benches --bench processes` prints Markdown. Ratios compare runs of the same round, which alternate.

use std::env;
use std::error::Error;
use std::io::{self, Write};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use benches::trainers::TrainerSpec;
use diffusion::{Denoiser, Mode, Sit, SitConfig};
use tch::{Device, Kind, Tensor};
use torch_ext::distributed::{ProcessGroup, Reducer, ReducerSettings, Store, World};
use torch_ext::{Generator, Params, optim};
use training::{DeviceBatch, TrainConfig, rows};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// What a process measures.
const TASK: &str = "PROCESSES_TASK";
const TIMEOUT: Duration = Duration::from_secs(120);
const ROUNDS: usize = 5;
const STEPS: usize = 6;
const WARM_UP: usize = 2;

fn main() -> Outcome<()> {
    match env::var(TASK).as_deref() {
        Ok("step") => step(),
        Ok("reduction") => reduction(),
        _ => compare(),
    }
}

/// Runs all measurements and prints them.
fn compare() -> Outcome<()> {
    let threads = std::thread::available_parallelism()?.get();
    let mut ratios = Vec::new();
    let (mut one, mut two) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let alone = || run("step", 1, threads);
        let shared = || run("step", 2, threads / 2);
        let (a, b) = match round % 2 {
            0 => (alone()?, shared()?),
            _ => {
                let b = shared()?;
                (alone()?, b)
            }
        };
        ratios.push(b[0] / a[0]);
        one.push(a[0]);
        two.push(b[0]);
    }
    println!("| step of SiT-S/2 with iREPA, batch 8, float32 | ms |\n| --- | --- |");
    println!(
        "| 1 process of {threads} threads | {:.0} |",
        1e3 * median(one)
    );
    println!(
        "| 2 processes of {} threads | {:.0} |",
        threads / 2,
        1e3 * median(two)
    );
    println!("| ratio, {ROUNDS} rounds | {:.3} |\n", median(ratios));
    let rounds = (0..ROUNDS).map(|_| run("reduction", 2, threads / 2));
    let rounds = rounds.collect::<Outcome<Vec<_>>>()?;
    let column = |index: usize| median(rounds.iter().map(|round| round[index]).collect());
    println!(
        "| forward and backward pass of SiT-S/2, 4 images in each of 2 processes | ms |\n| --- | --- |"
    );
    for (index, name) in [
        "without reduction",
        "reduced after the backward pass",
        "reduced during it",
    ]
    .iter()
    .enumerate()
    {
        println!("| {name} | {:.0} |", 1e3 * column(index));
    }
    let hidden = rounds
        .iter()
        .map(|round| (round[1] - round[2]) / (round[1] - round[0]));
    println!(
        "| hidden part of the reduction | {:.0} % |",
        100.0 * median(hidden.collect())
    );
    println!("| bytes reduced in a step | {:.0} |", column(3));
    Ok(())
}

/// Starts the processes of a task and returns the figures that rank 0 prints.
fn run(task: &str, size: usize, threads: usize) -> Outcome<Vec<f64>> {
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let start = |rank: usize| -> io::Result<Child> {
        Command::new(env::current_exe()?)
            .env(TASK, task)
            .env("OMP_NUM_THREADS", threads.max(1).to_string())
            .env("RANK", rank.to_string())
            .env("LOCAL_RANK", rank.to_string())
            .env("WORLD_SIZE", size.to_string())
            .env("MASTER_ADDR", "127.0.0.1")
            .env("MASTER_PORT", port.to_string())
            .stdout(Stdio::piped())
            .spawn()
    };
    let ranks = (0..size).map(start).collect::<io::Result<Vec<_>>>()?;
    let mut figures = Vec::new();
    for (rank, child) in ranks.into_iter().enumerate() {
        let output = child.wait_with_output()?;
        if !output.status.success() {
            return Err(format!("{task}, rank {rank}: {}", output.status).into());
        }
        if rank == 0 {
            let text = String::from_utf8(output.stdout)?;
            let parsed = text.split_whitespace().map(str::parse);
            figures = parsed.collect::<Result<_, _>>()?;
        }
    }
    Ok(figures)
}

/// This process among those of the task, with the store that they meet in.
fn world() -> Outcome<(World, Store)> {
    let world = World::from_env()?.ok_or("started by `compare` only")?;
    let store = Store::connect(&world, TIMEOUT)?;
    Ok((world, store))
}

/// Prints the seconds of a training step, with its share of the batch.
fn step() -> Outcome<()> {
    let (world, store) = world()?;
    let spec = TrainerSpec::default();
    let mut trainer = spec.trainer()?;
    let (mut batch, mut tokens) = (spec.images()?, spec.tokens()?);
    if world.size > 1 {
        let group = ProcessGroup::gloo(&store, &world, "training", TIMEOUT)?;
        trainer.distribute(group)?;
        let config = TrainConfig {
            batch_size: spec.batch as usize,
            ..TrainConfig::default()
        };
        let rows: Vec<i64> = rows(&config, &world)?
            .into_iter()
            .map(|row| row as i64)
            .collect();
        let rows = Tensor::from_slice(&rows);
        batch = DeviceBatch {
            images: batch.images.index_select(0, &rows),
            labels: batch.labels.index_select(0, &rows),
            ..batch
        };
        tokens = tokens.index_select(0, &rows);
    }
    let tokens = [tokens];
    let seconds = times(|| {
        trainer.step(&batch, &tokens)?;
        Ok(())
    })?;
    print(&[seconds])
}

/// Prints the seconds of a forward and backward pass without reduction, with one after it and with one during it; and the
/// bytes of the gradients.
fn reduction() -> Outcome<()> {
    let (world, store) = world()?;
    let group = ProcessGroup::gloo(&store, &world, "training", TIMEOUT)?;
    let config = SitConfig {
        in_channels: 3,
        input_size: 32,
        ..SitConfig::named("SiT-S/2")?
    };
    let mut generator = Generator::new(Device::Cpu, world.rank as u64)?;
    let x = generator.randn(&[4, 3, 32, 32], Kind::Float)?;
    let t = generator.rand(&[4], Kind::Float)?;
    let labels = Tensor::arange(4, (Kind::Int64, Device::Cpu));
    // One bucket is full when the last gradient is computed.
    let after = ReducerSettings {
        bucket_bytes: 1 << 40,
        ..ReducerSettings::default()
    };
    let mut figures = Vec::new();
    let mut bytes = 0.0;
    for settings in [None, Some(after), Some(ReducerSettings::default())] {
        let params = Params::new(Device::Cpu, 0)?;
        let model = Sit::new(&params.root(), &config)?;
        let weights = params.leaves();
        bytes = weights
            .iter()
            .map(|weight| weight.numel() as f64 * 4.0)
            .sum();
        let loss = || -> Outcome<Tensor> {
            let output = model.forward(&x, &t, &labels, &[], Mode::Eval)?;
            Ok(output.prediction.f_square()?.f_mean(Kind::Float)?)
        };
        let mut reducer = match settings {
            Some(settings) => Some(Reducer::new(&weights, &loss()?, &group, settings)?),
            None => None,
        };
        figures.push(times(|| {
            match &mut reducer {
                Some(reducer) => reducer.backward(&loss()?)?,
                None => loss()?.f_backward()?,
            }
            optim::clear_grads(&weights)?;
            // So that no process is ahead of the other.
            group.barrier()?;
            Ok(())
        })?);
    }
    figures.push(bytes);
    group.barrier()?;
    print(&figures)
}

/// The median of the seconds of a call.
fn times(mut call: impl FnMut() -> Outcome<()>) -> Outcome<f64> {
    for _ in 0..WARM_UP {
        call()?;
    }
    let seconds = (0..STEPS).map(|_| {
        let start = Instant::now();
        call()?;
        Ok(start.elapsed().as_secs_f64())
    });
    Ok(median(seconds.collect::<Outcome<_>>()?))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn print(figures: &[f64]) -> Outcome<()> {
    let figures: Vec<String> = figures.iter().map(f64::to_string).collect();
    Ok(writeln!(io::stdout(), "{}", figures.join(" "))?)
}
