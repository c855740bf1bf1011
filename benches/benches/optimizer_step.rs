//! Benchmarks the update of SiT-S/2's weights from existing gradients: norm, clipping, AdamW and one moving
//! average, fused and composed. In bfloat16, the composed form includes autocast's casts of weights and
//! gradients.

use std::error::Error;
use std::time::{Duration, Instant};

use criterion::{Criterion, SamplingMode, criterion_group, criterion_main};
use diffusion::{Sit, SitConfig};
use tch::{Device, Kind, Tensor};
use torch_ext::{Generator, Params};
use training::{AdamW, Average, Config};

const CPU: Device = Device::Cpu;

/// Weights in training, with their optimiser.
struct Contender {
    params: Params,
    average: Average,
    /// Keeps the tensors of `average`.
    _averaged: Params,
    adamw: AdamW,
    gradients: Vec<Tensor>,
    cast: bool,
    fused: bool,
    step: u64,
}

fn weights() -> Result<Params, Box<dyn Error>> {
    let params = Params::new(CPU, 0)?;
    let _network = Sit::new(&params.root(), &SitConfig::named("SiT-S/2")?)?;
    Ok(params)
}

impl Contender {
    fn new(bf16: bool, fused: bool) -> Result<Self, Box<dyn Error>> {
        let (params, averaged) = (weights()?, weights()?);
        if bf16 && fused {
            params.keep_copies(Kind::BFloat16)?;
        }
        let mut generator = Generator::new(CPU, 1)?;
        let mut gradients = Vec::new();
        for param in params.entries().iter().filter(|param| param.trainable) {
            let drawn = generator.randn(&param.tensor.size(), Kind::Float)? * 1e-3;
            gradients.push(drawn.to_kind(param.leaf().kind()));
        }
        let config = Config::default();
        Ok(Self {
            adamw: AdamW::new(&params, &config.optimizer, config.learning_rate())?,
            average: Average::new(&averaged, &params, config.train.ema_decay),
            _averaged: averaged,
            gradients,
            cast: bf16 && !fused,
            fused,
            params,
            step: 0,
        })
    }

    /// Runs a step; returns its time without the computation of gradients.
    fn step(&mut self) -> Result<Duration, Box<dyn Error>> {
        let leaves: Vec<Tensor> = self
            .params
            .entries()
            .iter()
            .filter(|param| param.trainable)
            .map(|param| param.leaf().shallow_clone())
            .collect();
        for (leaf, gradient) in leaves.iter().zip(&self.gradients) {
            (leaf * gradient).f_sum(Kind::Float)?.f_backward()?;
        }
        let narrow: Vec<Tensor> = match self.cast {
            true => self
                .gradients
                .iter()
                .map(|g| g.to_kind(Kind::BFloat16))
                .collect(),
            false => Vec::new(),
        };
        self.step += 1;
        let start = Instant::now();
        for (leaf, gradient) in leaves.iter().zip(&narrow) {
            let _cast = (leaf.to_kind(Kind::BFloat16), gradient.to_kind(Kind::Float));
        }
        let _norm = ops::composed_if(!self.fused, || {
            self.adamw
                .step(self.step, std::slice::from_ref(&self.average))
        })?;
        Ok(start.elapsed())
    }
}

fn updates(criterion: &mut Criterion) -> Result<(), Box<dyn Error>> {
    torch_ext::device::keep_freed_memory();
    let mut group = criterion.benchmark_group("optimizer_step");
    group
        .sampling_mode(SamplingMode::Flat)
        .sample_size(20)
        .measurement_time(Duration::from_secs(5));
    for (precision, bf16) in [("fp32", false), ("bf16", true)] {
        let mut contenders = [Contender::new(bf16, true)?, Contender::new(bf16, false)?];
        // Times of both contenders, in the order fused, composed.
        let mut pairs: Vec<[f64; 2]> = Vec::new();
        for (index, form) in ["fused", "composed"].into_iter().enumerate() {
            group.bench_function(format!("{precision}/{form}"), |bencher| {
                bencher.iter_custom(|iterations| {
                    let mut total = Duration::ZERO;
                    for _ in 0..iterations {
                        // Alternately, so that other load on the machine affects both.
                        let [fused, composed] = &mut contenders;
                        let (Ok(fused), Ok(composed)) = (fused.step(), composed.step()) else {
                            eprintln!("{precision}: a step failed; ignore the times");
                            return total;
                        };
                        pairs.push([fused, composed].map(|time| time.as_secs_f64()));
                        total += [fused, composed][index];
                    }
                    total
                });
            });
        }
        let mut ratios: Vec<f64> = pairs
            .iter()
            .map(|[fused, composed]| composed / fused)
            .collect();
        ratios.sort_by(f64::total_cmp);
        let [fused, composed] = [0, 1].map(|index| {
            let times = pairs.iter().map(|pair| pair[index]);
            1e3 * times.fold(f64::INFINITY, f64::min)
        });
        if let Some(median) = ratios.get(ratios.len() / 2) {
            eprintln!(
                "{precision}: composed / fused {median:.2}, the median of {} pairs; the fastest \
                 take {composed:.1} and {fused:.1} ms, {:.2}",
                pairs.len(),
                composed / fused,
            );
        }
    }
    group.finish();
    Ok(())
}

fn benchmark(criterion: &mut Criterion) {
    if let Err(error) = updates(criterion) {
        eprintln!("optimizer_step: not measured: {error}");
    }
}

criterion_group!(benches, benchmark);
criterion_main!(benches);
