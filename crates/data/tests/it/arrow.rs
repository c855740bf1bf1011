use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::builder::{Int32Builder, ListBuilder, StringDictionaryBuilder};
use arrow_array::types::Int32Type;
use arrow_array::{
    ArrayRef, BinaryArray, BooleanArray, Float64Array, Int8Array, Int64Array, LargeBinaryArray,
    NullArray, RecordBatch, StringArray, StructArray, UInt16Array,
};
use arrow_ipc::reader::StreamReader;
use arrow_ipc::writer::{FileWriter, StreamWriter};
use arrow_schema::{DataType, Field};
use data::{Background, DataError, OpenOptions, open, read_batch};
use serde_json::json;

use crate::support::{copy_of_emoji_val, dot, emoji, options, refused, values};

fn refusal(root: &Path, options: &OpenOptions) -> DataError {
    open(root, options).err().unwrap()
}

/// An image column in the form that `datasets` writes.
fn image_struct(images: Vec<Option<Vec<u8>>>) -> ArrayRef {
    let bytes = BinaryArray::from_iter(images.iter().map(|image| image.as_deref()));
    let path = StringArray::from_iter(images.iter().map(|_| Some("x.png")));
    Arc::new(StructArray::from(vec![
        (
            Arc::new(Field::new("bytes", DataType::Binary, true)),
            Arc::new(bytes) as ArrayRef,
        ),
        (
            Arc::new(Field::new("path", DataType::Utf8, true)),
            Arc::new(path) as ArrayRef,
        ),
    ]))
}

fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable(
        columns
            .into_iter()
            .map(|(name, column)| (name, column, true)),
    )
    .unwrap()
}

fn write_stream(path: &Path, batches: &[RecordBatch]) {
    let mut writer =
        StreamWriter::try_new(File::create(path).unwrap(), &batches[0].schema()).unwrap();
    for batch in batches {
        writer.write(batch).unwrap();
    }
    writer.finish().unwrap();
}

/// Writes a folder in the form of `save_to_disk`; `files` has the record batches of each file.
fn save(root: &Path, features: serde_json::Value, files: &[Vec<RecordBatch>]) {
    fs::create_dir_all(root).unwrap();
    let mut names = Vec::new();
    for (i, batches) in files.iter().enumerate() {
        let name = format!("data-{i:05}-of-{:05}.arrow", files.len());
        write_stream(&root.join(&name), batches);
        names.push(json!({ "filename": name }));
    }
    let state = json!({ "_data_files": names, "_fingerprint": "abc" });
    fs::write(root.join("state.json"), state.to_string()).unwrap();
    fs::write(
        root.join("dataset_info.json"),
        json!({ "features": features }).to_string(),
    )
    .unwrap();
}

fn class_label() -> serde_json::Value {
    json!({
        "image": { "_type": "Image" },
        "label": { "_type": "ClassLabel", "names": ["a", "b", "c"] },
    })
}

