//! What can be wrong with the coded data of a JPEG.

/// What is wrong with the coded data of a JPEG.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The data ends before the last block.
    Truncated,
    /// The data has a code that is in no table.
    BadCode,
    /// A segment is invalid or missing.
    BadSegment,
    /// Some coefficients lack some or all of their bits, because the last scans are missing.
    MissingScan,
    /// The data is complete, but the end marker is missing.
    Unterminated,
}

impl Fault {
    /// The description for an error message.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Fault::Truncated => "the JPEG is truncated: its coded data ends before the last pixel",
            Fault::BadCode => "the JPEG is damaged: its coded data has an undefined Huffman code",
            Fault::BadSegment => "the JPEG is damaged: a header segment is invalid",
            Fault::MissingScan => "the JPEG is truncated: its last scans are missing",
            Fault::Unterminated => "the JPEG is truncated: its end marker is missing",
        }
    }
}
