//! Detects the format of a file from its first bytes.

use std::fmt;

use image::ImageFormat;

use crate::error::DataError;

/// Number of leading bytes that identify every format.
pub(crate) const HEAD: usize = 64;

/// Largest number of images whose format is checked when a data set is opened.
const SURVEYED: u64 = 32;

/// Content other than a PNG, JPEG or WebP image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unsupported {
    /// An image of an unsupported format.
    Image(ImageFormat),
    /// A known kind of file that is not an image, such as a Git LFS pointer.
    Foreign(&'static str),
    /// No bytes.
    Empty,
    /// Bytes of an unknown format.
    Unknown,
}

impl Unsupported {
    pub(crate) fn is_tiff(self) -> bool {
        self == Unsupported::Image(ImageFormat::Tiff)
    }
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unsupported::Image(format) => f.write_str(&format!("{format:?}").to_uppercase()),
            Unsupported::Foreign(what) => f.write_str(what),
            Unsupported::Empty => f.write_str("empty"),
            Unsupported::Unknown => f.write_str("of an unknown format"),
        }
    }
}

/// Detects the format of an image from its first bytes. Content that is not PNG, JPEG or WebP is an error.
pub(crate) fn format_of(bytes: &[u8]) -> Result<ImageFormat, Unsupported> {
    const BIG_TIFF: [&[u8]; 2] = [b"II+\0", b"MM\0+"];
    match image::guess_format(bytes) {
        Ok(format @ (ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::WebP)) => Ok(format),
        Ok(format) => Err(Unsupported::Image(format)),
        Err(_) if bytes.is_empty() => Err(Unsupported::Empty),
        Err(_) if BIG_TIFF.iter().any(|magic| bytes.starts_with(magic)) => {
            Err(Unsupported::Image(ImageFormat::Tiff))
        }
        Err(_) => {
            Err(::files::describe_foreign(bytes).map_or(Unsupported::Unknown, Unsupported::Foreign))
        }
    }
}

/// The formats of some images of a data set.
#[derive(Debug)]
pub(crate) struct Survey {
    /// Index and content of the first image with a known but unsupported format. TIFF takes precedence over other
    /// formats.
    pub unsupported: Option<(u64, Unsupported)>,
    /// Whether every image that was checked has a known but unsupported format.
    pub all_unsupported: bool,
}

/// Checks the formats of up to 32 of `len` images, evenly spaced from the first one on. `head` returns the first
/// [`HEAD`] bytes of an image.
pub(crate) fn survey(
    len: u64,
    head: impl Fn(u64) -> Result<Vec<u8>, DataError>,
) -> Result<Survey, DataError> {
    let count = len.min(SURVEYED);
    let mut unsupported: Option<(u64, Unsupported)> = None;
    let mut all_unsupported = true;
    for index in (0..count).map(|i| (u128::from(i) * u128::from(len) / u128::from(count)) as u64) {
        match format_of(&head(index)?) {
            Err(content @ (Unsupported::Image(_) | Unsupported::Foreign(_))) => {
                let takes_precedence =
                    |(_, first): &(u64, Unsupported)| content.is_tiff() && !first.is_tiff();
                if unsupported.as_ref().is_none_or(takes_precedence) {
                    unsupported = Some((index, content));
                }
            }
            _ => all_unsupported = false,
        }
    }
    Ok(Survey {
        unsupported,
        all_unsupported,
    })
}
