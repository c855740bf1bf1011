//! The arguments of the program, each defined once.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Trains and compares diffusion transformers with representation alignment (REPA, iREPA).
#[derive(Debug, Parser)]
#[command(
    name = "runner",
    version,
    max_term_width = 100,
    after_help = "IREPA_LOG=error, warn (the default), info or debug says how much is logged to standard error; NO_COLOR=1 \
                  takes the colours away."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run an experiment: every cell of its grid, then tables, plots and a report.
    ///
    /// Finished cells are not run again, unfinished ones continue where they were saved.
    #[command(
        after_help = "Example:\n  runner sweep experiments/encoders.toml --set train.steps=100"
    )]
    Sweep(SweepArgs),
    /// Train one configuration.
    #[command(
        after_help = "Example:\n  runner train configs/embedded.toml --out runs/mine --set train.seed=1"
    )]
    Train(TrainArgs),
    /// Draw samples from a checkpoint, as PNG files or an ADM .npz.
    #[command(
        after_help = "Example:\n  runner sample runs/encoders/cells/sit-xs4.irepa.hog.s0/checkpoints/step-0000300 --count 36 --out samples\n  runner sample CHECKPOINT --count 50000 --cfg-scale 1.8 --guidance-interval 0.0,0.7 --device cuda:0,cuda:1 --out samples.npz"
    )]
    Sample(SampleArgs),
    /// Measure samples: FID, sFID, Inception score, KID, precision and recall, or the Frechet distance
    /// over an encoder.
    ///
    /// Prints a table and writes JSON. Statistics of reference images are computed once and kept.
    #[command(
        after_help = "Examples:\n  runner evaluate samples.npz --reference VIRTUAL_imagenet256_labeled.npz --metrics fid,sfid,inception-score,precision-recall\n  runner evaluate samples --reference experiments/data/emoji64 --reference-split val --encoder efficientnet-lite2"
    )]
    Evaluate(EvaluateArgs),
    /// Spatial metrics (LDS, CDS, SRSS, RMSC) of encoders on a data set.
    #[command(
        after_help = "Example:\n  runner metrics hog sift efficientnet-lite0 --images 256\n  runner metrics --rank hog sift efficientnet-lite0 paper27 --json runs/encoders/ranking.json"
    )]
    Metrics(MetricsArgs),
    /// Draw what encoders see in images: similarity to anchor patches and principal components of the
    /// patch tokens, with and without spatial normalisation.
    #[command(
        after_help = "Example:\n  runner visualize hog efficientnet-lite0 --ids 3,17 --anchors 8,8 0.1,0.1 --out sheet.svg"
    )]
    Visualize(VisualizeArgs),
    /// What encoders there are.
    #[command(subcommand)]
    Encoders(EncodersCommand),
    /// Compute once what training would compute in every epoch.
    #[command(subcommand)]
    Prepare(PrepareCommand),
    /// Rebuild tables, plots and report.html of a run folder.
    #[command(after_help = "Example:\n  runner report runs/encoders")]
    Report(ReportArgs),
    /// Tell what was found: libtorch, CUDA, data, encoders.
    #[command(after_help = "Example:\n  runner doctor")]
    Doctor,
}

/// `runner sweep`.
#[derive(Debug, Args)]
pub struct SweepArgs {
    /// The experiment file.
    pub experiment: PathBuf,
    /// Folder in which the run folder is made.
    #[arg(long, default_value = "runs")]
    pub out: PathBuf,
    /// Where to train: auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Run only the cells whose id matches this glob. Settings that other cells do not have are no error then.
    #[arg(long, value_name = "GLOB")]
    pub only: Option<String>,
    /// Change a setting of every cell; may be given more than once. What the grid decides (encoder, seed, model, and
    /// what recipes and variants set) is refused: select cells with --only.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub settings: Vec<String>,
    /// Print the plan and stop.
    #[arg(long)]
    pub dry_run: bool,
    /// Run the cells again from the start. What they had is kept in `before/N` of their folders.
    #[arg(long)]
    pub fresh: bool,
    /// Most memory, in MiB, that cells trained at the same time may take for weights, averages, gradients and
    /// optimiser state; by default four fifths of what is free. More cells wait for their turn.
    #[arg(long, value_name = "MIB")]
    pub memory_limit: Option<u64>,
    /// Run the i-th of n parts of the selected cells, for machines that share no folder. Processes that share one need
    /// no parts: each takes the cells that no other has.
    #[arg(long, value_name = "I/N", value_parser = parse_shard)]
    pub shard: Option<sweep::Shard>,
}

