//! Cells that see the same batches and the same encoder: both run once for all of them.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use data::Loader;
use metrics::spatial::SpatialMetrics;
use tch::Device;
use training::{Autoencoder, DeviceBatch, Inputs, MetricsLog, Run};

use super::latent_source::LatentSource;
use super::progress::CellProgress;
use super::token_source::TokenSource;
use super::{Context, InitialWeights, Planned, empty_row, sheet};
use crate::cell_folder::{CellLock, CellResult};
use crate::evaluation::{self, EvaluationError, JudgeStage, Judges, ProbeData};
use crate::image_grid::{GridLayout, write_grid};
use crate::results::Status;
use crate::tensors;

/// Share of the logged steps, at the end, whose mean is a cell's final loss.
const FINAL_SHARE: f64 = 0.1;

/// Cells that share data, batches, encoder and autoencoder.
pub(crate) struct Cohort {
    pub(crate) cells: Vec<Planned>,
}

/// Why a cell failed, as it will stand in `results.csv`.
#[derive(Clone)]
struct Reason(String);

impl<E: Error> From<E> for Reason {
    fn from(error: E) -> Self {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            // A transparent error repeats its source.
            if !text.contains(&cause_text) {
                text = format!("{text}: {cause_text}");
            }
            source = cause.source();
        }
        if text.contains("out of memory") || text.contains("not enough memory") {
            text.push_str("; raise train.accumulation or lower train.batch_size, then start again");
        }
        Self(text)
    }
}

/// A cell that is being trained.
struct Active<'a> {
    planned: &'a Planned,
    run: Run,
    progress: CellProgress,
    _lock: CellLock,
    started_at: u64,
    /// Seconds in this cell's own steps, and their number, since it was opened.
    seconds: f64,
    steps: u64,
}

impl Cohort {
    /// Groups cells, keeping their order.
    pub(crate) fn group(cells: Vec<Planned>) -> Vec<Self> {
        let mut cohorts: Vec<(String, Self)> = Vec::new();
        for planned in cells {
            let config = &planned.cell.config;
            let loader = config.loader();
            let key = format!(
                "{} {} {loader:?} {} {} {} {} {:?} {}",
                planned.training.fingerprint(),
                planned.reference.fingerprint(),
                config.data.token_cache.display(),
                config.data.latent_cache.display(),
                autoencoder(config),
                config.alignment.encoder,
                config.evaluate,
                config.sample.count,
            );
            match cohorts.iter_mut().find(|(known, _)| *known == key) {
                Some((_, cohort)) => cohort.cells.push(planned),
                None => cohorts.push((
                    key,
                    Self {
                        cells: vec![planned],
                    },
                )),
            }
        }
        cohorts.into_iter().map(|(_, cohort)| cohort).collect()
    }

    /// Runs all cells to their end. Failures are written to the cells' folders.
    pub(crate) fn run(&self, context: &Context) {
        if self.cells.is_empty() {
            return;
        }
        if let Err(reason) = self.train(context) {
            for planned in &self.cells {
                let has_result = planned.folder.result().is_some_and(|result| {
                    result.hash == planned.hash && result.row.status == Status::Done
                });
                if !has_result {
                    fail(context, planned, None, 0, &reason);
                }
            }
        }
        // Nothing of this cohort is alive any more; the next one may need the memory.
        if let Err(error) = torch_ext::device::empty_cache(context.device) {
            tracing::debug!("the allocator keeps its memory: {error}");
        }
    }

