//! Files that are something else than they should be.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// As many bytes of a file as tell what it is.
const FIRST_BYTES: u64 = 512;

/// [`describe_foreign`] of a file. `None` also where it cannot be read, which its reader will say.
pub fn foreign(path: &Path) -> Option<&'static str> {
    let mut bytes = Vec::new();
    let file = File::open(path).ok()?;
    file.take(FIRST_BYTES).read_to_end(&mut bytes).ok()?;
    describe_foreign(&bytes)
}

/// Reads a text file.
///
/// # Errors
/// The file cannot be read, or is not text in UTF-8; then the error says what it is.
pub fn read_text(path: &Path) -> io::Result<String> {
    let bytes = std::fs::read(path)?;
    let wrong = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
    if let Some(what) = describe_foreign(&bytes) {
        return Err(wrong(format!("the file is {what}")));
    }
    String::from_utf8(bytes)
        .map_err(|_| wrong("the file is not text in UTF-8 (save it as UTF-8)".to_owned()))
}

/// What a file is, by its first bytes, if it is a thing that often lies in place of another file: the noun phrase of a
/// sentence, with the way out.
///
/// `None` for anything that a reader of some format should judge itself.
pub fn describe_foreign(first_bytes: &[u8]) -> Option<&'static str> {
    let text = first_bytes.trim_ascii_start();
    let starts = |prefix: &[u8]| {
        text.get(..prefix.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(prefix))
    };
    if first_bytes.starts_with(b"version https://git-lfs.github.com/spec/")
        || first_bytes.starts_with(b"version https://hawser.github.com/spec/")
    {
        return Some("a Git LFS pointer, not the file that it stands for (`git lfs pull` gets it)");
    }
    if starts(b"<!doctype html") || starts(b"<html") {
        return Some("an HTML page, not the file that was to be downloaded (download it again)");
    }
    match first_bytes {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => {
            Some("text in UTF-32 (save it as UTF-8)")
        }
        // Without a byte order mark, ASCII characters have a zero beside them.
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
    fn what_lies_in_place_of_a_file_is_named() {
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
