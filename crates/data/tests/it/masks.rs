use std::fs::{self, File};
use std::io::BufWriter;
use std::path::Path;

use data::mask::{self, Mask, MaskKind};
use data::{DataError, ImageError};
use png::{BitDepth, ColorType};

use crate::support::Golden;

fn write_png(path: &Path, size: (u32, u32), colour: ColorType, depth: BitDepth, data: &[u8]) {
    let file = BufWriter::new(File::create(path).unwrap());
    let mut encoder = png::Encoder::new(file, size.0, size.1);
    encoder.set_color(colour);
    encoder.set_depth(depth);
    if colour == ColorType::Indexed {
        encoder.set_palette((0..=255).flat_map(|i| [255 - i, i, 7]).collect::<Vec<u8>>());
    }
    encoder
        .write_header()
        .unwrap()
        .write_image_data(data)
        .unwrap();
}

/// Max pooling of `value > 0` over 16x16 patches of a 256x256 mask.
fn patches(values: &[u8]) -> Vec<u8> {
    let mut patches = vec![0; 256];
    for (i, &value) in values.iter().enumerate() {
        let (y, x) = (i / 256, i % 256);
        patches[y / 16 * 16 + x / 16] |= u8::from(value > 0);
    }
    patches
}

#[test]
fn resized_masks_equal_upstream() {
    let golden = Golden::read("mask_resize");
    let folder = tempfile::tempdir().unwrap();
    let inputs = [
        ("a_grey_255", ColorType::Grayscale),
        ("b_grey_3", ColorType::Grayscale),
        ("c_palette", ColorType::Indexed),
    ];
    for (name, colour) in inputs {
        let (shape, bytes) = golden.bytes(&format!("in.{}", &name[2..]));
        let size = (shape[1] as u32, shape[0] as u32);
        let path = folder.path().join(format!("{name}.png"));
        write_png(&path, size, colour, BitDepth::Eight, &bytes);
        assert!(Mask::open(&path).unwrap().values() == bytes);
    }
    let (_, resized) = golden.bytes("out.resized");
    let (_, patch_masks) = golden.bytes("out.patch_masks");
    let masks = mask::read_folder(folder.path(), 256).unwrap();
    let kinds: Vec<_> = masks.iter().map(|(_, mask)| mask.kind()).collect();
    assert_eq!(kinds, [MaskKind::Grey, MaskKind::Grey, MaskKind::Indexed]);
    let expected = resized
        .chunks_exact(256 * 256)
        .zip(patch_masks.chunks_exact(256));
    for ((path, mask), (resized, patch_mask)) in masks.iter().zip(expected) {
        assert!(mask.values() == resized, "{} differs", path.display());
        assert_eq!(patches(mask.values()), patch_mask);
    }
}

#[test]
fn masks_of_the_target_size_are_unchanged_and_sorted_by_name() {
    let golden = Golden::read("mask_filter");
    let (shape, raw) = golden.bytes("in.masks_raw");
    let (_, patch_masks) = golden.bytes("out.patch_masks");
    let folder = tempfile::tempdir().unwrap();
    let masks: Vec<_> = raw.chunks_exact(256 * 256).collect();
    assert_eq!(masks.len(), shape[0]);
    for (i, mask) in masks.iter().enumerate().rev() {
        let path = folder.path().join(format!("{i:03}.png"));
        write_png(
            &path,
            (256, 256),
            ColorType::Grayscale,
            BitDepth::Eight,
            mask,
        );
    }
    fs::write(folder.path().join("notes.txt"), "no mask").unwrap();
    fs::write(folder.path().join(".hidden.png"), "no mask").unwrap();

    let read = mask::read_folder(folder.path(), 256).unwrap();
    assert_eq!(read.len(), masks.len());
    for (i, (path, mask)) in read.iter().enumerate() {
        assert_eq!(
            path.file_name().unwrap().to_str().unwrap(),
            format!("{i:03}.png")
        );
        assert!(mask.values() == masks[i]);
        assert_eq!(patches(mask.values()), patch_masks[i * 256..(i + 1) * 256]);
    }
}

#[test]
fn values_of_fewer_than_8_bits_equal_those_of_pillow() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mask.png");
    let check = |colour, depth, packed: &[u8], kind, values: [u8; 6]| {
        write_png(&path, (3, 2), colour, depth, packed);
        let mask = Mask::open(&path).unwrap();
        assert_eq!((mask.width(), mask.height(), mask.kind()), (3, 2, kind));
        assert_eq!(mask.values(), values, "{colour:?} {depth:?}");
    };
    // Two rows of three pixels; each row is padded to whole bytes.
    let (bits, pairs, nibbles) = ([0xa0, 0x60], [0x18, 0xc4], [0x01, 0x20, 0xf0, 0x30]);
    let (grey, palette) = (ColorType::Grayscale, ColorType::Indexed);
    check(
        grey,
        BitDepth::One,
        &bits,
        MaskKind::Indexed,
        [255, 0, 255, 0, 255, 255],
    );
    check(
        grey,
        BitDepth::Two,
        &pairs,
        MaskKind::Grey,
        [0, 85, 170, 255, 0, 85],
    );
    check(
        grey,
        BitDepth::Four,
        &nibbles,
        MaskKind::Grey,
        [0, 17, 34, 255, 0, 51],
    );
    check(
        palette,
        BitDepth::One,
        &bits,
        MaskKind::Indexed,
        [1, 0, 1, 0, 1, 1],
    );
    check(
        palette,
        BitDepth::Four,
        &nibbles,
        MaskKind::Indexed,
        [0, 1, 2, 15, 0, 3],
    );
}

#[test]
fn masks_with_several_channels_or_16_bits_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mask.png");
    for (colour, depth, bytes) in [
        (ColorType::Rgb, BitDepth::Eight, 3),
        (ColorType::GrayscaleAlpha, BitDepth::Eight, 2),
        (ColorType::Grayscale, BitDepth::Sixteen, 2),
    ] {
        write_png(&path, (1, 1), colour, depth, &vec![0; bytes]);
        let error = Mask::open(&path).unwrap_err();
        assert!(matches!(error, DataError::Mask { .. }), "{error}");
        assert!(
            error
                .to_string()
                .contains("8-bit grey, palette or 1-bit PNG"),
            "{error}"
        );
    }
}

#[test]
fn a_damaged_or_missing_mask_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = mask::read_folder(folder.path(), 256).unwrap_err();
    assert!(error.to_string().contains("expected .png files"), "{error}");

    let path = folder.path().join("broken.png");
    write_png(
        &path,
        (64, 64),
        ColorType::Grayscale,
        BitDepth::Eight,
        &[9; 64 * 64],
    );
    let bytes = fs::read(&path).unwrap();
    for length in [0, 10, bytes.len() / 2] {
        fs::write(&path, &bytes[..length]).unwrap();
        let error = mask::read_folder(folder.path(), 256).unwrap_err();
        assert!(
            matches!(
                error,
                DataError::Image {
                    source: ImageError::Decode(_),
                    ..
                }
            ),
            "{length} bytes: {error}"
        );
        assert!(error.to_string().contains("broken.png"), "{error}");
    }
}