    /// `Err` is a failure of what the cells share; a failure of one cell is handled here.
    fn train(&self, context: &Context) -> Result<(), Reason> {
        let Some(first) = self.cells.first() else {
            return Ok(());
        };
        let config = &first.cell.config;
        let mut source = TokenSource::open(context.bank, config, first.training.as_ref())?;
        let mut latents = LatentSource::open(context.bank, config, first.training.as_ref())?;
        for line in [source.described(), latents.described()]
            .into_iter()
            .flatten()
        {
            context.progress.print(&line);
        }
        let mut active: Vec<Active> = Vec::new();
        for planned in &self.cells {
            match self.open(context, planned, &source) {
                Ok(cell) => active.push(cell),
                Err(reason) => fail(context, planned, None, 0, &reason),
            }
        }
        // One stream for all: it starts where the cell that is furthest behind stands.
        let behind = active
            .iter()
            .min_by_key(|cell| cell.run.trainer().steps_done());
        let (mut position, cursor) = match behind {
            Some(cell) => (cell.run.trainer().steps_done(), cell.run.trainer().cursor()),
            None => return Ok(()),
        };
        let mut loader = None;
        let mut shared = None;
        while active.iter().any(|cell| !cell.run.is_finished()) {
            if context.interrupted.load(Ordering::Relaxed) {
                return self.suspend(context, active);
            }
            if loader.is_none() {
                let training = Arc::clone(&first.training);
                loader = Some(Loader::new(training, config.loader(), cursor)?);
            }
            let Some(batch) = loader.as_mut().and_then(Iterator::next) else {
                break;
            };
            let mut batch = DeviceBatch::new(batch?, context.device)?;
            batch.moments = latents.moments(&batch)?;
            let tokens = source.tokens(&batch)?;
            // A cell that was saved later than the others waits for the stream to come by.
            active.retain_mut(|cell| {
                if cell.run.trainer().steps_done() != position || cell.run.is_finished() {
                    return true;
                }
                match cell.step(context, &batch, &tokens, &mut shared) {
                    Ok(()) => true,
                    Err(reason) => {
                        fail(
                            context,
                            cell.planned,
                            Some(&cell.progress),
                            position,
                            &reason,
                        );
                        false
                    }
                }
            });
            position += 1;
        }
        drop((loader, latents));
        self.evaluate(context, active, &source, shared)
    }

    fn open<'a>(
        &self,
        context: &Context,
        planned: &'a Planned,
        source: &TokenSource,
    ) -> Result<Active<'a>, Reason> {
        let lock = planned.folder.lock()?;
        planned.folder.write_config(&planned.cell.config)?;
        let inputs = Inputs {
            device: context.device,
            num_classes: planned.training.class_names().len() as i64,
            encoders: source.shapes(),
            identity: planned.identity.clone(),
        };
        let mut run = Run::open(planned.folder.path(), &planned.cell.config, inputs)?;
        if let Some(init) = context.init {
            initialise(context, &mut run, init)?;
        }
        let progress = context.progress.cell(
            &planned.cell.id,
            run.trainer().steps_done(),
            planned.cell.config.train.steps,
        );
        Ok(Active {
            planned,
            run,
            progress,
            _lock: lock,
            started_at: now(),
            seconds: 0.0,
            steps: 0,
        })
    }

    /// Saves every cell as it is, to be continued.
    fn suspend(&self, context: &Context, active: Vec<Active>) -> Result<(), Reason> {
        for mut cell in active {
            let done = cell.run.trainer().steps_done();
            match cell.run.save() {
                Ok(()) => context.progress.done(
                    &cell.progress,
                    &format!("interrupted and saved at step {done}"),
                ),
                Err(error) => {
                    let reason = Reason::from(error);
                    fail(context, cell.planned, Some(&cell.progress), done, &reason);
                }
            }
        }
        Ok(())
    }

    fn evaluate(
        &self,
        context: &Context,
        active: Vec<Active>,
        source: &TokenSource,
        shared: Option<Judges>,
    ) -> Result<(), Reason> {
        let Some(first) = active.first() else {
            return Ok(());
        };
        let figures = match self.measure_encoder(context, first, source) {
            Err(EvaluationError::Interrupted) => return Ok(()),
            figures => figures?,
        };
        let judges = match shared {
            Some(judges) => judges,
            None => match judges(context, first.planned, context.interrupted, &first.progress) {
                Err(EvaluationError::Interrupted) => return Ok(()),
                judges => judges?,
            },
        };
        for mut cell in active {
            if context.interrupted.load(Ordering::Relaxed) {
                break;
            }
            if let Err(reason) = cell.finish(context, &figures, &judges) {
                let steps = cell.run.trainer().steps_done();
                fail(context, cell.planned, Some(&cell.progress), steps, &reason);
            }
        }
        Ok(())
    }
}