#[test]
fn the_embedded_set_equals_what_the_arrow_crate_reads() {
    let mut total = 0;
    for split in ["train", "val"] {
        let dataset = open(
            emoji(),
            &OpenOptions {
                split: Some(split.to_owned()),
                ..options()
            },
        )
        .unwrap();
        assert_eq!(dataset.name(), format!("emoji64/{split}"));
        assert_eq!(dataset.class_names().len(), 9);
        assert_eq!(dataset.class_names()[1], "Animals & Nature");

        let file = File::open(emoji().join(split).join("data-00000-of-00001.arrow")).unwrap();
        let mut index = 0;
        for batch in StreamReader::try_new(file, None).unwrap() {
            let batch = batch.unwrap();
            let image = batch.column_by_name("image").unwrap();
            let image = image.as_any().downcast_ref::<StructArray>().unwrap();
            let bytes = image.column_by_name("bytes").unwrap();
            let bytes = bytes.as_any().downcast_ref::<BinaryArray>().unwrap();
            let label = batch.column_by_name("label").unwrap();
            let label = label.as_any().downcast_ref::<Int64Array>().unwrap();
            for row in 0..batch.num_rows() {
                let sample = dataset.read(index).unwrap();
                assert_eq!(sample.index, index);
                assert_eq!(sample.label, label.value(row));
                let expected = image::load_from_memory(bytes.value(row))
                    .unwrap()
                    .into_rgba8();
                assert_eq!(sample.image.width(), 64);
                let alpha: Vec<_> = expected.pixels().map(|pixel| pixel.0[3]).collect();
                assert_eq!(sample.image.alpha(), Some(alpha.as_slice()));
                let rgb: Vec<_> = expected
                    .pixels()
                    .flat_map(|p| [p.0[0], p.0[1], p.0[2]])
                    .collect();
                assert_eq!(sample.image.rgb(), rgb);
                index += 1;
            }
        }
        assert_eq!(dataset.len(), index);
        total += index;
    }
    assert_eq!(total, 1906);
}

#[test]
fn the_label_column_can_be_chosen() {
    let options = OpenOptions {
        split: Some("val".to_owned()),
        label_column: Some("subcategory".to_owned()),
        ..options()
    };
    let dataset = open(emoji(), &options).unwrap();
    assert_eq!(dataset.class_names().len(), 98);
    let by_label = OpenOptions {
        label_column: None,
        ..options
    };
    assert_ne!(
        dataset.fingerprint(),
        open(emoji(), &by_label).unwrap().fingerprint()
    );
}

#[test]
fn fingerprint_of_the_embedded_set_does_not_depend_on_its_location() {
    let folder = tempfile::tempdir().unwrap();
    let copy = copy_of_emoji_val(folder.path());
    let options_val = OpenOptions {
        split: Some("val".to_owned()),
        ..options()
    };
    let original = open(emoji(), &options_val).unwrap();
    let copied = open(copy, &options()).unwrap();
    assert_eq!(original.fingerprint(), copied.fingerprint());
}

#[test]
fn several_files_and_record_batches_are_one_data_set() {
    let folder = tempfile::tempdir().unwrap();
    let images = |range: std::ops::Range<u8>| {
        let labels = Int64Array::from_iter_values(range.clone().map(|i| i64::from(i % 3)));
        batch(vec![
            ("image", image_struct(range.map(|i| Some(dot(i))).collect())),
            ("label", Arc::new(labels)),
        ])
    };
    // The offsets of a sliced batch do not start at zero.
    let sliced = images(0..10).slice(4, 3);
    save(
        folder.path(),
        class_label(),
        &[
            vec![images(0..3), images(3..3), images(3..4)],
            vec![sliced, images(7..9)],
        ],
    );
    let dataset = open(folder.path(), &options()).unwrap();
    assert_eq!(values(&*dataset), (0..9).collect::<Vec<u8>>());
    assert_eq!(dataset.read(5).unwrap().label, 2);
    assert!(matches!(
        dataset.read(9),
        Err(DataError::Index { len: 9, .. })
    ));
}

