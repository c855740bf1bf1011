//! Reads and writes sample files, with images `arr_0` u8 `[N, H, W, 3]`.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use files::AtomicFile;
use ndarray::{Array4, ArrayView4};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::NpzError;
use super::member::{Member, c_order, names};

const SAMPLES: &str = "arr_0";
const LABELS: &str = "arr_1";

/// Reads the images of a file in order, in batches; the array may be stored or deflated. An array in Fortran
/// order, in which the values of each image are scattered over the file, is read completely with the first batch.
pub struct SampleReader {
    path: PathBuf,
    member: Member,
    shape: [usize; 3],
    read: usize,
    /// All images in C order, if the file has Fortran order.
    whole: Option<Vec<u8>>,
}

impl SampleReader {
    /// Opens the array `arr_0` of a file.
    ///
    /// # Errors
    ///
    /// The file cannot be read, is not an `.npz` file, has no `arr_0`, or `arr_0` is not u8 `[N, H, W, 3]`.
    pub fn open(path: &Path) -> Result<Self, NpzError> {
        let Some(member) = Member::open(path, SAMPLES)? else {
            return Err(NpzError::Missing {
                path: path.to_owned(),
                name: SAMPLES,
                found: names(path)?.join(", "),
                needed: "a file of samples must contain images u8 [N, H, W, 3]",
            });
        };
        let shape = match member.shape[..] {
            [count, height, width, 3]
                if member.dtype == "|u1" && height > 0 && width > 0 && count > 0 =>
            {
                [count, height, width]
            }
            _ => return Err(member.array_error("u1 [N, H, W, 3]".to_owned())),
        };
        Ok(Self {
            path: path.to_owned(),
            member,
            shape,
            read: 0,
            whole: None,
        })
    }

    /// Path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number, height and width of the images.
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// CRC-32 of the images in the archive, which identifies the file's content.
    pub fn checksum(&self) -> u32 {
        self.member.expected
    }

    /// Reads the next images u8 `[B, H, W, 3]`, at most `count`; an empty batch at the end.
    ///
    /// # Errors
    ///
    /// The file is truncated, or its checksum is wrong, which is detected with the last image.
    pub fn next_batch(&mut self, count: usize) -> Result<Array4<u8>, NpzError> {
        let [total, height, width] = self.shape;
        let count = count.min(total - self.read);
        let mut images = Array4::zeros((count, height, width, 3));
        if self.member.fortran {
            let size = height * width * 3;
            let start = self.read * size;
            let bytes = &self.whole()?[start..start + count * size];
            if let Some(images) = images.as_slice_mut() {
                images.copy_from_slice(bytes);
            }
            self.read += count;
            return Ok(images);
        }
        if let Some(bytes) = images.as_slice_mut() {
            self.member.read_bytes(bytes)?;
        }
        self.read += count;
        if count > 0 && self.read == total {
            self.member.check()?;
        }
        Ok(images)
    }
}

impl SampleReader {
    /// Returns the bytes of all images in C order.
    fn whole(&mut self) -> Result<&[u8], NpzError> {
        if self.whole.is_none() {
            // Read in pieces, so that a header with a wrong size cannot exhaust the memory.
            const PIECE: usize = 1 << 20;
            let size: usize = self.member.shape.iter().product();
            let mut bytes = Vec::new();
            while bytes.len() < size {
                let start = bytes.len();
                bytes.resize(size.min(start + PIECE), 0);
                self.member.read_bytes(&mut bytes[start..])?;
            }
            self.member.check()?;
            self.whole = Some(c_order(&self.member.shape, &bytes));
        }
        Ok(self.whole.as_deref().unwrap_or_default())
    }
}

/// Compression of the arrays in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// No compression, as in `numpy.savez`.
    Stored,
    /// Deflate, as in `numpy.savez_compressed`.
    Deflated,
}

/// Writes a file of samples in batches. The file appears only when [`finish`](Self::finish) completes it.
pub struct SampleWriter {
    path: PathBuf,
    archive: ZipWriter<BufWriter<AtomicFile>>,
    options: SimpleFileOptions,
    shape: [usize; 3],
    written: usize,
}

impl SampleWriter {
    /// Creates a file of images; `shape` is their number, height and width.
    ///
    /// # Errors
    ///
    /// The file cannot be created.
    pub fn create(
        path: &Path,
        shape: [usize; 3],
        compression: Compression,
    ) -> Result<Self, NpzError> {
        let [count, height, width] = shape;
        let file = create(path)?;
        let bytes = [height, width, 3]
            .iter()
            .fold(count as u64, |bytes, &side| {
                bytes.saturating_mul(side as u64)
            });
        let options = options(compression).large_file(bytes > u64::from(u32::MAX / 2));
        let mut writer = Self {
            path: path.to_owned(),
            archive: ZipWriter::new(BufWriter::new(file)),
            options,
            shape,
            written: 0,
        };
        writer.begin(SAMPLES, "|u1", &[count, height, width, 3])?;
        Ok(writer)
    }

