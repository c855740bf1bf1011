//! Fields of protocol buffers.

/// Wire types of protocol buffers.
pub(super) const VARINT: u8 = 0;
pub(super) const FIXED64: u8 = 1;
pub(super) const BYTES: u8 = 2;
pub(super) const FIXED32: u8 = 5;

/// Appends the number and the wire type of a field.
pub(super) fn key(buffer: &mut Vec<u8>, field: u8, wire_type: u8) {
    // Fields up to 15 take one byte.
    buffer.push(field << 3 | wire_type);
}

/// Appends a number.
pub(super) fn varint(buffer: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        buffer.push(number as u8 | 0x80);
        number >>= 7;
    }
    buffer.push(number as u8);
}

/// Appends a field of bytes.
pub(super) fn bytes(buffer: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    key(buffer, field, BYTES);
    varint(buffer, bytes.len() as u64);
    buffer.extend_from_slice(bytes);
}

/// A field of a protocol buffer.
pub(super) enum Field<'a> {
    Number(u64),
    Four([u8; 4]),
    Eight,
    Bytes(&'a [u8]),
}

/// Iterates over the fields of a message with their numbers. If the message is malformed, the last item
/// is `None`.
pub(super) fn fields(mut message: &[u8]) -> impl Iterator<Item = Option<(u64, Field<'_>)>> {
    std::iter::from_fn(move || {
        if message.is_empty() {
            return None;
        }
        let field = next_field(&mut message);
        if field.is_none() {
            message = &[];
        }
        Some(field)
    })
}

fn next_field<'a>(message: &mut &'a [u8]) -> Option<(u64, Field<'a>)> {
    let key = read_varint(message)?;
    let field = match (key & 7) as u8 {
        VARINT => Field::Number(read_varint(message)?),
        FIXED64 => {
            let _double = message.split_off(..8)?;
            Field::Eight
        }
        BYTES => {
            let length = usize::try_from(read_varint(message)?).ok()?;
            Field::Bytes(message.split_off(..length)?)
        }
        FIXED32 => Field::Four(message.split_off(..4)?.try_into().ok()?),
        _ => return None,
    };
    Some((key >> 3, field))
}

fn read_varint(message: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = *message.split_off_first()?;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}
