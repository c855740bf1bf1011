//! Files of samples and statistics: round trips and refused files.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use metrics::npz::{
    Compression, NpzError, ReferenceFile, SampleReader, SampleWriter, Statistics, write_statistics,
};
use metrics::quality::{Moments, frechet_distance};
use ndarray::{Array1, Array2, Array4, Axis, array, s};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tempfile::TempDir;

fn images(count: usize, height: usize, width: usize) -> Array4<u8> {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    Array4::from_shape_fn((count, height, width, 3), |_| rng.random())
}

fn write(path: &Path, images: &Array4<u8>, compression: Compression) {
    let (count, height, width, _) = images.dim();
    let mut writer = SampleWriter::create(path, [count, height, width], compression).unwrap();
    writer.push(images.view()).unwrap();
    writer.finish(None).unwrap();
}

/// Writes a file with one array that has the header `header` and the bytes `content`.
fn write_raw(folder: &TempDir, name: &str, header: &str, content: &[u8]) -> PathBuf {
    let path = folder.path().join("raw.npz");
    let mut archive = zip::ZipWriter::new(fs::File::create(&path).unwrap());
    let stored =
        zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    archive.start_file(format!("{name}.npy"), stored).unwrap();
    archive.write_all(b"\x93NUMPY\x01\x00").unwrap();
    let length = u16::try_from(header.len() + 1).unwrap();
    archive.write_all(&length.to_le_bytes()).unwrap();
    archive.write_all(header.as_bytes()).unwrap();
    archive.write_all(b"\n").unwrap();
    archive.write_all(content).unwrap();
    archive.finish().unwrap();
    path
}

fn message<T>(result: Result<T, NpzError>) -> String {
    match result {
        Ok(_) => panic!("accepted"),
        Err(error) => error.to_string(),
    }
}

fn read_all(path: &Path) -> Result<usize, NpzError> {
    let mut reader = SampleReader::open(path)?;
    let mut count = 0;
    loop {
        let batch = reader.next_batch(2)?;
        if batch.is_empty() {
            return Ok(count);
        }
        count += batch.dim().0;
    }
}

#[test]
fn labels_are_stored_with_the_images() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("samples.npz");
    let mut writer = SampleWriter::create(&path, [2, 4, 4], Compression::Stored).unwrap();
    writer.push(images(2, 4, 4).view()).unwrap();
    writer.finish(Some(&[5, 1])).unwrap();
    let file = ReferenceFile::open(&path).unwrap();
    assert_eq!(file.names(), ["arr_0", "arr_1"]);
    assert!(file.pooled().unwrap().is_none() && file.spatial().unwrap().is_none());
    let mut npz = ndarray_npy::NpzReader::new(fs::File::open(&path).unwrap()).unwrap();
    let labels: Array1<i64> = npz.by_name("arr_1").unwrap();
    assert_eq!(labels, array![5, 1]);
}

#[test]
fn equal_images_produce_equal_files() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = |name: &str, batch: usize| {
        let path = folder.path().join(name);
        let images = images(7, 5, 4);
        let mut writer = SampleWriter::create(&path, [7, 5, 4], Compression::Deflated).unwrap();
        for part in images.axis_chunks_iter(Axis(0), batch) {
            writer.push(part).unwrap();
        }
        writer.finish(None).unwrap();
        fs::read(path).unwrap()
    };
    assert_eq!(bytes("a.npz", 7), bytes("b.npz", 2));
}

#[test]
fn a_file_appears_only_when_it_is_complete() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("samples.npz");
    let mut writer = SampleWriter::create(&path, [4, 4, 4], Compression::Stored).unwrap();
    writer.push(images(3, 4, 4).view()).unwrap();
    assert!(!path.exists());
    assert!(message(writer.finish(None)).contains("created for 4 images but received 3"));
    let mut writer = SampleWriter::create(&path, [1, 4, 4], Compression::Stored).unwrap();
    assert!(message(writer.push(images(1, 4, 5).view())).contains("[B, 4, 4, 3]"));
    assert!(message(writer.push(images(2, 4, 4).view())).contains("received 2"));
    drop(writer);
    let mut writer = SampleWriter::create(&path, [1, 4, 4], Compression::Stored).unwrap();
    writer.push(images(1, 4, 4).view()).unwrap();
    assert!(message(writer.finish(Some(&[1, 2]))).contains("arr_1"));
    // No temporary file is left.
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    let nowhere = SampleWriter::create(&path.join("x.npz"), [1, 1, 1], Compression::Stored);
    assert!(message(nowhere).contains("cannot create"));
}

