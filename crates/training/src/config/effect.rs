//! What each setting shapes, and the hashes that follow from it.

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::Config;
use crate::checkpoint::hex;
use crate::learning_rate::Schedule;

/// What a setting shapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shapes {
    /// The trained weights, and all that is measured of them. A setting that is not named here is taken for one.
    Weights,
    /// What is drawn, measured or logged, and not the weights.
    Results,
    /// Neither: where files are, whose content has a checksum, how fast a run is, what it keeps, and when it gives up.
    Nothing,
}

/// Settings and sections that shape results only.
const RESULTS: [&str; 5] = [
    "data.reference_split",
    "evaluate",
    "sample",
    // The losses of a result are means of the last lines.
    "train.log_every",
    "train.steps",
];

/// Settings that shape neither weights nor results.
const NOTHING: [&str; 16] = [
    "data.encode_ahead",
    "data.latent_cache",
    "data.max_corrupt_share",
    "data.path",
    "data.prefetch",
    "data.token_cache",
    "data.token_memory_mib",
    "data.workers",
    "model.autoencoder.weights",
    "objective.discriminator_weights",
    "objective.lpips",
    "train.checkpoint_every",
    "train.cuda_graphs",
    "train.keep_checkpoints",
    "train.log_speed",
    "train.stop_on_collapse",
];

impl Config {
    /// What the setting `key`, such as `train.steps`, shapes in this configuration.
    pub fn shapes(&self, key: &str) -> Shapes {
        // A cosine ends with the run: a longer run is another one.
        if key == "train.steps" && self.optimizer.schedule == Schedule::Cosine {
            return Shapes::Weights;
        }
        let is_of = |part: &str| {
            key.strip_prefix(part)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        if NOTHING.iter().any(|part| is_of(part)) {
            Shapes::Nothing
        } else if RESULTS.iter().any(|part| is_of(part)) {
            Shapes::Results
        } else {
            Shapes::Weights
        }
    }

    /// Hash of everything that shapes the trained weights: a checkpoint of another hash is not resumed. A finished run can
    /// be made longer, unless its learning rate ends with it.
    ///
    /// `identity` stands for the inputs: the data set's fingerprint instead of its path, the encoders' and the
    /// autoencoder's checksums, and how caches round what they give.
    pub fn training_hash(&self, identity: &str) -> String {
        self.hash_of(identity, |shapes| shapes == Shapes::Weights)
    }

    /// Hash of everything that shapes the results: a finished run of the same hash need not be run again.
    pub fn hash(&self, identity: &str) -> String {
        self.hash_of(identity, |shapes| shapes != Shapes::Nothing)
    }

    /// The settings by their dotted keys. A list is one setting.
    pub fn settings(&self) -> Vec<(String, Value)> {
        let mut found = Vec::new();
        // A struct of plain fields always serialises.
        if let Ok(Value::Object(sections)) = serde_json::to_value(self) {
            flatten("", &sections, &mut found);
        }
        found
    }

    fn hash_of(&self, identity: &str, counts: impl Fn(Shapes) -> bool) -> String {
        let settings: Map<String, Value> = self
            .settings()
            .into_iter()
            .filter(|(key, _)| counts(self.shapes(key)))
            .collect();
        let text = Value::Object(settings).to_string();
        let mut hash = hex(&Sha256::digest(format!("{identity}\n{text}").as_bytes()));
        hash.truncate(16);
        hash
    }
}

fn flatten(section: &str, settings: &Map<String, Value>, found: &mut Vec<(String, Value)>) {
    for (name, value) in settings {
        let key = match section {
            "" => name.clone(),
            _ => format!("{section}.{name}"),
        };
        match value {
            Value::Object(settings) => flatten(&key, settings, found),
            value => found.push((key, value.clone())),
        }
    }
}