fn parse_shard(text: &str) -> Result<sweep::Shard, String> {
    let parts = text
        .split_once('/')
        .and_then(|(index, count)| Some((index.parse().ok()?, count.parse().ok()?)));
    match parts {
        Some((index, count)) if (1..=count).contains(&index) => Ok(sweep::Shard {
            index: index - 1,
            count,
        }),
        _ => Err("expected I/N with 1 <= I <= N, such as 1/4".to_owned()),
    }
}

/// `runner train`.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// The configuration file.
    pub config: PathBuf,
    /// The run's folder; by default the file's name under `runs`.
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Where to train: auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Change a setting; may be given more than once.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub settings: Vec<String>,
    /// Continue the run that is in the folder.
    #[arg(long)]
    pub resume: bool,
    /// Weights to start from: a .safetensors file of a checkpoint, or one that
    /// crates/training/python/convert_checkpoint.py made from upstream's.
    #[arg(long, value_name = "FILE")]
    pub init: Option<PathBuf>,
    /// Of --init, load the weights that fit and draw the others.
    #[arg(long, requires = "init")]
    pub partial: bool,
}

/// `runner sample`.
#[derive(Debug, Args)]
pub struct SampleArgs {
    /// The folder of a run, whose newest whole checkpoint is taken, a checkpoint folder, `.../checkpoints/step-N`, or a
    /// .safetensors file of weights.
    pub checkpoint: PathBuf,
    /// The configuration, where it is not beside the checkpoint.
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// A folder for PNG files, or a file ending in .npz. What an interrupted call left there, or
    /// in the folder FILE.npz.partial, is gone on with.
    #[arg(long, default_value = "samples")]
    pub out: PathBuf,
    /// Forget samples that are there.
    #[arg(long)]
    pub fresh: bool,
    /// Number of images.
    #[arg(long, default_value_t = 36, value_parser = clap::value_parser!(u64).range(1..))]
    pub count: u64,
    /// Classes; all by default.
    #[arg(long, value_delimiter = ',', value_name = "CLASS,...")]
    pub labels: Vec<i64>,
    /// Draw the class of each image, instead of taking them in turn.
    #[arg(long)]
    pub random_labels: bool,
    /// Also write a picture of the first images, at most 64.
    #[arg(long, value_name = "FILE.png")]
    pub grid: Option<PathBuf>,
    /// Use the weights themselves instead of their moving average.
    #[arg(long)]
    pub no_ema: bool,
    /// Where to run: auto, cpu, cuda or cuda:N; several share the work, such as cuda:0,cuda:1.
    #[arg(
        long,
        default_value = "auto",
        value_delimiter = ',',
        value_name = "DEVICE,..."
    )]
    pub device: Vec<String>,
    /// Seed of noise and random classes.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Integrator: euler, heun or euler-maruyama.
    #[arg(long, value_parser = parse_sampler)]
    pub sampler: Option<diffusion::samplers::Method>,
    /// Steps of the sampler.
    #[arg(long)]
    pub steps: Option<usize>,
    /// Strength of classifier-free guidance; 1 is none.
    #[arg(long, value_name = "SCALE")]
    pub cfg_scale: Option<f64>,
    /// Times between which guidance acts, 1 being noise and 0 the image.
    #[arg(long, value_name = "LOW,HIGH", value_parser = parse_interval)]
    pub guidance_interval: Option<Interval>,
    /// Images drawn at once on a device, 8 on the CPU; batches are always whole.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub batch_size: Option<u32>,
    /// Change a setting, such as sample.sampler.num_steps=50; the flags above come after it.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub settings: Vec<String>,
}

