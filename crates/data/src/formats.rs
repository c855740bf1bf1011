//! What a file is, by its first bytes.

use std::fmt;

use image::ImageFormat;

use crate::error::DataError;

/// Bytes that tell any format.
pub(crate) const HEAD: usize = 64;

/// Images that are looked at when a data set is opened.
const SURVEYED: u64 = 32;

/// Something other than a PNG, JPEG or WebP image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Other {
    /// An image of a format that is not read.
    Image(ImageFormat),
    /// A file of another kind.
    Foreign(&'static str),
    /// No bytes.
    Nothing,
    /// Bytes that mean nothing here.
    Unknown,
}

impl Other {
    pub(crate) fn is_tiff(self) -> bool {
        self == Other::Image(ImageFormat::Tiff)
    }
}

impl fmt::Display for Other {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Other::Image(format) => f.write_str(&format!("{format:?}").to_uppercase()),
            Other::Foreign(what) => f.write_str(what),
            Other::Nothing => f.write_str("empty"),
            Other::Unknown => f.write_str("of an unknown format"),
        }
    }
}

/// The format of an image that is read, by its first bytes, or what it is instead.
pub(crate) fn format_of(bytes: &[u8]) -> Result<ImageFormat, Other> {
    const BIG_TIFF: [&[u8]; 2] = [b"II+\0", b"MM\0+"];
    match image::guess_format(bytes) {
        Ok(format @ (ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::WebP)) => Ok(format),
        Ok(format) => Err(Other::Image(format)),
        Err(_) if bytes.is_empty() => Err(Other::Nothing),
        Err(_) if BIG_TIFF.iter().any(|magic| bytes.starts_with(magic)) => {
            Err(Other::Image(ImageFormat::Tiff))
        }
        Err(_) => Err(::files::describe_foreign(bytes).map_or(Other::Unknown, Other::Foreign)),
    }
}

/// What the first bytes of some images are.
#[derive(Debug)]
pub(crate) struct Survey {
    /// The first image that is known to be something else than PNG, JPEG or WebP; a TIFF before all others.
    pub refused: Option<(u64, Other)>,
    /// Whether all that were looked at are something else.
    pub all: bool,
}

/// Looks at up to 32 of `len` images, evenly spaced, the first among them. `head` gives the first [`HEAD`] bytes.
pub(crate) fn survey(
    len: u64,
    head: impl Fn(u64) -> Result<Vec<u8>, DataError>,
) -> Result<Survey, DataError> {
    let count = len.min(SURVEYED);
    let mut refused: Option<(u64, Other)> = None;
    let mut all = true;
    for index in (0..count).map(|i| (u128::from(i) * u128::from(len) / u128::from(count)) as u64) {
        match format_of(&head(index)?) {
            Err(other @ (Other::Image(_) | Other::Foreign(_))) => {
                let better = |(_, first): &(u64, Other)| other.is_tiff() && !first.is_tiff();
                if refused.as_ref().is_none_or(better) {
                    refused = Some((index, other));
                }
            }
            _ => all = false,
        }
    }
    Ok(Survey { refused, all })
}
