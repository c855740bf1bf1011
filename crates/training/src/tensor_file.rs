//! Reads and writes named tensors as safetensors files.

use std::borrow::Cow;
use std::fs::File;
use std::path::Path;

use files::AtomicPath;
use safetensors::tensor::{Dtype, SafeTensors, View};
use tch::{Device, Kind, Tensor};

use crate::checkpoint::error::CheckpointError;

/// The contiguous bytes of a tensor on the CPU, as the safetensors crate needs them.
struct HostTensor {
    shape: Vec<usize>,
    dtype: Dtype,
    bytes: Vec<u8>,
}

impl HostTensor {
    fn new(name: &str, tensor: &Tensor) -> Result<Self, CheckpointError> {
        let kind = tensor.kind();
        let dtype = dtype(kind).ok_or_else(|| CheckpointError::Dtype {
            name: name.to_owned(),
            found: format!("{kind:?}"),
        })?;
        let tensor = tensor.detach().f_to_device(Device::Cpu)?.f_contiguous()?;
        let numel = tensor.numel();
        let mut bytes = vec![0; numel * kind.elt_size_in_bytes()];
        tensor.f_copy_data_u8(&mut bytes, numel)?;
        Ok(Self {
            shape: tensor
                .size()
                .iter()
                .map(|&n| n.unsigned_abs() as usize)
                .collect(),
            dtype,
            bytes,
        })
    }
}

impl View for HostTensor {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// Writes `tensors` to a safetensors file and creates its folder. The file is written completely or not at all.
///
/// # Errors
/// The file cannot be written, or a tensor's dtype cannot be stored.
pub fn write_tensors(path: &Path, tensors: &[(String, Tensor)]) -> Result<(), CheckpointError> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)
            .map_err(|source| CheckpointError::io("create", folder, source))?;
    }
    let file = AtomicPath::create(path).map_err(|e| CheckpointError::io("create", path, e))?;
    write(file.path(), tensors)?;
    file.commit()
        .map_err(|e| CheckpointError::io("write", path, e))
}

/// Writes `tensors` to `path` without a temporary file. The caller passes a path that is itself temporary, or in a
/// temporary folder.
pub(crate) fn write(path: &Path, tensors: &[(String, Tensor)]) -> Result<(), CheckpointError> {
    let views = tensors
        .iter()
        .map(|(name, tensor)| Ok((name.as_str(), HostTensor::new(name, tensor)?)))
        .collect::<Result<Vec<_>, CheckpointError>>()?;
    // The safetensors crate makes the file readable only for its owner. The default permissions are restored, since
    // checkpoints are shared.
    let permissions = File::create(path)
        .and_then(|file| Ok(file.metadata()?.permissions()))
        .map_err(|source| CheckpointError::io("create", path, source))?;
    safetensors::serialize_to_file(views, None, path).map_err(|source| {
        CheckpointError::Tensors {
            path: path.to_owned(),
            source,
        }
    })?;
    std::fs::set_permissions(path, permissions)
        .map_err(|source| CheckpointError::io("set the permissions of", path, source))
}

/// Reads all tensors of a safetensors file to the CPU, sorted by name.
///
/// # Errors
/// The file cannot be read, is not a safetensors file, is truncated, or has a tensor of an unsupported
/// dtype.
pub fn read_tensors(path: &Path) -> Result<Vec<(String, Tensor)>, CheckpointError> {
    let bytes = std::fs::read(path).map_err(|source| CheckpointError::io("read", path, source))?;
    parse(path, &bytes)
}

pub(crate) fn parse(path: &Path, bytes: &[u8]) -> Result<Vec<(String, Tensor)>, CheckpointError> {
    let file = SafeTensors::deserialize(bytes).map_err(|error| CheckpointError::Damaged {
        path: path.to_owned(),
        reason: match files::describe_foreign(bytes) {
            Some(what) => format!("it is {what}"),
            None => format!("it is truncated, or not a safetensors file: {error}"),
        },
    })?;
    let mut tensors = file
        .iter()
        .map(|(name, view)| {
            let kind = kind(view.dtype()).ok_or_else(|| CheckpointError::Dtype {
                name: name.to_owned(),
                found: format!("{:?}", view.dtype()),
            })?;
            let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
            let tensor = Tensor::f_from_data_size(view.data(), &shape, kind)?;
            Ok((name.to_owned(), tensor))
        })
        .collect::<Result<Vec<_>, CheckpointError>>()?;
    tensors.sort_by(|left, right| left.0.cmp(&right.0));
    Ok(tensors)
}

const DTYPES: [(Dtype, Kind); 8] = [
    (Dtype::U8, Kind::Uint8),
    (Dtype::I32, Kind::Int),
    (Dtype::I64, Kind::Int64),
    (Dtype::F16, Kind::Half),
    (Dtype::BF16, Kind::BFloat16),
    (Dtype::F32, Kind::Float),
    (Dtype::F64, Kind::Double),
    (Dtype::BOOL, Kind::Bool),
];

fn dtype(kind: Kind) -> Option<Dtype> {
    DTYPES.iter().find(|pair| pair.1 == kind).map(|pair| pair.0)
}

fn kind(dtype: Dtype) -> Option<Kind> {
    DTYPES
        .iter()
        .find(|pair| pair.0 == dtype)
        .map(|pair| pair.1)
}
