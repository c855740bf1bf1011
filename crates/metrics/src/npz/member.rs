//! One array of an `.npz` file, read as a stream.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use flate2::read::DeflateDecoder;
use ndarray_npy::npy::header::{Header, Layout};
use zip::{CompressionMethod, ZipArchive};

use super::NpzError;

/// Deflate expands no more than this.
const MOST_EXPANSION: u64 = 1100;

/// An array whose bytes are yet to be read. Checks the archive's checksum at the end.
pub(super) struct Member {
    path: PathBuf,
    name: String,
    /// Type as numpy writes it, `|u1` or `<f8`.
    pub dtype: String,
    pub shape: Vec<usize>,
    reader: Box<dyn Read + Send>,
    checksum: crc32fast::Hasher,
    /// The archive's checksum.
    pub expected: u32,
}

/// Names of the arrays in a file, without `.npy`.
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
    /// Opens the array `name`; `None` if there is none.
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
        if size > packed.saturating_mul(MOST_EXPANSION) {
            return Err(NpzError::damaged(
                path,
                format!("`{name}` claims {size} bytes"),
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
                let reason = format!("`{name}` is packed with {other}, numpy stores or deflates");
                return Err(NpzError::damaged(path, reason));
            }
        };
        let mut member = Self {
            path: path.to_owned(),
            name: name.to_owned(),
            dtype: String::new(),
            shape: Vec::new(),
            reader,
            checksum: crc32fast::Hasher::new(),
            expected,
        };
        let mut counted = Counted {
            member: &mut member,
            count: 0,
        };
        let header = Header::from_reader(&mut counted)
            .map_err(|error| NpzError::damaged(path, format!("`{name}`: {error}")))?;
        let read = counted.count;
        member.dtype = header.type_descriptor.to_string().replace(['\'', '"'], "");
        member.shape = header.shape;
        if matches!(header.layout, Layout::Fortran) && member.shape.len() > 1 {
            return Err(member.unlike("in C order (numpy.ascontiguousarray)".to_owned()));
        }
        let bytes = member
            .shape
            .iter()
            .try_fold(member.width()?, |bytes, &side| {
                bytes.checked_mul(side as u64)
            });
        if bytes.and_then(|bytes| bytes.checked_add(read)) != Some(size) {
            let reason = format!("`{name}` has {size} bytes, not as many as its header says");
            return Err(NpzError::damaged(path, reason));
        }
        Ok(Some(member))
    }

    /// Bytes of a number.
    fn width(&self) -> Result<u64, NpzError> {
        match self.dtype.as_str() {
            "|u1" | "|i1" | "|b1" => Ok(1),
            dtype => match dtype.strip_prefix('<').and_then(|dtype| dtype.get(1..)) {
                Some("2") => Ok(2),
                Some("4") => Ok(4),
                Some("8") => Ok(8),
                _ => Err(self.unlike("little-endian numbers of 1, 2, 4 or 8 bytes".to_owned())),
            },
        }
    }

    /// The error of an array that is not as needed.
    pub fn unlike(&self, needed: String) -> NpzError {
        NpzError::Array {
            path: self.path.clone(),
            name: self.name.clone(),
            found: format!("{} {:?}", self.dtype, self.shape),
            needed,
        }
    }

    /// The next bytes, as many as the buffer takes.
    pub fn read_bytes(&mut self, buffer: &mut [u8]) -> Result<(), NpzError> {
        self.fill(buffer).map_err(NpzError::reading(&self.path))
    }

    fn fill(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        self.reader.read_exact(buffer)?;
        self.checksum.update(buffer);
        Ok(())
    }

    /// Call after the last byte: is the content what was written?
    pub fn check(&mut self) -> Result<(), NpzError> {
        let found = self.checksum.clone().finalize();
        if found != self.expected {
            let reason = format!(
                "`{}` has checksum {found:08x}, the archive says {:08x}",
                self.name, self.expected
            );
            return Err(NpzError::damaged(&self.path, reason));
        }
        Ok(())
    }

    /// All numbers of an array of floats.
    pub fn floats(mut self) -> Result<(Vec<usize>, Vec<f64>), NpzError> {
        let count: usize = self.shape.iter().product();
        let values = match self.dtype.as_str() {
            "<f4" => self.numbers(count, |b| f64::from(f32::from_le_bytes(b)))?,
            "<f8" => self.numbers(count, f64::from_le_bytes)?,
            "<i8" => self.numbers(count, |b| i64::from_le_bytes(b) as f64)?,
            _ => return Err(self.unlike("float32 or float64".to_owned())),
        };
        self.check()?;
        Ok((self.shape, values))
    }

    fn numbers<const N: usize>(
        &mut self,
        count: usize,
        read: impl Fn([u8; N]) -> f64,
    ) -> Result<Vec<f64>, NpzError> {
        // A piece at a time: a header that lies about its size must not take all memory.
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

/// Counts what the header takes.
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
