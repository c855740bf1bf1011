use std::fs::{self, File};
use std::path::{Path, PathBuf};

use data::open;
use image::{ImageFormat, Rgb, RgbImage};
use tar::{Builder, EntryType, Header};

use crate::support::{dot, encode, options, refused, split, unlabelled, values};

/// Name and content of a file.
type Member<'a> = (&'a str, &'a [u8]);

fn append(archive: &mut Builder<File>, name: &str, bytes: &[u8]) {
    let mut header = Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    archive.append_data(&mut header, name, bytes).unwrap();
}

/// Writes a tar file with these files.
fn write(path: &Path, files: &[Member]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut archive = Builder::new(File::create(path).unwrap());
    for (name, bytes) in files {
        append(&mut archive, name, bytes);
    }
    archive.finish().unwrap();
}

/// Writes a tar file with one sample per value, whose label is the value modulo 3.
fn write_dots(path: &Path, range: std::ops::Range<u8>) {
    let files: Vec<(String, Vec<u8>)> = range
        .flat_map(|value| {
            [
                (
                    format!("n{value}.cls"),
                    format!("{}\n", value % 3).into_bytes(),
                ),
                (format!("n{value}.png"), dot(value)),
            ]
        })
        .collect();
    let files: Vec<_> = files
        .iter()
        .map(|(name, bytes)| (name.as_str(), bytes.as_slice()))
        .collect();
    write(path, &files);
}

#[test]
fn shards_in_the_order_of_their_names_are_one_data_set() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    write_dots(&root.join("b-000001.tar"), 3..7);
    write_dots(&root.join("a-000000.tar"), 0..3);
    let dataset = open(root, &options()).unwrap();
    assert_eq!(values(&*dataset), (0..7).collect::<Vec<u8>>());
    assert_eq!(dataset.class_names(), ["0", "1", "2"]);
    let labels: Vec<_> = (0..7).map(|index| dataset.label(index).unwrap()).collect();
    assert_eq!(labels, [0, 1, 2, 0, 1, 2, 0]);
    assert_eq!(dataset.read(5).unwrap().label, 2);
    assert!(dataset.read(7).is_err() && dataset.label(7).is_err());
    let all = open(root, &unlabelled()).unwrap();
    assert_eq!(all.class_names(), ["all"]);
    assert_eq!(all.label(5).unwrap(), 0);
    assert_ne!(all.fingerprint(), dataset.fingerprint());
}