impl Cohort {
    /// LDS, CDS, SRSS, RMSC and the accuracy of a linear probe of the encoder that the cells align with, and
    /// its sheet.
    fn measure_encoder(
        &self,
        context: &Context,
        first: &Active,
        source: &TokenSource,
    ) -> Result<EncoderFigures, EvaluationError> {
        let Planned {
            cell,
            training,
            reference,
            ..
        } = first.planned;
        let config = &cell.config;
        let evaluate = &config.evaluate;
        let mut figures = EncoderFigures::default();
        // Tokens of several encoders together have no grid of their own.
        let names = config.alignment.encoders();
        let [name] = names.as_slice() else {
            return Ok(figures);
        };
        if evaluate.spatial_images == 0 && evaluate.probe_images == 0 {
            return Ok(figures);
        }
        let stage = |text: &str| context.progress.stage(&first.progress, text);
        stage("spatial metrics");
        let from_bank;
        let encoder = match source.loaded().next() {
            Some(encoder) => encoder,
            None => {
                from_bank = context.bank.load_for(name, config)?;
                from_bank.as_ref()
            }
        };
        sheet::draw(context, first.planned, encoder);
        if evaluate.spatial_images > 0 {
            figures.spatial = Some(evaluation::spatial_metrics(
                encoder,
                reference,
                config,
                evaluate.spatial_images,
                context.device,
            )?);
        }
        if evaluate.probe_images > 0 {
            let identity = format!(
                "{}-{:?}",
                context.bank.identity(&names, config.data.resolution),
                config.alignment.encoder_precision
            );
            let data = ProbeData {
                training,
                held_out: reference,
                images: evaluate.probe_images,
                cache: Some(&reference_folder(context)),
            };
            figures.linear_probe = evaluation::probe(
                encoder,
                &identity,
                data,
                config,
                context.device,
                context.interrupted,
                |done, total| stage(&format!("linear probe {done}/{total}")),
            )?
            .map(|accuracy| accuracy.patch);
        }
        Ok(figures)
    }
}

/// The judges of a cell's cohort.
fn judges(
    context: &Context,
    planned: &Planned,
    interrupted: &AtomicBool,
    progress: &CellProgress,
) -> Result<Judges, EvaluationError> {
    Judges::load(
        context.bank,
        &planned.cell.config,
        &planned.reference,
        &reference_folder(context),
        interrupted,
        |stage| context.progress.stage(progress, &described(stage)),
    )
}

/// Where what is found in real images is kept in a run folder.
fn reference_folder(context: &Context) -> PathBuf {
    context.folder.join("reference")
}

fn described(stage: JudgeStage) -> String {
    match stage {
        JudgeStage::Reference(done, total) => format!("reference features {done}/{total}"),
        JudgeStage::Samples(done, total) => format!("samples {done}/{total}"),
        JudgeStage::Features(done, total) => format!("features of samples {done}/{total}"),
    }
}

/// What is measured of a cohort's encoder.
#[derive(Default)]
struct EncoderFigures {
    spatial: Option<SpatialMetrics>,
    linear_probe: Option<f64>,
}

