//! Finds the markers of a JPEG and their segments.

/// Finds the next marker at or after `position`, and skips all other bytes. Returns the code of the marker and the
/// position after it, where its segment starts.
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

/// The payload of the segment at `start`, which begins with its length.
pub(crate) fn segment(bytes: &[u8], start: usize) -> Option<&[u8]> {
    let length = bytes.get(start..start + 2)?;
    let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
    bytes.get(start + 2..start + length)
}
