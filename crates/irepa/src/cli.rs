//! Defines the command line of the program.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Trains and compares diffusion transformers with representation alignment (REPA, iREPA).
#[derive(Debug, Parser)]
#[command(
    name = "runner",
    version,
    max_term_width = 100,
    after_help = "Environment variables: IREPA_LOG=error, warn (default), info or debug sets the level of the log on standard \
                  error; NO_COLOR=1 disables colours."
)]
pub struct Cli {
    /// The command to run.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run all cells of an experiment, and write tables, plots and a report.
    ///
    /// Finished cells are not run again. Unfinished cells resume from their newest checkpoint.
    #[command(
        after_help = "Example:\n  runner sweep experiments/encoders.toml --set train.steps=100"
    )]
    Sweep(SweepArgs),
    /// Train one configuration.
    #[command(
        after_help = "Examples:\n  runner train configs/embedded.toml --out runs/mine --set train.seed=1\n  runner train configs/embedded.toml --processes 2\n  torchrun --no-python --nproc-per-node 8 runner train configs/embedded.toml --resume"
    )]
    Train(TrainArgs),
    /// Draw samples from a checkpoint, as PNG files or an ADM .npz.
    #[command(
        after_help = "Example:\n  runner sample runs/encoders/cells/sit-xs4.irepa.hog.s0/checkpoints/step-0000300 --count 36 --out samples\n  runner sample CHECKPOINT --count 50000 --cfg-scale 1.8 --guidance-interval 0.0,0.7 --device cuda:0,cuda:1 --out samples.npz"
    )]
    Sample(SampleArgs),
    /// Measure samples: FID, sFID, Inception score, KID, precision and recall, or the Frechet distance in
    /// the features of an encoder.
    ///
    /// Prints a table and writes JSON. Statistics of reference images are computed once and cached.
    #[command(
        after_help = "Examples:\n  runner evaluate samples.npz --reference VIRTUAL_imagenet256_labeled.npz --metrics fid,sfid,inception-score,precision-recall\n  runner evaluate samples --reference experiments/data/emoji64 --reference-split val --encoder efficientnet-lite2"
    )]
    Evaluate(EvaluateArgs),
    /// Measure the spatial metrics (LDS, CDS, SRSS, RMSC) of encoders on a data set.
    #[command(
        after_help = "Example:\n  runner metrics hog sift efficientnet-lite0 --images 256\n  runner metrics --rank hog sift efficientnet-lite0 paper27 --json runs/encoders/ranking.json"
    )]
    Metrics(MetricsArgs),
    /// Draw the patch tokens of encoders: their similarity to anchor patches and their principal components,
    /// with and without spatial normalisation.
    #[command(
        after_help = "Example:\n  runner visualize hog efficientnet-lite0 --ids 3,17 --anchors 8,8 0.1,0.1 --out sheet.svg"
    )]
    Visualize(VisualizeArgs),
    /// List, describe and check encoders.
    #[command(subcommand)]
    Encoders(EncodersCommand),
    /// Precompute encoder tokens or latents, so that training does not compute them in every epoch.
    #[command(subcommand)]
    Prepare(PrepareCommand),
    /// Rebuild the tables, plots and report.html of a run folder.
    #[command(after_help = "Example:\n  runner report runs/encoders")]
    Report(ReportArgs),
    /// Show what is installed: libtorch, CUDA, data and encoders.
    #[command(after_help = "Example:\n  runner doctor")]
    Doctor,
}

