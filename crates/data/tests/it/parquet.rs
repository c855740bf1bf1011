use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use data::{DataError, Dataset, OpenOptions, evenly_spaced, open};
use image::{ImageFormat, Rgb, RgbImage};
use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{
    EnabledStatistics, WriterProperties, WriterPropertiesBuilder, WriterVersion,
};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde_json::json;

use crate::support::{dot, encode, options, refused, split, unlabelled, values};

const SCHEMA: &str = "message schema {
    optional group image { optional binary bytes; optional binary path (STRING); }
    optional int64 label;
}";

/// The rows of a file: images and labels.
type Rows = Vec<(Option<Vec<u8>>, Option<i64>)>;

/// Rows with one image per value, whose label is the value modulo 3.
fn dots(range: std::ops::Range<u8>) -> Rows {
    range
        .map(|value| (Some(dot(value)), Some(i64::from(value % 3))))
        .collect()
}

/// The names of the classes, as `datasets` records them.
fn features(names: &[&str]) -> KeyValue {
    let features = json!({
        "image": { "_type": "Image" },
        "label": { "_type": "ClassLabel", "names": names },
    });
    let info = json!({ "info": { "features": features } });
    KeyValue::new("huggingface".to_owned(), info.to_string())
}

/// As `datasets` 5.2 writes images.
fn plain() -> WriterPropertiesBuilder {
    WriterProperties::builder().set_dictionary_enabled(false)
}

/// As earlier versions write images.
fn snappy() -> WriterPropertiesBuilder {
    WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_offset_index_disabled(true)
        .set_statistics_enabled(EnabledStatistics::Chunk)
}

/// Writes a file with row groups of at most `group` rows and pages of at most `page` rows.
fn write(
    path: &Path,
    rows: &Rows,
    (group, page): (usize, usize),
    properties: WriterPropertiesBuilder,
) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let schema = Arc::new(parse_message_type(SCHEMA).unwrap());
    let properties = properties
        .set_data_page_row_count_limit(page)
        .set_write_batch_size(page);
    let file = File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties.build())).unwrap();
    for rows in rows.chunks(group) {
        let mut row_group = writer.next_row_group().unwrap();
        let images: Vec<_> = rows
            .iter()
            .filter_map(|(image, _)| image.clone())
            .map(ByteArray::from)
            .collect();
        let levels: Vec<i16> = rows
            .iter()
            .map(|(image, _)| if image.is_some() { 2 } else { 1 })
            .collect();
        let mut column = row_group.next_column().unwrap().unwrap();
        column
            .typed::<ByteArrayType>()
            .write_batch(&images, Some(&levels), None)
            .unwrap();
        column.close().unwrap();
        let paths = vec![ByteArray::from("x.png"); rows.len()];
        let mut column = row_group.next_column().unwrap().unwrap();
        column
            .typed::<ByteArrayType>()
            .write_batch(&paths, Some(&vec![2; rows.len()]), None)
            .unwrap();
        column.close().unwrap();
        let labels: Vec<i64> = rows.iter().filter_map(|(_, label)| *label).collect();
        let levels: Vec<i16> = rows
            .iter()
            .map(|(_, label)| i16::from(label.is_some()))
            .collect();
        let mut column = row_group.next_column().unwrap().unwrap();
        column
            .typed::<Int64Type>()
            .write_batch(&labels, Some(&levels), None)
            .unwrap();
        column.close().unwrap();
        row_group.close().unwrap();
    }
    writer.close().unwrap();
}

/// Writes a file with the defaults of `datasets`.
fn write_rows(path: &Path, rows: &Rows) {
    write(path, rows, (100, 10), plain());
}

fn labels(dataset: &dyn Dataset) -> Vec<i64> {
    (0..dataset.len())
        .map(|index| dataset.label(index).unwrap())
        .collect()
}

