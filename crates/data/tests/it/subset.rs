//! Data sets of which only a part is used.

use std::num::NonZeroU64;
use std::path::PathBuf;

use data::OpenOptions;

fn open(limit: Option<u64>) -> std::sync::Arc<dyn data::Dataset> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../experiments/data/emoji64");
    let options = OpenOptions {
        split: Some("train".to_owned()),
        limit: limit.and_then(NonZeroU64::new),
        ..OpenOptions::default()
    };
    data::open(folder, &options).unwrap()
}

#[test]
fn a_limit_selects_evenly_spaced_samples() {
    let all = open(None);
    let some = open(Some(100));
    assert_eq!((some.len(), some.name()), (100, all.name()));
    assert_eq!(some.class_names(), all.class_names());
    for (index, original) in data::evenly_spaced(100, all.len()).into_iter().enumerate() {
        assert_eq!(original, index as u64 * all.len() / 100);
        let index = index as u64;
        assert_eq!(some.label(index).unwrap(), all.label(original).unwrap());
        assert_eq!(
            some.read(index).unwrap().image,
            all.read(original).unwrap().image
        );
    }
    assert!(some.read(100).unwrap_err().to_string().contains("100"));
}

#[test]
fn the_fingerprint_depends_on_the_samples_only() {
    let all = open(None);
    assert_ne!(open(Some(100)).fingerprint(), all.fingerprint());
    assert_ne!(open(Some(100)).fingerprint(), open(Some(101)).fingerprint());
    assert_eq!(open(Some(1 << 40)).fingerprint(), all.fingerprint());
}
