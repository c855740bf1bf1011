//! The contents of `plan.toml`.

use std::collections::BTreeMap;

use serde::Serialize;
use training::Config;

use super::plan::Plan;

/// The contents of `plan.toml`.
#[derive(Debug, Serialize)]
pub struct PlanFile<'a> {
    name: &'a str,
    description: &'a str,
    device: &'a str,
    cell: Vec<PlanEntry<'a>>,
}

#[derive(Debug, Serialize)]
struct PlanEntry<'a> {
    id: &'a str,
    encoder: &'a str,
    recipe: &'a str,
    model: &'a str,
    variant: &'a str,
    seed: u64,
    /// As in `result.json`; omitted if an input is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    hash: Option<&'a str>,
    config: &'a Config,
}

impl Plan {
    /// The contents of `plan.toml`. `hashes` are the hashes of configuration and inputs, by cell id.
    pub fn file<'a>(
        &'a self,
        device: &'a str,
        hashes: &'a BTreeMap<String, String>,
    ) -> PlanFile<'a> {
        PlanFile {
            name: &self.name,
            description: &self.description,
            device,
            cell: self
                .cells
                .iter()
                .map(|cell| PlanEntry {
                    id: &cell.id,
                    encoder: &cell.encoder,
                    recipe: &cell.recipe,
                    model: &cell.model,
                    variant: &cell.variant,
                    seed: cell.seed,
                    hash: hashes.get(&cell.id).map(String::as_str),
                    config: &cell.config,
                })
                .collect(),
        }
    }
}
