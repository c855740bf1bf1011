//! Reads parts of a file that several threads share.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// A reader with a position of its own, unlike clones of a [`File`]. It reads a window ahead, which seeks within the
/// window keep.
#[derive(Debug)]
pub(crate) struct PositionedReader {
    file: Arc<File>,
    position: u64,
    window: Vec<u8>,
    window_start: u64,
    window_size: usize,
}

impl PositionedReader {
    pub(crate) fn new(file: Arc<File>, position: u64, window_size: usize) -> Self {
        Self {
            file,
            position,
            window: Vec::new(),
            window_start: position,
            window_size,
        }
    }

    /// The part of the window from the current position on.
    fn buffered(&self) -> &[u8] {
        let start = self.position.checked_sub(self.window_start);
        let start = start.and_then(|start| usize::try_from(start).ok());
        start
            .and_then(|start| self.window.get(start..))
            .unwrap_or_default()
    }
}

impl Read for PositionedReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.buffered().is_empty() {
            self.window.resize(self.window_size, 0);
            self.window_start = self.position;
            let read = self.file.read_at(&mut self.window, self.position);
            self.window.truncate(*read.as_ref().unwrap_or(&0));
            read?;
        }
        let available = self.buffered();
        let len = available.len().min(into.len());
        into[..len].copy_from_slice(&available[..len]);
        self.position += len as u64;
        Ok(len)
    }
}

impl Seek for PositionedReader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
            SeekFrom::End(offset) => self.file.metadata()?.len().checked_add_signed(offset),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_seeks_equal_those_of_a_cursor() {
        let bytes: Vec<u8> = (0..=255).collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        let opened = Arc::new(File::open(file.path()).unwrap());
        let mut reader = PositionedReader::new(opened, 0, 10);
        let mut cursor = io::Cursor::new(bytes);
        let moves = [
            SeekFrom::Start(3),
            SeekFrom::Current(2),
            SeekFrom::Current(-8),
            SeekFrom::Start(200),
            SeekFrom::End(-2),
            SeekFrom::Start(300),
        ];
        for to in moves {
            assert_eq!(reader.seek(to).unwrap(), cursor.seek(to).unwrap());
            let (mut read, mut expected) = (Vec::new(), Vec::new());
            reader.by_ref().take(7).read_to_end(&mut read).unwrap();
            cursor.by_ref().take(7).read_to_end(&mut expected).unwrap();
            assert_eq!(read, expected);
        }
        assert!(reader.seek(SeekFrom::Current(-1000)).is_err());
    }
}
