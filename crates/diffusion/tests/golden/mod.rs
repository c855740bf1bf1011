//! Golden cases: inputs, weights, outputs and gradients computed by upstream's Python, each with
//! a JSON page that states the configuration and the tolerances.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;
use tch::{Kind, Tensor};

/// One case. When it is dropped, every `out.` and `grad.` tensor must have been compared, so that
/// no result of upstream's is left out by mistake.
pub struct Golden {
    name: String,
    page: Value,
    tensors: BTreeMap<String, Tensor>,
    compared: RefCell<BTreeSet<String>>,
}

impl Golden {
    /// Reads `tests/data/NAME.safetensors` and `NAME.json` of the crate under test.
    pub fn open(name: &str) -> Self {
        let page = std::fs::read_to_string(data(name, "json")).unwrap();
        let tensors = Tensor::read_safetensors(data(name, "safetensors")).unwrap();
        Self {
            name: name.to_owned(),
            page: serde_json::from_str(&page).unwrap(),
            tensors: tensors.into_iter().collect(),
            compared: RefCell::default(),
        }
    }

    /// The tensor of that key, `in.x` for example.
    pub fn tensor(&self, key: &str) -> Tensor {
        let tensor = self.tensors.get(key);
        tensor
            .unwrap_or_else(|| panic!("{} has no {key}", self.name))
            .shallow_clone()
    }

    /// Weights under upstream's names; of the case that the page refers to, if it does.
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

    /// An entry of the page's configuration.
    pub fn config(&self, key: &str) -> &Value {
        &self.page["config"][key]
    }

    /// Compares shape, dtype and values with the tensor of that key, within the page's tolerance.
    pub fn check(&self, key: &str, actual: &Tensor) {
        let tolerance = &self.page["tolerance"];
        if tolerance["atol"].is_number() {
            return self.check_by_maximum(key, actual);
        }
        let all = &tolerance["all"];
        let abs = tolerance["abs_per_tensor"][key]
            .as_f64()
            .or(tolerance["abs"].as_f64())
            .or(all["atol"].as_f64());
        let rel = tolerance["rel"].as_f64().or(all["rtol"].as_f64());
        self.check_within(key, actual, abs.unwrap(), rel.unwrap());
    }

    /// Pages whose rule is `max|a - b| <= atol + rtol * max|b|`, with tolerances of their own
    /// for gradients and for the keys in `overrides`.
    fn check_by_maximum(&self, key: &str, actual: &Tensor) {
        let tolerance = &self.page["tolerance"];
        let number = |name: &str| tolerance[name].as_f64().unwrap();
        let (mut abs, mut rel) = match key.starts_with("grad.") {
            true => (number("grad_atol"), number("grad_rtol")),
            false => (number("atol"), number("rtol")),
        };
        if let Some(own) = tolerance["overrides"].get(key) {
            abs = own["atol"].as_f64().unwrap();
            rel = own["rtol"].as_f64().unwrap();
        }
        let expected = self.tensor(key);
        if expected.kind() == Kind::Int64 {
            (abs, rel) = (0.0, 0.0);
        }
        let largest = expected.to_kind(Kind::Double).abs().max();
        self.check_within(key, actual, abs + rel * largest.double_value(&[]), 0.0);
    }

    /// As [`Golden::check`], where the page states the tolerance in words.
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
            "{name}: {key} is off by {worst:e}, allowed are {abs:e} + {rel:e} * |reference|"
        );
        self.compared.borrow_mut().insert(key.to_owned());
    }
}

fn data(name: &str, extension: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(format!("{name}.{extension}"))
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