    fn begin(&mut self, name: &str, dtype: &str, shape: &[usize]) -> Result<(), NpzError> {
        begin(
            &mut self.archive,
            &self.path,
            name,
            dtype,
            shape,
            self.options,
        )
    }

    /// Appends images u8 `[B, H, W, 3]`.
    ///
    /// # Errors
    ///
    /// The images have another size, there are more than declared, or writing fails.
    pub fn push(&mut self, images: ArrayView4<'_, u8>) -> Result<(), NpzError> {
        let [count, height, width] = self.shape;
        let (batch, found_height, found_width, channels) = images.dim();
        if (found_height, found_width, channels) != (height, width, 3) {
            return Err(NpzError::Array {
                path: self.path.clone(),
                name: SAMPLES.to_owned(),
                found: format!("u1 {:?}", images.shape()),
                needed: format!("u1 [B, {height}, {width}, 3]"),
            });
        }
        self.written += batch;
        if self.written > count {
            return Err(self.count_error());
        }
        let bytes = images.as_standard_layout();
        self.archive
            .write_all(bytes.as_slice().unwrap_or_default())
            .map_err(NpzError::io("write", &self.path))
    }

    /// Adds the labels, if any, as `arr_1` i64 `[N]`, flushes the file to disk and renames it to its final name.
    ///
    /// # Errors
    ///
    /// There are fewer images or another number of labels than declared, or writing fails.
    pub fn finish(mut self, labels: Option<&[i64]>) -> Result<(), NpzError> {
        if self.written != self.shape[0] {
            return Err(self.count_error());
        }
        let failed = |path: &Path| NpzError::io("write", path);
        if let Some(labels) = labels {
            if labels.len() != self.written {
                return Err(NpzError::Array {
                    path: self.path.clone(),
                    name: LABELS.to_owned(),
                    found: format!("i8 [{}]", labels.len()),
                    needed: format!("i8 [{}]", self.written),
                });
            }
            self.begin(LABELS, "<i8", &[labels.len()])?;
            for label in labels {
                self.archive
                    .write_all(&label.to_le_bytes())
                    .map_err(failed(&self.path))?;
            }
        }
        finish(self.archive, &self.path)
    }

    fn count_error(&self) -> NpzError {
        NpzError::Count {
            path: self.path.clone(),
            expected: self.shape[0],
            found: self.written,
        }
    }
}

/// Creates a file that appears atomically.
pub(super) fn create(path: &Path) -> Result<AtomicFile, NpzError> {
    files::remove_leftovers_of(path)
        .and_then(|()| AtomicFile::create(path))
        .map_err(NpzError::io("create", path))
}

/// Begins an array of an archive and writes its header.
pub(super) fn begin(
    archive: &mut ZipWriter<BufWriter<AtomicFile>>,
    path: &Path,
    name: &str,
    dtype: &str,
    shape: &[usize],
    options: SimpleFileOptions,
) -> Result<(), NpzError> {
    let failed = |error: String| NpzError::Io {
        action: "write",
        path: path.to_owned(),
        source: std::io::Error::other(error),
    };
    archive
        .start_file(format!("{name}.npy"), options)
        .map_err(|error| failed(error.to_string()))?;
    archive
        .write_all(&header(dtype, shape))
        .map_err(NpzError::io("write", path))
}

/// Returns the header of an array in C order, with the same bytes as numpy's.
fn header(dtype: &str, shape: &[usize]) -> Vec<u8> {
    const ALIGNMENT: usize = 64;
    let sides: Vec<String> = shape.iter().map(usize::to_string).collect();
    let comma = if shape.len() == 1 { "," } else { "" };
    let mut header = b"\x93NUMPY\x01\x00\x00\x00".to_vec();
    let shape = format!("({}{comma})", sides.join(", "));
    let text = format!("{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}");
    header.extend(text.bytes());
    let length = (header.len() + 1).next_multiple_of(ALIGNMENT);
    header.resize(length - 1, b' ');
    header.push(b'\n');
    // A few dozen characters never reach the 65535 that this version of the format allows.
    let text_length = (length - 10) as u16;
    header[8..10].copy_from_slice(&text_length.to_le_bytes());
    header
}

/// Completes an archive, flushes it to disk and renames it to its final name.
pub(super) fn finish(
    archive: ZipWriter<BufWriter<AtomicFile>>,
    path: &Path,
) -> Result<(), NpzError> {
    let failed = || NpzError::io("write", path);
    let buffered = archive
        .finish()
        .map_err(std::io::Error::other)
        .map_err(failed())?;
    let file = buffered
        .into_inner()
        .map_err(|error| failed()(error.into_error()))?;
    file.commit().map_err(failed())
}

/// Options as in numpy: the date is the earliest of the archive format, so that equal arrays produce equal files.
pub(super) fn options(compression: Compression) -> SimpleFileOptions {
    let method = match compression {
        Compression::Stored => CompressionMethod::Stored,
        Compression::Deflated => CompressionMethod::Deflated,
    };
    SimpleFileOptions::default()
        .compression_method(method)
        .last_modified_time(zip::DateTime::default())
}
