//! Packs a folder of samples into one `.npz`.

use std::io::{self, BufWriter, Write};
use std::path::Path;

use files::AtomicFile;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

use super::{ClassRule, SampleFolder, SamplingError};

/// Writes the first `count` images of a folder in the format of ADM's evaluator: `arr_0`, u8 `[N, H, W, 3]`, and `arr_1`,
/// the classes, i64 `[N]`, uncompressed as from `numpy.savez`. Only one image at a time is in memory. The file appears
/// complete or not at all.
///
/// # Errors
/// An image is missing, damaged or has another size than the first, or the file cannot be written.
pub fn pack(
    path: &Path,
    folder: &SampleFolder,
    classes: &ClassRule,
    count: u64,
) -> Result<(), SamplingError> {
    let failed = |error: io::Error| SamplingError::io("write", path)(error);
    // A fixed time makes the file depend only on the images.
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .last_modified_time(DateTime::default())
        .large_file(true);
    let (height, width, channels) = folder.read(0)?.dim();
    files::remove_leftovers_of(path).map_err(failed)?;
    let file = AtomicFile::create(path).map_err(failed)?;
    let mut zip = ZipWriter::new(BufWriter::new(file));
    let start = |zip: &mut ZipWriter<BufWriter<AtomicFile>>, name: &str| {
        zip.start_file(name, options)
            .map_err(|error| failed(error.into()))
    };
    start(&mut zip, "arr_0.npy")?;
    zip.write_all(&header(
        "|u1",
        &format!("({count}, {height}, {width}, {channels})"),
    ))
    .map_err(failed)?;
    for index in 0..count {
        let image = folder.read(index)?;
        if image.dim() != (height, width, channels) {
            return Err(SamplingError::Broken {
                path: folder.file(index),
                reason: format!(
                    "it has {} x {} pixels, but the first image has {height} x {width}",
                    image.dim().0,
                    image.dim().1
                ),
            });
        }
        let pixels: Vec<u8> = image.iter().copied().collect();
        zip.write_all(&pixels).map_err(failed)?;
    }
    start(&mut zip, "arr_1.npy")?;
    zip.write_all(&header("<i8", &format!("({count},)")))
        .map_err(failed)?;
    for index in 0..count {
        zip.write_all(&classes.class(index).to_le_bytes())
            .map_err(failed)?;
    }
    let buffered = zip.finish().map_err(|error| failed(error.into()))?;
    let file = buffered
        .into_inner()
        .map_err(|error| failed(error.into()))?;
    file.commit().map_err(failed)
}

/// The header of an `.npy` file, version 1.0, padded to a multiple of 64 bytes.
fn header(dtype: &str, shape: &str) -> Vec<u8> {
    let mut text = format!("{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}");
    let before = b"\x93NUMPY\x01\x00\x00\x00".len();
    while !(before + text.len() + 1).is_multiple_of(64) {
        text.push(' ');
    }
    text.push('\n');
    let mut header = b"\x93NUMPY\x01\x00".to_vec();
    // With four numbers in the shape, the text is far shorter than 65 536 bytes.
    header.extend((text.len() as u16).to_le_bytes());
    header.extend(text.into_bytes());
    header
}