/// `runner evaluate`.
#[derive(Debug, Args)]
pub struct EvaluateArgs {
    /// A folder of images, or an ADM .npz (arr_0, u8 [N, H, W, 3]).
    pub samples: PathBuf,
    /// What to compare with: an .npz of statistics (mu, sigma) or of images, a folder, or a data set.
    #[arg(long, value_name = "PATH")]
    pub reference: PathBuf,
    /// Split of the reference data set.
    #[arg(long, value_name = "NAME")]
    pub reference_split: Option<String>,
    /// Network whose features are compared: inception, inception-pytorch-fid, or an encoder.
    #[arg(long, value_name = "NAME", default_value = "inception")]
    pub encoder: String,
    /// Measures: fid, sfid, inception-score, kid, precision-recall, or fd of an encoder. By default those that
    /// keep no features in memory.
    #[arg(long, value_delimiter = ',', value_name = "NAME,...")]
    pub metrics: Vec<evaluation::SampleMetric>,
    /// Side to which the samples of a folder are cropped and resized; as they are by default. Reference images
    /// always get the samples' size.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=8192))]
    pub resolution: Option<u32>,
    /// What is put under transparent pixels: drop (ignore alpha, as upstream), white or black.
    #[arg(long, default_value = "drop", value_parser = parse_background)]
    pub background: data::Background,
    /// Samples in each part of the Inception score.
    #[arg(long, value_name = "N", default_value_t = 5000, value_parser = at_least_one)]
    pub split_size: usize,
    /// Subsets of KID.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = at_least_one)]
    pub kid_subsets: usize,
    /// Images in each of them.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = at_least_one)]
    pub kid_subset_size: usize,
    /// Seed of KID's subsets.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Neighbours of precision and recall.
    #[arg(long, value_name = "K", default_value_t = 3, value_parser = at_least_one)]
    pub neighbours: usize,
    /// Folder in which statistics of reference images are kept.
    #[arg(long, value_name = "DIR", default_value = "runs/statistics")]
    pub cache: PathBuf,
    /// The JSON file; by default beside the samples, SAMPLES.evaluation.json.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Where to run: auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    pub device: String,
}

fn parse_background(text: &str) -> Result<data::Background, String> {
    match text {
        "drop" => Ok(data::Background::Drop),
        "white" => Ok(data::Background::White),
        "black" => Ok(data::Background::Black),
        _ => Err("expected drop, white or black".to_owned()),
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err("expected a whole number of at least 1".to_owned()),
    }
}

/// Two times, the lower one first.
#[derive(Debug, Clone, Copy)]
pub struct Interval {
    /// The lower.
    pub low: f64,
    /// The higher.
    pub high: f64,
}

fn parse_interval(text: &str) -> Result<Interval, String> {
    text.split_once(',')
        .and_then(|(low, high)| {
            Some(Interval {
                low: low.trim().parse().ok()?,
                high: high.trim().parse().ok()?,
            })
        })
        .ok_or_else(|| "expected LOW,HIGH, such as 0.0,0.7".to_owned())
}

fn parse_sampler(text: &str) -> Result<diffusion::samplers::Method, String> {
    serde_json::from_value(text.into())
        .map_err(|_| "expected euler, heun or euler-maruyama".to_owned())
}

