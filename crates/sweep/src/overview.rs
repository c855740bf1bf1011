//! Prints the plan of a sweep before it starts: the cells to run, and what is missing for the skipped ones.

use std::collections::BTreeMap;
use std::path::Path;

use evaluation::autoencoder_files::AutoencoderFiles;
use terminal::errln;

use crate::cohort::Cohort;
use crate::experiment::Plan;
use crate::planned::Planned;

/// Prints the plan to standard error.
pub(crate) fn print_plan(
    plan: &Plan,
    cohorts: &[Cohort],
    missing: &BTreeMap<String, String>,
    selected: &[String],
    folder: &Path,
    todo: &impl Fn(&Planned) -> bool,
) {
    let runnable: usize = cohorts.iter().map(|cohort| cohort.cells.len()).sum();
    let to_run: usize = cohorts
        .iter()
        .map(|cohort| cohort.cells.iter().filter(|cell| todo(cell)).count())
        .sum();
    errln!(
        "{}: {} cells in {}; {to_run} to run, {} done, {} skipped{}",
        plan.name,
        plan.cells.len(),
        folder.display(),
        runnable - to_run,
        missing.len(),
        if selected.len() < plan.cells.len() {
            format!(", {} selected", selected.len())
        } else {
            String::new()
        },
    );
    for cohort in cohorts
        .iter()
        .filter(|cohort| cohort.cells.iter().any(todo))
    {
        let ids: Vec<&str> = cohort
            .cells
            .iter()
            .filter(|planned| todo(planned))
            .map(|planned| planned.cell.id.as_str())
            .collect();
        errln!("  {}", ids.join("  "));
    }
    // All missing encoders in one line: 27 lines would push the plan off the screen.
    let mut encoders: BTreeMap<&str, &str> = BTreeMap::new();
    let mut autoencoders: BTreeMap<&str, usize> = BTreeMap::new();
    for cell in &plan.cells {
        match missing.get(&cell.id) {
            Some(reason) if AutoencoderFiles::missing(&cell.config).is_some() => {
                *autoencoders.entry(reason).or_default() += 1;
            }
            Some(reason) => {
                encoders.insert(&cell.encoder, reason);
            }
            None => {}
        }
    }
    for (reason, cells) in autoencoders {
        errln!("  skipped: {cells} cells: {reason}");
    }
    if let Some((name, reason)) = encoders.first_key_value() {
        let names: Vec<&str> = encoders.keys().copied().collect();
        let reason = reason.replace(name, "NAME");
        errln!("  skipped: {}: {reason}", names.join(", "));
    }
}
