//! The header of an array in numpy's `.npy` format, versions 1 to 3.

use std::io::{self, Read};

use serde::Deserialize;

/// Dtype, order and shape of an array.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Header {
    /// Dtype in numpy's notation, such as `|u1` or `<f8`.
    pub descr: String,
    /// Whether the first index changes fastest.
    pub fortran_order: bool,
    pub shape: Vec<usize>,
}

const MAGIC: &[u8; 6] = b"\x93NUMPY";

/// Headers of plain arrays have some 100 bytes. Only structured dtypes have longer ones, and are not supported.
const MAX_LENGTH: u32 = 1 << 16;

impl Header {
    /// Reads a header. The reader then stands at the first value of the array.
    pub fn read(reader: &mut impl Read) -> io::Result<Self> {
        let mut start = [0; 8];
        reader.read_exact(&mut start)?;
        let [magic @ .., major, _minor] = start;
        if &magic != MAGIC {
            return Err(invalid("not an array in numpy's .npy format".to_owned()));
        }
        let length = match major {
            1 => {
                let mut length = [0; 2];
                reader.read_exact(&mut length)?;
                u32::from(u16::from_le_bytes(length))
            }
            2 | 3 => {
                let mut length = [0; 4];
                reader.read_exact(&mut length)?;
                u32::from_le_bytes(length)
            }
            other => {
                return Err(invalid(format!(
                    "version {other} of the .npy format is unknown; supported: 1 to 3"
                )));
            }
        };
        if length > MAX_LENGTH {
            return Err(invalid(format!(
                "the header has an implausible size of {length} bytes"
            )));
        }
        let mut text = vec![0; length as usize];
        reader.read_exact(&mut text)?;
        let text = String::from_utf8_lossy(&text);
        let header = serde_json::from_str(&json(&text));
        header.map_err(|_| {
            invalid(format!(
                "the header `{}` is not that of an array of numbers",
                text.trim()
            ))
        })
    }
}

fn invalid(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

/// Translates the Python literal of a header, a dictionary of strings, booleans and tuples, to JSON.
fn json(literal: &str) -> String {
    let compact: String = literal.chars().filter(|c| !c.is_whitespace()).collect();
    [
        ("'", "\""),
        ("False", "false"),
        ("True", "true"),
        ("(", "["),
        (")", "]"),
        (",]", "]"),
        (",}", "}"),
    ]
    .iter()
    .fold(compact, |text, (python, json)| text.replace(python, json))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(version: u8, literal: &str) -> Vec<u8> {
        let mut file = [MAGIC.as_slice(), &[version, 0]].concat();
        match version {
            1 => file.extend((literal.len() as u16).to_le_bytes()),
            _ => file.extend((literal.len() as u32).to_le_bytes()),
        }
        file.extend(literal.as_bytes());
        file
    }

    #[test]
    fn headers_of_all_versions_are_read() {
        let literal = "{'descr': '<f8', 'fortran_order': True, 'shape': (3, 4), }      \n";
        for version in 1..=3 {
            let file = [file(version, literal), vec![9]].concat();
            let mut reader = file.as_slice();
            let header = Header::read(&mut reader).unwrap();
            assert_eq!(
                header,
                Header {
                    descr: "<f8".to_owned(),
                    fortran_order: true,
                    shape: vec![3, 4]
                }
            );
            assert_eq!(reader, [9]);
        }
        for (shape, expected) in [("()", vec![]), ("(5,)", vec![5]), ("(2,3)", vec![2, 3])] {
            let literal = format!("{{'descr':'|u1','fortran_order':False,'shape':{shape}}}");
            let header = Header::read(&mut file(1, &literal).as_slice()).unwrap();
            assert_eq!(header.shape, expected);
        }
    }

    #[test]
    fn other_headers_are_refused() {
        let message = |file: &[u8]| Header::read(&mut &file[..]).unwrap_err().to_string();
        for literal in [
            "{'descr': [('x', '<f8')], 'fortran_order': False, 'shape': (3,), }",
            "{'descr': '<f8', 'fortran_order': False, 'shape': (-3,), }",
            "{'descr': '<f8', 'fortran_order': False}",
            "{'descr': '<f8', 'fortran_order': False, 'shape': (3,), 'more': 1}",
            "rubbish",
            "",
        ] {
            let message = message(&file(1, literal));
            assert!(
                message.contains("not that of an array of numbers"),
                "{message}"
            );
        }
        assert!(message(&file(4, "{}")).contains("version 4"));
        assert!(message(b"\x92NUMPY\x01\x00\x00\x00").contains("numpy's .npy format"));
        let long = [MAGIC.as_slice(), &[2, 0, 255, 255, 255, 255]].concat();
        assert!(message(&long).contains("implausible"));
        assert!(Header::read(&mut &MAGIC[..4]).is_err());
    }
}
