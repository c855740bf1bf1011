//! Determines whether Pillow decodes a JPEG with complete data but without an end marker.
//!
//! Pillow passes the file to libjpeg-turbo in blocks of 65,536 bytes. libjpeg refills a buffer of 64 bits whenever a
//! code may need more bits than the buffer has. If the file ends before the buffer is full, libjpeg waits for more
//! bytes and Pillow raises "image file is truncated", even if the buffered bits would have been enough. Whether Pillow
//! accepts such a file therefore depends on the fill level of the buffer at the start of the last code. This module
//! simulates that buffer.
//!
//! Source: libjpeg-turbo 3.1 `jdhuff.c` (`decode_mcu`, `decode_mcu_fast`, `decode_mcu_slow`, `jpeg_fill_bit_buffer`,
//! `jpeg_huff_decode`); Pillow 11.3 `ImageFile.load`.

use super::bits::Table;
use super::frame::{Frame, Scan, Tables};
use super::marker::next_marker;
use super::scan::mcus;

/// Number of bytes that Pillow reads at once.
const BLOCK: usize = 65_536;
/// Number of available bytes per block of coefficients from which libjpeg uses its fast path.
const FAST_BYTES: usize = 512;

/// Whether Pillow decodes the last pixel of a sequential file with one scan, whose coded data starts at `start`.
pub(super) fn pillow_decodes(
    bytes: &[u8],
    start: usize,
    frame: &Frame,
    tables: &Tables,
    scan: &Scan,
) -> bool {
    decode(bytes, start, frame, tables, scan).is_some()
}

fn decode(bytes: &[u8], start: usize, frame: &Frame, tables: &Tables, scan: &Scan) -> Option<()> {
    let alone = scan.components.len() == 1;
    let mut blocks = Vec::new();
    for part in &scan.components {
        let (dc, ac) = (tables.dc[part.dc].as_ref()?, tables.ac[part.ac].as_ref()?);
        let (wide, high) = match alone {
            true => (1, 1),
            false => frame.components[part.index].sampling,
        };
        blocks.extend((0..wide * high).map(|_| (dc, ac)));
    }
    let (across, down) = mcus(frame, scan);
    let count = u64::from(across) * u64::from(down);
    let interval = u64::from(tables.restart_interval);
    let mut end = (start / BLOCK + 1).saturating_mul(BLOCK).min(bytes.len());
    let mut buffer = Buffer {
        position: start,
        bits: 0,
        left: 0,
        at_marker: false,
    };
    for mcu in 0..count {
        if interval > 0 && mcu > 0 && mcu % interval == 0 {
            let (_, position) = next_marker(bytes, buffer.position)?;
            buffer = Buffer {
                position,
                bits: 0,
                left: 0,
                at_marker: false,
            };
        }
        // If bytes run out within an MCU, libjpeg decodes the MCU again after the next block is read.
        loop {
            let mut attempt = buffer;
            let loaded = bytes.get(..end)?;
            let available = end.saturating_sub(buffer.position);
            let fast = interval == 0 && !buffer.at_marker && available >= FAST_BYTES * blocks.len();
            let done = blocks
                .iter()
                .try_for_each(|(dc, ac)| attempt.block(loaded, dc, ac, fast));
            if done.is_some() {
                buffer = attempt;
                break;
            }
            if end == bytes.len() {
                return None;
            }
            end = (end + BLOCK).min(bytes.len());
        }
    }
    Some(())
}

/// The bit buffer of libjpeg.
#[derive(Clone, Copy)]
struct Buffer {
    position: usize,
    /// The lowest `left` bits are the content.
    bits: u64,
    left: u32,
    at_marker: bool,
}

impl Buffer {
    /// Decodes a block; `None` if libjpeg would wait for more bytes.
    fn block(&mut self, bytes: &[u8], dc: &Table, ac: &Table, fast: bool) -> Option<()> {
        self.symbol(bytes, dc, fast)?;
        let mut index = 1;
        while index < 64 {
            index += self.symbol(bytes, ac, fast)?;
        }
        Some(())
    }

    /// Decodes a code and its value. Returns the number of coefficients that it covers.
    fn symbol(&mut self, bytes: &[u8], table: &Table, fast: bool) -> Option<u32> {
        const LOOKAHEAD_BITS: u32 = 8;
        if fast {
            self.fill_fast(bytes);
        } else if self.left < LOOKAHEAD_BITS {
            self.fill(bytes)?;
        }
        // Identifies the code with bits that may not be in libjpeg's buffer yet.
        let mut ahead = *self;
        let _ = ahead.fill(bytes);
        let code = table.code(ahead.head()).ok()?;
        let (length, size) = (code.length(), code.bits() - code.length());
        if fast {
            self.left = self.left.checked_sub(length)?;
            if size > 0 {
                self.fill_fast(bytes);
            }
        } else {
            if length <= LOOKAHEAD_BITS {
                self.left = self.left.checked_sub(length)?;
            } else {
                // libjpeg reads one bit more than the lookahead at once, and the other bits one by one.
                self.take(bytes, LOOKAHEAD_BITS + 1)?;
                for _ in LOOKAHEAD_BITS + 1..length {
                    self.take(bytes, 1)?;
                }
            }
            if size > self.left {
                self.fill(bytes)?;
            }
        }
        self.left = self.left.checked_sub(size)?;
        Some(code.coefficients())
    }

    fn take(&mut self, bytes: &[u8], count: u32) -> Option<()> {
        if self.left < count {
            self.fill(bytes)?;
        }
        self.left = self.left.checked_sub(count)?;
        Some(())
    }

    /// The content, aligned to the most significant bit and followed by zeros.
    fn head(&self) -> u64 {
        match self.left {
            0 => 0,
            left => self.bits << (64 - left),
        }
    }

    fn push(&mut self, byte: u8) {
        self.bits = self.bits << 8 | u64::from(byte);
        self.left += 8;
    }

    /// Fills the buffer; `None` if the bytes end before it is full.
    fn fill(&mut self, bytes: &[u8]) -> Option<()> {
        while !self.at_marker && self.left < 57 {
            let (byte, next) = load(bytes, self.position)?;
            match byte {
                Some(byte) => {
                    self.push(byte);
                    self.position = next;
                }
                None => self.at_marker = true,
            }
        }
        Some(())
    }

    fn fill_fast(&mut self, bytes: &[u8]) {
        if self.left > 16 {
            return;
        }
        for _ in 0..6 {
            if let Some((Some(byte), next)) = load(bytes, self.position) {
                self.push(byte);
                self.position = next;
            }
        }
    }
}

/// Reads the data byte at `position`, or `None` for a marker. Also returns the position of the next byte. The result is
/// `None` if the bytes end before the data byte or the marker is complete.
fn load(bytes: &[u8], position: usize) -> Option<(Option<u8>, usize)> {
    let byte = *bytes.get(position)?;
    let mut next = position + 1;
    if byte != 0xff {
        return Some((Some(byte), next));
    }
    while *bytes.get(next)? == 0xff {
        next += 1;
    }
    match bytes.get(next)? {
        0 => Some((Some(0xff), next + 1)),
        _ => Some((None, position)),
    }
}