#[test]
fn files_without_valid_samples_are_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let raw = |header: &str, size: usize| write_raw(&folder, "arr_0", header, &vec![0; size]);
    let header = |descr: &str, order: &str, shape: &str| {
        format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}")
    };
    for (descr, order, shape, size, expected) in [
        ("<f4", "False", "(1, 2, 2, 3)", 48, "`arr_0` of"),
        ("|u1", "False", "(1, 3, 2, 2)", 12, "u1 [N, H, W, 3]"),
        ("|u1", "False", "(12,)", 12, "u1 [N, H, W, 3]"),
        ("|u1", "False", "(0, 2, 2, 3)", 0, "u1 [N, H, W, 3]"),
        ("<f4", "True", "(1, 2, 2, 3)", 48, "u1 [N, H, W, 3]"),
        (
            "|u1",
            "False",
            "(2, 2, 2, 3)",
            12,
            "does not match its header",
        ),
        ("|O", "False", "(1, 2, 2, 3)", 96, "numbers of 1, 2"),
        (
            "|u1",
            "False",
            "(9223372036854775807, 9223372036854775807, 2, 3)",
            12,
            "does not match its header",
        ),
    ] {
        let path = raw(&header(descr, order, shape), size);
        let found = message(SampleReader::open(&path));
        assert!(found.contains(expected), "{found}");
    }
    let path = raw("{'descr': '|u1'}", 12);
    assert!(message(SampleReader::open(&path)).contains("is not an .npz file or is damaged"));
    let path = write_raw(&folder, "images", &header("|u1", "False", "(1,)"), &[0]);
    let found = message(SampleReader::open(&path));
    assert!(found.contains("no array `arr_0`, only images"), "{found}");
    let missing = message(SampleReader::open(&folder.path().join("none.npz")));
    assert!(missing.contains("cannot open"), "{missing}");
}

#[test]
fn truncated_and_changed_files_are_detected() {
    let folder = tempfile::tempdir().unwrap();
    for (name, compression) in [
        ("stored.npz", Compression::Stored),
        ("deflated.npz", Compression::Deflated),
    ] {
        let path = folder.path().join(name);
        write(&path, &images(5, 8, 8), compression);
        assert_eq!(read_all(&path).unwrap(), 5);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        assert!(message(read_all(&path)).contains("damaged"));
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 4;
        fs::write(&path, &flipped).unwrap();
        let found = message(read_all(&path));
        assert!(found.contains("damaged"), "{found}");
    }
}

fn moments(seed: u64, count: usize, dimension: usize) -> Moments {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let features = Array2::from_shape_fn((count, dimension), |_| rng.random_range(-1.0_f32..1.0));
    let mut moments = Moments::new(dimension);
    moments.push(features.view()).unwrap();
    moments
}

#[test]
fn statistics_are_bit_identical_after_reading() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("statistics.npz");
    let pooled = Statistics::from_moments(&moments(1, 40, 6)).unwrap();
    let spatial = Statistics::from_moments(&moments(2, 40, 4)).unwrap();
    let features = Array2::from_shape_fn((3, 2), |(i, j)| i as f32 / 3.0 + j as f32);
    write_statistics(&path, &pooled, Some(&spatial), &[("features", &features)]).unwrap();
    let file = ReferenceFile::open(&path).unwrap();
    assert_eq!(file.pooled().unwrap().as_ref(), Some(&pooled));
    assert_eq!(file.spatial().unwrap().as_ref(), Some(&spatial));
    assert_eq!(file.features("features").unwrap().as_ref(), Some(&features));
    assert!(file.features("others").unwrap().is_none());
    assert!(file.images().unwrap().is_none());
    assert_eq!(pooled.count, Some(40));

    // An independent reader of numpy's format returns the same values.
    let mut npz = ndarray_npy::NpzReader::new(fs::File::open(&path).unwrap()).unwrap();
    let covariance: Array2<f64> = npz.by_name("sigma_s").unwrap();
    assert_eq!(covariance, spatial.covariance);

    let other = moments(3, 30, 6);
    let direct = frechet_distance(&moments(1, 40, 6), &other).unwrap();
    let stored = frechet_distance(&pooled.moments().unwrap(), &other).unwrap();
    assert!((direct - stored).abs() < 1e-12 * direct);
}