/// `runner sweep`.
#[derive(Debug, Args)]
pub struct SweepArgs {
    /// The experiment file.
    pub experiment: PathBuf,
    /// Folder in which the run folder is created.
    #[arg(long, default_value = "runs")]
    pub out: PathBuf,
    /// Where to train: auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Run only the cells whose id matches this glob. Settings then need to be valid for these cells only.
    #[arg(long, value_name = "GLOB")]
    pub only: Option<String>,
    /// Change a setting of every cell; can be repeated. Settings that the grid decides (encoder, seed, model, and the
    /// settings of recipes and variants) are refused: select cells with --only instead.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub settings: Vec<String>,
    /// Print the plan and stop.
    #[arg(long)]
    pub dry_run: bool,
    /// Run the cells again from the start. Their previous runs are kept in `before/N` of their folders.
    #[arg(long)]
    pub fresh: bool,
    /// Maximum memory, in MiB, for weights, averages, gradients and optimiser state of the cells that are trained at
    /// the same time; by default four fifths of the free memory. Cells that do not fit wait.
    #[arg(long, value_name = "MIB")]
    pub memory_limit: Option<u64>,
    /// Train on several CUDA devices of this machine at the same time, with a process each: 0-7, 0,2 or all.
    #[arg(long, value_name = "LIST", conflicts_with_all = ["device", "workers"])]
    pub devices: Option<String>,
    /// Number of processes that train at the same time, each with its share of the CPU's threads; by default one per
    /// thread on a CPU, and 1 on CUDA. Another number changes the results by roundings only.
    #[arg(long, value_name = "N")]
    pub workers: Option<NonZeroUsize>,
    /// Run the cells that another process sends to standard input, on this device.
    #[arg(long, hide = true, value_name = "DEVICE")]
    pub worker: Option<String>,
    /// Run part I of N of the selected cells, for machines that share no folder. Processes that share a folder do not
    /// need this: each takes cells that no other process is running.
    #[arg(long, value_name = "I/N")]
    pub shard: Option<sweep::Shard>,
}

/// `runner train`.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// The configuration file.
    pub config: PathBuf,
    /// Folder of the run; by default `runs/NAME`, where NAME is the name of the file without its extension.
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Where to train: auto, cpu, cuda or cuda:N. Of several processes, each takes the device of its number.
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Train on several CUDA devices of this machine, one process each, which share every batch: 0-7, 0,2 or all.
    #[arg(long, value_name = "LIST", conflicts_with_all = ["device", "processes"])]
    pub devices: Option<String>,
    /// Number of processes on this machine that share every batch. torchrun, srun and mpirun start processes themselves.
    #[arg(long, value_name = "N")]
    pub processes: Option<NonZeroUsize>,
    /// One of the processes that another one has started; the end of standard input interrupts it.
    #[arg(long, hide = true)]
    pub launched: bool,
    /// Change a setting; can be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub settings: Vec<String>,
    /// Resume the run in the folder.
    #[arg(long)]
    pub resume: bool,
    /// Initial weights: a .safetensors file of a checkpoint, or one that
    /// crates/training/python/convert_checkpoint.py has converted from an upstream checkpoint.
    #[arg(long, value_name = "FILE")]
    pub init: Option<PathBuf>,
    /// Load only those weights of --init that fit, and initialise the others randomly.
    #[arg(long, requires = "init")]
    pub partial: bool,
}

