//! Reading single cells from their place in an Arrow file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes of the file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    pub start: u64,
    pub len: u64,
}

/// Encoded images: image `i` is `values[offsets[i]..offsets[i + 1]]`.
#[derive(Debug)]
pub(super) struct Binary {
    /// How many are null.
    pub nulls: u64,
    /// Bitmaps of the values that are not null, of the struct and of its bytes.
    pub valid: [Option<Span>; 2],
    pub offsets: Span,
    /// Offsets have 8 bytes, not 4.
    pub wide: bool,
    pub values: Span,
}

/// Labels.
#[derive(Debug)]
pub(super) struct Integers {
    pub valid: Option<Span>,
    pub values: Span,
    /// Bytes of one label, 1 to 8.
    pub bytes: u64,
    pub signed: bool,
}

/// One record batch.
#[derive(Debug)]
pub(super) struct RowGroup {
    /// Number of rows.
    pub len: u64,
    pub images: Binary,
    pub labels: Option<Integers>,
}

/// Why a cell cannot be read.
pub(super) enum CellError {
    Io(io::Error),
    Broken(String),
}

impl From<io::Error> for CellError {
    fn from(error: io::Error) -> Self {
        CellError::Io(error)
    }
}

impl RowGroup {
    /// The encoded image of a row below `len`.
    pub(super) fn image(&self, file: &File, row: u64) -> Result<Vec<u8>, CellError> {
        self.image_head(file, row, usize::MAX)
    }

    /// The first `most` bytes of the encoded image of a row below `len`, or all if there are fewer.
    pub(super) fn image_head(
        &self,
        file: &File,
        row: u64,
        most: usize,
    ) -> Result<Vec<u8>, CellError> {
        let broken = |reason: &str| Err(CellError::Broken(reason.to_owned()));
        for valid in self.images.valid.into_iter().flatten() {
            if !is_set(file, valid, row)? {
                return broken("the image is null (a file outside of the data set is not read)");
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
                let mut bytes = vec![0; most.min((end - start) as usize)];
                file.read_exact_at(&mut bytes, values.start + start)?;
                Ok(bytes)
            }
            _ => broken("the Arrow file gives it a place outside of the column"),
        }
    }

    /// The label of a row below `len`; 0 if the data set has none.
    pub(super) fn label(&self, file: &File, row: u64) -> Result<i64, CellError> {
        let Some(labels) = &self.labels else {
            return Ok(0);
        };
        if let Some(valid) = labels.valid
            && !is_set(file, valid, row)?
        {
            return Err(CellError::Broken("the label is null".to_owned()));
        }
        let mut bytes = [0; 8];
        let bytes = &mut bytes[..labels.bytes as usize];
        file.read_exact_at(bytes, labels.values.start + row * labels.bytes)?;
        Ok(to_int(bytes, labels.signed))
    }

    /// All labels, `None` where one is null. None at all if the data set has no labels.
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

/// A little-endian integer of 1 to 8 bytes. A `u64` past `i64` becomes negative.
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
