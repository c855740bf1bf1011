use std::fs;
use std::path::{Path, PathBuf};

use metrics::npz::{Compression, ReferenceFile, SampleReader, SampleWriter};
use ndarray::{Array4, Axis, concatenate};

use super::case::{Case, Tolerance};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/quality")
        .join(name)
}

fn read(path: &Path, batch: usize) -> Array4<u8> {
    let mut reader = SampleReader::open(path).unwrap();
    let [_, height, width] = reader.shape();
    let mut all = Array4::zeros((0, height, width, 3));
    loop {
        let images = reader.next_batch(batch).unwrap();
        if images.is_empty() {
            return all;
        }
        all = concatenate![Axis(0), all, images];
    }
}

fn numbers(images: &Array4<u8>) -> Vec<f64> {
    images.iter().map(|&byte| f64::from(byte)).collect()
}

#[test]
fn stored_and_deflated_adm_files_of_numpy_are_read() {
    let stored = read(&data("sample_adm.npz"), 3);
    assert_eq!(stored.dim(), (4, 16, 16, 3));
    assert_eq!(stored, read(&data("sample_adm_deflate.npz"), 1));
    let reference = ReferenceFile::open(&data("ref_adm.npz")).unwrap();
    assert_eq!(reference.images().unwrap().unwrap().shape(), [2, 16, 16]);
    assert_eq!(reference.pooled().unwrap().unwrap().dimension(), 6);
    assert_eq!(reference.spatial().unwrap().unwrap().dimension(), 4);
}

/// The arrays in written files have the same bytes as numpy's.
#[test]
fn written_adm_files_equal_those_of_numpy() {
    let folder = tempfile::tempdir().unwrap();
    let images = read(&data("sample_adm.npz"), 4);
    let content = |path: &Path| {
        let file = fs::File::open(path).unwrap();
        let mut archive = zip::ZipArchive::new(file).unwrap();
        let mut entry = archive.by_name("arr_0.npy").unwrap();
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
        (entry.compression(), bytes)
    };
    for (compression, name) in [
        (Compression::Stored, "sample_adm.npz"),
        (Compression::Deflated, "sample_adm_deflate.npz"),
    ] {
        let path = folder.path().join(name);
        let mut writer = SampleWriter::create(&path, [4, 16, 16], compression).unwrap();
        for batch in images.axis_chunks_iter(Axis(0), 3) {
            writer.push(batch).unwrap();
        }
        writer.finish(None).unwrap();
        assert_eq!(content(&path), content(&data(name)));
    }
}

#[test]
fn adm_files_contain_the_golden_values() {
    let case = Case::open("quality/sample_adm");
    // In float32, as in the runner's decoding.
    let (_, decoded) = case.values("in.decoded");
    let decoded = Array4::from_shape_vec((4, 3, 16, 16), decoded).unwrap();
    let bytes = decoded.mapv(|x| (255.0 * ((x as f32 + 1.0) / 2.0)).clamp(0.0, 255.0) as u8);
    let bytes = bytes
        .permuted_axes([0, 2, 3, 1])
        .as_standard_layout()
        .to_owned();
    case.check("out.uint8", &numbers(&bytes), Tolerance::EXACT);
    for name in ["sample_adm.npz", "sample_adm_deflate.npz"] {
        case.check(
            "out.arr_0",
            &numbers(&read(&data(name), 3)),
            Tolerance::EXACT,
        );
    }
    let reference = read(&data("ref_adm.npz"), 8);
    case.check("out.ref_arr_0", &numbers(&reference), Tolerance::EXACT);
    let file = ReferenceFile::open(&data("ref_adm.npz")).unwrap();
    for (suffix, statistics) in [("", file.pooled()), ("_s", file.spatial())] {
        let statistics = statistics.unwrap().unwrap();
        let mean = statistics.mean.as_slice().unwrap();
        case.check(&format!("out.mu{suffix}"), mean, Tolerance::EXACT);
        let covariance = statistics.covariance.as_slice().unwrap();
        case.check(&format!("out.sigma{suffix}"), covariance, Tolerance::EXACT);
    }
    case.all_compared();
}
