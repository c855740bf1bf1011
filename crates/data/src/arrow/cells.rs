//! Reads single values of a column from an Arrow file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// A range of bytes in the file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    pub start: u64,
    pub len: u64,
}

/// A column of encoded images: image `i` is `values[offsets[i]..offsets[i + 1]]`.
#[derive(Debug)]
pub(super) struct BinaryColumn {
    /// Number of null images.
    pub nulls: u64,
    /// Validity bitmaps of the struct and of its `bytes` field; `None` if no value is null.
    pub valid: [Option<Span>; 2],
    pub offsets: Span,
    /// Whether offsets have 8 bytes instead of 4.
    pub wide: bool,
    pub values: Span,
}

/// A column of labels.
#[derive(Debug)]
pub(super) struct IntegerColumn {
    /// Validity bitmap; `None` if no value is null.
    pub valid: Option<Span>,
    pub values: Span,
    /// Bytes per label, 1 to 8.
    pub bytes: u64,
    pub signed: bool,
}

/// The indexed columns of one record batch.
#[derive(Debug)]
pub(super) struct RowGroup {
    /// Number of rows.
    pub len: u64,
    pub images: BinaryColumn,
    pub labels: Option<IntegerColumn>,
}

/// Why a value cannot be read.
pub(super) enum ReadError {
    Io(io::Error),
    /// The value is null, or the file is damaged.
    Corrupt(String),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        ReadError::Io(error)
    }
}

impl RowGroup {
    /// Reads the encoded image of a row below `len`.
    pub(super) fn image(&self, file: &File, row: u64) -> Result<Vec<u8>, ReadError> {
        self.image_head(file, row, usize::MAX)
    }

    /// Reads at most the first `limit` bytes of the encoded image of a row below `len`.
    pub(super) fn image_head(
        &self,
        file: &File,
        row: u64,
        limit: usize,
    ) -> Result<Vec<u8>, ReadError> {
        let corrupt = |reason: &str| Err(ReadError::Corrupt(reason.to_owned()));
        for valid in self.images.valid.into_iter().flatten() {
            if !is_set(file, valid, row)? {
                return corrupt("the image is null (files outside of the data set are not read)");
            }
        }
        let width = if self.images.wide { 8 } else { 4 };
        let mut offsets = [0; 16];
        let offsets = &mut offsets[..2 * width];
        file.read_exact_at(offsets, self.images.offsets.start + row * width as u64)?;
        let (start, end) = offsets.split_at(width);
        let values = self.images.values;
        match (
            u64::try_from(to_int(start, true)),
            u64::try_from(to_int(end, true)),
        ) {
            (Ok(start), Ok(end)) if start <= end && end <= values.len => {
                // `end - start` is within the file, which bounds the allocation.
                let mut bytes = vec![0; limit.min((end - start) as usize)];
                file.read_exact_at(&mut bytes, values.start + start)?;
                Ok(bytes)
            }
            _ => corrupt("its offsets in the Arrow file are outside of the column"),
        }
    }

    /// Reads the label of a row below `len`; 0 if the data set has no labels.
    pub(super) fn label(&self, file: &File, row: u64) -> Result<i64, ReadError> {
        let Some(labels) = &self.labels else {
            return Ok(0);
        };
        if let Some(valid) = labels.valid
            && !is_set(file, valid, row)?
        {
            return Err(ReadError::Corrupt("the label is null".to_owned()));
        }
        let mut bytes = [0; 8];
        let bytes = &mut bytes[..labels.bytes as usize];
        file.read_exact_at(bytes, labels.values.start + row * labels.bytes)?;
        Ok(to_int(bytes, labels.signed))
    }

    /// Reads all labels; a null label is `None`. The result is empty if the data set has no labels.
    pub(super) fn labels(&self, file: &File) -> io::Result<Vec<Option<i64>>> {
        let Some(labels) = &self.labels else {
            return Ok(Vec::new());
        };
        let mut bytes = vec![0; (self.len * labels.bytes) as usize];
        file.read_exact_at(&mut bytes, labels.values.start)?;
        let valid = match labels.valid {
            Some(valid) => {
                let mut bitmap = vec![0; self.len.div_ceil(8) as usize];
                file.read_exact_at(&mut bitmap, valid.start)?;
                Some(bitmap)
            }
            None => None,
        };
        let values = bytes.chunks_exact(labels.bytes as usize);
        Ok(values
            .enumerate()
            .map(|(row, bytes)| {
                let set = |bitmap: &Vec<u8>| bitmap[row / 8] >> (row % 8) & 1 == 1;
                let valid = valid.as_ref().is_none_or(set);
                valid.then(|| to_int(bytes, labels.signed))
            })
            .collect())
    }
}

fn is_set(file: &File, bitmap: Span, row: u64) -> io::Result<bool> {
    let mut byte = [0];
    file.read_exact_at(&mut byte, bitmap.start + row / 8)?;
    Ok(byte[0] >> (row % 8) & 1 == 1)
}

/// Decodes a little-endian integer of 1 to 8 bytes. A `u64` above `i64::MAX` becomes negative.
pub(super) fn to_int(bytes: &[u8], signed: bool) -> i64 {
    let value = bytes
        .iter()
        .rev()
        .fold(0_i64, |value, &byte| (value << 8) | i64::from(byte));
    let unused = 64 - 8 * bytes.len() as u32;
    if signed {
        (value << unused) >> unused
    } else {
        value
    }
}