/// `runner sample`.
#[derive(Debug, Args)]
pub struct SampleArgs {
    /// The folder of a run (its newest intact checkpoint is used), a checkpoint folder `.../checkpoints/step-N`, or a
    /// .safetensors file of weights.
    pub checkpoint: PathBuf,
    /// The configuration; by default config.toml of the run. Required for a .safetensors file.
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// A folder for PNG files, or a file ending in .npz. If an earlier call was interrupted, its images in the folder
    /// (for an .npz, in FILE.npz.partial) are kept and completed.
    #[arg(long, default_value = "samples")]
    pub out: PathBuf,
    /// Delete existing samples and draw them again.
    #[arg(long)]
    pub fresh: bool,
    /// Number of images.
    #[arg(long, default_value_t = 36, value_parser = clap::value_parser!(u64).range(1..))]
    pub count: u64,
    /// Classes to sample; all by default.
    #[arg(long, value_delimiter = ',', value_name = "CLASS,...")]
    pub labels: Vec<i64>,
    /// Draw the class of each image randomly, instead of taking the classes in turn.
    #[arg(long)]
    pub random_labels: bool,
    /// Also write a grid of the first images, at most 64.
    #[arg(long, value_name = "FILE.png")]
    pub grid: Option<PathBuf>,
    /// Use the trained weights instead of their moving average.
    #[arg(long)]
    pub no_ema: bool,
    /// Where to run: auto, cpu, cuda or cuda:N. Several devices, such as cuda:0,cuda:1, share the work.
    #[arg(
        long,
        default_value = "auto",
        value_delimiter = ',',
        value_name = "DEVICE,..."
    )]
    pub device: Vec<String>,
    /// Seed of the noise and of random classes.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Integrator: euler, heun or euler-maruyama.
    #[arg(long, value_parser = parse_sampler)]
    pub sampler: Option<diffusion::samplers::Method>,
    /// Number of steps of the sampler.
    #[arg(long)]
    pub steps: Option<usize>,
    /// Scale of classifier-free guidance; 1 is no guidance.
    #[arg(long, value_name = "SCALE")]
    pub cfg_scale: Option<f64>,
    /// Guidance interval: the times between which guidance is applied; time 1 is noise and 0 the image.
    #[arg(long, value_name = "LOW,HIGH", value_parser = parse_interval)]
    pub guidance_interval: Option<GuidanceInterval>,
    /// Number of images per batch on each device; always 8 on the CPU. Smaller batches are padded.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub batch_size: Option<u32>,
    /// Change a setting, such as sample.sampler.num_steps=50; the options above override it.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub settings: Vec<String>,
}

