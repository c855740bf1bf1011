//! Parts of a sweep for machines that share nothing.

use std::collections::BTreeMap;

use crate::experiment::{Cell, Plan};
use crate::shared::SharedSettings;

/// A part of a sweep: `1/3` is the first of three.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// Counted from 0.
    pub index: usize,
    /// Number of parts.
    pub count: usize,
}

/// The cells among `selected` that belong to one shard.
///
/// All shards agree on who has which, as it follows from the experiment and the command line alone, not from the
/// encoders and results that a machine has. Shards differ by one cell at most, and cut few cohorts in two, whose
/// encoder then runs on both machines.
pub(crate) fn cells_of(plan: &Plan, selected: &[String], shard: Shard) -> Vec<String> {
    let mut cohorts: Vec<(SharedSettings, Vec<&Cell>)> = Vec::new();
    for cell in plan.cells.iter().filter(|cell| selected.contains(&cell.id)) {
        let shared = SharedSettings::of(&cell.config);
        match cohorts.iter_mut().find(|(known, _)| *known == shared) {
            Some((_, cells)) => cells.push(cell),
            None => cohorts.push((shared, vec![cell])),
        }
    }
    // Dealt out in turn: neighbours in the plan are alike, and are often missing together.
    let mut dealt: BTreeMap<usize, Vec<&Cell>> = BTreeMap::new();
    for (index, (_, cells)) in cohorts.into_iter().enumerate() {
        dealt.entry(index % shard.count).or_default().extend(cells);
    }
    let cells: Vec<&Cell> = dealt.into_values().flatten().collect();
    // In 128 bits: any number may be given on the command line.
    let cut = |part: usize| (part as u128 * cells.len() as u128 / shard.count as u128) as usize;
    cells[cut(shard.index)..cut(shard.index + 1)]
        .iter()
        .map(|cell| cell.id.clone())
        .collect()
}
