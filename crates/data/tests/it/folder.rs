use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::{Arc, Mutex};

use data::{Background, DataError, Image, OpenOptions, open, read_batch};
use image::{ImageFormat, Rgb, RgbImage, Rgba, RgbaImage};

use crate::support::{encode, options, png};

fn write(root: &Path, file: &str, bytes: impl AsRef<[u8]>) {
    let path = root.join(file);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// The text of the error of opening a folder.
fn refusal(root: &Path, options: &OpenOptions) -> String {
    open(root, options).err().unwrap().to_string()
}

#[test]
fn classes_and_files_are_sorted_by_name_and_formats_are_mixed() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let flat = |colour| RgbImage::from_pixel(4, 3, Rgb(colour));
    write(
        root,
        "dog/b.JPG",
        encode(flat([200, 100, 50]), ImageFormat::Jpeg),
    );
    write(
        root,
        "dog/a.webp",
        encode(flat([1, 2, 3]), ImageFormat::WebP),
    );
    write(root, "cat/deep/z.png", png(4, 3, [9, 8, 7]));
    write(
        root,
        "cat/c.jpeg",
        encode(flat([0, 0, 255]), ImageFormat::Jpeg),
    );
    write(root, "cat/notes.txt", "not an image");
    write(root, ".cache/x.png", "hidden");
    write(root, "dog/._b.png", "hidden");

    let dataset = open(root, &options()).unwrap();
    assert_eq!(dataset.class_names(), ["cat", "dog"]);
    assert_eq!(dataset.len(), 4);
    let samples: Vec<_> = (0..4).map(|index| dataset.read(index).unwrap()).collect();
    let labels: Vec<_> = samples.iter().map(|sample| sample.label).collect();
    assert_eq!(labels, [0, 0, 1, 1]);
    assert_eq!(samples[1].image.rgb()[..3], [9, 8, 7]);
    assert_eq!(samples[2].image.rgb()[..3], [1, 2, 3]);
    for (sample, colour) in [(&samples[0], [0_u8, 0, 255]), (&samples[3], [200, 100, 50])] {
        let off = sample.image.rgb().iter().zip(colour.iter().cycle());
        assert!(
            off.map(|(a, b)| a.abs_diff(*b)).max().unwrap() <= 3,
            "JPEG of {colour:?}"
        );
    }
    assert!(matches!(
        dataset.read(4),
        Err(DataError::Index {
            index: 4,
            len: 4,
            ..
        })
    ));
}

#[test]
fn the_alpha_channel_of_png_and_webp_becomes_the_mask() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let image = RgbaImage::from_fn(4, 4, |x, y| Rgba([10, 20, 30, (x * 16 + y) as u8]));
    write(root, "a/0.png", encode(image.clone(), ImageFormat::Png));
    write(root, "a/1.webp", encode(image, ImageFormat::WebP));
    write(root, "a/2.png", png(4, 4, [1, 2, 3]));

    let dataset = open(root, &options()).unwrap();
    let batch = read_batch(&*dataset, &[2, 0, 1], 4, Background::White).unwrap();
    assert_eq!(batch.ids, [2, 0, 1]);
    let masks = batch.masks.unwrap();
    let expected: Vec<u8> = (0..16).map(|i| (i % 4) * 16 + i / 4).collect();
    assert_eq!(masks[..16], [255; 16]);
    assert_eq!(masks[16..32], expected);
    assert_eq!(masks[32..], expected);
    // The first pixel of the second image is transparent, and the background is white.
    assert_eq!(batch.images[48], 255);
    assert_eq!(batch.images[..16], [1; 16]);

    let opaque = read_batch(&*dataset, &[2], 4, Background::White).unwrap();
    assert_eq!(opaque.masks, None);
}

#[test]
fn orientation_of_a_photograph_is_applied() {
    let flat = RgbImage::from_pixel(4, 2, Rgb([9, 9, 9]));
    let jpeg = encode(flat, ImageFormat::Jpeg);
    // An EXIF segment with the single entry Orientation (0x0112, SHORT) = 6: rotate by 90 degrees.
    let tiff = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
    let length = (2 + 6 + tiff.len()) as u16;
    let mut rotated = jpeg[..2].to_vec();
    rotated.extend([0xff, 0xe1]);
    rotated.extend(length.to_be_bytes());
    rotated.extend(b"Exif\0\0");
    rotated.extend(tiff);
    rotated.extend(&jpeg[2..]);
    let image = Image::decode(&rotated).unwrap();
    assert_eq!((image.width(), image.height()), (2, 4));
}

