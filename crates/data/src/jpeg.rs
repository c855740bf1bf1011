//! Checks that the coded data of a JPEG is complete.
//!
//! The decoder silently fills missing blocks with grey. [`check_complete`] reads the Huffman codes without
//! computing pixels, and counts blocks:
//!
//! - A file is corrupt if the data of a scan ends before its last block, either at the end of the file or at a
//!   marker (an end marker that some tools append to a truncated file, or a restart marker that comes too early).
//!   It is also corrupt if it has a code that is in no table, or if it ends before the last scan: every bit of every
//!   coefficient must be present.
//! - A file with complete data that lacks its end marker is accepted or refused as in Pillow; see
//!   [`unterminated`].
//!
//! As in Pillow, bytes after the end marker, fill bytes before a marker and data after the last block are ignored.
//!
//! Source: ITU-T T.81, sections F.2 and G.2; libjpeg-turbo's `jdhuff.c` and `jdphuff.c`.

mod bits;
mod fault;
mod frame;
mod marker;
mod scan;
mod unterminated;

use self::fault::Fault;
use self::frame::{Component, Frame, Scan, Tables};
pub(crate) use self::marker::{next_marker, segment};

const SOI: u8 = 0xd8;
const EOI: u8 = 0xd9;
const SOS: u8 = 0xda;
const DHT: u8 = 0xc4;
const DRI: u8 = 0xdd;

/// The bytes of the end marker.
pub(crate) const END: [u8; 2] = [0xff, EOI];

/// Checks that every scan has all of its blocks, and that Pillow accepts the end of the file.
///
/// If one sequential scan has all pixels and no end marker follows its coded data directly, returns the end of that
/// data. The caller then decodes the bytes up to there with an end marker appended, because the decoder fails on some
/// other bytes at that position.
///
/// Kinds of JPEG that the decoder does not support (lossless, arithmetic coding) pass this check; the decoder
/// reports them.
pub(crate) fn check_complete(bytes: &[u8]) -> Result<Option<usize>, Fault> {
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
        let segment = segment(bytes, start).ok_or(Fault::Truncated)?;
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
                let end = scan::check(bytes, position, frame, &tables, &scan)?;
                if !frame.progressive && scan.components.len() == frame.components.len() {
                    // This scan has all pixels, and Pillow does not read beyond the last one.
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
    let frame = frame.ok_or(Fault::Truncated)?;
    let all = |test: fn(&Component) -> bool| frame.components.iter().all(test);
    match (all(Component::complete), terminated) {
        (true, true) => Ok(None),
        // If there are several scans, Pillow reads up to the end marker before it returns the first pixel.
        (true, false) => Err(Fault::Unterminated),
        (false, true) if all(Component::begun) => Err(Fault::MissingScan),
        (false, _) => Err(Fault::Truncated),
    }
}

/// Whether the file ends within a few bytes after `position`, without another marker.
fn ends_without_marker(bytes: &[u8], position: usize) -> bool {
    // Larger than the bit buffer of any decoder.
    const MAX_REST: usize = 16;
    let rest = bytes.get(position..).unwrap_or_default();
    rest.len() < MAX_REST && next_marker(bytes, position).is_none()
}