#[test]
fn rows_are_read_in_any_order_from_pages_of_every_form() {
    let folder = tempfile::tempdir().unwrap();
    let forms = [
        ("plain", plain()),
        (
            "plain without index",
            plain().set_offset_index_disabled(true),
        ),
        ("snappy", snappy().set_dictionary_enabled(false)),
        ("snappy with dictionary", snappy()),
        ("dictionary with index", WriterProperties::builder()),
        // Its dictionary is full after a few images.
        ("mixed", snappy().set_dictionary_page_size_limit(300)),
        (
            "version 2",
            snappy().set_writer_version(WriterVersion::PARQUET_2_0),
        ),
        (
            "version 2, plain",
            plain().set_writer_version(WriterVersion::PARQUET_2_0),
        ),
    ];
    for (form, properties) in forms {
        for (group, page) in [(100, 100), (100, 7), (13, 4), (1, 1)] {
            let root = folder.path().join(form).join(format!("{group}-{page}"));
            for (file, range) in [
                ("train-00000-of-00002.parquet", 0..40),
                ("train-00001-of-00002.parquet", 40..55),
            ] {
                write(
                    &root.join(file),
                    &dots(range),
                    (group, page),
                    properties.clone(),
                );
            }
            let dataset = open(&root, &options()).unwrap();
            // Several times, because later reads use what the first one found.
            for stride in [7, 1, 13] {
                for step in 0..dataset.len() {
                    let index = step * stride % dataset.len();
                    let sample = dataset.read(index).unwrap();
                    let found = (sample.index, u64::from(sample.image.rgb()[0]), sample.label);
                    assert_eq!(
                        found,
                        (index, index, (index % 3) as i64),
                        "{form} {group} {page}"
                    );
                }
            }
            assert_eq!(
                labels(&*dataset),
                (0..55).map(|row| row % 3).collect::<Vec<i64>>()
            );
            assert!(matches!(
                dataset.read(55),
                Err(DataError::Index { len: 55, .. })
            ));
            assert!(dataset.label(55).is_err());
        }
    }
}

#[test]
fn several_threads_read_the_same_files() {
    let root = tempfile::tempdir().unwrap();
    for (index, properties) in [plain(), snappy()].into_iter().enumerate() {
        let file = root.path().join(format!("{index}/train-0.parquet"));
        write(&file, &dots(0..200), (50, 5), properties);
        let dataset = open(file.parent().unwrap(), &options()).unwrap();
        std::thread::scope(|scope| {
            for start in 0..4 {
                let dataset = &dataset;
                scope.spawn(move || {
                    for step in 0..400 {
                        let index = (start * 50 + step * 37) % 200;
                        assert_eq!(
                            u64::from(dataset.read(index).unwrap().image.rgb()[0]),
                            index
                        );
                    }
                });
            }
        });
    }
}

#[test]
fn class_names_are_those_that_datasets_records() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("data/train-00000-of-00001.parquet");
    let named = |names: &[&str]| plain().set_key_value_metadata(Some(vec![features(names)]));
    write(
        &file,
        &dots(0..9),
        (100, 10),
        named(&["tench, Tinca tinca", "goldfish", "shark", "ray"]),
    );
    let dataset = open(root.path(), &split("train")).unwrap();
    assert_eq!(dataset.class_names().len(), 4);
    assert_eq!(dataset.class_names()[0], "tench, Tinca tinca");
    write_rows(&file, &dots(0..9));
    let plain = open(root.path(), &split("train")).unwrap();
    assert_eq!(plain.class_names(), ["0", "1", "2"]);
    let all = open(root.path(), &unlabelled()).unwrap();
    assert_eq!(
        (all.class_names(), all.label(4).unwrap()),
        (&["all".to_owned()][..], 0)
    );
    assert_ne!(plain.fingerprint(), all.fingerprint());

    write(&file, &dots(0..9), (100, 10), named(&["tench", "goldfish"]));
    refused(
        root.path(),
        &options(),
        &[
            "column `label`: the label of sample 2 is 2; allowed: 0..1, the 2 names",
            "3 of 9 labels",
        ],
    );
    let mut rows = dots(0..9);
    (rows[3].1, rows[5].1) = (Some(-1), None);
    write_rows(&file, &rows);
    refused(
        root.path(),
        &options(),
        &["the label of sample 3 is -1", "2 of 9 labels"],
    );
    assert_eq!(open(root.path(), &unlabelled()).unwrap().len(), 9);
}