#[test]
fn a_sample_is_a_group_of_files_with_the_same_key() {
    let root = tempfile::tempdir().unwrap();
    let flat = |colour| RgbImage::from_pixel(4, 3, Rgb(colour));
    let jpeg = encode(flat([9, 9, 9]), ImageFormat::Jpeg);
    let webp = encode(flat([3, 3, 3]), ImageFormat::WebP);
    write(
        &root.path().join("x.tar"),
        &[
            ("__info__.json", b"{}"),
            ("n1/a.json", br#"{"label": 5}"#),
            ("n1/a.txt", b"a caption"),
            ("n1/a.png", &dot(1)),
            // It is preferred, as in `webdataset`'s lists of extensions.
            ("n1/a.JPG", &jpeg),
            ("n1/a.cls", b" 2 "),
            ("n1/._a.jpg", b"left by a tool"),
            // The same base name in another folder is another key.
            ("n2/a.webp", &webp),
            ("n2/a.seg.png", b"not an image of this data set"),
            ("n2/a.json", br#"{"label": 3, "filename": "a.JPEG"}"#),
        ],
    );
    let dataset = open(root.path(), &options()).unwrap();
    let labels: Vec<_> = (0..2).map(|index| dataset.label(index).unwrap()).collect();
    assert_eq!(labels, [2, 3]);
    let sizes: Vec<_> = (0..2)
        .map(|index| dataset.read(index).unwrap().image.width())
        .collect();
    assert_eq!(sizes, [4, 4]);
    assert_eq!(dataset.class_names().len(), 4);
}

#[test]
fn long_names_of_gnu_and_pax_are_read() {
    let root = tempfile::tempdir().unwrap();
    let mut archive = Builder::new(File::create(root.path().join("x.tar")).unwrap());
    let long = |key: char| format!("{}/{key}", "folder".repeat(40));
    append(&mut archive, &format!("{}.cls", long('a')), b"0");
    append(&mut archive, &format!("{}.png", long('a')), &dot(1));
    for (extension, bytes) in [("cls", b"1".to_vec()), ("png", dot(2))] {
        let path = format!("{}.{extension}", long('b'));
        archive
            .append_pax_extensions([("path", path.as_bytes())])
            .unwrap();
        append(&mut archive, &path[..90], &bytes);
    }
    archive.finish().unwrap();
    let dataset = open(root.path(), &options()).unwrap();
    assert_eq!(values(&*dataset), [1, 2]);
    assert_eq!(dataset.label(1).unwrap(), 1);
}

#[test]
fn class_names_are_the_lines_of_a_file_beside_the_shards_or_their_folder() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    write_dots(&root.join("test/0.tar"), 0..4);
    fs::write(root.join("classnames.txt"), "ant\nbee\ncat\ndog\n").unwrap();
    let dataset = open(root, &split("test")).unwrap();
    assert_eq!(dataset.class_names(), ["ant", "bee", "cat", "dog"]);
    fs::write(root.join("test/classnames.txt"), "ant\nbee\n").unwrap();
    refused(
        root,
        &split("test"),
        &["classnames.txt", "names 2 classes", "label 2"],
    );
}

#[test]
fn splits_are_folders_or_words_in_the_names_of_shards() {
    let parent = tempfile::tempdir().unwrap();
    let flat = parent.path().join("flat");
    write_dots(&flat.join("imagenet1k-train-0000.tar"), 0..2);
    write_dots(&flat.join("imagenet1k-train-0001.tar"), 2..5);
    write_dots(&flat.join("imagenet1k-validation-00.tar"), 5..6);
    let folders = parent.path().join("folders");
    write_dots(&folders.join("train/00000.tar"), 0..5);
    write_dots(&folders.join("validation/00000.tar"), 5..6);
    for root in [flat, folders] {
        assert_eq!(open(&root, &split("train")).unwrap().len(), 5);
        let validation = open(&root, &split("validation")).unwrap();
        assert_eq!(values(&*validation), [5]);
        assert!(
            validation.name().ends_with("/validation"),
            "{}",
            validation.name()
        );
        refused(&root, &options(), &["`split` can be `train`, `validation`"]);
        refused(
            &root,
            &split("val"),
            &["there is no split `val`; `split` can be `train`, `validation`"],
        );
    }

    // The default configuration names a split.
    let single = parent.path().join("single");
    write_dots(&single.join("00000.tar"), 0..2);
    assert_eq!(open(&single, &options()).unwrap().len(), 2);
    refused(
        &single,
        &split("train"),
        &["is a single split itself", "omit `split`"],
    );
    write_dots(&single.join("test-00000.tar"), 0..2);
    refused(&single, &options(), &["files of several splits", "`test`"]);
}

#[test]
fn fingerprint_depends_on_names_and_sizes_of_the_shards() {
    let parent = tempfile::tempdir().unwrap();
    let of = |folder: &str, name: &str, count: u8| {
        let root = parent.path().join(folder);
        write_dots(&root.join(name), 0..count);
        open(root, &options()).unwrap().fingerprint().to_owned()
    };
    let first = of("a", "0.tar", 3);
    assert_eq!(first.len(), 32);
    assert_eq!(first, of("b", "0.tar", 3));
    assert_ne!(first, of("c", "1.tar", 3));
    assert_ne!(first, of("d", "0.tar", 30));
}

#[test]
fn shards_that_are_cut_short_are_refused_wherever_the_cut_is() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("x.tar");
    let noise = RgbImage::from_fn(40, 40, |x, y| Rgb([(x * y) as u8, (x * 7) as u8, y as u8]));
    let image = encode(noise, ImageFormat::Png);
    write(
        &path,
        &[
            ("a.cls", b"0"),
            ("a.png", &image),
            ("b.png", &image),
            ("b.cls", b"1"),
        ],
    );
    let complete = fs::read(&path).unwrap();
    assert_eq!(open(root.path(), &options()).unwrap().len(), 2);
    // One block of zeros is enough: some programs write no more.
    for len in (0..complete.len() - 1024).step_by(256) {
        fs::write(&path, &complete[..len]).unwrap();
        refused(
            root.path(),
            &options(),
            &["x.tar", "copy or download it again"],
        );
    }
    fs::write(&path, &complete[..complete.len() - 512]).unwrap();
    assert_eq!(open(root.path(), &options()).unwrap().len(), 2);

    let mut damaged = complete;
    damaged[3] ^= 1;
    fs::write(&path, damaged).unwrap();
    refused(
        root.path(),
        &options(),
        &["x.tar", "checksum", "copy or download it again"],
    );
}

/// Nothing that a file contains may cause a panic.
#[test]
fn every_damaged_byte_is_harmless_or_an_error() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("x.tar");
    write_dots(&path, 0..2);
    let complete = fs::read(&path).unwrap();
    for position in 0..complete.len() {
        for flipped in [0x01, 0x80, 0xff] {
            let mut damaged = complete.clone();
            damaged[position] ^= flipped;
            fs::write(&path, damaged).unwrap();
            match open(root.path(), &options()) {
                Ok(dataset) => {
                    for index in 0..dataset.len() {
                        if let Err(error) = dataset.read(index) {
                            assert!(error.is_corrupt_sample(), "{position}: {error}");
                        }
                    }
                }
                Err(error) => assert!(error.is_refusal(), "{position}: {error}"),
            }
        }
    }
}