#[test]
fn columns_of_any_type_may_precede_the_images() {
    let folder = tempfile::tempdir().unwrap();
    let mut lists = ListBuilder::new(Int32Builder::new());
    lists.append_value([Some(1), None]);
    lists.append_null();
    let mut words = StringDictionaryBuilder::<Int32Type>::new();
    words.append_value("one");
    words.append_value("two");
    let views =
        arrow_array::StringViewArray::from(vec!["a value too long to be inlined in a view", "b"]);
    let nested = StructArray::from(vec![
        (
            Arc::new(Field::new("x", DataType::Float64, true)),
            Arc::new(Float64Array::from(vec![1.0, 2.0])) as ArrayRef,
        ),
        (
            Arc::new(Field::new("y", DataType::Utf8, true)),
            Arc::new(StringArray::from(vec!["p", "q"])) as ArrayRef,
        ),
    ]);
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("flag", Arc::new(BooleanArray::from(vec![Some(true), None]))),
        ("nothing", Arc::new(NullArray::new(2))),
        ("list", Arc::new(lists.finish())),
        ("word", Arc::new(words.finish())),
        ("view", Arc::new(views)),
        ("nested", Arc::new(nested)),
        ("label", Arc::new(Int8Array::from(vec![2, 1]))),
        ("image", image_struct(vec![Some(dot(7)), Some(dot(8))])),
    ];
    save(folder.path(), class_label(), &[vec![batch(columns)]]);
    let dataset = open(folder.path(), &options()).unwrap();
    assert_eq!(values(&*dataset), [7, 8]);
    assert_eq!(dataset.read(0).unwrap().label, 2);
}

#[test]
fn images_may_be_plain_binary_and_labels_plain_integers() {
    let folder = tempfile::tempdir().unwrap();
    let features = json!({ "picture": { "dtype": "binary" }, "kind": { "dtype": "uint16" } });
    let pixels = [dot(5), dot(6)];
    let kinds: ArrayRef = Arc::new(UInt16Array::from(vec![300, 4]));
    let named = OpenOptions {
        image_column: Some("picture".to_owned()),
        label_column: Some("kind".to_owned()),
        ..options()
    };
    let narrow: ArrayRef = Arc::new(BinaryArray::from_iter_values(&pixels));
    let wide: ArrayRef = Arc::new(LargeBinaryArray::from_iter_values(&pixels));
    for picture in [narrow, wide] {
        let columns = vec![("picture", picture), ("kind", Arc::clone(&kinds))];
        save(folder.path(), features.clone(), &[vec![batch(columns)]]);
        let dataset = open(folder.path(), &named).unwrap();
        assert_eq!(values(&*dataset), [5, 6]);
        assert_eq!(dataset.class_names().len(), 301);
        assert_eq!(dataset.read(0).unwrap().label, 300);
    }
}

#[test]
fn a_single_image_of_an_unsupported_format_is_a_corrupt_sample() {
    let folder = tempfile::tempdir().unwrap();
    let images = vec![Some(dot(1)), Some(b"GIF89a".to_vec()), Some(vec![])];
    let labels: ArrayRef = Arc::new(Int64Array::from(vec![0, 1, 2]));
    let columns = vec![("image", image_struct(images)), ("label", labels)];
    save(folder.path(), class_label(), &[vec![batch(columns)]]);
    let dataset = open(folder.path(), &options()).unwrap();
    assert!(dataset.read(0).is_ok());
    for (index, reason) in [(1, "GIF; supported: PNG, JPEG and WebP"), (2, "empty")] {
        let error = dataset.read(index).unwrap_err();
        assert!(error.is_corrupt_sample(), "{error}");
        let text = error.to_string();
        assert!(
            text.contains(&format!("sample {index}")) && text.contains(reason),
            "{text}"
        );
    }
}

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/cases")
        .join(name)
}

#[test]
fn a_split_without_samples_is_refused() {
    for folder in ["no-file", "one-shard"] {
        let val = case("8-empty-split").join(folder).join("val");
        refused(&val, &options(), &["this split has no samples"]);
        let unlabelled = OpenOptions {
            unlabelled: true,
            ..options()
        };
        refused(&val, &unlabelled, &["this split has no samples"]);
    }
    // Record batches without rows, and an empty file between others.
    let folder = tempfile::tempdir().unwrap();
    let rows = |count: u8| {
        let labels: ArrayRef = Arc::new(Int64Array::from(vec![1; usize::from(count)]));
        batch(vec![
            (
                "image",
                image_struct((0..count).map(|i| Some(dot(i))).collect()),
            ),
            ("label", labels),
        ])
    };
    save(
        folder.path(),
        class_label(),
        &[vec![rows(0), rows(0)], vec![rows(0)]],
    );
    refused(folder.path(), &options(), &["this split has no samples"]);
    save(
        folder.path(),
        class_label(),
        &[vec![rows(0)], vec![rows(2)], vec![rows(0)]],
    );
    assert_eq!(values(&*open(folder.path(), &options()).unwrap()), [0, 1]);
}