#[test]
fn a_flat_folder_has_one_class() {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), "1.png", png(1, 1, [0; 3]));
    write(root.path(), "0.png", png(1, 1, [5; 3]));
    let dataset = open(root.path(), &options()).unwrap();
    assert_eq!(dataset.class_names(), ["all"]);
    assert_eq!(dataset.read(0).unwrap().image.rgb(), [5; 3]);
}

#[test]
fn labels_can_be_ignored() {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), "a/0.png", png(1, 1, [0; 3]));
    write(root.path(), "b/0.png", png(1, 1, [0; 3]));
    let unlabelled = OpenOptions {
        unlabelled: true,
        ..options()
    };
    let dataset = open(root.path(), &unlabelled).unwrap();
    assert_eq!(dataset.class_names(), ["all"]);
    assert_eq!(dataset.read(1).unwrap().label, 0);
}

#[test]
fn a_damaged_image_is_a_corrupt_sample_that_names_its_file() {
    let root = tempfile::tempdir().unwrap();
    let whole = png(32, 32, [1, 2, 3]);
    write(root.path(), "a/cut.png", &whole[..whole.len() / 2]);
    write(root.path(), "a/empty.jpg", b"");
    write(root.path(), "a/text.png", b"not an image");
    let dataset = open(root.path(), &options()).unwrap();
    for (index, file) in ["cut.png", "empty.jpg", "text.png"].iter().enumerate() {
        let error = dataset.read(index as u64).unwrap_err();
        assert!(error.is_corrupt_sample(), "{error}");
        assert!(error.to_string().contains(file), "{error}");
    }
    let error = read_batch(&*dataset, &[1, 0], 4, Background::Drop).unwrap_err();
    assert!(error.to_string().contains("empty.jpg"), "{error}");
}

#[test]
fn fingerprint_depends_on_files_and_not_on_the_location() {
    let parent = tempfile::tempdir().unwrap();
    let make = |name: &str, size| {
        let root = parent.path().join(name);
        write(&root, "a/0.png", png(size, 1, [0; 3]));
        write(&root, "a/1.png", png(1, 1, [0; 3]));
        open(&root, &options()).unwrap().fingerprint().to_owned()
    };
    let first = make("first", 1);
    assert_eq!(first.len(), 32);
    assert_eq!(first, make("second", 1));
    assert_ne!(first, make("third", 700));
    let renamed = parent.path().join("first");
    fs::rename(renamed.join("a/1.png"), renamed.join("a/2.png")).unwrap();
    assert_ne!(first, open(&renamed, &options()).unwrap().fingerprint());
}

#[test]
fn missing_empty_and_ambiguous_folders_are_refused() {
    let parent = tempfile::tempdir().unwrap();
    let missing = parent.path().join("nowhere");
    let text = refusal(&missing, &options());
    assert!(text.contains("nowhere: no such folder; expected"), "{text}");
    assert!(
        text.contains("save_to_disk") && text.contains("class folders"),
        "{text}"
    );

    write(parent.path(), "file", "x");
    let text = refusal(&parent.path().join("file"), &options());
    assert!(text.contains("is a file"), "{text}");

    let empty = parent.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let text = refusal(&empty, &options());
    assert!(
        text.contains("has no image") && text.contains("state.json"),
        "{text}"
    );

    let half = parent.path().join("half");
    write(&half, "a/0.png", png(1, 1, [0; 3]));
    write(&half, "b/notes.txt", "");
    let text = refusal(&half, &options());
    assert!(
        text.contains("half: the class folder `b` has no image"),
        "{text}"
    );

    let mixed = parent.path().join("mixed");
    write(&mixed, "a/0.png", png(1, 1, [0; 3]));
    write(&mixed, "loose.png", png(1, 1, [0; 3]));
    let text = refusal(&mixed, &options());
    assert!(text.contains("`loose.png` beside class folders"), "{text}");
}

