use std::path::Path;
use std::process::ExitCode;

use encoders::Status;
use runner::encoder_bank::EncoderBank;

use super::metrics::{Images, spatial};
use crate::cli::InspectArgs;
use crate::failure::Failure;

/// The embedded data set, beside the working directory or not there.
const EMBEDDED: &str = "experiments/data/emoji64";

pub fn list() -> Result<ExitCode, Failure> {
    let registry = super::registry();
    let names = registry.names();
    let width = names.iter().map(|name| name.len()).max().unwrap_or(0);
    for name in &names {
        let state = match registry.status(name)? {
            Status::Native => "built in".to_owned(),
            Status::Present { path, size } => {
                format!("{} ({:.1} MB)", path.display(), size as f64 / 1e6)
            }
            Status::Missing { .. } => {
                let facts = encoders::PAPER27
                    .iter()
                    .find(|encoder| encoder.name == *name);
                facts.map_or("missing".to_owned(), |facts| {
                    format!(
                        "missing; {:.0} M parameters, {}, weights: {}",
                        facts.params_m, facts.licence, facts.weights
                    )
                })
            }
        };
        println!("{name:width$}  {state}");
    }
    println!(
        "To add one that is missing, trace it to pretrained/NAME.pt with a sidecar \
         pretrained/NAME.toml: see `cargo doc -p encoders --open`."
    );
    Ok(ExitCode::SUCCESS)
}

pub fn inspect(arguments: &InspectArgs) -> Result<ExitCode, Failure> {
    let device = super::device(&arguments.device)?;
    let registry = super::registry();
    registry
        .check_name(&arguments.name)
        .map_err(Failure::usage)?;
    let encoder = EncoderBank::new(registry, device).load(&arguments.name, arguments.resolution)?;
    let spec = encoder.spec();
    println!("name           {}", spec.name);
    println!("patch tokens   {} x {}", spec.grid.height, spec.grid.width);
    println!("width          {}", spec.width);
    println!(
        "class token    {}",
        if spec.class_token { "yes" } else { "no" }
    );
    println!("input          {} px", spec.input_size);
    println!("preprocessing  {:?}", spec.preprocessing);
    if let Some(sha256) = &spec.sha256 {
        println!("sha256         {sha256}");
    }
    if arguments.images > 0 && Path::new(EMBEDDED).is_dir() {
        let images = Images {
            path: Path::new(EMBEDDED),
            split: "val",
            resolution: 64,
            count: arguments.images,
        };
        let metrics = spatial(&arguments.name, device, &images)?;
        println!("on {} images of {EMBEDDED}/val:", arguments.images);
        println!("LDS            {:.4}", metrics.lds);
        println!("CDS            {:.4}", metrics.cds);
        if let Some(srss) = metrics.srss {
            println!("SRSS           {srss:.4}");
        }
        println!("RMSC           {:.4}", metrics.rmsc);
    }
    Ok(ExitCode::SUCCESS)
}
