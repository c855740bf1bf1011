//! A golden case: named tensors, and a JSON file with their meaning and tolerances.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use ndarray::{Array1, Array2, Array3};
use safetensors::SafeTensors;
use serde_json::Value;

pub struct Case {
    name: String,
    tensors: Vec<u8>,
    json: Value,
    compared: RefCell<BTreeSet<String>>,
}

/// Environment variable with a folder of all cases, in sub-folders as below `tests/data`.
const FOLDER_VARIABLE: &str = "IREPA_GOLDEN";

/// Largest allowed difference from the expected value: `atol + rtol * |expected|`.
#[derive(Clone, Copy)]
pub struct Tolerance {
    pub atol: f64,
    pub rtol: f64,
}

impl Tolerance {
    pub const EXACT: Self = Self {
        atol: 0.0,
        rtol: 0.0,
    };
}

impl Case {
    /// Opens `tests/data/<name>.safetensors` and `.json`.
    pub fn open(name: &str) -> Self {
        Self::with_tensors(name, &format!("{name}.safetensors"))
    }

    /// Opens `tests/data/<name>.json` and the tensors of another path below `tests/data`.
    pub fn with_tensors(name: &str, tensors: &str) -> Self {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
        Self::read(
            name,
            &data.join(format!("{name}.json")),
            &data.join(tensors),
        )
    }

    /// Opens a case that is too large for the repository, from the folder in `IREPA_GOLDEN`. Its test is ignored
    /// by default; `cargo test -- --ignored` runs it.
    pub fn outside(name: &str) -> Self {
        let folder = std::env::var_os(FOLDER_VARIABLE)
            .unwrap_or_else(|| panic!("{FOLDER_VARIABLE} must name a folder that contains {name}"));
        let path = |extension| PathBuf::from(&folder).join(format!("{name}.{extension}"));
        Self::read(name, &path("json"), &path("safetensors"))
    }

    fn read(name: &str, json: &Path, tensors: &Path) -> Self {
        let read = |path: &Path| {
            fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        Self {
            name: name.to_owned(),
            tensors: read(tensors),
            json: serde_json::from_slice(&read(json)).unwrap(),
            compared: RefCell::default(),
        }
    }

    /// Fails if an output of the case was not compared.
    pub fn all_compared(&self) {
        let tensors = SafeTensors::deserialize(&self.tensors).unwrap();
        let compared = self.compared.borrow();
        let not_compared: Vec<&str> = tensors
            .names()
            .into_iter()
            .filter(|key| key.starts_with("out.") && !compared.contains(*key))
            .collect();
        assert!(
            not_compared.is_empty(),
            "{}: {not_compared:?} were not compared",
            self.name
        );
    }

    pub fn config(&self) -> &Value {
        &self.json["config"]
    }

    /// The tolerance that the JSON file states under `key`.
    pub fn tolerance(&self, key: &str) -> Tolerance {
        let entry = &self.json["tolerance"][key];
        let bound = |name: &str| entry[name].as_f64();
        assert!(
            bound("atol").or(bound("rtol")).is_some(),
            "{} states no tolerance for {key}",
            self.name
        );
        Tolerance {
            atol: bound("atol").unwrap_or(0.0),
            rtol: bound("rtol").unwrap_or(0.0),
        }
    }

    /// Shape and values of a tensor, converted to float64 from any dtype of the golden files.
    pub fn values(&self, key: &str) -> (Vec<usize>, Vec<f64>) {
        let tensors = SafeTensors::deserialize(&self.tensors).unwrap();
        let tensor = tensors.tensor(key).unwrap();
        let bytes = tensor.data();
        let values = match tensor.dtype() {
            safetensors::Dtype::F32 => numbers(bytes, |b| f64::from(f32::from_le_bytes(b))),
            safetensors::Dtype::F64 => numbers(bytes, f64::from_le_bytes),
            safetensors::Dtype::I64 => numbers(bytes, |b| i64::from_le_bytes(b) as f64),
            safetensors::Dtype::U8 => numbers(bytes, |b: [u8; 1]| f64::from(b[0])),
            other => panic!("{key} is {other:?}"),
        };
        (tensor.shape().to_vec(), values)
    }

    pub fn vector(&self, key: &str) -> Array1<f64> {
        Array1::from_vec(self.values(key).1)
    }

    pub fn floats(&self, key: &str) -> Array2<f32> {
        self.matrix(key).mapv(|x| x as f32)
    }

    pub fn indices(&self, key: &str) -> Array2<usize> {
        self.matrix(key).mapv(|x| x as usize)
    }

    pub fn matrix(&self, key: &str) -> Array2<f64> {
        let (shape, values) = self.values(key);
        Array2::from_shape_vec((shape[0], shape[1]), values).unwrap()
    }

    pub fn cube(&self, key: &str) -> Array3<f64> {
        let (shape, values) = self.values(key);
        Array3::from_shape_vec((shape[0], shape[1], shape[2]), values).unwrap()
    }

    /// Compares values with the tensor `key`; NaN equals only NaN.
    pub fn check(&self, key: &str, actual: &[f64], tolerance: Tolerance) {
        self.compared.borrow_mut().insert(key.to_owned());
        let (_, expected) = self.values(key);
        assert_eq!(actual.len(), expected.len(), "{} {key}", self.name);
        for (i, (&actual, &expected)) in actual.iter().zip(&expected).enumerate() {
            let bound = tolerance.atol + tolerance.rtol * expected.abs();
            let close = (actual - expected).abs() <= bound || actual.is_nan() && expected.is_nan();
            assert!(
                close,
                "{} {key}[{i}]: {actual} instead of {expected}, off by {:e} with {bound:e} allowed",
                self.name,
                (actual - expected).abs(),
            );
        }
    }
}

fn numbers<const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> f64) -> Vec<f64> {
    bytes
        .chunks_exact(N)
        .map(|chunk| read(chunk.try_into().unwrap()))
        .collect()
}
