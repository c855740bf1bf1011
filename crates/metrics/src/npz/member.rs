//! One array of an `.npz` file, read as a stream.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use flate2::read::DeflateDecoder;
use zip::{CompressionMethod, ZipArchive};

use super::NpzError;
use super::header::Header;

/// Upper bound of the expansion factor of Deflate.
const MAX_EXPANSION: u64 = 1100;

/// An array whose bytes are read as a stream; [`check`](Self::check) verifies the archive's checksum at the end.
pub(super) struct Member {
    path: PathBuf,
    name: String,
    /// Dtype in numpy's notation, such as `|u1` or `<f8`.
    pub dtype: String,
    pub shape: Vec<usize>,
    /// Whether the array is in Fortran order, with the first index changing fastest.
    pub fortran: bool,
    reader: Box<dyn Read + Send>,
    checksum: crc32fast::Hasher,
    /// CRC-32 of the array in the archive.
    pub expected: u32,
}

/// Returns the names of the arrays in a file, without `.npy`.
pub(super) fn names(path: &Path) -> Result<Vec<String>, NpzError> {
    let archive = open(path)?;
    let names = archive.file_names();
    Ok(names
        .map(|name| name.strip_suffix(".npy").unwrap_or(name).to_owned())
        .collect())
}

fn open(path: &Path) -> Result<ZipArchive<BufReader<File>>, NpzError> {
    let file = File::open(path).map_err(NpzError::io("open", path))?;
    ZipArchive::new(BufReader::new(file)).map_err(|error| NpzError::damaged(path, error))
}

impl Member {
    /// Opens the array `name`; `None` if the file has no such array.
    pub fn open(path: &Path, name: &str) -> Result<Option<Self>, NpzError> {
        let mut archive = open(path)?;
        let entry_name = format!("{name}.npy");
        let entry = match archive.by_name(&entry_name) {
            Ok(entry) => entry,
            Err(zip::result::ZipError::FileNotFound) => return Ok(None),
            Err(error) => return Err(NpzError::damaged(path, error)),
        };
        let (start, packed, size) = (entry.data_start(), entry.compressed_size(), entry.size());
        let (method, expected) = (entry.compression(), entry.crc32());
        drop(entry);
        if size > packed.saturating_mul(MAX_EXPANSION) {
            return Err(NpzError::damaged(
                path,
                format!("`{name}` has an implausible size of {size} bytes"),
            ));
        }
        let mut file = archive.into_inner();
        let reading = NpzError::reading(path);
        file.seek(SeekFrom::Start(start)).map_err(&reading)?;
        let packed = file.take(packed);
        let reader: Box<dyn Read + Send> = match method {
            CompressionMethod::Stored => Box::new(packed),
            CompressionMethod::Deflated => Box::new(DeflateDecoder::new(packed)),
            other => {
                let reason = format!(
                    "`{name}` has the compression {other}; numpy writes stored or deflated arrays"
                );
                return Err(NpzError::damaged(path, reason));
            }
        };
        let mut member = Self {
            path: path.to_owned(),
            name: name.to_owned(),
            dtype: String::new(),
            shape: Vec::new(),
            fortran: false,
            reader,
            checksum: crc32fast::Hasher::new(),
            expected,
        };
        let mut counted = Counted {
            member: &mut member,
            count: 0,
        };
        let header = Header::read(&mut counted)
            .map_err(|error| NpzError::damaged(path, format!("`{name}`: {error}")))?;
        let read = counted.count;
        member.dtype = header.descr;
        member.shape = header.shape;
        member.fortran = header.fortran_order && member.shape.len() > 1;
        let bytes = member
            .shape
            .iter()
            .try_fold(member.item_size()?, |bytes, &side| {
                bytes.checked_mul(side as u64)
            });
        if bytes.and_then(|bytes| bytes.checked_add(read)) != Some(size) {
            let reason = format!("the size of `{name}`, {size} bytes, does not match its header");
            return Err(NpzError::damaged(path, reason));
        }
        Ok(Some(member))
    }

    /// Size of a value in bytes.
    fn item_size(&self) -> Result<u64, NpzError> {
        let size = self
            .dtype
            .strip_prefix(['<', '>', '|'])
            .and_then(|dtype| dtype.strip_prefix(['f', 'i', 'u', 'b']));
        match size {
            Some("1") => Ok(1),
            Some("2") => Ok(2),
            Some("4") => Ok(4),
            Some("8") => Ok(8),
            _ => Err(self.array_error("numbers of 1, 2, 4 or 8 bytes".to_owned())),
        }
    }

    /// Creates the error of an array with the wrong dtype or shape.
    pub fn array_error(&self, needed: String) -> NpzError {
        NpzError::Array {
            path: self.path.clone(),
            name: self.name.clone(),
            found: format!("{} {:?}", self.dtype, self.shape),
            needed,
        }
    }

    /// Reads the next bytes and fills the buffer.
    pub fn read_bytes(&mut self, buffer: &mut [u8]) -> Result<(), NpzError> {
        self.fill(buffer).map_err(NpzError::reading(&self.path))
    }

    fn fill(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        self.reader.read_exact(buffer)?;
        self.checksum.update(buffer);
        Ok(())
    }

