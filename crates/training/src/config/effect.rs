//! The effect of each setting on weights and results, and the hashes of a configuration.

use files::Checksum;
use serde_json::{Map, Value};

use super::optimizer::Schedule;
use super::root::Config;

/// What a setting affects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SettingEffect {
    /// The trained weights, and so all results. This is the default for a setting in neither list below.
    Weights,
    /// Samples, measurements or logs, but not the weights.
    Results,
    /// Neither: paths of files with a checksum, speed, what a run keeps, and when it stops with an error.
    Nothing,
}

/// Settings and sections that affect only results.
const RESULTS: [&str; 5] = [
    "data.reference_split",
    "evaluate",
    "sample",
    // The losses of a result are means over the last lines.
    "train.log_every",
    "train.steps",
];

/// Settings that affect neither weights nor results.
const NOTHING: [&str; 17] = [
    "data.encode_ahead",
    "data.latent_cache",
    "data.max_corrupt_share",
    "data.path",
    "data.prefetch",
    "data.token_cache",
    "data.token_memory_mib",
    "data.workers",
    "evaluate.reference",
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
    /// Returns what the setting `key`, such as `train.steps`, affects in this configuration.
    pub fn effect_of(&self, key: &str) -> SettingEffect {
        // A cosine schedule ends with the run, so a longer run has other weights.
        if key == "train.steps" && self.optimizer.schedule == Schedule::Cosine {
            return SettingEffect::Weights;
        }
        let is_of = |part: &str| {
            key.strip_prefix(part)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        if NOTHING.iter().any(|part| is_of(part)) {
            SettingEffect::Nothing
        } else if RESULTS.iter().any(|part| is_of(part)) {
            SettingEffect::Results
        } else {
            SettingEffect::Weights
        }
    }

    /// Returns the hash of everything that affects the trained weights. A run does not resume from a checkpoint with
    /// another hash. A finished run can be made longer, unless its learning-rate schedule ends with it.
    ///
    /// `identity` identifies the inputs: the data set's fingerprint instead of its path, the checksums of encoders and
    /// autoencoder, and the dtypes of caches.
    pub fn training_hash(&self, identity: &str) -> String {
        self.hash_of(identity, |effect| effect == SettingEffect::Weights)
    }

    /// Returns the hash of everything that affects the results. A finished run with the same hash need not run again.
    pub fn hash(&self, identity: &str) -> String {
        self.hash_of(identity, |effect| effect != SettingEffect::Nothing)
    }

    /// Returns the settings by their dotted keys. A list is one setting.
    pub fn settings(&self) -> Vec<(String, Value)> {
        let mut found = Vec::new();
        // A struct of plain fields always serialises.
        if let Ok(Value::Object(sections)) = serde_json::to_value(self) {
            flatten("", &sections, &mut found);
        }
        found
    }

    fn hash_of(&self, identity: &str, counts: impl Fn(SettingEffect) -> bool) -> String {
        let settings: Map<String, Value> = self
            .settings()
            .into_iter()
            .filter(|(key, _)| counts(self.effect_of(key)))
            .collect();
        let text = Value::Object(settings).to_string();
        let mut hash = Checksum::of(format!("{identity}\n{text}").as_bytes()).sha256;
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