#[test]
fn samples_without_image_or_label_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("x.tar");
    let image = dot(1);
    let image = image.as_slice();
    let complete: [Member; 2] = [("a.png", image), ("a.cls", b"1")];
    let cases: [(&[Member], &str); 8] = [
        (&[("b.cls", b"0")], "`b` has no image"),
        (&[("b.png", image)], "`b` has no label"),
        (
            &[("b.png", image), ("b.json", b"{}")],
            "its `.json` has no `label`",
        ),
        (&[("b.png", image), ("b.json", b"{")], "not valid JSON"),
        (
            &[("b.png", image), ("b.json", br#"{"label": "cat"}"#)],
            "has the label \"cat\"",
        ),
        (
            &[("b.png", image), ("b.cls", b"cat")],
            "`b` has the label `cat`",
        ),
        (
            &[("b.png", image), ("b.cls", b"-1")],
            "`b` has the label `-1`",
        ),
        (
            &[("b.png", image), ("b.png", image), ("b.cls", b"1")],
            "`b.png` occurs twice",
        ),
    ];
    for (files, words) in cases {
        write(&path, &[&complete, files].concat());
        refused(root.path(), &options(), &["x.tar", words, "write it again"]);
    }
    write(&path, &[("a.png", image)]);
    assert_eq!(open(root.path(), &unlabelled()).unwrap().len(), 1);
    write(&path, &[]);
    refused(root.path(), &options(), &["no samples"]);
}

#[test]
fn links_in_a_shard_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let mut archive = Builder::new(File::create(root.path().join("x.tar")).unwrap());
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Link);
    header.set_size(0);
    archive.append_link(&mut header, "b.png", "a.png").unwrap();
    archive.finish().unwrap();
    refused(
        root.path(),
        &options(),
        &["`b.png` is a link", "--hard-dereference"],
    );
}

#[test]
fn files_of_other_kinds_are_named() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("x.tar");
    fs::write(&path, "version https://git-lfs.github.com/spec/v1\n").unwrap();
    refused(root.path(), &options(), &["x.tar", "Git LFS pointer"]);
    fs::write(&path, b"\x1f\x8b\x08\0\0\0\0\0").unwrap();
    refused(root.path(), &options(), &["x.tar", "gzip"]);
    fs::remove_file(&path).unwrap();
    fs::write(root.path().join("x.tar.gz"), b"\x1f\x8b").unwrap();
    refused(
        root.path(),
        &options(),
        &["compressed tar file `x.tar.gz`", "decompress"],
    );
}

#[test]
fn one_damaged_image_is_a_corrupt_sample_and_only_damaged_images_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("x.tar");
    write(
        &path,
        &[
            ("a.png", &dot(1)),
            ("a.cls", b"0"),
            ("b.png", b"GIF89a"),
            ("b.cls", b"0"),
            ("c.png", b""),
            ("c.cls", b"0"),
        ],
    );
    let dataset = open(root.path(), &options()).unwrap();
    assert!(dataset.read(0).is_ok());
    for (index, words) in [
        (1, "b.png: cannot decode the image: the file is GIF"),
        (2, "c.png"),
    ] {
        let error = dataset.read(index).unwrap_err();
        assert!(error.is_corrupt_sample(), "{error}");
        let text = error.to_string();
        assert!(text.contains("x.tar") && text.contains(words), "{text}");
    }
    write(&path, &[("a.png", b"GIF89a"), ("a.cls", b"0")]);
    refused(root.path(), &options(), &["x.tar", "is GIF"]);
}

#[test]
fn folders_with_data_of_several_formats_are_refused() {
    let parent = tempfile::tempdir().unwrap();
    let beside = |name: &str, file: &str| -> PathBuf {
        let root = parent.path().join(name);
        write_dots(&root.join("x.tar"), 0..2);
        let path = root.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, dot(1)).unwrap();
        root
    };
    for (index, file) in [
        "a.parquet",
        "state.json",
        "data-00000-of-00001.arrow",
        "a.png",
        "n01/a.png",
    ]
    .into_iter()
    .enumerate()
    {
        let root = beside(&index.to_string(), file);
        let shown = file
            .strip_suffix("a.png")
            .filter(|folder| !folder.is_empty())
            .unwrap_or(file);
        refused(
            &root,
            &options(),
            &["several formats", "`x.tar`", shown, "keep one format"],
        );
    }
    // Other files and folders without images do not disturb.
    let root = beside("readme", "docs/README.md");
    assert_eq!(open(root, &options()).unwrap().len(), 2);
    let root = parent.path().join("archives");
    write_dots(&root.join("set/x.tar"), 0..2);
    assert_eq!(open(&root, &options()).unwrap().len(), 2);
    fs::create_dir_all(root.join("cat")).unwrap();
    fs::write(root.join("cat/a.png"), dot(1)).unwrap();
    refused(&root, &options(), &["the class folder `set` has no image"]);
    // `datasets` keeps the labels of an image folder in such a file.
    let root = parent.path().join("images");
    fs::create_dir_all(root.join("cat")).unwrap();
    fs::write(root.join("cat/a.png"), dot(1)).unwrap();
    fs::write(root.join("metadata.parquet"), b"PAR1").unwrap();
    assert_eq!(open(root, &options()).unwrap().class_names(), ["cat"]);
}