    /// Verifies the checksum of the content. To be called after the last byte was read.
    pub fn check(&mut self) -> Result<(), NpzError> {
        let found = self.checksum.clone().finalize();
        if found != self.expected {
            let reason = format!(
                "`{}` has the checksum {found:08x}, the archive declares {:08x}",
                self.name, self.expected
            );
            return Err(NpzError::damaged(&self.path, reason));
        }
        Ok(())
    }

    /// Reads all values of an array of floats or integers as float64 and returns its shape and its values in C order,
    /// whatever the order and byte order of the file.
    pub fn floats(mut self) -> Result<(Vec<usize>, Vec<f64>), NpzError> {
        let count: usize = self.shape.iter().product();
        let values = match self.dtype.as_str() {
            "<f2" => self.numbers(count, |b| half(u16::from_le_bytes(b)))?,
            ">f2" => self.numbers(count, |b| half(u16::from_be_bytes(b)))?,
            "<f4" => self.numbers(count, |b| f64::from(f32::from_le_bytes(b)))?,
            ">f4" => self.numbers(count, |b| f64::from(f32::from_be_bytes(b)))?,
            "<f8" => self.numbers(count, f64::from_le_bytes)?,
            ">f8" => self.numbers(count, f64::from_be_bytes)?,
            "<i4" => self.numbers(count, |b| f64::from(i32::from_le_bytes(b)))?,
            ">i4" => self.numbers(count, |b| f64::from(i32::from_be_bytes(b)))?,
            "<i8" => self.numbers(count, |b| i64::from_le_bytes(b) as f64)?,
            ">i8" => self.numbers(count, |b| i64::from_be_bytes(b) as f64)?,
            _ => {
                return Err(
                    self.array_error("float16, float32, float64, int32 or int64".to_owned())
                );
            }
        };
        self.check()?;
        let values = match self.fortran {
            true => c_order(&self.shape, &values),
            false => values,
        };
        Ok((self.shape, values))
    }

    fn numbers<const N: usize>(
        &mut self,
        count: usize,
        read: impl Fn([u8; N]) -> f64,
    ) -> Result<Vec<f64>, NpzError> {
        // Read in pieces, so that a header with a wrong size cannot exhaust the memory.
        const PIECE: usize = 1 << 16;
        let mut values = Vec::new();
        let mut buffer = vec![0; PIECE * N];
        while values.len() < count {
            let piece = PIECE.min(count - values.len());
            let bytes = &mut buffer[..piece * N];
            self.read_bytes(bytes)?;
            let numbers = bytes.chunks_exact(N).map(|chunk| {
                let mut number = [0; N];
                number.copy_from_slice(chunk);
                read(number)
            });
            values.extend(numbers);
        }
        Ok(values)
    }
}

/// Reorders the values of an array from Fortran order, with the first index changing fastest, to C order.
pub(super) fn c_order<T: Copy>(shape: &[usize], values: &[T]) -> Vec<T> {
    let strides: Vec<usize> = shape
        .iter()
        .scan(1, |stride, &side| {
            let current = *stride;
            *stride *= side;
            Some(current)
        })
        .collect();
    let mut index = vec![0; shape.len()];
    let mut position = 0;
    let mut ordered = Vec::with_capacity(values.len());
    while ordered.len() < values.len() {
        ordered.extend(values.get(position));
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            position += strides[axis];
            if index[axis] < shape[axis] {
                break;
            }
            position -= index[axis] * strides[axis];
            index[axis] = 0;
        }
    }
    ordered
}

/// Converts a float16 to float64.
fn half(bits: u16) -> f64 {
    let fraction = f64::from(bits & 0x3ff);
    let size = match i32::from((bits >> 10) & 0x1f) {
        0 => fraction * 2_f64.powi(-24),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        exponent => (1024.0 + fraction) * 2_f64.powi(exponent - 25),
    };
    if bits >> 15 == 1 { -size } else { size }
}

/// Counts the bytes of the header while it is read.
struct Counted<'a> {
    member: &'a mut Member,
    count: u64,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.member.reader.read(buffer)?;
        self.member.checksum.update(&buffer[..count]);
        self.count += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn float16_values_follow_their_definition() {
        for (bits, value) in [
            (0x0000, 0.0),
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x7bff, 65504.0),
            (0x0400, 2_f64.powi(-14)),
            (0x0001, 2_f64.powi(-24)),
            (0x3555, 0.333251953125),
            (0xfc00, f64::NEG_INFINITY),
        ] {
            assert_eq!(half(bits), value, "{bits:04x}");
        }
        assert!(half(0x7e00).is_nan());
    }

    #[test]
    fn the_last_index_changes_fastest_in_c_order() {
        // a[i, j, k] = 100 i + 10 j + k of shape [2, 3, 2], with the first index changing fastest.
        let fortran = [0, 100, 10, 110, 20, 120, 1, 101, 11, 111, 21, 121];
        let expected = [0, 1, 10, 11, 20, 21, 100, 101, 110, 111, 120, 121];
        assert_eq!(c_order(&[2, 3, 2], &fortran), expected);
    }
}