#[test]
fn splits_of_an_image_folder_must_be_named() {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), "train/a/0.png", png(1, 1, [0; 3]));
    write(root.path(), "val/a/0.png", png(1, 1, [0; 3]));
    let text = refusal(root.path(), &options());
    assert!(text.contains("`split` can be `train`, `val`"), "{text}");

    let split = |name: &str| OpenOptions {
        split: Some(name.to_owned()),
        ..options()
    };
    let text = refusal(root.path(), &split("test"));
    assert!(
        text.contains("there is no split `test`; `split` can be `train`, `val`"),
        "{text}"
    );
    let text = refusal(root.path(), &split("../x"));
    assert!(text.contains("there is no split"), "{text}");

    let dataset = open(root.path(), &split("val")).unwrap();
    assert!(dataset.name().ends_with("/val"), "{}", dataset.name());
}

fn case(name: &str) -> Vec<u8> {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/cases");
    fs::read(cases.join(name)).unwrap()
}

/// Returns the log messages of `run`.
fn logged(run: impl FnOnce()) -> String {
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);
    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, run);
    let bytes = log.0.lock().unwrap().clone();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn skipped_files_are_counted_by_extension() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let (png, jpeg) = (png(2, 2, [1, 2, 3]), case("12-extensions/jpegAs.png"));
    for class in ["cat", "dog"] {
        for i in 0..5 {
            write(root, &format!("{class}/b{i}.bmp"), b"BM");
            write(root, &format!("{class}/p{i}.png"), &png);
        }
        for i in 0..2 {
            write(
                root,
                &format!("{class}/t{i}.tif"),
                case("12-extensions/t0.tif"),
            );
            write(root, &format!("{class}/j{i}.jfif"), &jpeg);
        }
        write(root, &format!("{class}/u.JPEG"), &jpeg);
        write(root, &format!("{class}/v.jpe"), &jpeg);
        write(root, &format!("{class}/Thumbs.db"), b"left by a tool");
        write(root, &format!("{class}/.DS_Store"), b"left by a tool");
    }
    write(root, "LICENSE", b"a file without extension");
    let text = logged(|| assert_eq!(open(root, &options()).unwrap().len(), 18));
    assert!(text.contains("skipped 15 files"), "{text}");
    assert!(
        text.contains("`.bmp` 10, `.tif` 4, no extension 1"),
        "{text}"
    );
    assert_eq!(text.matches("skipped").count(), 1, "{text}");

    let only = tempfile::tempdir().unwrap();
    write(only.path(), "a/0.bmp", b"BM");
    let text = refusal(only.path(), &options());
    assert!(
        text.contains("has no image of a supported format") && text.contains("`.bmp` 1"),
        "{text}"
    );
}

#[test]
fn the_format_is_detected_from_the_bytes_and_not_from_the_name() {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), "x/0.png", case("12-extensions/jpegAs.png"));
    write(root.path(), "x/1.jpg", png(1, 1, [1, 2, 3]));
    write(
        root.path(),
        "x/2.jpe",
        encode(RgbImage::new(1, 1), ImageFormat::WebP),
    );
    let dataset = open(root.path(), &options()).unwrap();
    for index in 0..3 {
        assert!(dataset.read(index).is_ok(), "{index}");
        assert!(dataset.path(index).is_some());
    }
}

#[test]
fn folders_that_tools_create_are_not_classes() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let image = png(1, 1, [1, 2, 3]);
    write(
        root,
        "__MACOSX/cat/._a.png",
        case("13-folders/apple-double"),
    );
    write(root, "__MACOSX/cat/b.png", &image);
    write(root, "@eaDir/x/SYNO.jpg", &image);
    write(root, "cat/@eaDir/SYNO.jpg", &image);
    write(root, "cat/.ipynb_checkpoints/0-checkpoint.png", &image);
    write(root, "cat/._0.png", case("13-folders/apple-double"));
    write(root, "cat/0.png", &image);
    write(root, "dog/0.png", &image);
    let dataset = open(root, &options()).unwrap();
    assert_eq!(dataset.class_names(), ["cat", "dog"]);
    assert_eq!(dataset.len(), 2);

    // The error names all empty classes.
    fs::create_dir(root.join("bird")).unwrap();
    write(root, "wolf/notes.txt", "no image");
    let text = refusal(root, &options());
    assert!(
        text.contains("2 class folders have no image: `bird`, `wolf`"),
        "{text}"
    );
}

