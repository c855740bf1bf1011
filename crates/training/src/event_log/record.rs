//! TensorFlow's record files. Each record consists of its length (u64), a checksum of the length, the data, and a checksum
//! of that. Checksums are masked CRC-32C.

/// Returns the record of `data`.
pub(super) fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut record = length.to_vec();
    record.extend(checksum(&length));
    record.extend_from_slice(data);
    record.extend(checksum(data));
    record
}

fn checksum(bytes: &[u8]) -> [u8; 4] {
    let crc = crc32c::crc32c(bytes);
    crc.rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

/// Iterates over the data of a file's records and the records themselves, up to the first incomplete or damaged one.
pub(super) fn records(mut file: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    std::iter::from_fn(move || {
        let (length, rest) = file.split_at_checked(8)?;
        let (length_sum, rest) = rest.split_at_checked(4)?;
        if checksum(length) != length_sum {
            return None;
        }
        let length = u64::from_le_bytes(length.try_into().ok()?);
        let (data, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
        let (data_sum, rest) = rest.split_at_checked(4)?;
        if checksum(data) != data_sum {
            return None;
        }
        let (record, _) = file.split_at_checked(file.len() - rest.len())?;
        file = rest;
        Some((data, record))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_the_check_value_of_crc_32c_masked_as_in_tensorflow() {
        assert_eq!(
            u32::from_le_bytes(checksum(b"123456789")),
            0xe306_9283_u32.rotate_right(15).wrapping_add(0xa282_ead8)
        );
    }
}
