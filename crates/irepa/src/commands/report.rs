use std::process::ExitCode;

use crate::cli::ReportArgs;
use crate::failure::Failure;

pub fn run(arguments: &ReportArgs) -> Result<ExitCode, Failure> {
    let report = irepa::report::build(&arguments.folder)?;
    for note in &report.notes {
        eprintln!("note: {note}");
    }
    println!(
        "{} done, {} failed, {} skipped",
        report.done, report.failed, report.skipped
    );
    println!("{}", report.html.display());
    Ok(ExitCode::SUCCESS)
}
