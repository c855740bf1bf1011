//! Reads the orientation of an image from the metadata of its file.
//!
//! Follows Hugging Face `datasets`, which uses Pillow (`getexif`, `exif_transpose`): the tag Orientation of the
//! EXIF data is read wherever the format allows EXIF, and with any numeric type. Without this tag, the XMP data is used.

use image::ImageFormat;
use image::metadata::Orientation;

const EXIF: &[u8] = b"Exif\0\0";
const XMP: &[u8] = b"http://ns.adobe.com/xap/1.0/\0";

/// EXIF and XMP data of a file; empty if the file has none.
#[derive(Default)]
struct Metadata {
    exif: Vec<u8>,
    xmp: Vec<u8>,
}

/// Returns the orientation of an image file; `NoTransforms` if its metadata is missing or damaged.
pub(crate) fn of_file(bytes: &[u8], format: ImageFormat) -> Orientation {
    let metadata = match format {
        ImageFormat::Jpeg => of_jpeg(bytes),
        ImageFormat::Png => of_png(bytes),
        ImageFormat::WebP => of_webp(bytes),
        _ => None,
    };
    let metadata = metadata.unwrap_or_default();
    let tag = from_exif(&metadata.exif).or_else(|| from_xmp(&metadata.xmp));
    tag.and_then(Orientation::from_exif)
        .unwrap_or(Orientation::NoTransforms)
}

/// Reads the segments before the coded data. EXIF data that is too long for one segment is split into several, which are
/// concatenated.
fn of_jpeg(bytes: &[u8]) -> Option<Metadata> {
    const APP1: u8 = 0xe1;
    const START_OF_SCAN: u8 = 0xda;
    let mut metadata = Metadata::default();
    let mut position = 2;
    loop {
        let (marker, start) = crate::jpeg::next_marker(bytes, position)?;
        if matches!(marker, 0x01 | 0xd0..=0xd8) {
            position = start;
            continue;
        }
        let Some(segment) = crate::jpeg::segment(bytes, start) else {
            return Some(metadata);
        };
        if marker == START_OF_SCAN {
            return Some(metadata);
        }
        if marker == APP1 {
            if let Some(more) = segment.strip_prefix(EXIF) {
                metadata.exif.extend(more);
            } else if let Some(xmp) = segment.strip_prefix(XMP) {
                metadata.xmp = xmp.to_vec();
            }
        }
        position = start + 2 + segment.len();
    }
}

/// Reads the chunks before and after the pixels.
fn of_png(bytes: &[u8]) -> Option<Metadata> {
    const XMP_KEYWORD: &[u8] = b"XML:com.adobe.xmp\0";
    const SIGNATURE: usize = 8;
    let mut metadata = Metadata::default();
    let mut rest = bytes.get(SIGNATURE..)?;
    while let Some((head, after)) = rest.split_first_chunk::<8>() {
        let [l0, l1, l2, l3, kind @ ..] = *head;
        let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
        let Some(data) = after.get(..length) else {
            break;
        };
        match &kind {
            b"eXIf" => metadata.exif = data.to_vec(),
            b"iTXt" => {
                // The first two bytes are the compression flag and the compression method.
                if let Some([0, _, text @ ..]) = data.strip_prefix(XMP_KEYWORD) {
                    metadata.xmp = text.to_vec();
                }
            }
            b"IEND" => break,
            _ => {}
        }
        // A checksum of 4 bytes follows.
        rest = after.get(length + 4..).unwrap_or_default();
    }
    Some(metadata)
}

fn of_webp(bytes: &[u8]) -> Option<Metadata> {
    const HEADER: usize = 12;
    let mut metadata = Metadata::default();
    let mut rest = bytes.get(HEADER..)?;
    while let Some((head, after)) = rest.split_first_chunk::<8>() {
        let [kind @ .., l0, l1, l2, l3] = *head;
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        let Some(data) = after.get(..length) else {
            break;
        };
        match &kind {
            b"EXIF" => metadata.exif = data.to_vec(),
            b"XMP " => metadata.xmp = data.to_vec(),
            _ => {}
        }
        // Chunks start at even offsets.
        rest = after.get(length + length % 2..).unwrap_or_default();
    }
    Some(metadata)
}

