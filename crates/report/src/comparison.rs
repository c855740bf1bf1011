//! Groups the cells that can be compared: cells of one model and variant, each with the baseline of the same seed, and
//! encoders averaged over seeds.

use metrics::figures::Figure;

use super::distinct::distinct;
use super::run_folder::{Cell, RunFolder};
use crate::results::Status;

/// The cells of one model and variant in the order of `results.csv`, except skipped ones.
#[derive(Debug)]
pub(super) struct Group<'a> {
    /// The model, and the variant if the run has several.
    pub label: String,
    /// [`Group::label`] as part of a file name.
    pub slug: String,
    pub cells: Vec<&'a Cell>,
}

/// A value averaged over seeds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Mean {
    pub value: f64,
    pub seeds: usize,
}

/// Groups the cells of a run, in the order of each group's first cell.
pub(super) fn groups(run: &RunFolder) -> Vec<Group<'_>> {
    let started = || {
        let cells = run.cells.iter();
        cells.filter(|cell| cell.row.status != Status::Skipped)
    };
    let several_variants = distinct(started().map(|cell| cell.row.variant.as_str())).len() > 1;
    let keys = distinct(started().map(|cell| (cell.row.model.as_str(), cell.row.variant.as_str())));
    let mut groups: Vec<Group<'_>> = Vec::new();
    for (model, variant) in keys {
        let label = match (several_variants, model) {
            (true, _) => format!("{model}, {variant}"),
            (false, "") => "all cells".to_owned(),
            (false, _) => model.to_owned(),
        };
        let mut slug = file_name(&label);
        while groups.iter().any(|group| group.slug == slug) {
            slug.push('_');
        }
        let cells = started()
            .filter(|cell| cell.row.model == model && cell.row.variant == variant)
            .collect();
        groups.push(Group { label, slug, cells });
    }
    groups
}

impl<'a> Group<'a> {
    /// The finished cells.
    pub fn done(&self) -> impl Iterator<Item = &'a Cell> {
        let cells = self.cells.iter().copied();
        cells.filter(|cell| cell.row.status == Status::Done)
    }

    /// Pairs of a finished cell with alignment and the finished baseline of the same seed.
    pub fn pairs(&self) -> Vec<(&'a Cell, &'a Cell)> {
        self.done()
            .filter(|cell| !cell.row.is_baseline())
            .filter_map(|cell| Some((cell, self.baseline_of(cell)?)))
            .collect()
    }

    /// The baseline with the seed of `cell`, finished or not.
    pub fn any_baseline_of(&self, cell: &Cell) -> Option<&'a Cell> {
        let cells = self.cells.iter().copied();
        cells
            .filter(|other| other.row.is_baseline() && other.row.seed == cell.row.seed)
            .max_by_key(|other| other.row.status == Status::Done)
    }

    fn baseline_of(&self, cell: &Cell) -> Option<&'a Cell> {
        self.any_baseline_of(cell)
            .filter(|baseline| baseline.row.status == Status::Done)
    }

    /// Recipes with alignment, in the order of [`recipes`].
    pub fn recipes(&self) -> Vec<&'a str> {
        recipes(self.cells.iter().copied())
    }

    /// The last step that any cell logged.
    pub fn last_step(&self) -> f64 {
        let steps = self.cells.iter().filter_map(|cell| cell.curve.last());
        steps.map(|logged| logged.step).max().unwrap_or(0) as f64
    }

    /// The encoders that cells align to, in the order of their first cell.
    pub fn encoders(&self) -> Vec<&'a str> {
        let cells = self.cells.iter().map(|cell| &cell.row);
        distinct(
            cells
                .filter(|row| !row.is_baseline())
                .map(|row| row.encoder.as_str()),
        )
    }

    /// The value of `encoder` with `recipe`, averaged over the seeds of finished cells.
    pub fn mean(&self, figure: Figure, encoder: &str, recipe: &str) -> Option<Mean> {
        mean(
            self.done()
                .filter(|cell| !cell.row.is_baseline())
                .filter(|cell| cell.row.encoder == encoder && cell.row.recipe == recipe)
                .filter_map(|cell| cell.row.finite(figure)),
        )
    }

    /// The value of the baseline, averaged over the seeds of finished cells.
    pub fn baseline_mean(&self, figure: Figure) -> Option<Mean> {
        mean(
            self.done()
                .filter(|cell| cell.row.is_baseline())
                .filter_map(|cell| cell.row.finite(figure)),
        )
    }
}

/// Recipes with alignment: `irepa` and `repa` first, then the others in the order of their first cell.
pub(super) fn recipes<'a>(cells: impl Iterator<Item = &'a Cell>) -> Vec<&'a str> {
    let rows = cells.map(|cell| &cell.row);
    let aligned = rows.filter(|row| !row.is_baseline());
    let mut recipes = distinct(aligned.map(|row| row.recipe.as_str()));
    recipes.sort_by_key(|recipe| match *recipe {
        "irepa" => 0,
        "repa" => 1,
        _ => 2,
    });
    recipes
}

/// The mean of `values`; `None` if there are none.
pub(super) fn mean(values: impl IntoIterator<Item = f64>) -> Option<Mean> {
    let (mut sum, mut seeds) = (0.0, 0_u32);
    for value in values {
        sum += value;
        seeds += 1;
    }
    (seeds > 0).then(|| Mean {
        value: sum / f64::from(seeds),
        seeds: seeds as usize,
    })
}

/// The change of a figure in per cent; `None` unless `from` is positive.
pub(super) fn change(from: f64, to: f64) -> Option<f64> {
    (from > 0.0).then(|| (to / from - 1.0) * 100.0)
}

/// Converts a label to a part of a file name: lower-case letters, digits, `_` and single hyphens.
fn file_name(label: &str) -> String {
    let plain = label.chars().map(|c| {
        if c.is_ascii_alphanumeric() || c == '_' {
            c.to_ascii_lowercase()
        } else {
            '-'
        }
    });
    let name: String = plain.collect();
    let parts: Vec<&str> = name.split('-').filter(|part| !part.is_empty()).collect();
    if parts.is_empty() {
        "cells".to_owned()
    } else {
        parts.join("-")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_become_file_names() {
        assert_eq!(file_name("SiT-XS/4, velocity"), "sit-xs-4-velocity");
        assert_eq!(file_name("../../etc"), "etc");
        assert_eq!(file_name("\u{e9}"), "cells");
    }

    #[test]
    fn the_mean_of_no_values_is_none() {
        assert_eq!(mean([]), None);
        assert_eq!(
            mean([1.0, 2.0]),
            Some(Mean {
                value: 1.5,
                seeds: 2
            })
        );
    }
}
