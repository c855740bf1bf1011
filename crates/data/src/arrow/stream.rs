//! Indexes an Arrow IPC stream by the headers of its messages.
//!
//! A stream is a schema message, then dictionary and record batches, then an end marker. Each
//! message is `0xFFFFFFFF`, the length of its header (4 bytes LE), the header (a flatbuffer), and a
//! body, which is not read here; see "Serialization and Interprocess Communication" in the Arrow
//! columnar format.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use arrow_ipc::{Endianness, Message, MessageHeader};

use super::cells::{RowGroup, Span, to_int};
use super::columns::{Columns, check_columns};
use super::locate::ColumnLocator;
use super::malformed::{COPY_AGAIN, malformed};
use crate::error::DataError;
use crate::formats::HEAD;

/// Indexes a file. Returns its size and its non-empty record batches.
pub(super) fn index(
    path: &Path,
    file: &File,
    columns: &Columns,
) -> Result<(u64, Vec<RowGroup>), DataError> {
    let size = file
        .metadata()
        .map_err(DataError::io(path, "read the size"))?
        .len();
    let mut messages = Messages {
        path,
        file,
        size,
        position: 0,
    };
    let malformed = |problem: String| malformed(path, problem);

    let mut schema = None;
    let mut groups = Vec::new();
    while let Some((header, body)) = messages.next()? {
        let message = arrow_ipc::root_as_message(&header)
            .map_err(|error| malformed(format!("a message header is not valid: {error}")))?;
        let body = messages.skip_body(body, &message)?;
        match (message.header_type(), &schema) {
            (MessageHeader::Schema, None) => {
                let read = message
                    .header_as_schema()
                    .ok_or_else(|| malformed("its schema is empty".to_owned()))?;
                if read.endianness() == Endianness::Big {
                    return Err(malformed(
                        "its numbers are big-endian, which is not supported".to_owned(),
                    ));
                }
                let read = arrow_ipc::convert::try_fb_to_schema(read)
                    .map_err(|error| malformed(format!("its schema cannot be read: {error}")))?;
                check_columns(path, &read, columns)?;
                schema = Some(read);
            }
            (MessageHeader::RecordBatch, Some(schema)) => {
                let batch = message
                    .header_as_record_batch()
                    .ok_or_else(|| malformed("a record batch is empty".to_owned()))?;
                let group = ColumnLocator::new(path, &batch, body)?.locate(schema, columns)?;
                if group.len > 0 {
                    groups.push(group);
                }
            }
            (MessageHeader::DictionaryBatch, Some(_)) => {}
            (kind, _) => {
                let kind = kind.variant_name().unwrap_or("unknown");
                return Err(malformed(format!("unexpected message `{kind}`")));
            }
        }
    }
    match schema {
        Some(_) => Ok((size, groups)),
        None => Err(malformed("it has no schema".to_owned())),
    }
}

/// The first bytes of a file; fewer, or none, if they cannot be read.
fn prefix_of(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; HEAD];
    let read = file.read_at(&mut bytes, 0).unwrap_or(0);
    bytes.truncate(read);
    bytes
}

/// Reads the messages of a stream in order.
struct Messages<'a> {
    path: &'a Path,
    file: &'a File,
    size: u64,
    position: u64,
}

impl Messages<'_> {
    /// Reads the header of the next message. Returns it with the position of the body, or `None` at the end marker.
    fn next(&mut self) -> Result<Option<(Vec<u8>, u64)>, DataError> {
        const CONTINUATION: [u8; 4] = [0xff; 4];
        let prefix = self.read(8)?;
        let (marker, length) = prefix.split_at(4);
        if marker != CONTINUATION {
            let foreign = match self.position {
                8 => ::files::describe_foreign(&prefix_of(self.file)),
                _ => None,
            };
            if let Some(what) = foreign {
                return Err(DataError::Malformed {
                    path: self.path.to_path_buf(),
                    problem: format!("this is {what}"),
                    fix: "replace it with the Arrow file",
                });
            }
            let (problem, fix) = match self.position {
                8 if prefix.starts_with(b"ARROW1") => (
                    "this is an Arrow IPC file, not a stream",
                    "write the data set with `save_to_disk`",
                ),
                8 => (
                    "this is not an Arrow IPC stream",
                    "write the data set with `save_to_disk`",
                ),
                _ => (
                    "a message does not start with the marker FFFFFFFF",
                    COPY_AGAIN,
                ),
            };
            let path = self.path.to_path_buf();
            return Err(DataError::Malformed {
                path,
                problem: problem.to_owned(),
                fix,
            });
        }
        match u64::try_from(to_int(length, true)) {
            Ok(0) => Ok(None),
            Ok(length) => Ok(Some((self.read(length)?, self.position))),
            Err(_) => Err(malformed(
                self.path,
                "a message has a negative length".to_owned(),
            )),
        }
    }

    /// Skips the body of the message whose header was just read.
    fn skip_body(&mut self, start: u64, message: &Message) -> Result<Span, DataError> {
        let len = u64::try_from(message.bodyLength())
            .map_err(|_| malformed(self.path, "a message has a negative length".to_owned()))?;
        self.position = self.end_of(len)?;
        Ok(Span { start, len })
    }

    fn read(&mut self, len: u64) -> Result<Vec<u8>, DataError> {
        let end = self.end_of(len)?;
        let mut bytes = vec![0; len as usize];
        self.file
            .read_exact_at(&mut bytes, self.position)
            .map_err(DataError::io(self.path, "read the Arrow file"))?;
        self.position = end;
        Ok(bytes)
    }

    /// The position after `len` more bytes; an error if the file is shorter.
    fn end_of(&self, len: u64) -> Result<u64, DataError> {
        let end = self.position.saturating_add(len);
        if end > self.size {
            let path = self.path.to_path_buf();
            return Err(DataError::Truncated {
                path,
                needed: end,
                found: self.size,
            });
        }
        Ok(end)
    }
}
