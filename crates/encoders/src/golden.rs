//! Reads the golden cases of `tests/data`: inputs and outputs of upstream's code, with the
//! tolerances of their JSON files.

use std::path::Path;

use ndarray::{ArrayD, IxDyn};
use safetensors::tensor::{Dtype, SafeTensors};

/// One case, read from `tests/data/NAME.safetensors` and `NAME.json`.
pub(crate) struct Golden {
    bytes: Vec<u8>,
    json: serde_json::Value,
}

impl Golden {
    pub(crate) fn open(name: &str) -> Self {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
        let read = |extension: &str| std::fs::read(data.join(name).with_extension(extension));
        Self {
            bytes: read("safetensors").unwrap(),
            json: serde_json::from_slice(&read("json").unwrap()).unwrap(),
        }
    }

    fn values<T>(&self, name: &str, dtype: Dtype, read: impl Fn(&[u8]) -> T) -> ArrayD<T> {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let view = tensors.tensor(name).unwrap();
        assert_eq!(view.dtype(), dtype, "{name}");
        let size = view.data().len() / view.shape().iter().product::<usize>();
        let values = view.data().chunks_exact(size).map(read).collect();
        ArrayD::from_shape_vec(IxDyn(view.shape()), values).unwrap()
    }

    pub(crate) fn u8(&self, name: &str) -> ArrayD<u8> {
        self.values(name, Dtype::U8, |v| v[0])
    }

    pub(crate) fn f32(&self, name: &str) -> ArrayD<f32> {
        self.values(name, Dtype::F32, |v| {
            f32::from_le_bytes(v.try_into().unwrap())
        })
    }

    pub(crate) fn f64(&self, name: &str) -> ArrayD<f64> {
        self.values(name, Dtype::F64, |v| {
            f64::from_le_bytes(v.try_into().unwrap())
        })
    }

    pub(crate) fn i64(&self, name: &str) -> ArrayD<i64> {
        self.values(name, Dtype::I64, |v| {
            i64::from_le_bytes(v.try_into().unwrap())
        })
    }

    /// A number from the `tolerance` table of the JSON file.
    pub(crate) fn tolerance(&self, tensor: &str, key: &str) -> f64 {
        let value = &self.json["tolerance"][tensor][key];
        value
            .as_f64()
            .unwrap_or_else(|| panic!("no tolerance {tensor}.{key}"))
    }

    /// An entry of the `config` table of the JSON file.
    pub(crate) fn config(&self, key: &str) -> &serde_json::Value {
        &self.json["config"][key]
    }
}

/// The largest absolute difference of two sequences of equal length.
pub(crate) fn max_difference<'a, A, B>(found: A, expected: B) -> f64
where
    A: IntoIterator<Item = &'a f32, IntoIter: ExactSizeIterator>,
    B: IntoIterator<Item = &'a f32, IntoIter: ExactSizeIterator>,
{
    let (found, expected) = (found.into_iter(), expected.into_iter());
    assert_eq!(found.len(), expected.len());
    // `max` would drop a NaN.
    found.zip(expected).fold(0.0, |largest, (a, b)| {
        let difference = f64::from((a - b).abs());
        if difference <= largest {
            largest
        } else {
            difference
        }
    })
}