/// Reads the tag Orientation of the first directory of a TIFF structure.
fn from_exif(exif: &[u8]) -> Option<u8> {
    const ORIENTATION: u16 = 0x0112;
    let mut tiff = exif;
    while let Some(after) = tiff.strip_prefix(EXIF) {
        tiff = after;
    }
    let little = match tiff.get(..4)? {
        b"II*\0" | b"II\0*" => true,
        b"MM\0*" | b"MM*\0" => false,
        _ => return None,
    };
    let reader = Tiff {
        bytes: tiff,
        little,
    };
    let directory = reader.u32(4)? as usize;
    let mut orientation = None;
    for index in 0..usize::from(reader.u16(directory)?) {
        let entry = directory + 2 + 12 * index;
        let Some(tag) = reader.u16(entry) else { break };
        if tag == ORIENTATION
            && let Some(value) = reader.first_value(entry)
        {
            orientation = Some(value);
        }
    }
    // Values of 9 and above mean no orientation; 255 stands for all values that are not such an integer.
    let orientation = orientation?;
    match (0.0..=255.0).contains(&orientation) && orientation.fract() == 0.0 {
        true => Some(orientation as u8),
        false => Some(u8::MAX),
    }
}

struct Tiff<'a> {
    bytes: &'a [u8],
    little: bool,
}

impl Tiff<'_> {
    fn array<const N: usize>(&self, position: usize) -> Option<[u8; N]> {
        let mut bytes: [u8; N] = self
            .bytes
            .get(position..position.checked_add(N)?)?
            .try_into()
            .ok()?;
        if !self.little {
            bytes.reverse();
        }
        Some(bytes)
    }

    fn u16(&self, position: usize) -> Option<u16> {
        self.array(position).map(u16::from_le_bytes)
    }

    fn u32(&self, position: usize) -> Option<u32> {
        self.array(position).map(u32::from_le_bytes)
    }

    /// Reads the first value of a directory entry, if its type is numeric.
    fn first_value(&self, entry: usize) -> Option<f64> {
        let (kind, count) = (self.u16(entry + 2)?, self.u32(entry + 4)?);
        let size = match kind {
            6 => 1,
            3 | 8 => 2,
            4 | 9 | 11 | 13 => 4,
            5 | 10 | 12 | 16 => 8,
            _ => return None,
        };
        let offset = match (count as usize).checked_mul(size)? {
            0 => return None,
            1..=4 => entry + 8,
            _ => self.u32(entry + 8)? as usize,
        };
        let quotient = |upper: f64, lower: f64| (lower != 0.0).then(|| upper / lower);
        match kind {
            3 => self.u16(offset).map(f64::from),
            4 | 13 => self.u32(offset).map(f64::from),
            5 => quotient(self.u32(offset)?.into(), self.u32(offset + 4)?.into()),
            6 => self.array(offset).map(i8::from_le_bytes).map(f64::from),
            8 => self.array(offset).map(i16::from_le_bytes).map(f64::from),
            9 => self.array(offset).map(i32::from_le_bytes).map(f64::from),
            10 => quotient(
                self.array(offset).map(i32::from_le_bytes)?.into(),
                self.array(offset + 4).map(i32::from_le_bytes)?.into(),
            ),
            11 => self.array(offset).map(f32::from_le_bytes).map(f64::from),
            12 => self.array(offset).map(f64::from_le_bytes),
            _ => self
                .array(offset)
                .map(|bytes| u64::from_le_bytes(bytes) as f64),
        }
    }
}

/// Reads `tiff:Orientation="6"` or `<tiff:Orientation>6`.
fn from_xmp(xmp: &[u8]) -> Option<u8> {
    const NAME: &[u8] = b"tiff:Orientation";
    let mut rest = xmp;
    while let Some(found) = rest.windows(NAME.len()).position(|window| window == NAME) {
        rest = &rest[found + NAME.len()..];
        let value = rest
            .strip_prefix(b"=\"")
            .or_else(|| rest.strip_prefix(b">"));
        if let Some([digit @ b'0'..=b'9', ..]) = value {
            return Some(digit - b'0');
        }
    }
    None
}
