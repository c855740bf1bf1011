//! A shard, one file of a cache: a safetensors file whose header repeats the description of the cache.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use files::AtomicPath;
use safetensors::tensor::{Dtype, Metadata, TensorView};
use safetensors::{SafeTensorError, serialize_to_file};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::{CacheError, CacheLayout, Contents};
use crate::Precision;

/// Key of [`Header`] in the metadata of the safetensors file.
const METADATA_KEY: &str = "cache";
/// Largest accepted header. The headers that this module writes have about 2 kB.
const MAX_HEADER_BYTES: u64 = 1 << 20;

/// Description of a shard in its header.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    /// Index of the first sample.
    first: u64,
    /// Description of the whole cache.
    contents: Contents,
}

/// Returns the path of the shard that contains `samples`.
pub(super) fn path(folder: &Path, contents: &Contents, samples: &Range<u64>) -> PathBuf {
    let index = samples.start / contents.layout.shard_samples;
    let noun = contents.key.features.noun();
    folder.join(format!("{noun}-{index:05}.safetensors"))
}

/// The bytes of the tensors of a shard that is being filled.
#[derive(Debug)]
pub(super) struct ShardBuffers {
    pub(super) patch: Vec<u8>,
    pub(super) class: Vec<u8>,
    pub(super) crc32: Vec<u32>,
    pub(super) present: Vec<u8>,
}

impl ShardBuffers {
    /// Creates zeroed buffers for `count` samples, all of them marked as absent.
    pub(super) fn new(layout: &CacheLayout, count: usize) -> Self {
        let rows = count * layout.variants() as usize;
        Self {
            patch: vec![0; rows * layout.patch_bytes()],
            class: vec![0; rows * layout.class_bytes()],
            crc32: vec![0; rows],
            present: vec![0; count],
        }
    }

    /// Writes the shard atomically: its file appears complete or not at all.
    pub(super) fn write(
        &self,
        folder: &Path,
        contents: &Contents,
        samples: &Range<u64>,
    ) -> Result<(), CacheError> {
        let path = path(folder, contents, samples);
        let file =
            AtomicPath::create(&path).map_err(|source| CacheError::io("create", &path, source))?;
        self.write_to(file.path(), contents, samples)
            .map_err(|source| CacheError::io("write", &path, source))?;
        file.commit()
            .map_err(|source| CacheError::io("finish", &path, source))
    }

    fn write_to(&self, path: &Path, contents: &Contents, samples: &Range<u64>) -> io::Result<()> {
        let layout = &contents.layout;
        let (count, variants) = (self.present.len(), layout.variants() as usize);
        let dtype = dtype(layout.stored);
        let crc32: Vec<u8> = self
            .crc32
            .iter()
            .flat_map(|&sum| i64::from(sum).to_le_bytes())
            .collect();
        let patch_shape = vec![count, variants, layout.grid.tokens(), layout.width];
        let mut parts = vec![
            ("patch", dtype, patch_shape, &self.patch),
            ("crc32", Dtype::I64, vec![count, variants], &crc32),
            ("present", Dtype::U8, vec![count], &self.present),
        ];
        if layout.class_token {
            let shape = vec![count, variants, layout.width];
            parts.push(("class", dtype, shape, &self.class));
        }
        let failed = |error: SafeTensorError| match error {
            SafeTensorError::IoError(source) => source,
            other => io::Error::other(other),
        };
        let views = parts
            .into_iter()
            .map(|(name, dtype, shape, bytes)| {
                Ok((name, TensorView::new(dtype, shape, bytes).map_err(failed)?))
            })
            .collect::<io::Result<Vec<_>>>()?;
        let header = serde_json::to_string(&Header {
            first: samples.start,
            contents: contents.clone(),
        })?;
        let metadata = HashMap::from([(METADATA_KEY.to_owned(), header)]);
        serialize_to_file(views, Some(metadata), path).map_err(failed)
    }
}

fn dtype(precision: Precision) -> Dtype {
    match precision {
        Precision::Fp32 => Dtype::F32,
        Precision::Bf16 => Dtype::BF16,
        Precision::Fp16 => Dtype::F16,
    }
}

/// Byte ranges of the tensors of a shard in its file.
#[derive(Debug)]
pub(super) struct Offsets {
    length: u64,
    patch: Range<u64>,
    class: Option<Range<u64>>,
    crc32: Range<u64>,
    present: Range<u64>,
}

