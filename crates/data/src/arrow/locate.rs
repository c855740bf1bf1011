//! Locates the columns of a record batch in its body.
//!
//! The header of a record batch lists its arrays and its buffers in the order of the schema's
//! columns, depth first. The number of arrays and buffers of a column depends only on its type.

use std::path::Path;

use arrow_ipc::RecordBatch;
use arrow_schema::{DataType, Field, Schema};

use super::cells::{BinaryColumn, IntegerColumn, RowGroup, Span};
use super::columns::Columns;
use super::malformed::malformed;
use crate::error::DataError;

/// Iterates over the arrays and buffers of a record batch, column by column.
pub(super) struct ColumnLocator<'a> {
    path: &'a Path,
    body: Span,
    rows: u64,
    /// Length and number of nulls of each array, depth first.
    nodes: Box<dyn Iterator<Item = (i64, i64)> + 'a>,
    /// Offset in the body and length of each buffer, depth first.
    buffers: Box<dyn Iterator<Item = (i64, i64)> + 'a>,
    /// Number of data buffers of each view column.
    views: Box<dyn Iterator<Item = i64> + 'a>,
}

impl<'a> ColumnLocator<'a> {
    pub(super) fn new(
        path: &'a Path,
        batch: &RecordBatch<'a>,
        body: Span,
    ) -> Result<Self, DataError> {
        let malformed = |problem: &str| malformed(path, problem.to_owned());
        if batch.compression().is_some() {
            return Err(DataError::Malformed {
                path: path.to_path_buf(),
                problem: "its record batches are compressed, which is not supported".to_owned(),
                fix: "write it without compression, as `save_to_disk` does",
            });
        }
        let rows = u64::try_from(batch.length());
        let nodes = batch
            .nodes()
            .ok_or_else(|| malformed("a record batch has no arrays"))?;
        let buffers = batch
            .buffers()
            .ok_or_else(|| malformed("a record batch has no buffers"))?;
        let views = batch.variadicBufferCounts();
        Ok(Self {
            path,
            body,
            rows: rows.map_err(|_| malformed("a record batch has a negative length"))?,
            nodes: Box::new(nodes.iter().map(|node| (node.length(), node.null_count()))),
            buffers: Box::new(
                buffers
                    .iter()
                    .map(|buffer| (buffer.offset(), buffer.length())),
            ),
            views: Box::new(views.into_iter().flatten()),
        })
    }

    /// Locates the requested columns.
    pub(super) fn locate(
        mut self,
        schema: &Schema,
        columns: &Columns,
    ) -> Result<RowGroup, DataError> {
        let (mut images, mut labels) = (None, None);
        for field in schema.fields() {
            if *field.name() == columns.image {
                images = Some(self.images(field)?);
            } else if columns.label.as_ref() == Some(field.name()) {
                labels = Some(self.integers(field.data_type())?);
            } else {
                self.skip(field)?;
            }
        }
        let images = images.ok_or_else(|| self.malformed("a record batch has no images"))?;
        Ok(RowGroup {
            len: self.rows,
            images,
            labels,
        })
    }

    fn images(&mut self, field: &Field) -> Result<BinaryColumn, DataError> {
        let DataType::Struct(children) = field.data_type() else {
            return self.binary((None, 0), field.data_type());
        };
        let outer = self.validity()?;
        let mut bytes = None;
        for child in children {
            if child.name() == "bytes" {
                bytes = Some(self.binary(outer, child.data_type())?);
            } else {
                self.skip(child)?;
            }
        }
        bytes.ok_or_else(|| self.malformed("a record batch has no images"))
    }