/// `runner evaluate`.
#[derive(Debug, Args)]
pub struct EvaluateArgs {
    /// A folder of images, or an ADM .npz (arr_0, u8 [N, H, W, 3]).
    pub samples: PathBuf,
    /// The reference: an .npz of statistics (mu, sigma) or of images, a folder of images, or a data set.
    #[arg(long, value_name = "PATH")]
    pub reference: PathBuf,
    /// Split of the reference data set.
    #[arg(long, value_name = "NAME")]
    pub reference_split: Option<String>,
    /// Network that computes the features: inception, inception-pytorch-fid, or an encoder.
    #[arg(long, value_name = "NAME", default_value = "inception")]
    pub encoder: String,
    /// Measures: fid, sfid, inception-score, kid, precision-recall, or fd for an encoder. By default those that
    /// do not keep features in memory.
    #[arg(long, value_delimiter = ',', value_name = "NAME,...")]
    pub metrics: Vec<metrics::quality::SampleMetric>,
    /// Side in pixels to which the samples of a folder are cropped and resized; by default they keep their size.
    /// Reference images always get the size of the samples.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=8192))]
    pub resolution: Option<u32>,
    /// Background of transparent pixels: drop (ignore alpha, as upstream), white or black.
    #[arg(long, default_value = "drop", value_parser = parse_background)]
    pub background: data::Background,
    /// Number of samples per split of the Inception score.
    #[arg(long, value_name = "N", default_value_t = 5000, value_parser = at_least_one)]
    pub split_size: usize,
    /// Number of subsets for KID.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = at_least_one)]
    pub kid_subsets: usize,
    /// Number of images per subset for KID.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = at_least_one)]
    pub kid_subset_size: usize,
    /// Seed of KID's subsets.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Number of nearest neighbours for precision and recall.
    #[arg(long, value_name = "K", default_value_t = 3, value_parser = at_least_one)]
    pub neighbours: usize,
    /// Folder in which statistics of reference images are cached.
    #[arg(long, value_name = "DIR", default_value = "runs/statistics")]
    pub cache: PathBuf,
    /// The JSON file to write; by default SAMPLES.evaluation.json beside the samples.
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

/// The times between which guidance is applied.
#[derive(Debug, Clone, Copy)]
pub struct GuidanceInterval {
    /// The lower time.
    pub low: f64,
    /// The higher time.
    pub high: f64,
}

fn parse_interval(text: &str) -> Result<GuidanceInterval, String> {
    text.split_once(',')
        .and_then(|(low, high)| {
            Some(GuidanceInterval {
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
    /// Names of encoders, or a set such as paper27, of which the installed encoders are used.
    #[arg(required = true, value_name = "ENCODER")]
    pub encoders: Vec<String>,
    /// Rank the encoders by a metric, lds by default. An encoder with more spatial structure is expected to
    /// be a better alignment target.
    #[arg(
        long,
        value_name = "METRIC",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "lds",
        value_parser = report::ranking::spatial_metric
    )]
    pub rank: Option<metrics::figures::Figure>,
    /// Also write the ranking to a JSON file. If it is ranking.json in a run folder, `runner report` compares
    /// it with the results of the sweep.
    #[arg(long, value_name = "FILE", requires = "rank")]
    pub json: Option<PathBuf>,
    /// The data set.
    #[arg(long, default_value = "experiments/data/emoji64")]
    pub data: PathBuf,
    /// Split of the data set.
    #[arg(long, default_value = "val")]
    pub split: String,
    /// Also train linear probes, one on mean patch tokens and one on class tokens, on at most N images of
    /// --probe-split, and score them on at most N images of --split.
    #[arg(long, value_name = "N", conflicts_with = "rank", value_parser = at_least_one)]
    pub probe: Option<usize>,
    /// Split that probes are trained on. If it equals --split, every second image is held out.
    #[arg(long, value_name = "NAME", default_value = "train", requires = "probe")]
    pub probe_split: String,
    /// Number of images; 64 by default, 256 with --rank.
    #[arg(long, value_parser = at_least_one)]
    pub images: Option<usize>,
    /// Side to which the images are cropped and resized, in pixels.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=8192))]
    pub resolution: u32,
    /// Background of transparent pixels: drop (ignore alpha, as upstream), white or black.
    #[arg(long, default_value = "drop", value_parser = parse_background)]
    pub background: data::Background,
    /// Precision of the encoders' weights: fp32, bf16 or fp16.
    #[arg(long, default_value = "fp32")]
    pub precision: encoders::Precision,
    /// Where to run: auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    pub device: String,
}

/// `runner visualize`.
#[derive(Debug, Args)]
pub struct VisualizeArgs {
    /// Names of encoders; each gets one row.
    #[arg(required = true, value_name = "ENCODER")]
    pub encoders: Vec<String>,
    /// The data set.
    #[arg(long, value_name = "DIR", default_value = "experiments/data/emoji64")]
    pub data: PathBuf,
    /// Split of the data set; '' if it has no splits.
    #[arg(long, default_value = "val")]
    pub split: String,
    /// Indices of images in the data set.
    #[arg(long, value_delimiter = ',', value_name = "ID,...")]
    pub ids: Vec<u64>,
    /// Number of images, evenly spaced over the data set.
    #[arg(long, default_value_t = 4, conflicts_with = "ids")]
    pub count: usize,
    /// Image files (PNG, JPEG or WebP) instead of a data set.
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with_all = ["data", "split", "ids", "count"])]
    pub images: Vec<PathBuf>,
    /// Patches that the others are compared with: ROW,COLUMN as indices on the grid of patches, from 0, or as
    /// fractions of the image, 0.0 to 1.0; or auto: with a mask, the centre of the foreground and a corner of
    /// the background; without a mask, the centre of the image.
    #[arg(long, value_name = "ROW,COLUMN", num_args = 1.., default_value = "auto")]
    pub anchors: Vec<evaluation::visualize::Anchor>,
    /// Share of the mean token that spatial normalisation subtracts.
    #[arg(long, default_value_t = 0.6)]
    pub alpha: f64,
    /// Side to which the images are cropped and resized, in pixels; maps are drawn at that size.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=8192))]
    pub resolution: u32,
    /// Interpolate the maps between patches.
    #[arg(long)]
    pub smooth: bool,
    /// Precision of the encoders' weights: fp32, bf16 or fp16.
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
    /// List all encoders: whether they are installed, and how to install them.
    #[command(after_help = "Example:\n  runner encoders list")]
    List,
    /// Describe one encoder and measure its spatial metrics on a few images.
    #[command(after_help = "Example:\n  runner encoders inspect hog")]
    Inspect(InspectArgs),
    /// Check encoder files: shapes, finite values, batches, determinism, agreement with the values
    /// recorded in Python, and speed.
    #[command(after_help = "Example:\n  runner encoders check dinov2-vit-b --precision bf16")]
    Check(CheckArgs),
}

/// `runner encoders check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Names of encoders, or a set such as paper27, of which the installed encoders are checked; by default all.
    pub names: Vec<String>,
    /// Where to run: auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Precision of the weights: fp32, bf16 or fp16.
    #[arg(long, default_value = "fp32")]
    pub precision: encoders::Precision,
    /// Side of the images, in pixels.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=8192))]
    pub resolution: u32,
    /// Batch size of the speed measurement; by default 4 on the CPU and 64 on CUDA.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub batch: Option<u32>,
}