#[test]
fn null_images_are_refused() {
    refused(
        &case("7-path-only/ds"),
        &options(),
        &[
            "column `image`",
            "images that are stored elsewhere",
            "embed them",
        ],
    );
    let folder = tempfile::tempdir().unwrap();
    let labels = || -> ArrayRef { Arc::new(Int64Array::from(vec![0, 1, 2])) };
    let images = image_struct(vec![Some(dot(1)), None, Some(dot(2))]);
    save(
        folder.path(),
        class_label(),
        &[vec![batch(vec![("image", images), ("label", labels())])]],
    );
    refused(
        folder.path(),
        &options(),
        &["column `image`", "1 of 3 images are null"],
    );

    // The struct is null, not only its bytes.
    let bytes: ArrayRef = Arc::new(BinaryArray::from(vec![&dot(1)[..], &[], &[]]));
    let field = Arc::new(Field::new("bytes", DataType::Binary, true));
    let valid = Some(vec![true, false, false].into());
    let images: ArrayRef = Arc::new(StructArray::new(vec![field].into(), vec![bytes], valid));
    save(
        folder.path(),
        class_label(),
        &[vec![batch(vec![("image", images), ("label", labels())])]],
    );
    refused(folder.path(), &options(), &["2 of 3 images are null"]);
}

#[test]
fn images_stored_as_tiff_are_refused_with_the_fix() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let of = |images: Vec<Vec<u8>>| {
        let labels: ArrayRef = Arc::new(Int64Array::from(vec![0; images.len()]));
        let images = image_struct(images.into_iter().map(Some).collect());
        save(
            root,
            class_label(),
            &[vec![batch(vec![("image", images), ("label", labels)])]],
        );
    };
    for file in ["cmyk.tif", "f.tif"] {
        let tiff = fs::read(case("6-hf-tiff").join(file)).unwrap();
        let words = ["column `image`", "TIFF", "convert(\"RGB\")", "save_to_disk"];
        of(vec![tiff.clone(), tiff.clone()]);
        refused(root, &options(), &words);
        // If a data set has images of several modes, only some are stored as TIFF.
        of(vec![dot(0), dot(1), tiff, dot(3)]);
        refused(root, &options(), &words);
    }
    of(vec![b"GIF89a......".to_vec(); 3]);
    refused(root, &options(), &["sample 0 is GIF"]);
    of(vec![
        b"version https://git-lfs.github.com/spec/v1\n".to_vec();
        3
    ]);
    refused(root, &options(), &["Git LFS pointer"]);
}

#[test]
fn labels_without_a_class_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let info = fs::read(case("9-labels/neg/dataset_info.json")).unwrap();
    let info: serde_json::Value = serde_json::from_slice(&info).unwrap();
    let named = info["features"].clone();
    let nameless = json!({ "image": { "_type": "Image" }, "label": { "dtype": "int64" } });
    let of = |features: &serde_json::Value, labels: Vec<Option<i64>>| {
        let images = image_struct(labels.iter().map(|_| Some(dot(0))).collect());
        let labels: ArrayRef = Arc::new(Int64Array::from(labels));
        save(
            root,
            features.clone(),
            &[vec![batch(vec![("image", images), ("label", labels)])]],
        );
    };
    let words = ["column `label`", "0..2"];
    of(&named, vec![Some(-1); 4]);
    refused(
        root,
        &options(),
        &[&words[..], &["sample 0 is -1", "4 of 4"]].concat(),
    );
    of(&named, vec![Some(0), Some(2), Some(5), Some(1)]);
    refused(
        root,
        &options(),
        &[&words[..], &["sample 2 is 5", "1 of 4"]].concat(),
    );
    of(&named, vec![Some(0), None]);
    refused(
        root,
        &options(),
        &[&words[..], &["sample 1 is null"]].concat(),
    );
    of(&nameless, vec![Some(3), Some(-1)]);
    refused(
        root,
        &options(),
        &["column `label`", "sample 1 is -1", "0..999999"],
    );
    of(&nameless, vec![Some(3), Some(1_000_000)]);
    refused(root, &options(), &["sample 1 is 1000000"]);

    // An unlabelled data set ignores labels that are out of range.
    of(&named, vec![Some(-1); 4]);
    let unlabelled = OpenOptions {
        unlabelled: true,
        ..options()
    };
    let dataset = open(root, &unlabelled).unwrap();
    assert_eq!(dataset.read(3).unwrap().label, 0);
    assert_eq!(dataset.class_names(), ["all"]);
}