#[test]
fn splits_are_prefixes_of_file_names_or_folders() {
    let parent = tempfile::tempdir().unwrap();
    let layouts = [
        [
            "data/train-00000-of-00002.parquet",
            "data/train-00001-of-00002.parquet",
            "data/validation-00000-of-00001.parquet",
        ],
        [
            "train-00000-of-00002.parquet",
            "train-00001-of-00002.parquet",
            "validation-00000-of-00001.parquet",
        ],
        [
            "train/0000.parquet",
            "train/0001.parquet",
            "validation/0000.parquet",
        ],
    ];
    for (number, files) in layouts.into_iter().enumerate() {
        let root = parent.path().join(number.to_string());
        for (file, range) in files.into_iter().zip([0..3, 3..5, 5..9]) {
            write_rows(&root.join(file), &dots(range));
        }
        fs::write(root.join("README.md"), "A data set card").unwrap();
        let train = open(&root, &split("train")).unwrap();
        assert_eq!(values(&*train), [0, 1, 2, 3, 4]);
        assert_eq!(train.name(), format!("{number}/train"));
        assert_eq!(
            values(&*open(&root, &split("validation")).unwrap()),
            [5, 6, 7, 8]
        );
        refused(&root, &options(), &["`split` can be `train`, `validation`"]);
        refused(
            &root,
            &split("val"),
            &["no split `val`; `split` can be `train`, `validation`"],
        );
        let limited = OpenOptions {
            limit: std::num::NonZeroU64::new(2),
            ..split("validation")
        };
        let expected: Vec<u8> = evenly_spaced(2, 4)
            .iter()
            .map(|index| 5 + *index as u8)
            .collect();
        assert_eq!(values(&*open(&root, &limited).unwrap()), expected);
    }
}

#[test]
fn fingerprint_depends_on_names_sizes_and_columns() {
    let parent = tempfile::tempdir().unwrap();
    let of = |folder: &str, name: &str, count: u8| {
        let root = parent.path().join(folder);
        write_rows(&root.join(name), &dots(0..count));
        open(root, &options()).unwrap().fingerprint().to_owned()
    };
    let first = of("a", "train-0.parquet", 3);
    assert_eq!(first.len(), 32);
    assert_eq!(first, of("b", "train-0.parquet", 3));
    assert_ne!(first, of("c", "train-1.parquet", 3));
    assert_ne!(first, of("d", "train-0.parquet", 4));
}

#[test]
fn files_that_are_cut_short_or_of_another_kind_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("train-0.parquet");
    write(&path, &dots(0..20), (10, 5), plain());
    let complete = fs::read(&path).unwrap();
    for len in 0..complete.len() {
        if len % 97 == 0 || len + 20 > complete.len() {
            fs::write(&path, &complete[..len]).unwrap();
            refused(
                root.path(),
                &options(),
                &["train-0.parquet", "copy or download it again"],
            );
        }
    }
    // The start is missing: the footer refers to bytes outside of the file.
    fs::write(&path, &complete[complete.len() / 2..]).unwrap();
    refused(
        root.path(),
        &options(),
        &["train-0.parquet", "copy or download it again"],
    );
    fs::write(&path, "version https://git-lfs.github.com/spec/v1\n").unwrap();
    refused(
        root.path(),
        &options(),
        &["train-0.parquet", "Git LFS pointer"],
    );
    write_rows(&path, &Vec::new());
    refused(root.path(), &options(), &["no samples"]);
}

/// Nothing that a file contains may cause a panic, and what is read without an error must not depend on luck.
#[test]
fn every_damaged_byte_is_harmless_or_an_error() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("train-0.parquet");
    for properties in [plain(), snappy()] {
        write(&path, &dots(0..6), (4, 2), properties);
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
}

