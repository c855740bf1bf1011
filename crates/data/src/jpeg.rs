//! Whether a JPEG's coded data is all there.
//!
//! The decoder fills what is missing with grey and says nothing. [`check_whole`] goes through the Huffman codes
//! without computing a pixel and counts blocks, so that it knows what the file must hold:
//!
//! - data that ends before the last block of a scan (at the end of the file, or at any marker: the end marker
//!   that some tools append to a file that was cut, a restart marker that comes too soon) is corrupt, and so is a
//!   code that no table has, or a file that ends before the last scan: all bits of all coefficients must be there;
//! - a file whose data is whole and that lacks its end marker is taken or refused as Pillow does; see
//!   [`unterminated`].
//!
//! What else a file may have is left alone, as Pillow leaves it: bytes after the end marker, fill bytes before a
//! marker, data after the last block.
//!
//! Source: ITU-T T.81, sections F.2 and G.2; libjpeg-turbo's `jdhuff.c` and `jdphuff.c`.

mod bits;
mod frame;
mod scan;
mod unterminated;

use self::frame::{Component, Frame, Scan, Tables};

const SOI: u8 = 0xd8;
const EOI: u8 = 0xd9;
const SOS: u8 = 0xda;
const DHT: u8 = 0xc4;
const DRI: u8 = 0xdd;

/// The end marker.
pub(crate) const END: [u8; 2] = [0xff, EOI];

/// What is wrong with the coded data of a JPEG.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The data ends before the last block.
    CutShort,
    /// A code that is in no table.
    BadCode,
    /// A segment between the scans is damaged.
    BadSegment,
    /// Coefficients without their last bits, or without any.
    MissingScan,
    /// The data is whole, and the end marker is missing.
    Unterminated,
}

impl Fault {
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Fault::CutShort => "the JPEG is cut short: its coded data ends before the last pixel",
            Fault::BadCode => "the JPEG's coded data is damaged: it has a code that no table has",
            Fault::BadSegment => "the JPEG is damaged: a segment of its header is not valid",
            Fault::MissingScan => "the JPEG is cut short: its last scans are missing",
            Fault::Unterminated => "the JPEG is cut short: its end marker is missing",
        }
    }
}

/// Checks that every scan holds all of its blocks, and that the file ends as Pillow wants it.
///
/// Returns the length of the part that has all pixels, if it is not followed by an end marker as it should be: the
/// decoder takes such a part with an end marker behind it, and stumbles over some things that may stand there
/// instead.
///
/// A kind of JPEG that the decoder does not read (lossless, arithmetic coding) passes: the decoder names it.
pub(crate) fn check_whole(bytes: &[u8]) -> Result<Option<usize>, Fault> {
    let mut tables = Tables::default();
    let mut frame: Option<Frame> = None;
    let mut position = 0;
    let mut terminated = false;
    while let Some((marker, start)) = next_marker(bytes, position) {
        position = start;
        match marker {
            EOI => {
                terminated = true;
                break;
            }
            SOI | 0x01 | 0xd0..=0xd7 => continue,
            _ => {}
        }
        let segment = segment(bytes, start).ok_or(Fault::CutShort)?;
        position = start + 2 + segment.len();
        match marker {
            DHT => tables.define(segment).ok_or(Fault::BadSegment)?,
            DRI => match *segment {
                [high, low, ..] => tables.restart_interval = u16::from_be_bytes([high, low]).into(),
                _ => return Err(Fault::BadSegment),
            },
            0xc0..=0xc2 => {
                let read = Frame::read(segment, marker == 0xc2).ok_or(Fault::BadSegment)?;
                frame = Some(read);
            }
            // Lossless, hierarchical, or arithmetic coding.
            0xc3..=0xcf if marker != 0xc8 && marker != 0xcc => return Ok(None),
            SOS => {
                let frame = frame.as_mut().ok_or(Fault::BadSegment)?;
                let scan = Scan::read(segment, frame).ok_or(Fault::BadSegment)?;
                let end = scan::walk(bytes, position, frame, &tables, &scan)?;
                if !frame.progressive && scan.components.len() == frame.components.len() {
                    // Pillow reads such a file no further than its pixels.
                    if ends_without_marker(bytes, end)
                        && !unterminated::pillow_decodes(bytes, position, frame, &tables, &scan)
                    {
                        return Err(Fault::Unterminated);
                    }
                    let ended = bytes.get(end..).is_some_and(|rest| rest.starts_with(&END));
                    return Ok((!ended).then_some(end));
                }
                position = end;
            }
            _ => {}
        }
    }
    let frame = frame.ok_or(Fault::CutShort)?;
    let all = |test: fn(&Component) -> bool| frame.components.iter().all(test);
    match (all(Component::complete), terminated) {
        (true, true) => Ok(None),
        // Pillow reads several scans to the end marker before the first pixel.
        (true, false) => Err(Fault::Unterminated),
        (false, true) if all(Component::begun) => Err(Fault::MissingScan),
        (false, _) => Err(Fault::CutShort),
    }
}

/// Whether the file ends within a few bytes, with no marker before.
fn ends_without_marker(bytes: &[u8], position: usize) -> bool {
    // More than any bit buffer holds.
    const NEAR: usize = 16;
    let rest = bytes.get(position..).unwrap_or_default();
    rest.len() < NEAR && next_marker(bytes, position).is_none()
}

/// The next marker's code at or after `position`, and where its segment starts. Passes over anything else.
pub(crate) fn next_marker(bytes: &[u8], position: usize) -> Option<(u8, usize)> {
    let mut position = position;
    loop {
        let rest = bytes.get(position..)?;
        position += rest.iter().position(|&byte| byte == 0xff)? + 1;
        while *bytes.get(position)? == 0xff {
            position += 1;
        }
        position += 1;
        match *bytes.get(position - 1)? {
            0 => {}
            marker => return Some((marker, position)),
        }
    }
}

/// The payload of the segment whose length stands at `start`.
pub(crate) fn segment(bytes: &[u8], start: usize) -> Option<&[u8]> {
    let length = bytes.get(start..start + 2)?;
    let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
    bytes.get(start + 2..start + length)
}