#[test]
fn the_error_names_the_kind_of_a_foreign_file() {
    const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n";
    let folder = tempfile::tempdir().unwrap();
    let root = copy_of_emoji_val(folder.path());
    for file in [
        "state.json",
        "dataset_info.json",
        "data-00000-of-00001.arrow",
    ] {
        let original = fs::read(root.join(file)).unwrap();
        fs::write(root.join(file), POINTER).unwrap();
        refused(
            &root,
            &options(),
            &[file, "Git LFS pointer", "git lfs pull"],
        );
        if file.ends_with(".json") {
            let text = String::from_utf8(original.clone()).unwrap();
            let utf16: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
            fs::write(root.join(file), &utf16).unwrap();
            refused(&root, &options(), &[file, "UTF-16"]);
            fs::write(root.join(file), [b"\xff\xfe", &utf16[..]].concat()).unwrap();
            refused(&root, &options(), &[file, "UTF-16"]);
            fs::write(root.join(file), [b"\xef\xbb\xbf", &original[..]].concat()).unwrap();
            assert!(
                open(&root, &options()).is_ok(),
                "{file} with a byte order mark"
            );
        }
        fs::write(root.join(file), original).unwrap();
    }
}

#[test]
fn a_file_truncated_anywhere_is_refused_when_opened() {
    let folder = tempfile::tempdir().unwrap();
    let root = copy_of_emoji_val(folder.path());
    let path = root.join("data-00000-of-00001.arrow");
    let whole = fs::read(&path).unwrap();
    // At the last length only the end marker is missing, as if the writer was killed between two batches.
    for length in [
        0,
        3,
        8,
        100,
        whole.len() / 2,
        whole.len() - 100,
        whole.len() - 8,
    ] {
        fs::write(&path, &whole[..length]).unwrap();
        let error = refusal(&root, &options());
        assert!(
            matches!(error, DataError::Truncated { .. }),
            "{length}: {error}"
        );
        assert!(
            error.to_string().contains("data-00000-of-00001.arrow"),
            "{error}"
        );
        assert!(error.to_string().contains("copy or download"), "{error}");
    }
}

#[test]
fn damaged_headers_never_cause_a_panic() {
    let folder = tempfile::tempdir().unwrap();
    let labels: ArrayRef = Arc::new(Int64Array::from(vec![0, 1, 2]));
    let images = image_struct((0..3).map(|i| Some(dot(i))).collect());
    let columns = vec![("image", images), ("label", labels)];
    save(folder.path(), class_label(), &[vec![batch(columns)]]);
    let path = folder.path().join("data-00000-of-00001.arrow");
    let whole = fs::read(&path).unwrap();
    let mut refused = 0;
    for position in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[position] ^= [0xff, 0x80, 0x01][position % 3];
        fs::write(&path, damaged).unwrap();
        match open(folder.path(), &options()) {
            Ok(dataset) => {
                for index in 0..dataset.len() {
                    let _ = dataset.read(index);
                }
            }
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 100, "only {refused} damaged files were refused");
}