#[test]
fn missing_columns_and_wrong_types_are_named() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("train-0.parquet");
    let columns = |image: Option<&str>, label: Option<&str>| OpenOptions {
        image_column: image.map(str::to_owned),
        label_column: label.map(str::to_owned),
        ..options()
    };
    write_rows(&path, &dots(0..3));
    refused(
        root.path(),
        &columns(Some("picture"), None),
        &[
            "train-0.parquet: there is no column `picture`; set `image_column` to one of the columns",
            "`image`, `label`",
        ],
    );
    refused(
        root.path(),
        &columns(Some("label"), None),
        &["column `label` (`image_column`) has type INT64"],
    );
    refused(
        root.path(),
        &columns(None, Some("image")),
        &["column `image` (`label_column`) has type group"],
    );

    // A later file lacks the column.
    let schema = Arc::new(
        parse_message_type(
            "message schema { required int64 label; required binary text (STRING); }",
        )
        .unwrap(),
    );
    let file = File::create(root.path().join("train-1.parquet")).unwrap();
    SerializedFileWriter::new(file, Arc::clone(&schema), Arc::default())
        .unwrap()
        .close()
        .unwrap();
    refused(
        root.path(),
        &options(),
        &[
            "train-1.parquet: there is no column `image`",
            "`label`, `text`",
        ],
    );
    fs::remove_file(&path).unwrap();
    refused(
        root.path(),
        &columns(Some("text"), None),
        &["has type BYTE_ARRAY (UTF8)"],
    );
}

#[test]
fn images_may_be_plain_binary_and_labels_32_bits() {
    use parquet::data_type::Int32Type;
    let root = tempfile::tempdir().unwrap();
    let schema = Arc::new(
        parse_message_type("message schema { required int32 kind; required binary picture; }")
            .unwrap(),
    );
    let file = File::create(root.path().join("train-0.parquet")).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Arc::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column
        .typed::<Int32Type>()
        .write_batch(&[4, 300], None, None)
        .unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    let images = [dot(5), dot(6)].map(ByteArray::from);
    column
        .typed::<ByteArrayType>()
        .write_batch(&images, None, None)
        .unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
    let named = OpenOptions {
        image_column: Some("picture".to_owned()),
        label_column: Some("kind".to_owned()),
        ..options()
    };
    let dataset = open(root.path(), &named).unwrap();
    assert_eq!(
        (values(&*dataset), labels(&*dataset)),
        (vec![5, 6], vec![4, 300])
    );
    assert_eq!(dataset.class_names().len(), 301);
}

#[test]
fn null_and_unsupported_images_are_refused_and_single_damaged_ones_are_corrupt_samples() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("train-0.parquet");
    let with = |image: Option<&[u8]>| {
        let mut rows = dots(0..4);
        rows[2].0 = image.map(<[u8]>::to_vec);
        rows
    };
    write_rows(&path, &with(None));
    refused(
        root.path(),
        &options(),
        &["column `image`: 1 of 4 images are null"],
    );
    write_rows(&path, &vec![(None, Some(0)); 3]);
    refused(
        root.path(),
        &options(),
        &["all images are null", "push_to_hub"],
    );

    let without_statistics = || plain().set_statistics_enabled(EnabledStatistics::None);
    for (image, reason) in [
        (None, "the image is null"),
        (Some(&b"GIF89a"[..]), "the file is GIF"),
    ] {
        write(&path, &with(image), (4, 4), without_statistics());
        let dataset = open(root.path(), &options()).unwrap();
        for _ in 0..2 {
            let error = dataset.read(2).unwrap_err();
            assert!(
                error.is_corrupt_sample() && error.to_string().contains(reason),
                "{error}"
            );
            assert!(dataset.read(1).is_ok() && dataset.read(3).is_ok());
        }
    }
    let tiff = encode(RgbImage::from_pixel(1, 1, Rgb([1; 3])), ImageFormat::Png);
    let tiff = [b"II*\0", &tiff[..]].concat();
    write_rows(&path, &with(Some(&tiff)));
    refused(
        root.path(),
        &options(),
        &["the image of sample 2 is TIFF", "convert(\"RGB\")"],
    );
}

#[test]
fn parquet_and_tar_files_in_one_folder_are_refused() {
    let root = tempfile::tempdir().unwrap();
    write_rows(&root.path().join("train-0.parquet"), &dots(0..3));
    fs::write(root.path().join("train-0.tar"), [0; 1024]).unwrap();
    refused(
        root.path(),
        &options(),
        &["several formats", "`train-0.parquet`", "`train-0.tar`"],
    );
}