impl Offsets {
    /// Reads and checks the header of a shard's file, without reading its tokens.
    pub(super) fn read(
        path: &Path,
        contents: &Contents,
        samples: &Range<u64>,
    ) -> Result<Self, CacheError> {
        let io = |source| CacheError::io("read", path, source);
        let damaged = |reason: String| CacheError::Damaged {
            path: path.to_owned(),
            reason,
        };
        let mut file = File::open(path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        let truncated = |error: io::Error| match error.kind() {
            io::ErrorKind::UnexpectedEof => damaged(format!("it is truncated to {length} bytes")),
            _ => io(error),
        };
        let mut head = vec![0; 8];
        file.read_exact(&mut head).map_err(truncated)?;
        let header_bytes = head
            .iter()
            .rev()
            .fold(0, |sum, &byte| sum << 8 | u64::from(byte));
        if header_bytes > MAX_HEADER_BYTES {
            return Err(damaged("it is not a safetensors file".to_owned()));
        }
        head.resize(8 + header_bytes as usize, 0);
        file.read_exact(&mut head[8..]).map_err(truncated)?;
        let metadata: Metadata = serde_json::from_slice(&head[8..])
            .map_err(|error| damaged(format!("it is not a safetensors file: {error}")))?;
        let header: Header = metadata
            .metadata()
            .as_ref()
            .and_then(|entries| serde_json::from_str(entries.get(METADATA_KEY)?).ok())
            .ok_or_else(|| damaged("its header does not describe a cache".to_owned()))?;
        if header.first != samples.start || header.contents != *contents {
            return Err(damaged("it is a shard of another cache".to_owned()));
        }
        let start = 8 + header_bytes;
        if length != start + metadata.data_len() as u64 {
            return Err(damaged(format!(
                "it is {length} bytes long, but its header requires {}",
                start + metadata.data_len() as u64
            )));
        }
        let layout = &contents.layout;
        let count = (samples.end - samples.start) as usize;
        let rows = count * layout.variants() as usize;
        let part = |name: &str, bytes: usize| {
            data_range(&metadata, name)
                .filter(|range| range.len() == bytes)
                .map(|range| start + range.start as u64..start + range.end as u64)
                .ok_or_else(|| {
                    damaged(format!(
                        "its tensor `{name}` is missing or has the wrong size"
                    ))
                })
        };
        let class = match layout.class_token {
            true => Some(part("class", rows * layout.class_bytes())?),
            false => None,
        };
        Ok(Self {
            length,
            patch: part("patch", rows * layout.patch_bytes())?,
            class,
            crc32: part("crc32", rows * 8)?,
            present: part("present", count)?,
        })
    }
}

fn data_range(metadata: &Metadata, name: &str) -> Option<Range<usize>> {
    let (start, end) = metadata.info(name)?.data_offsets;
    Some(start..end)
}

/// A shard for reading, whose tokens are mapped into memory.
#[derive(Debug)]
pub(super) struct MappedShard {
    pub(super) path: PathBuf,
    /// `[N * V, T, D]`.
    pub(super) patch: Tensor,
    /// `[N * V, D]`.
    pub(super) class: Option<Tensor>,
    pub(super) crc32: Vec<i64>,
    pub(super) present: Vec<u8>,
}

impl MappedShard {
    pub(super) fn open(
        path: PathBuf,
        contents: &Contents,
        samples: &Range<u64>,
    ) -> Result<Self, CacheError> {
        let offsets = Offsets::read(&path, contents, samples)?;
        let mut file = File::open(&path).map_err(|source| CacheError::io("read", &path, source))?;
        let mut bytes = |range: &Range<u64>| {
            let mut bytes = vec![0; (range.end - range.start) as usize];
            file.seek(SeekFrom::Start(range.start))
                .and_then(|_| file.read_exact(&mut bytes))
                .map_err(|source| CacheError::io("read", &path, source))?;
            Ok::<_, CacheError>(bytes)
        };
        let sums = bytes(&offsets.crc32)?;
        let (sums, _) = sums.as_chunks::<8>();
        let crc32 = sums.iter().map(|sum| i64::from_le_bytes(*sum)).collect();
        let present = bytes(&offsets.present)?;

        let name = path.to_str().ok_or_else(|| {
            let problem = "the path must be UTF-8";
            CacheError::io("map", &path, io::Error::other(problem))
        })?;
        let length = offsets.length as i64;
        let whole = Tensor::f_from_file(name, false, length, (Kind::Uint8, Device::Cpu))?;
        let layout = &contents.layout;
        let (tokens, width) = (layout.grid.tokens() as i64, layout.width as i64);
        let view = |range: &Range<u64>, shape: &[i64]| {
            let (start, length) = (range.start as i64, (range.end - range.start) as i64);
            whole
                .f_narrow(0, start, length)?
                .f_view_dtype(layout.stored.kind())?
                .f_view(shape)
        };
        Ok(Self {
            patch: view(&offsets.patch, &[-1, tokens, width])?,
            class: match &offsets.class {
                Some(range) => Some(view(range, &[-1, width])?),
                None => None,
            },
            crc32,
            present,
            path,
        })
    }
}
