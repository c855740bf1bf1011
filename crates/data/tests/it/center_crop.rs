use data::pillow::{Filter, resize};
use data::{Image, center_crop};

use crate::support::Golden;

/// Checks that the crop of a golden case and each intermediate step are bit-identical to upstream.
fn crop_equals_upstream(case: &str, halvings_for_64: usize) {
    let golden = Golden::read(case);
    let (shape, bytes) = golden.bytes("in.image");
    let (height, width) = (shape[0] as u32, shape[1] as u32);
    let image = Image::new(width, height, bytes.clone(), None).unwrap();

    for size in [256, 64] {
        let crop = center_crop::adm(&image, size).unwrap();
        let (shape, expected) = golden.bytes(&format!("out.crop{size}"));
        assert_eq!(shape, [size as usize, size as usize, 3]);
        assert_eq!((crop.width(), crop.height()), (size, size));
        assert!(crop.rgb() == expected, "{case}: crop to {size} differs");
    }

    let (mut bytes, mut width, mut height) = (bytes, width, height);
    let mut step = |key: String, filter| {
        let (shape, expected) = golden.bytes(&key);
        let (out_height, out_width) = (shape[0] as u32, shape[1] as u32);
        let resized = resize(&bytes, width, height, 3, out_width, out_height, filter).unwrap();
        assert!(resized == expected, "{case}: {key} differs");
        (bytes, width, height) = (expected, out_width, out_height);
    };
    for halving in 1..=halvings_for_64 {
        step(format!("out.box{halving}_for64"), Filter::Box);
    }
    step("out.bicubic_for64".to_owned(), Filter::Bicubic);
}

#[test]
fn crop_of_a_tall_image_narrower_than_the_crop_equals_upstream() {
    crop_equals_upstream("center_crop_w255_h900", 1);
}

#[test]
fn crop_of_a_square_image_equals_upstream() {
    crop_equals_upstream("center_crop_w256_h256", 2);
}

#[test]
fn crop_of_a_wide_image_with_odd_sides_equals_upstream() {
    crop_equals_upstream("center_crop_w517_h389", 2);
}

#[test]
fn alpha_is_cropped_like_a_grey_image() {
    let golden = Golden::read("center_crop_w517_h389");
    let (shape, bytes) = golden.bytes("in.image");
    let (_, expected) = golden.bytes("out.crop64");
    let red = |bytes: &[u8]| bytes.iter().step_by(3).copied().collect::<Vec<_>>();
    let alpha = Some(red(&bytes));
    let image = Image::new(shape[1] as u32, shape[0] as u32, bytes, alpha).unwrap();
    let crop = center_crop::adm(&image, 64).unwrap();
    assert!(crop.alpha().unwrap() == red(&expected));
}