    /// Locates a binary array. The first argument has the validity bitmap and the number of nulls of the enclosing
    /// struct.
    fn binary(
        &mut self,
        (outer, outer_nulls): (Option<Span>, u64),
        kind: &DataType,
    ) -> Result<BinaryColumn, DataError> {
        let wide = *kind == DataType::LargeBinary;
        let (inner, inner_nulls) = self.validity()?;
        let offsets_len = (self.rows + 1).saturating_mul(if wide { 8 } else { 4 });
        let needed = if self.rows == 0 { 0 } else { offsets_len };
        Ok(BinaryColumn {
            // The bytes of a null struct may or may not be counted as null as well.
            nulls: outer_nulls.max(inner_nulls),
            valid: [outer, inner],
            offsets: self.buffer(needed)?,
            wide,
            values: self.buffer(0)?,
        })
    }

    fn integers(&mut self, kind: &DataType) -> Result<IntegerColumn, DataError> {
        let bytes = kind.primitive_width().unwrap_or(8) as u64;
        let (valid, _) = self.validity()?;
        let values = self.buffer(self.rows.saturating_mul(bytes))?;
        Ok(IntegerColumn {
            valid,
            values,
            bytes,
            signed: kind.is_signed_integer(),
        })
    }

    /// Skips a column that was not requested.
    fn skip(&mut self, field: &Field) -> Result<(), DataError> {
        let buffers = match field.data_type() {
            DataType::Null | DataType::RunEndEncoded(..) => 0,
            DataType::Struct(_) | DataType::FixedSizeList(..) => 1,
            DataType::Binary | DataType::LargeBinary | DataType::Utf8 | DataType::LargeUtf8 => 3,
            DataType::ListView(_) | DataType::LargeListView(_) => 3,
            DataType::BinaryView | DataType::Utf8View => 2 + self.views.next().unwrap_or(0),
            kind @ DataType::Union(..) => {
                return Err(DataError::Malformed {
                    path: self.path.to_path_buf(),
                    problem: format!(
                        "column `{}` has type {kind}, which is not supported",
                        field.name()
                    ),
                    fix: "remove the column before `save_to_disk`",
                });
            }
            // Fixed-width types, lists (their values are a child array) and dictionaries (their values are
            // in other messages) have a validity bitmap and one more buffer.
            _ => 2,
        };
        self.nodes.next();
        for _ in 0..buffers {
            self.buffers.next();
        }
        match field.data_type() {
            DataType::Struct(children) => children.iter().try_for_each(|child| self.skip(child)),
            DataType::RunEndEncoded(ends, values) => {
                self.skip(ends)?;
                self.skip(values)
            }
            DataType::List(child)
            | DataType::LargeList(child)
            | DataType::ListView(child)
            | DataType::LargeListView(child)
            | DataType::FixedSizeList(child, _)
            | DataType::Map(child, _) => self.skip(child),
            _ => Ok(()),
        }
    }

    /// Begins an array of a requested column. Returns its validity bitmap, if it has nulls, and the number of nulls.
    fn validity(&mut self) -> Result<(Option<Span>, u64), DataError> {
        let (length, nulls) = self
            .nodes
            .next()
            .ok_or_else(|| self.malformed("a record batch lacks an array"))?;
        if u64::try_from(length) != Ok(self.rows) {
            return Err(self.malformed("a column is not as long as its record batch"));
        }
        let nulls = u64::try_from(nulls).unwrap_or(0).min(self.rows);
        let needed = if nulls > 0 { self.rows.div_ceil(8) } else { 0 };
        let bitmap = self.buffer(needed)?;
        Ok(((nulls > 0).then_some(bitmap), nulls))
    }

    /// The next buffer, which must have at least `needed` bytes.
    fn buffer(&mut self, needed: u64) -> Result<Span, DataError> {
        let (offset, length) = self
            .buffers
            .next()
            .ok_or_else(|| self.malformed("a record batch lacks a buffer"))?;
        match (u64::try_from(offset), u64::try_from(length)) {
            (Ok(offset), Ok(len))
                if offset.saturating_add(len) <= self.body.len && len >= needed =>
            {
                Ok(Span {
                    start: self.body.start + offset,
                    len,
                })
            }
            _ => Err(self.malformed("a record batch has a buffer outside of its body")),
        }
    }

    fn malformed(&self, problem: &str) -> DataError {
        malformed(self.path, problem.to_owned())
    }
}