impl Active<'_> {
    fn step(
        &mut self,
        context: &Context,
        batch: &DeviceBatch,
        tokens: &[tch::Tensor],
        shared: &mut Option<Judges>,
    ) -> Result<(), Reason> {
        let started = Instant::now();
        let mut evaluating = Duration::ZERO;
        let (planned, progress) = (self.planned, &self.progress);
        self.run.step_and_evaluate(batch, tokens, |trainer| {
            let started = Instant::now();
            // The log must not lack what the next checkpoint has behind it, so this goes on to its end.
            let never = AtomicBool::new(false);
            let judges = match shared {
                Some(judges) => judges,
                None => shared.insert(judges(context, planned, &never, progress)?),
            };
            let quality = judges.measure(trainer, &never, |stage| {
                context.progress.stage(progress, &described(stage));
            });
            evaluating = started.elapsed();
            Ok::<_, Reason>(quality?)
        })?;
        self.seconds += started.elapsed().saturating_sub(evaluating).as_secs_f64();
        self.steps += 1;
        context.progress.step(
            &self.progress,
            self.run.trainer().steps_done(),
            self.planned.cell.config.train.steps,
            self.run.last_metrics().map(|metrics| metrics.loss),
            self.steps as f64 / self.seconds.max(1e-9),
        );
        Ok(())
    }

    fn finish(
        &mut self,
        context: &Context,
        figures: &EncoderFigures,
        judges: &Judges,
    ) -> Result<(), Reason> {
        let cell = &self.planned.cell;
        let config = &cell.config;
        let mut row = empty_row(cell, Status::Done);
        row.steps = Some(self.run.trainer().steps_done());
        self.draw_grid(context)?;
        row.fd_encoder = config.evaluate.fd_encoder.clone();
        let measured = judges.measure(self.run.trainer(), context.interrupted, |stage| {
            context.progress.stage(&self.progress, &described(stage));
        });
        let quality = match measured {
            // It stays unfinished, for the next time.
            Err(EvaluationError::Interrupted) => return Ok(()),
            quality => quality?,
        };
        row.fid = quality.fid;
        row.sfid = quality.sfid;
        row.inception_score = quality.inception_score;
        row.precision = quality.precision;
        row.recall = quality.recall;
        row.kid = quality.kid;
        row.fd = quality.fd;
        row.linear_probe = figures.linear_probe;
        if let Some(spatial) = figures.spatial {
            row.lds = Some(spatial.lds);
            row.cds = Some(spatial.cds);
            row.srss = spatial.srss;
            row.rmsc = Some(spatial.rmsc);
        }
        let log = MetricsLog::read(&self.run.folder().join("metrics.jsonl"))?;
        let last = ((log.len() as f64 * FINAL_SHARE).ceil() as usize).min(log.len());
        let tail = &log[log.len() - last..];
        row.denoising_loss = mean(tail.iter().map(|line| Some(line.denoising_loss)));
        row.alignment_loss = mean(tail.iter().map(|line| line.alignment_loss));
        row.steps_per_s = (self.steps > 0).then(|| self.steps as f64 / self.seconds.max(1e-9));
        row.peak_memory_mib =
            torch_ext::device::peak_memory(context.device)?.map(|bytes| (bytes >> 20) as f64);
        let distances = [("fid", row.fid), ("fd", row.fd)];
        let distances: String = distances
            .iter()
            .filter_map(|(name, distance)| Some(format!(", {name} {:.2}", (*distance)?)))
            .collect();
        let loss = row
            .denoising_loss
            .map(|loss| format!("denoising loss {loss:.4}"));
        self.planned.folder.write_result(&CellResult {
            hash: self.planned.hash.clone(),
            hardware: hardware(context.device, config),
            started_at: self.started_at,
            finished_at: now(),
            row,
        })?;
        let line = format!("done, {}{distances}", loss.unwrap_or_default());
        context.progress.done(&self.progress, &line);
        Ok(())
    }

    /// A grid with the classes in turn, for the report.
    fn draw_grid(&mut self, context: &Context) -> Result<(), Reason> {
        let config = &self.planned.cell.config;
        let classes = self.planned.training.class_names().len().max(1);
        if config.sample.grid == 0 {
            return Ok(());
        }
        context.progress.stage(&self.progress, "sample grid");
        let labels: Vec<i64> = (0..config.sample.grid)
            .map(|i| (i % classes) as i64)
            .collect();
        let samples = self.run.trainer().sample(0, &labels, |_| {})?;
        let images = tensors::images(&samples)?;
        let (count, _, height, width) = images.dim();
        let layout = GridLayout {
            columns: classes.min(12),
            ..GridLayout::for_images(count, height, width)
        };
        let name = format!("samples/step-{:07}.png", self.run.trainer().steps_done());
        let path = self.planned.folder.path().join(name);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        write_grid(&path, images.view(), layout)?;
        let (png, size) = (std::fs::read(&path)?, image::image_dimensions(&path)?);
        self.run.log_picture("samples", &png, size)?;
        Ok(())
    }
}