#[test]
fn a_file_that_is_not_an_arrow_stream_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let labels: ArrayRef = Arc::new(Int64Array::from(vec![0]));
    let rows = batch(vec![
        ("image", image_struct(vec![Some(dot(0))])),
        ("label", labels),
    ]);
    save(folder.path(), class_label(), &[vec![rows.clone()]]);
    let path = folder.path().join("data-00000-of-00001.arrow");

    let mut writer = FileWriter::try_new(File::create(&path).unwrap(), &rows.schema()).unwrap();
    writer.write(&rows).unwrap();
    writer.finish().unwrap();
    let text = refusal(folder.path(), &options()).to_string();
    assert!(text.contains("Arrow IPC file, not a stream"), "{text}");

    fs::write(&path, "something else").unwrap();
    let text = refusal(folder.path(), &options()).to_string();
    assert!(text.contains("not an Arrow IPC stream"), "{text}");

    fs::remove_file(&path).unwrap();
    let error = refusal(folder.path(), &options());
    assert!(matches!(error, DataError::Io { .. }), "{error}");
    assert!(
        error.to_string().contains("data-00000-of-00001.arrow"),
        "{error}"
    );
}

#[test]
fn errors_name_missing_columns_and_wrong_types_with_the_alternatives() {
    let folder = tempfile::tempdir().unwrap();
    let names: ArrayRef = Arc::new(StringArray::from(vec!["x"]));
    let image = image_struct(vec![Some(dot(0))]);
    let features = json!({
        "image": { "_type": "Image" }, "name": { "dtype": "string" },
        "ghost": { "_type": "ClassLabel", "names": ["a"] },
    });
    let rows = batch(vec![("image", image), ("name", names)]);
    save(folder.path(), features, &[vec![rows]]);
    let label = |name: &str| OpenOptions {
        label_column: Some(name.to_owned()),
        ..options()
    };

    let text = refusal(folder.path(), &label("lable")).to_string();
    assert!(
        text.contains("there is no column `lable`; set `label_column` to one of"),
        "{text}"
    );
    assert!(text.contains("`ghost`, `image`, `name`"), "{text}");

    let error = refusal(folder.path(), &label("name"));
    assert!(
        matches!(
            error,
            DataError::ColumnType {
                key: "label_column",
                ..
            }
        ),
        "{error}"
    );
    assert!(
        error.to_string().contains("Utf8; allowed: integers"),
        "{error}"
    );

    // The column is in dataset_info.json, but not in the Arrow file.
    let text = refusal(folder.path(), &options()).to_string();
    assert!(
        text.contains(".arrow: there is no column `ghost`"),
        "{text}"
    );

    let image = OpenOptions {
        image_column: Some("name".to_owned()),
        unlabelled: true,
        ..options()
    };
    let error = refusal(folder.path(), &image);
    assert!(
        matches!(
            error,
            DataError::ColumnType {
                key: "image_column",
                ..
            }
        ),
        "{error}"
    );
    assert!(error.to_string().contains("datasets.Image()"), "{error}");
}

#[test]
fn the_error_of_a_missing_label_column_suggests_unlabelled() {
    let folder = tempfile::tempdir().unwrap();
    let rows = batch(vec![("image", image_struct(vec![Some(dot(0))]))]);
    save(
        folder.path(),
        json!({ "image": { "_type": "Image" } }),
        &[vec![rows]],
    );
    let text = refusal(folder.path(), &options()).to_string();
    assert!(
        text.contains("label_column") && text.contains("`unlabelled`"),
        "{text}"
    );
}