/// Writes arrays given as (name, dtype, Fortran order, shape, bytes).
fn write_numbers(path: &Path, arrays: &[(&str, &str, bool, &str, Vec<u8>)]) {
    let mut archive = zip::ZipWriter::new(fs::File::create(path).unwrap());
    let stored =
        zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, dtype, fortran, shape, content) in arrays {
        let order = if *fortran { "True" } else { "False" };
        let header =
            format!("{{'descr': '{dtype}', 'fortran_order': {order}, 'shape': {shape}, }}\n");
        archive.start_file(format!("{name}.npy"), stored).unwrap();
        archive.write_all(b"\x93NUMPY\x01\x00").unwrap();
        archive
            .write_all(&(header.len() as u16).to_le_bytes())
            .unwrap();
        archive.write_all(header.as_bytes()).unwrap();
        archive.write_all(content).unwrap();
    }
    archive.finish().unwrap();
}

#[test]
fn statistics_do_not_depend_on_order_byte_order_and_width_of_numbers() {
    // All values are exact in float16.
    let mean = [0.5, -2.0, 3.25];
    let covariance = [2.0, 0.5, 0.25, 0.5, 1.0, -0.125, 0.25, -0.125, 4.0];
    let half = |x: f64| -> u16 {
        let bits = (x as f32).to_bits();
        let exponent = (bits >> 23 & 0xff) as i32 - 127 + 15;
        ((bits >> 16 & 0x8000) | (exponent as u32) << 10 | (bits >> 13 & 0x3ff)) as u16
    };
    let bytes = |dtype: &str, values: &[f64]| -> Vec<u8> {
        let encode = |&x: &f64| match dtype {
            "<f2" => half(x).to_le_bytes().to_vec(),
            ">f2" => half(x).to_be_bytes().to_vec(),
            "<f4" => (x as f32).to_le_bytes().to_vec(),
            ">f4" => (x as f32).to_be_bytes().to_vec(),
            "<f8" => x.to_le_bytes().to_vec(),
            _ => x.to_be_bytes().to_vec(),
        };
        values.iter().flat_map(encode).collect()
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("statistics.npz");
    let read = |dtype: &str, shapes: [&str; 2]| {
        for fortran in [false, true] {
            write_numbers(
                &path,
                &[
                    ("mu", dtype, fortran, shapes[0], bytes(dtype, &mean)),
                    (
                        "sigma",
                        dtype,
                        fortran,
                        shapes[1],
                        bytes(dtype, &covariance),
                    ),
                ],
            );
            let found = ReferenceFile::open(&path).unwrap().pooled().unwrap();
            let found = found.unwrap();
            assert_eq!(found.mean.to_vec(), mean, "{dtype} {shapes:?}");
            let values: Vec<f64> = found.covariance.iter().copied().collect();
            assert_eq!(values, covariance, "{dtype} {shapes:?}");
        }
    };
    for dtype in ["<f2", ">f2", "<f4", ">f4", "<f8", ">f8"] {
        read(dtype, ["(3,)", "(3, 3)"]);
    }
    read("<f8", ["(1, 3)", "(3, 3)"]);
    read(">f8", ["(1, 3)", "(1, 3, 3)"]);
}

#[test]
fn samples_in_fortran_order_are_the_same_images() {
    let folder = tempfile::tempdir().unwrap();
    let expected = images(5, 3, 2);
    let fortran: Vec<u8> = expected.t().iter().copied().collect();
    let shape = "(5, 3, 2, 3)";
    let path = folder.path().join("samples.npz");
    write_numbers(&path, &[("arr_0", "|u1", true, shape, fortran)]);
    let mut reader = SampleReader::open(&path).unwrap();
    assert_eq!(
        reader.next_batch(2).unwrap(),
        expected.slice(s![..2, .., .., ..])
    );
    assert_eq!(
        reader.next_batch(9).unwrap(),
        expected.slice(s![2.., .., .., ..])
    );
    assert!(reader.next_batch(9).unwrap().is_empty());
    // The checksum is verified here too.
    let mut bytes = fs::read(&path).unwrap();
    let header = bytes.windows(2).position(|part| part == b"}\n");
    bytes[header.unwrap() + 2] ^= 1;
    fs::write(&path, bytes).unwrap();
    assert!(message(read_all(&path)).contains("damaged"));
}

/// ADM's references contain statistics of many images, but only some of the images.
#[test]
fn the_number_of_images_is_not_taken_for_the_number_of_samples() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/quality/ref_adm.npz");
    let file = ReferenceFile::open(&path).unwrap();
    assert_eq!(file.images().unwrap().unwrap().shape()[0], 2);
    assert_eq!(file.pooled().unwrap().unwrap().count, None);
}

