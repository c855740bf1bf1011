//! Benchmarks MeanFlow's average velocity and its derivative along the path for SiT-S/2, in one pass that
//! shares activations and in two passes.
//!
//! Criterion times both on all threads. Before that, both run alternately on one thread, and the ratio of
//! their median processor times is printed. Each also runs once in a separate process, whose peak resident
//! memory is printed (Linux only). `forward` is the network's work for the loss; `step` includes the
//! backward pass.

use std::env;
use std::error::Error;
use std::hint::black_box;
use std::process::Command;
use std::time::Duration;

use criterion::Criterion;
use diffusion::SitConfig;
use diffusion::models::meanflow::{Direction, Jvp, MeanFlowSit};
use tch::{Device, Kind, Tensor};
use torch_ext::{Generator, Params, optim};

const BATCH: i64 = 4;
const ROUNDS: usize = 5;

/// Environment variable of a process that is started to measure its memory; it names the work to run.
const MEASURED: &str = "MEANFLOW_MEASURED";

type Fallible<T> = Result<T, Box<dyn Error>>;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Form {
    Nothing,
    OnePass,
    TwoPasses,
}

struct Setting {
    params: Params,
    network: MeanFlowSit,
    z: Tensor,
    r: Tensor,
    t: Tensor,
    labels: Tensor,
    velocity: Tensor,
}

impl Setting {
    fn new() -> Fallible<Self> {
        let config = SitConfig::named("SiT-S/2")?;
        let params = Params::new(Device::Cpu, 0)?;
        let network = MeanFlowSit::new(&params.root(), &config)?;
        let mut generator = Generator::new(Device::Cpu, 1)?;
        for mut weight in params.trainable() {
            generator.normal_(&mut weight, 0.0, 0.02)?;
        }
        let size = [BATCH, 4, 32, 32];
        Ok(Self {
            z: generator.randn(&size, Kind::Float)?,
            velocity: generator.randn(&size, Kind::Float)?,
            r: generator.rand(&[BATCH], Kind::Float)?,
            t: generator.rand(&[BATCH], Kind::Float)?,
            labels: Tensor::arange(BATCH, (Kind::Int64, Device::Cpu)),
            params,
            network,
        })
    }

    fn forward(&self, form: Form) -> Fallible<Option<Jvp>> {
        let Self {
            network,
            z,
            r,
            t,
            labels,
            ..
        } = self;
        let direction = Direction::along(&self.velocity);
        Ok(match form {
            Form::Nothing => None,
            Form::OnePass => Some(network.jvp(z, r, t, labels, &direction, &[4])?),
            Form::TwoPasses => {
                Some(network.jvp_in_two_passes(z, r, t, labels, &direction, &[4])?)
            }
        })
    }

    fn step(&self, form: Form) -> Fallible<()> {
        if let Some(output) = self.forward(form)? {
            let target = (&self.velocity - output.dudt).detach();
            (output.u - target).square().mean(None).f_backward()?;
            optim::clear_grads(&self.params.trainable())?;
        }
        Ok(())
    }

    fn run(&self, form: Form, backward: bool) -> Fallible<()> {
        match backward {
            true => self.step(form),
            false => self.forward(form).map(|output| drop(black_box(output))),
        }
    }
}

fn main() -> Fallible<()> {
    if let Ok(measured) = env::var(MEASURED) {
        return print_peak(&measured);
    }
    let setting = Setting::new()?;
    for (name, backward) in [("forward", false), ("step", true)] {
        report_memory(name)?;
        report_time(&setting, name, backward)?;
    }
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("meanflow");
    group
        .sample_size(10)
        .measurement_time(Duration::from_secs(10));
    for (name, form) in [("one_pass", Form::OnePass), ("two_passes", Form::TwoPasses)] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| black_box(setting.forward(form)));
        });
    }
    group.finish();
    Ok(())
}

/// Measures processor time on one thread, on which other load on the machine has little effect.
fn report_time(setting: &Setting, name: &str, backward: bool) -> Fallible<()> {
    let threads = tch::get_num_threads();
    tch::set_num_threads(1);
    let mut times = [Vec::new(), Vec::new()];
    // Round 0 is a warm-up.
    for round in 0..=ROUNDS {
        for (times, form) in times.iter_mut().zip([Form::OnePass, Form::TwoPasses]) {
            let start = thread_time()?;
            setting.run(form, backward)?;
            if round > 0 {
                times.push((thread_time()? - start).as_secs_f64());
            }
        }
    }
    tch::set_num_threads(threads);
    let [one, two] = times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    });
    println!(
        "{name}: one pass {one:.3} s, two passes {two:.3} s, ratio {:.3}",
        one / two
    );
    Ok(())
}

/// Processor time of this thread.
fn thread_time() -> Fallible<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanoseconds = text.split_whitespace().next().ok_or("an empty schedstat")?;
    Ok(Duration::from_nanos(nanoseconds.parse()?))
}

fn report_memory(name: &str) -> Fallible<()> {
    let peak = |form: &str| -> Fallible<f64> {
        let output = Command::new(env::current_exe()?)
            .env(MEASURED, format!("{name} {form}"))
            .output()?;
        let text = String::from_utf8(output.stdout)?;
        text.trim()
            .parse()
            .map_err(|_| String::from_utf8_lossy(&output.stderr).into())
    };
    let [nothing, one, two] = [peak("nothing")?, peak("one")?, peak("two")?];
    println!(
        "{name}: peak memory above weights: one pass {:.0} MiB, two passes {:.0} MiB, ratio {:.3} \
         ({nothing:.0} MiB with weights alone)",
        one - nothing,
        two - nothing,
        (one - nothing) / (two - nothing),
    );
    Ok(())
}

/// Runs the work that `measured` names, and prints the peak resident memory of this process in MiB.
fn print_peak(measured: &str) -> Fallible<()> {
    let (name, form) = measured.split_once(' ').ok_or("no form")?;
    let form = match form {
        "one" => Form::OnePass,
        "two" => Form::TwoPasses,
        _ => Form::Nothing,
    };
    Setting::new()?.run(form, name == "step")?;
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|line| line.split_whitespace().next())
        .ok_or("no VmHWM in /proc/self/status")?;
    println!("{}", peak.parse::<f64>()? / 1024.0);
    Ok(())
}