#[test]
fn errors_name_damaged_json_files_with_their_key() {
    let folder = tempfile::tempdir().unwrap();
    let root = copy_of_emoji_val(folder.path());
    let refused = |file: &str, text: &str, expected: &[&str]| {
        let original = fs::read(root.join(file)).unwrap();
        fs::write(root.join(file), text).unwrap();
        let message = refusal(&root, &options()).to_string();
        for part in expected {
            assert!(message.contains(part), "{part:?} is not in {message:?}");
        }
        fs::write(root.join(file), original).unwrap();
    };
    refused("state.json", "{", &["state.json", "not valid JSON"]);
    refused("state.json", "[]", &["state.json", "not a JSON object"]);
    refused(
        "state.json",
        "{}",
        &["state.json", "`_data_files`", "is missing"],
    );
    refused("state.json", r#"{"_data_files": [{}]}"#, &["`filename`"]);
    let indices = r#"{"_data_files": [{"filename": "x"}], "_indices_files": [{"filename": "y"}]}"#;
    refused(
        "state.json",
        indices,
        &["_indices_files", "flatten_indices()"],
    );
    refused(
        "dataset_info.json",
        "{}",
        &["dataset_info.json", "`features`"],
    );
    let nameless =
        r#"{"features": {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel"}}}"#;
    refused("dataset_info.json", nameless, &["features.label.names"]);
}

#[test]
fn a_folder_without_its_state_json_is_not_read_as_an_image_folder() {
    let folder = tempfile::tempdir().unwrap();
    let root = copy_of_emoji_val(folder.path());
    fs::remove_file(root.join("state.json")).unwrap();
    let text = refusal(&root, &options()).to_string();
    assert!(
        text.contains("no state.json") && text.contains("save_to_disk"),
        "{text}"
    );

    let root = folder.path().join("other");
    fs::create_dir(&root).unwrap();
    fs::rename(folder.path().join("val"), root.join("val")).unwrap();
    fs::remove_file(root.join("val/dataset_info.json")).unwrap();
    fs::write(
        root.join("val/state.json"),
        r#"{"_data_files": [{"filename": "x"}]}"#,
    )
    .unwrap();
    let text = refusal(&root, &options()).to_string();
    assert!(text.contains("dataset_info.json"), "{text}");
}

#[test]
fn a_split_must_be_named_unless_there_is_only_one() {
    let text = refusal(&emoji(), &options()).to_string();
    assert!(text.contains("`split` can be `train`, `val`"), "{text}");

    let folder = tempfile::tempdir().unwrap();
    let val = copy_of_emoji_val(folder.path());
    let only = open(folder.path(), &options()).unwrap();
    assert!(only.name().ends_with("/val"), "{}", only.name());

    let train = OpenOptions {
        split: Some("train".to_owned()),
        ..options()
    };
    let text = refusal(&val, &train).to_string();
    assert!(
        text.contains("is a single split itself") && text.contains("omit `split`"),
        "{text}"
    );
}

#[test]
fn read_batch_keeps_the_requested_order() {
    let dataset = open(
        emoji(),
        &OpenOptions {
            split: Some("val".to_owned()),
            ..options()
        },
    )
    .unwrap();
    let batch = read_batch(&*dataset, &[3, 0, 3], 32, Background::Black).unwrap();
    assert_eq!((batch.len(), batch.ids.as_slice()), (3, &[3, 0, 3][..]));
    let image = 3 * 32 * 32;
    assert_eq!(batch.images.len(), 3 * image);
    assert_eq!(batch.images[..image], batch.images[2 * image..]);
    assert_eq!(batch.masks.unwrap().len(), 3 * 32 * 32);
    assert_eq!(batch.flipped, [false; 3]);

    let error = read_batch(&*dataset, &[0], 0, Background::Black).unwrap_err();
    assert!(
        matches!(
            error,
            DataError::Config {
                key: "resolution",
                ..
            }
        ),
        "{error}"
    );
    let error = read_batch(&*dataset, &[0, 10_000], 8, Background::Black).unwrap_err();
    assert!(
        matches!(error, DataError::Index { index: 10_000, .. }),
        "{error}"
    );
}
