//! Batches of images, `arr_0` u8 `[N, H, W, 3]`.

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

/// Reads the images of a file in order, a few at a time; stored or deflated. An array in Fortran order, whose
/// images lie in pieces all over the file, is read whole with the first of them.
pub struct SampleReader {
    path: PathBuf,
    member: Member,
    shape: [usize; 3],
    read: usize,
    /// All images, where they were in Fortran order.
    whole: Option<Vec<u8>>,
}

impl SampleReader {
    /// Opens the array `arr_0` of a file.
    ///
    /// # Errors
    ///
    /// The file cannot be read, is no `.npz`, has no `arr_0`, or that is not u8 `[N, H, W, 3]`.
    pub fn open(path: &Path) -> Result<Self, NpzError> {
        let Some(member) = Member::open(path, SAMPLES)? else {
            return Err(NpzError::Missing {
                path: path.to_owned(),
                name: SAMPLES,
                found: names(path)?.join(", "),
                needed: "a file of samples holds images u8 [N, H, W, 3]",
            });
        };
        let shape = match member.shape[..] {
            [count, height, width, 3]
                if member.dtype == "|u1" && height > 0 && width > 0 && count > 0 =>
            {
                [count, height, width]
            }
            _ => return Err(member.unlike("u1 [N, H, W, 3]".to_owned())),
        };
        Ok(Self {
            path: path.to_owned(),
            member,
            shape,
            read: 0,
            whole: None,
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number, height and width of the images.
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// The archive's CRC-32 of the images, which tells one file from another.
    pub fn checksum(&self) -> u32 {
        self.member.expected
    }

    /// The next images u8 `[B, H, W, 3]`, at most `count`; none at the end.
    ///
    /// # Errors
    ///
    /// The file is cut short, or its checksum is wrong, which shows with the last image.
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
    /// The bytes of all images in C order.
    fn whole(&mut self) -> Result<&[u8], NpzError> {
        if self.whole.is_none() {
            // A piece at a time: a header that lies about its size must not take all memory.
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

/// Whether a file's arrays are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// As `numpy.savez`.
    Stored,
    /// As `numpy.savez_compressed`.
    Deflated,
}

/// Writes a file of samples a few images at a time. The file appears whole, by [`finish`](Self::finish), or
/// not at all.
pub struct SampleWriter {
    path: PathBuf,
    archive: ZipWriter<BufWriter<AtomicFile>>,
    options: SimpleFileOptions,
    shape: [usize; 3],
    written: usize,
}

impl SampleWriter {
    /// Begins a file of images, whose number, height and width are given.
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
    /// Images of another size, more than were announced, or a write that failed.
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

    /// Adds the labels as `arr_1`, if there are any, flushes the file to the disk and gives it its name.
    ///
    /// # Errors
    ///
    /// Fewer images or another number of labels than announced, or a write that failed.
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

/// Begins a file that appears whole or not at all.
pub(super) fn create(path: &Path) -> Result<AtomicFile, NpzError> {
    files::remove_leftovers_of(path)
        .and_then(|()| AtomicFile::create(path))
        .map_err(NpzError::io("create", path))
}

/// Begins one array of an archive.
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

/// The head of an array in C order, to the byte as numpy writes it.
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

/// Ends an archive, flushes it to the disk and gives it its name.
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

/// As numpy writes: the date is the archive format's first, so that equal arrays make equal files.
pub(super) fn options(compression: Compression) -> SimpleFileOptions {
    let method = match compression {
        Compression::Stored => CompressionMethod::Stored,
        Compression::Deflated => CompressionMethod::Deflated,
    };
    SimpleFileOptions::default()
        .compression_method(method)
        .last_modified_time(zip::DateTime::default())
}