/// `runner metrics`.
#[derive(Debug, Args)]
pub struct MetricsArgs {
    /// Encoders by name, or a set such as paper27, of which those that are here are taken.
    #[arg(required = true, value_name = "ENCODER")]
    pub encoders: Vec<String>,
    /// Print the encoders in the order of a metric, lds where none is named: the more spatial
    /// structure, the better an alignment target is to be expected.
    #[arg(
        long,
        value_name = "METRIC",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "lds"
    )]
    pub rank: Option<report::ranking::SpatialMetric>,
    /// Also write the order to a JSON file. As ranking.json in a run folder, it is compared with
    /// the results of the sweep by `runner report`.
    #[arg(long, value_name = "FILE", requires = "rank")]
    pub json: Option<PathBuf>,
    /// The data set.
    #[arg(long, default_value = "experiments/data/emoji64")]
    pub data: PathBuf,
    /// Split of the data set.
    #[arg(long, default_value = "val")]
    pub split: String,
    /// Also train linear probes, on at most so many images of --probe-split, and score them on as many of
    /// --split: one on mean patch tokens, one on class tokens.
    #[arg(long, value_name = "N", conflicts_with = "rank", value_parser = at_least_one)]
    pub probe: Option<usize>,
    /// Split that probes are trained on. If it is that of --split, every second image is held out.
    #[arg(long, value_name = "NAME", default_value = "train", requires = "probe")]
    pub probe_split: String,
    /// Number of images; 64 by default, 256 with --rank.
    #[arg(long, value_parser = at_least_one)]
    pub images: Option<usize>,
    /// Side to which the images are cropped and resized, in pixels.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=8192))]
    pub resolution: u32,
    /// What is put under transparent pixels: drop (ignore alpha, as upstream), white or black.
    #[arg(long, default_value = "drop", value_parser = parse_background)]
    pub background: data::Background,
    /// What the encoders' weights are cast to: fp32, bf16 or fp16.
    #[arg(long, default_value = "fp32")]
    pub precision: encoders::Precision,
    /// Where to run: auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    pub device: String,
}

/// `runner visualize`.
#[derive(Debug, Args)]
pub struct VisualizeArgs {
    /// Encoders by name, a row each.
    #[arg(required = true, value_name = "ENCODER")]
    pub encoders: Vec<String>,
    /// The data set.
    #[arg(long, value_name = "DIR", default_value = "experiments/data/emoji64")]
    pub data: PathBuf,
    /// Split of the data set; '' where there are none.
    #[arg(long, default_value = "val")]
    pub split: String,
    /// Images of the data set by number.
    #[arg(long, value_delimiter = ',', value_name = "ID,...")]
    pub ids: Vec<u64>,
    /// Number of images, spread over the data set.
    #[arg(long, default_value_t = 4, conflicts_with = "ids")]
    pub count: usize,
    /// Image files (PNG, JPEG or WebP) instead of a data set.
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with_all = ["data", "split", "ids", "count"])]
    pub images: Vec<PathBuf>,
    /// Patches that the others are compared with: ROW,COLUMN on the grid of patches from 0, or as
    /// shares of the image from 0.0 to 1.0, or auto: by the image's mask the centre of the foreground and
    /// a corner of the background, without a mask the centre of the image.
    #[arg(long, value_name = "ROW,COLUMN", num_args = 1.., default_value = "auto")]
    pub anchors: Vec<evaluation::visualize::Anchor>,
    /// Share of the tokens' mean that spatial normalisation takes away.
    #[arg(long, default_value_t = 0.6)]
    pub alpha: f64,
    /// Side to which the images are cropped and resized, in pixels; maps are drawn at that size.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=8192))]
    pub resolution: u32,
    /// Interpolate the maps between patches.
    #[arg(long)]
    pub smooth: bool,
    /// What the encoders' weights are cast to: fp32, bf16 or fp16.
    #[arg(long, default_value = "fp32")]
    pub precision: encoders::Precision,
    /// Where to run: auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// The file to write, a .png or an .svg.
    #[arg(long, default_value = "visualize.png")]
    pub out: PathBuf,
}

/// `runner encoders`.
#[derive(Debug, Subcommand)]
pub enum EncodersCommand {
    /// List all encoders: present or missing, and how to get them.
    #[command(after_help = "Example:\n  runner encoders list")]
    List,
    /// Describe one encoder, and its spatial metrics on a few images.
    #[command(after_help = "Example:\n  runner encoders inspect hog")]
    Inspect(InspectArgs),
    /// Check encoder files: shapes, finite values, batches, determinism, agreement with the values
    /// that Python recorded, and speed.
    #[command(after_help = "Example:\n  runner encoders check dinov2-vit-b --precision bf16")]
    Check(CheckArgs),
}