/// Loads the weights that a new run starts from, and says which it had to leave out.
fn initialise(context: &Context, run: &mut Run, init: &InitialWeights) -> Result<(), Reason> {
    let path = init.path.display();
    let mismatch = run
        .initialise(&init.tensors, init.partial)
        .map_err(|error| Reason(format!("{path}: {error}; --partial loads what fits")))?;
    let Some(mismatch) = mismatch else {
        return Ok(());
    };
    let left_out: Vec<String> =
        mismatch
            .unexpected
            .iter()
            .map(|(name, _)| name.clone())
            .chain(mismatch.reshaped.iter().map(|(name, found, declared)| {
                format!("{name} ({found:?} there, {declared:?} here)")
            }))
            .collect();
    for (what, names) in [
        ("drawn anew", mismatch.missing),
        ("not taken from it", left_out),
    ] {
        if !names.is_empty() {
            let count = names.len();
            let line = format!("{path}: {count} {what}: {}", names.join(", "));
            context.progress.print(&line);
        }
    }
    Ok(())
}

/// Writes a failed cell's result and says so. An earlier result of other inputs is replaced.
fn fail(
    context: &Context,
    planned: &Planned,
    progress: Option<&CellProgress>,
    steps: u64,
    reason: &Reason,
) {
    let mut row = empty_row(&planned.cell, Status::Failed);
    row.steps = Some(steps);
    row.reason = reason.0.clone();
    let written = planned.folder.write_result(&CellResult {
        hash: planned.hash.clone(),
        hardware: hardware(context.device, &planned.cell.config),
        started_at: now(),
        finished_at: now(),
        row,
    });
    let line = format!("failed: {}", reason.0);
    match progress {
        Some(progress) => context.progress.done(progress, &line),
        None => context
            .progress
            .print(&format!("{}: {line}", planned.cell.id)),
    }
    if let Err(error) = written {
        context
            .progress
            .print(&format!("{}: {error}", planned.cell.id));
    }
}

/// Which latents a run sees, before they are scaled; one that trains its autoencoder has its own.
fn autoencoder(config: &training::Config) -> String {
    match &config.model.autoencoder {
        Autoencoder::Identity => "pixels".to_owned(),
        Autoencoder::Kl(settings) if settings.train => "trained".to_owned(),
        Autoencoder::Kl(settings) => {
            format!("{} {}", settings.layout.name(), settings.weights.display())
        }
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_secs())
}

fn mean(values: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let values: Option<Vec<f64>> = values.collect();
    values
        .filter(|values| !values.is_empty())
        .map(|values| values.iter().sum::<f64>() / values.len() as f64)
}

/// Device, precision and threads in words.
fn hardware(device: Device, config: &training::Config) -> String {
    let threads = tch::get_num_threads();
    let precision = format!("{:?}", config.train.precision).to_lowercase();
    match device {
        Device::Cpu => format!("CPU, {threads} threads, {precision}"),
        Device::Cuda(index) => format!("CUDA device {index}, {precision}"),
        other => format!("{other:?}, {precision}"),
    }
}
