//! Detects files of an unexpected kind, such as Git LFS pointers and HTML pages in place of data.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Number of leading bytes that are enough to detect the kind of a file.
const FIRST_BYTES: u64 = 512;

/// As [`describe_foreign`], for the file at `path`. Also returns `None` if the file cannot be read; its actual reader
/// reports that error.
pub fn describe_foreign_file(path: &Path) -> Option<&'static str> {
    let mut bytes = Vec::new();
    let file = File::open(path).ok()?;
    file.take(FIRST_BYTES).read_to_end(&mut bytes).ok()?;
    describe_foreign(&bytes)
}

/// Reads a text file.
///
/// # Errors
/// The file cannot be read, or is not text in UTF-8. In the latter case the error names the kind of the file if it is
/// known.
pub fn read_text(path: &Path) -> io::Result<String> {
    let bytes = std::fs::read(path)?;
    let invalid = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
    if let Some(what) = describe_foreign(&bytes) {
        return Err(invalid(format!("the file is {what}")));
    }
    String::from_utf8(bytes)
        .map_err(|_| invalid("the file is not text in UTF-8 (save it as UTF-8)".to_owned()))
}

/// Detects from its first bytes whether a file is of a kind that often replaces the expected file by mistake: a Git LFS
/// pointer, an HTML page, or text in UTF-16 or UTF-32. Returns a noun phrase for an error message, which includes how
/// to fix it.
///
/// Returns `None` for everything else, which the reader of the expected format has to check.
pub fn describe_foreign(first_bytes: &[u8]) -> Option<&'static str> {
    let text = first_bytes.trim_ascii_start();
    let starts = |prefix: &[u8]| {
        text.get(..prefix.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(prefix))
    };
    if first_bytes.starts_with(b"version https://git-lfs.github.com/spec/")
        || first_bytes.starts_with(b"version https://hawser.github.com/spec/")
    {
        return Some(
            "a Git LFS pointer, not the file that it refers to (`git lfs pull` downloads the file)",
        );
    }
    if starts(b"<!doctype html") || starts(b"<html") {
        return Some("an HTML page, not the expected file (download the file again)");
    }
    match first_bytes {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => {
            Some("text in UTF-32 (save it as UTF-8)")
        }
        // Without a byte order mark, UTF-16 is recognised by a zero byte beside each ASCII character.
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Some("text in UTF-16 (save it as UTF-8)"),
        [0, a, 0, b, ..] | [a, 0, b, 0, ..] if is_text(*a) && is_text(*b) => {
            Some("text in UTF-16 (save it as UTF-8)")
        }
        _ => None,
    }
}

fn is_text(byte: u8) -> bool {
    matches!(byte, b' '..=b'~' | b'\t' | b'\n' | b'\r')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_files_are_described_and_others_are_not() {
        let of = |bytes: &[u8]| describe_foreign(bytes).unwrap_or("nothing").to_owned();
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n";
        assert!(of(pointer).contains("Git LFS pointer"));
        assert!(of(b"\n<!DOCTYPE html><p>404").contains("HTML"));
        let utf16 = |bytes: fn(u16) -> [u8; 2]| -> Vec<u8> {
            "{\"a\": 1}".encode_utf16().flat_map(bytes).collect()
        };
        for text in [utf16(u16::to_le_bytes), utf16(u16::to_be_bytes)] {
            assert!(of(&text).contains("UTF-16"));
        }
        assert!(of(b"\xff\xfe{\0").contains("UTF-16"));
        for own in [
            &b"{}"[..],
            b"",
            b"\x89PNG\r\n\x1a\n",
            b"\xff\xd8\xff\xe0\0\x10JF",
            &[0; 16],
        ] {
            assert_eq!(describe_foreign(own), None, "{own:?}");
        }
    }
}