/// `runner encoders check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Encoders by name; all that are here by default.
    pub names: Vec<String>,
    /// Where to run: auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// What the weights are cast to: fp32, bf16 or fp16.
    #[arg(long, default_value = "fp32")]
    pub precision: encoders::Precision,
    /// Side of the images, in pixels.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=8192))]
    pub resolution: u32,
    /// Images at once when the speed is measured; 4 on the CPU and 64 elsewhere by default.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub batch: Option<u32>,
}

/// `runner encoders inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Encoder by name.
    pub name: String,
    /// Where to run: auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Side of the images, in pixels.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=8192))]
    pub resolution: u32,
    /// What the weights are cast to: fp32, bf16 or fp16.
    #[arg(long, default_value = "fp32")]
    pub precision: encoders::Precision,
    /// Number of images of the embedded data set for the spatial metrics.
    #[arg(long, default_value_t = 16)]
    pub images: usize,
}

/// `runner prepare`.
#[derive(Debug, Subcommand)]
pub enum PrepareCommand {
    /// Store the tokens that encoders give for the training images.
    ///
    /// Training then reads them instead of running the encoder, wherever `data.token_cache` names
    /// the folder. Says what it will write first; an interrupted call continues.
    #[command(
        after_help = "Example:\n  runner prepare features configs/embedded.toml --encoder efficientnet-lite0,hog\n  runner sweep experiments/encoders.toml --set data.token_cache=features"
    )]
    Features(PrepareFeaturesArgs),
    /// Store the moments (mean and standard deviation) of the training images' latents.
    ///
    /// Training then reads them instead of running the autoencoder's encoder, where
    /// `data.latent_cache` names the folder. Says what it will write first; an interrupted call
    /// continues.
    #[command(
        after_help = "Example:\n  runner prepare latents configs/sit-b2.toml --out latents/imagenet256\n  runner train configs/sit-b2.toml --set data.latent_cache=latents/imagenet256"
    )]
    Latents(PrepareLatentsArgs),
}

/// `runner prepare latents`.
#[derive(Debug, Args)]
pub struct PrepareLatentsArgs {
    /// The configuration that will be trained: its data set, resolution, flips and autoencoder
    /// count.
    pub config: PathBuf,
    /// Folder of the moments; the configuration's `data.latent_cache`, or `latents`, by default.
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// What the moments are rounded to: fp32, which changes no bit of the training, bf16 or fp16.
    #[arg(long, default_value = "fp32")]
    pub dtype: encoders::Precision,
    /// Size of a file, about; what is lost when the command is killed.
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=65_536))]
    pub shard_mib: u64,
    /// Where to run: auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Change a setting of the configuration; may be given more than once.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub settings: Vec<String>,
}

/// `runner prepare features`.
#[derive(Debug, Args)]
pub struct PrepareFeaturesArgs {
    /// The configuration that will be trained: its data set, resolution and flips count.
    pub config: PathBuf,
    /// Encoders by name, or a set such as paper27 (of which those that are here are taken); the
    /// configuration's by default.
    #[arg(long = "encoder", value_delimiter = ',', value_name = "NAME,...")]
    pub encoders: Vec<String>,
    /// Folder of the caches; the configuration's `data.token_cache`, or `features`, by default.
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// What the tokens are rounded to: fp16, bf16, or fp32, which changes no bit of the training.
    #[arg(long, default_value = "fp16")]
    pub dtype: encoders::Precision,
    /// Size of a file, about; what is lost when the command is killed.
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=65_536))]
    pub shard_mib: u64,
    /// Where to run: auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Change a setting of the configuration; may be given more than once.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub settings: Vec<String>,
}

/// `runner report`.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// A run folder, with results.csv in it.
    pub folder: PathBuf,
}