/// `runner encoders inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Name of the encoder.
    pub name: String,
    /// Where to run: auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Side of the images, in pixels.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=8192))]
    pub resolution: u32,
    /// Precision of the weights: fp32, bf16 or fp16.
    #[arg(long, default_value = "fp32")]
    pub precision: encoders::Precision,
    /// Number of images of the embedded data set for the spatial metrics.
    #[arg(long, default_value_t = 16)]
    pub images: usize,
}

/// `runner prepare`.
#[derive(Debug, Subcommand)]
pub enum PrepareCommand {
    /// Store the tokens of the training images for one or more encoders.
    ///
    /// If `data.token_cache` names the folder, training reads the tokens instead of running the encoder.
    /// Prints what it will write before it starts. After an interruption, run the same command again.
    #[command(
        after_help = "Example:\n  runner prepare features configs/embedded.toml --encoder efficientnet-lite0,hog\n  runner sweep experiments/encoders.toml --set data.token_cache=features"
    )]
    Features(PrepareFeaturesArgs),
    /// Store the moments (mean and standard deviation) of the training images' latents.
    ///
    /// If `data.latent_cache` names the folder, training reads the moments instead of running the
    /// autoencoder. Prints what it will write before it starts. After an interruption, run the same command
    /// again.
    #[command(
        after_help = "Example:\n  runner prepare latents configs/sit-b2.toml --out latents/imagenet256\n  runner train configs/sit-b2.toml --set data.latent_cache=latents/imagenet256"
    )]
    Latents(PrepareLatentsArgs),
}

/// `runner prepare latents`.
#[derive(Debug, Args)]
pub struct PrepareLatentsArgs {
    /// The configuration that will be trained. Its data set, resolution, flips and autoencoder are used.
    pub config: PathBuf,
    /// Folder of the moments; by default `data.latent_cache` of the configuration, or `latents`.
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Dtype of the stored moments: fp32 (training gives the same bits as without the cache), bf16 or fp16.
    #[arg(long, default_value = "fp32")]
    pub dtype: encoders::Precision,
    /// Approximate file size. If the command is killed, at most one file is lost.
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=65_536))]
    pub shard_mib: u64,
    /// Where to run: auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Change a setting of the configuration; can be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub settings: Vec<String>,
}

/// `runner prepare features`.
#[derive(Debug, Args)]
pub struct PrepareFeaturesArgs {
    /// The configuration that will be trained. Its data set, resolution and flips are used.
    pub config: PathBuf,
    /// Names of encoders, or a set such as paper27, of which the installed encoders are used; by default the
    /// encoders of the configuration.
    #[arg(long = "encoder", value_delimiter = ',', value_name = "NAME,...")]
    pub encoders: Vec<String>,
    /// Folder of the caches; by default `data.token_cache` of the configuration, or `features`.
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Dtype of the stored tokens: fp16, bf16, or fp32 (training gives the same bits as without the cache).
    #[arg(long, default_value = "fp16")]
    pub dtype: encoders::Precision,
    /// Approximate file size. If the command is killed, at most one file is lost.
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=65_536))]
    pub shard_mib: u64,
    /// Where to run: auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Change a setting of the configuration; can be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub settings: Vec<String>,
}

/// `runner report`.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// A run folder, which contains results.csv.
    pub folder: PathBuf,
}
