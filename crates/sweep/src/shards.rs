//! Divides the cells of a sweep among machines that share no folder.

use std::collections::BTreeMap;
use std::str::FromStr;

use thiserror::Error;

use crate::cohort_key::{CohortSettings, group_by_key};
use crate::experiment::{Cell, Plan};

/// A part of a sweep: `1/3` is the first of three.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// Index of the part, counted from 0.
    pub index: usize,
    /// Number of parts.
    pub count: usize,
}

/// The text of a shard is not I/N.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("expected I/N with 1 <= I <= N, such as 1/4")]
pub struct ShardError;

impl FromStr for Shard {
    type Err = ShardError;

    /// Parses I/N, counted from 1.
    fn from_str(text: &str) -> Result<Self, ShardError> {
        let (index, count) = text.split_once('/').ok_or(ShardError)?;
        let parse = |part: &str| part.parse::<usize>().map_err(|_| ShardError);
        let (index, count) = (parse(index)?, parse(count)?);
        if !(1..=count).contains(&index) {
            return Err(ShardError);
        }
        Ok(Self {
            index: index - 1,
            count,
        })
    }
}

/// Number of cohorts in a plan, whether or not their encoders are installed.
pub(crate) fn cohorts_of(plan: &Plan) -> usize {
    group_by_key(&plan.cells, settings).len()
}

/// What decides the cohort of a cell on every machine.
fn settings(cell: &&Cell) -> CohortSettings {
    CohortSettings::of(&cell.config)
}

/// The cells among `selected` that belong to one shard.
///
/// The division depends only on the experiment and the command line, not on the encoders and results of a machine, so
/// all machines agree on it. The sizes of shards differ by at most one cell. At most one cohort is divided at each
/// boundary between shards; its encoder then runs on both machines.
pub(crate) fn cells_of(plan: &Plan, selected: &[String], shard: Shard) -> Vec<String> {
    let cells = plan.cells.iter();
    let cells = cells.filter(|cell| selected.contains(&cell.id));
    let cohorts = group_by_key(cells, settings);
    // Cohorts are dealt out in turn, because neighbours in the plan are similar and are often skipped together.
    let mut dealt: BTreeMap<usize, Vec<&Cell>> = BTreeMap::new();
    for (index, cells) in cohorts.into_iter().enumerate() {
        dealt.entry(index % shard.count).or_default().extend(cells);
    }
    let cells: Vec<&Cell> = dealt.into_values().flatten().collect();
    // In 128 bits, because the command line accepts any number of shards and the product must not overflow.
    let boundary =
        |part: usize| (part as u128 * cells.len() as u128 / shard.count as u128) as usize;
    cells[boundary(shard.index)..boundary(shard.index + 1)]
        .iter()
        .map(|cell| cell.id.clone())
        .collect()
}
