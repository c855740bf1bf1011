//! `runner report`.

use std::process::ExitCode;

use crate::cli::ReportArgs;
use crate::failure::Failure;
use terminal::{errln, outln};

pub fn run(arguments: &ReportArgs) -> Result<ExitCode, Failure> {
    let report = report::build(&arguments.folder)?;
    for note in &report.notes {
        errln!("note: {note}");
    }
    let stale = match report.stale {
        0 => String::new(),
        count => format!(", {count} stale"),
    };
    outln!(
        "{} done, {} failed, {} skipped{stale}",
        report.done,
        report.failed,
        report.skipped
    );
    outln!("{}", report.html.display());
    Ok(ExitCode::SUCCESS)
}
