//! Helpers shared by several tests.

use std::fs;
use std::path::{Path, PathBuf};

use data::{Dataset, OpenOptions, open};
use image::{DynamicImage, ImageFormat};
use safetensors::SafeTensors;

/// A file of golden tensors.
pub struct Golden(Vec<u8>);

impl Golden {
    /// Reads `tests/data/CASE.safetensors`.
    pub fn read(case: &str) -> Self {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data");
        Golden(fs::read(format!("{folder}/{case}.safetensors")).unwrap())
    }

    /// Shape and bytes of a tensor.
    pub fn bytes(&self, key: &str) -> (Vec<usize>, Vec<u8>) {
        let tensors = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = tensors.tensor(key).unwrap();
        assert_eq!(tensor.dtype(), safetensors::Dtype::U8);
        (tensor.shape().to_vec(), tensor.data().to_vec())
    }
}

/// The embedded data set.
pub fn emoji() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../experiments/data/emoji64")
}

/// A copy of the embedded validation split that a test may damage.
pub fn copy_of_emoji_val(into: &Path) -> PathBuf {
    let copy = into.join("val");
    fs::create_dir(&copy).unwrap();
    for entry in fs::read_dir(emoji().join("val")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
    }
    copy
}

pub fn encode(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.into().write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// A PNG of one colour.
pub fn png(width: u32, height: u32, colour: [u8; 3]) -> Vec<u8> {
    encode(
        image::RgbImage::from_pixel(width, height, image::Rgb(colour)),
        ImageFormat::Png,
    )
}

pub fn options() -> OpenOptions {
    OpenOptions::default()
}

pub fn split(name: &str) -> OpenOptions {
    OpenOptions {
        split: Some(name.to_owned()),
        ..options()
    }
}

pub fn unlabelled() -> OpenOptions {
    OpenOptions {
        unlabelled: true,
        ..options()
    }
}

/// A PNG of one pixel, whose value identifies the image.
pub fn dot(value: u8) -> Vec<u8> {
    png(1, 1, [value; 3])
}

/// The values of images that were made by [`dot`].
pub fn values(dataset: &dyn Dataset) -> Vec<u8> {
    (0..dataset.len())
        .map(|index| dataset.read(index).unwrap().image.rgb()[0])
        .collect()
}

/// Checks that opening a folder is refused, with an error that names the folder and contains these words.
pub fn refused(root: &Path, options: &OpenOptions, words: &[&str]) {
    let error = open(root, options).err().unwrap();
    assert!(error.is_refusal(), "{error}");
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "{word:?} is not in {text:?}");
    }
    assert!(text.contains(&root.display().to_string()), "{text}");
}
