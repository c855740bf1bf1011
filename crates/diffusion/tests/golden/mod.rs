//! Golden cases: inputs, weights, outputs and gradients computed by upstream's Python code. Each case has a
//! JSON page with the configuration and the tolerances.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;
use tch::{Kind, Tensor};

/// One case. Dropping it panics if an `out.` or `grad.` tensor has not been compared, so that no result of
/// upstream is left out by mistake.
pub struct Golden {
    name: String,
    page: Value,
    tensors: BTreeMap<String, Tensor>,
    compared: RefCell<BTreeSet<String>>,
}

// Two crates use this module in tests, and neither needs all of it.
#[allow(dead_code)]
impl Golden {
    /// Reads `tests/data/NAME.safetensors` and `NAME.json` of the crate under test. Cases that are too large for
    /// the repository are read from the folder in `IREPA_GOLDEN`; their tests are marked as ignored, and
    /// `cargo test -- --ignored` runs them.
    pub fn open(name: &str) -> Self {
        let path = data(name, "json");
        let page = std::fs::read_to_string(&path).unwrap_or_else(|error| {
            panic!(
                "{}: {error}; {FOLDER} names a folder that contains it",
                path.display()
            )
        });
        let tensors = Tensor::read_safetensors(data(name, "safetensors")).unwrap();
        Self {
            name: name.to_owned(),
            page: serde_json::from_str(&page).unwrap(),
            tensors: tensors.into_iter().collect(),
            compared: RefCell::default(),
        }
    }

    /// The tensor with this key, for example `in.x`.
    pub fn tensor(&self, key: &str) -> Tensor {
        let tensor = self.tensors.get(key);
        tensor
            .unwrap_or_else(|| panic!("{} has no {key}", self.name))
            .shallow_clone()
    }

    /// The weights, under upstream's names. They are those of another case if the page refers to one.
    pub fn weights(&self) -> Vec<(String, Tensor)> {
        let case = self.page["weights_from"].as_str().unwrap_or(&self.name);
        Tensor::read_safetensors(data(case, "safetensors"))
            .unwrap()
            .into_iter()
            .filter_map(|(key, tensor)| {
                let name = key.strip_prefix("weight.")?;
                Some((name.to_owned(), tensor))
            })
            .collect()
    }

    /// The JSON page.
    pub fn page(&self) -> &Value {
        &self.page
    }

    /// An entry of the page's configuration.
    pub fn config(&self, key: &str) -> &Value {
        &self.page["config"][key]
    }

    /// Compares shape, dtype and values with the tensor with this key, within the page's tolerance.
    pub fn check(&self, key: &str, actual: &Tensor) {
        let tolerance = &self.page["tolerance"];
        if tolerance["rule"].is_string() {
            return self.check_by_rule(key, actual);
        }
        let all = &tolerance["all"];
        let abs = tolerance["abs_per_tensor"][key]
            .as_f64()
            .or(tolerance["abs"].as_f64())
            .or(all["atol"].as_f64());
        let rel = tolerance["rel"].as_f64().or(all["rtol"].as_f64());
        self.check_within(key, actual, abs.unwrap(), rel.unwrap());
    }

    /// As [`Golden::check`], for pages with the rule `max|a-b| <= atol + rtol*max|b|`. Gradients and some tensors
    /// have their own tolerances. Integers must be equal.
    fn check_by_rule(&self, key: &str, actual: &Tensor) {
        let tolerance = &self.page["tolerance"];
        let number = |name: &str| {
            let general = match key.starts_with("grad.") {
                true => &tolerance[format!("grad_{name}")],
                false => &tolerance[name],
            };
            let specific = tolerance["overrides"][key][name].as_f64();
            specific.or(general.as_f64()).unwrap()
        };
        let expected = self.tensor(key);
        let allowed = match expected.is_floating_point() {
            true => number("atol") + number("rtol") * expected.abs().max().double_value(&[]),
            false => 0.0,
        };
        self.check_within(key, actual, allowed, 0.0);
    }

    /// As [`Golden::check`], for the last of the file's tokens `[B, T, D]`.
    #[allow(
        dead_code,
        reason = "not all crates that include this file have such tokens"
    )]
    pub fn check_last_tokens(&self, key: &str, actual: &Tensor) {
        let expected = self.tensor(key);
        let (all, count) = (expected.size()[1], actual.size()[1]);
        let missing = expected.narrow(1, 0, all - count);
        self.check(key, &Tensor::cat(&[&missing, actual], 1));
    }

    /// Marks a tensor as compared in which this implementation deliberately differs from upstream, after checking
    /// that upstream's value is `stated`.
    pub fn differs_deliberately(&self, key: &str, stated: f64) {
        let found = self.tensor(key).double_value(&[]);
        assert_eq!(found, stated, "{}: {key}", self.name);
        self.compared.borrow_mut().insert(key.to_owned());
    }

    /// As [`Golden::check`], with the tolerance of the caller, for pages that state it in words.
    pub fn check_within(&self, key: &str, actual: &Tensor, abs: f64, rel: f64) {
        let name = &self.name;
        let expected = self.tensor(key);
        assert_eq!(actual.size(), expected.size(), "{name}: shape of {key}");
        assert_eq!(actual.kind(), expected.kind(), "{name}: dtype of {key}");
        let expected = expected.to_kind(Kind::Double);
        let error = (actual.detach().to_kind(Kind::Double) - &expected).abs();
        // A NaN on either side makes the excess NaN, which fails the comparison too.
        let excess: f64 = (&error - expected.abs() * rel).max().double_value(&[]);
        let worst = error.max().double_value(&[]);
        assert!(
            excess <= abs,
            "{name}: {key} differs by {worst:e}, allowed: {abs:e} + {rel:e} * |reference|"
        );
        self.compared.borrow_mut().insert(key.to_owned());
    }
}

/// Environment variable that names a folder with all cases, in sub-folders as in `tests/data`, those of SiT in
/// `sit`.
const FOLDER: &str = "IREPA_GOLDEN";

fn data(name: &str, extension: &str) -> PathBuf {
    let file = format!("{name}.{extension}");
    let own = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(&file);
    match std::env::var_os(FOLDER) {
        Some(folder) if !own.is_file() => {
            let folder = PathBuf::from(folder);
            let path = folder.join(&file);
            match path.is_file() {
                true => path,
                false => folder.join("sit").join(file),
            }
        }
        _ => own,
    }
}

impl Drop for Golden {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let compared = self.compared.borrow();
        let left_out: Vec<&String> = self
            .tensors
            .keys()
            .filter(|key| key.starts_with("out.") || key.starts_with("grad."))
            .filter(|key| !compared.contains(*key))
            .collect();
        assert!(
            left_out.is_empty(),
            "{}: never compared: {left_out:?}",
            self.name
        );
    }
}