#[test]
fn broken_and_circular_links_are_named() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    write(root, "cat/0.png", png(1, 1, [1, 2, 3]));
    write(root, "dog/0.png", png(1, 1, [1, 2, 3]));
    // A link to another folder counts as a class folder.
    symlink(root.join("cat"), root.join("feline")).unwrap();
    assert_eq!(
        open(root, &options()).unwrap().class_names(),
        ["cat", "dog", "feline"]
    );
    fs::remove_file(root.join("feline")).unwrap();

    symlink("/nowhere/a.png", root.join("cat/a.png")).unwrap();
    symlink("self.png", root.join("dog/self.png")).unwrap();
    let text = refusal(root, &options());
    assert!(
        text.contains("`cat/a.png` -> `/nowhere/a.png`, which does not exist"),
        "{text}"
    );
    assert!(
        text.contains("`dog/self.png` -> `self.png`, which is part of a loop of links"),
        "{text}"
    );
    fs::remove_file(root.join("cat/a.png")).unwrap();
    fs::remove_file(root.join("dog/self.png")).unwrap();

    for (link, target) in [("cat/up", ".."), ("cat/here", "."), ("root", ".")] {
        symlink(target, root.join(link)).unwrap();
        let text = refusal(root, &options());
        assert!(
            text.contains(&format!("{link}: this link leads to one of its parent")),
            "{text}"
        );
        fs::remove_file(root.join(link)).unwrap();
    }
}

#[test]
fn names_that_are_not_utf8_stay_distinct() {
    let parent = tempfile::tempdir().unwrap();
    let root = parent.path().join("set");
    let names: [&[u8]; 4] = [b"caf\xe8", b"caf\xe9", b"caf\\xE9", "caf\u{e9}".as_bytes()];
    let fingerprint = |names: &[&[u8]]| {
        for name in names {
            let class = root.join(OsStr::from_bytes(name));
            fs::create_dir_all(&class).unwrap();
            fs::write(class.join("0.png"), png(1, 1, [1, 2, 3])).unwrap();
        }
        let dataset = open(&root, &options()).unwrap();
        let found = (
            dataset.class_names().to_vec(),
            dataset.fingerprint().to_owned(),
        );
        fs::remove_dir_all(&root).unwrap();
        found
    };
    let (classes, _) = fingerprint(&names);
    assert_eq!(classes, ["caf\\\\xE9", "caf\u{e9}", "caf\\xE8", "caf\\xE9"]);
    let all: std::collections::HashSet<_> =
        names.iter().map(|name| fingerprint(&[name]).1).collect();
    assert_eq!(all.len(), 4);
}

#[test]
fn a_folder_of_git_lfs_pointers_is_refused() {
    let root = tempfile::tempdir().unwrap();
    for i in 0..3 {
        write(
            root.path(),
            &format!("a/{i}.png"),
            "version https://git-lfs.github.com/spec/v1\n",
        );
    }
    let text = refusal(root.path(), &options());
    assert!(
        text.contains("a/0.png: the file is a Git LFS pointer"),
        "{text}"
    );
    // A single pointer among images is a corrupt sample.
    write(root.path(), "a/3.png", png(1, 1, [1, 2, 3]));
    let error = open(root.path(), &options()).unwrap().read(0).unwrap_err();
    assert!(
        error.is_corrupt_sample() && error.to_string().contains("Git LFS"),
        "{error}"
    );
}

#[test]
fn a_large_folder_opens_by_its_index_with_the_same_fingerprint() {
    let root = tempfile::tempdir().unwrap();
    let image = png(1, 1, [1, 2, 3]);
    for index in 0..10_000 {
        write(root.path(), &format!("{}/{index}.png", index % 3), &image);
    }
    let listed = open(root.path(), &options()).unwrap();
    // Folders that changed less than two seconds ago are not remembered.
    assert!(!root.path().join(".irepa-index").exists());
    std::thread::sleep(std::time::Duration::from_millis(2100));
    for _ in 0..2 {
        let dataset = open(root.path(), &options()).unwrap();
        assert_eq!(dataset.fingerprint(), listed.fingerprint());
        assert_eq!(dataset.path(9_999), listed.path(9_999));
        assert!(root.path().join(".irepa-index").exists());
    }
}