#[test]
fn statistics_of_the_wrong_shape_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let write = |arrays: &[(&str, Array2<f64>)], mean: Array1<f64>| {
        let path = folder.path().join("statistics.npz");
        let mut npz = ndarray_npy::NpzWriter::new(fs::File::create(&path).unwrap());
        npz.add_array("mu", &mean).unwrap();
        for (name, array) in arrays {
            npz.add_array(*name, array).unwrap();
        }
        npz.finish().unwrap();
        message(ReferenceFile::open(&path).unwrap().pooled())
    };
    let mean = || Array1::zeros(3);
    let found = write(&[("sigma", Array2::zeros((3, 2)))], mean());
    assert!(
        found.contains("f8 [3, 3], because `mu` has 3 values"),
        "{found}"
    );
    let found = write(&[("sigma", Array2::zeros((1, 9)))], mean());
    assert!(found.contains("`sigma` of"), "{found}");
    let found = write(&[], mean());
    assert!(found.contains("no array `sigma`, only mu"), "{found}");
    let mut skewed = Array2::eye(3);
    skewed[(0, 2)] = 0.5;
    let found = write(&[("sigma", skewed)], mean());
    assert!(found.contains("not symmetric"), "{found}");
    let mut infinite = Array2::eye(3);
    infinite[(1, 1)] = f64::NAN;
    let found = write(&[("sigma", infinite)], mean());
    assert!(found.contains("NaN"), "{found}");
}

/// Content of a large file that Git LFS did not fetch.
const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n";

#[test]
fn error_of_a_git_lfs_pointer_identifies_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("samples.npz");
    fs::write(&path, POINTER).unwrap();
    let error = SampleReader::open(&path).err().unwrap().to_string();
    assert!(error.contains("Git LFS pointer"), "{error}");
    assert!(error.contains("git lfs pull"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn images_are_the_same_for_any_batch_size(
        count in 1_usize..12, height in 1_usize..6, width in 1_usize..6, batch in 1_usize..14,
        deflated: bool,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("samples.npz");
        let compression = if deflated { Compression::Deflated } else { Compression::Stored };
        let written = images(count, height, width);
        write(&path, &written, compression);
        let mut reader = SampleReader::open(&path).unwrap();
        prop_assert_eq!(reader.shape(), [count, height, width]);
        for start in (0..count).step_by(batch) {
            let end = (start + batch).min(count);
            prop_assert_eq!(&reader.next_batch(batch).unwrap(), &written.slice(s![start..end, .., .., ..]));
        }
        prop_assert!(reader.next_batch(batch).unwrap().is_empty());
    }

    #[test]
    fn damaged_files_are_refused_without_panic(change in 0_usize..4000, byte: u8, cut in 0_usize..4000) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("samples.npz");
        write(&path, &images(4, 6, 6), Compression::Deflated);
        let mut bytes = fs::read(&path).unwrap();
        let place = change % bytes.len();
        bytes[place] = byte;
        bytes.truncate(1 + cut % bytes.len());
        fs::write(&path, &bytes).unwrap();
        // A changed byte of a date or a name is harmless; the file is then read completely.
        if let Ok(count) = read_all(&path) {
            prop_assert_eq!(count, 4);
        }
    }
}
