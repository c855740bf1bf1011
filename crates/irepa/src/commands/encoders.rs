//! `runner encoders`.

use std::path::Path;
use std::process::ExitCode;

use data::Background;
use encoders::check::{CheckOptions, CheckReport, check as check_encoder};
use encoders::{LoadOptions, Registry, Status};
use evaluation::ImageSelection;
use evaluation::encoder_bank::EncoderBank;
use tch::Device;
use terminal::{errln, outln};

use super::arguments::installed_encoders;
use crate::cli::{CheckArgs, InspectArgs};
use crate::failure::Failure;

/// The embedded data set, relative to the working directory. It may be missing.
const EMBEDDED: &str = "experiments/data/emoji64";

/// Duration of a speed measurement in seconds.
const SECONDS: f64 = 1.0;

pub fn list() -> Result<ExitCode, Failure> {
    let registry = Registry::of_project(None);
    let mut rows =
        vec![["name", "file", "params", "width", "licence", "weights"].map(str::to_owned)];
    for name in registry.names() {
        let file = match registry.status(&name)? {
            Status::Native => "built in".to_owned(),
            Status::Present { size, .. } => format!("{:.1} MB", size as f64 / 1e6),
            Status::Missing { .. } => "missing".to_owned(),
        };
        let description = match encoders::known(&name) {
            Some(known) => {
                let gated = if known.gated { " (ask for access)" } else { "" };
                [
                    format!("{:.0} M", known.params_m),
                    known.width.to_string(),
                    format!("{}{gated}", known.licence),
                    known.weights.clone(),
                ]
            }
            None => describe_file(&registry, &name),
        };
        let [params, width, licence, weights] = description;
        rows.push([name, file, params, width, licence, weights]);
    }
    print_table(&rows);
    outln!();
    outln!("`cargo xtask export NAME...` creates the files of missing encoders in `pretrained`.");
    outln!("Encoders joined by commas are one alignment target: dinov2-vit-b,clip-vit-L");
    Ok(ExitCode::SUCCESS)
}

/// Parameters, width, licence and weights of an encoder that is not in the catalogue.
fn describe_file(registry: &Registry, name: &str) -> [String; 4] {
    match registry.spec(name, 256) {
        Ok(spec) => [
            spec.params_m
                .map(|count| format!("{count:.0} M"))
                .unwrap_or_default(),
            spec.width.to_string(),
            spec.licence,
            spec.weights,
        ],
        Err(error) => [
            String::new(),
            String::new(),
            String::new(),
            error.to_string(),
        ],
    }
}

/// Prints rows with aligned columns.
fn print_table<const N: usize>(rows: &[[String; N]]) {
    let widths: Vec<usize> = (0..N)
        .map(|column| {
            rows.iter()
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        outln!("{}", cells.join("  ").trim_end());
    }
}

pub fn check(arguments: &CheckArgs) -> Result<ExitCode, Failure> {
    let device = super::arguments::device(&arguments.device)?;
    let registry = Registry::of_project(None);
    let names = match arguments.names.is_empty() {
        true => installed(&registry),
        false => installed_encoders(&arguments.names, arguments.resolution, &registry)?,
    };
    let batch = arguments
        .batch
        .unwrap_or(if device == Device::Cpu { 4 } else { 64 });
    let options = CheckOptions {
        device,
        precision: arguments.precision,
        resolution: i64::from(arguments.resolution),
        batch: i64::from(batch),
        seconds: SECONDS,
    };
    let mut failed = 0;
    let mut rows = vec![
        [
            "name",
            "tokens",
            "class",
            "in batches",
            "from Python",
            "images/s",
            "verdict",
        ]
        .map(str::to_owned),
    ];
    for name in &names {
        errln!("checking {name}");
        match check_one(&registry, name, &options) {
            Ok(report) => {
                let flaws = report.flaws();
                failed += usize::from(!flaws.is_empty());
                rows.push(row(name, &report, &flaws));
            }
            Err(error) => {
                failed += 1;
                let empty = String::new;
                rows.push([
                    name.clone(),
                    empty(),
                    empty(),
                    empty(),
                    empty(),
                    empty(),
                    format!("failed: {error}"),
                ]);
            }
        }
    }
    print_table(&rows);
    Ok(ExitCode::from(u8::from(failed > 0)))
}

/// The names of the installed encoders.
fn installed(registry: &Registry) -> Vec<String> {
    let mut names = registry.names();
    names.retain(|name| !matches!(registry.status(name), Ok(Status::Missing { .. })));
    names
}

fn check_one(
    registry: &Registry,
    name: &str,
    options: &CheckOptions,
) -> Result<CheckReport, encoders::EncoderError> {
    let load = LoadOptions {
        device: options.device,
        resolution: options.resolution,
        precision: options.precision,
    };
    let encoder = registry.load(name, &load)?;
    check_encoder(encoder.as_ref(), options)
}

fn row(name: &str, report: &CheckReport, flaws: &[String]) -> [String; 7] {
    let (count, width) = report.tokens;
    [
        name.to_owned(),
        format!("{count} x {width}"),
        if report.class_token { "yes" } else { "no" }.to_owned(),
        format!("{:.1e}", report.batch_difference),
        match report.reference_difference {
            Some(difference) => format!("{difference:.1e}"),
            None => "not recorded".to_owned(),
        },
        format!("{:.1}", report.images_per_s),
        if flaws.is_empty() {
            "good".to_owned()
        } else {
            flaws.join("; ")
        },
    ]
}

pub fn inspect(arguments: &InspectArgs) -> Result<ExitCode, Failure> {
    let device = super::arguments::device(&arguments.device)?;
    let registry = Registry::of_project(None);
    registry
        .check_name(&arguments.name)
        .map_err(Failure::usage)?;
    let bank = EncoderBank::new(registry, device);
    let encoder = bank.load(&arguments.name, arguments.resolution, arguments.precision)?;
    let spec = encoder.spec();
    outln!("name           {}", spec.name);
    for (label, text) in [
        ("description", &spec.description),
        ("family", &spec.family),
        ("weights", &spec.weights),
        ("licence", &spec.licence),
    ] {
        if !text.is_empty() {
            outln!("{label:14} {text}");
        }
    }
    if let Some(params) = spec.params_m {
        outln!("parameters     {params:.1} M");
    }
    if let Some(depth) = spec.depth {
        outln!("blocks         {depth}");
    }
    outln!("patch tokens   {} x {}", spec.grid.height, spec.grid.width);
    outln!("width          {}", spec.width);
    outln!(
        "class token    {}",
        if spec.class_token { "yes" } else { "no" }
    );
    outln!("input          {} px", spec.input_size);
    outln!("preprocessing  {:?}", spec.preprocessing);
    if let Some(sha256) = &spec.sha256 {
        outln!("sha256         {sha256}");
    }
    if arguments.images > 0 && Path::new(EMBEDDED).is_dir() {
        let images = ImageSelection {
            path: Path::new(EMBEDDED),
            split: "val",
            resolution: 64,
            background: Background::default(),
            count: arguments.images,
        };
        let metrics = images.spatial_metrics(encoder.as_ref(), device)?;
        outln!("on {} images of {EMBEDDED}/val:", arguments.images);
        outln!("LDS            {:.4}", metrics.lds);
        outln!("CDS            {:.4}", metrics.cds);
        if let Some(srss) = metrics.srss {
            outln!("SRSS           {srss:.4}");
        }
        outln!("RMSC           {:.4}", metrics.rmsc);
    }
    Ok(ExitCode::SUCCESS)
}
