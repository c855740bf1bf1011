//! Decoding of single image files: the decoded bytes, and files that are refused.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use data::Image;
use image::{ImageFormat, Rgb, RgbImage};

use crate::support::{encode, png};

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/cases")
        .join(name)
}

fn read(file: &str) -> Vec<u8> {
    fs::read(case(file)).unwrap()
}

fn refusal(bytes: &[u8]) -> String {
    Image::decode(bytes).unwrap_err().to_string()
}

#[test]
fn a_truncated_jpeg_is_refused() {
    for file in ["cut60", "cut95", "pcut60"] {
        let bytes = read(&format!("2-truncated-jpeg/{file}.jpg"));
        assert!(refusal(&bytes).contains("truncated"), "{file}");
        // Some tools append an end marker to the truncated data.
        let ended = [&bytes[..], &[0xff, 0xd9]].concat();
        assert!(refusal(&ended).contains("truncated"), "{file}");
    }
    for file in ["full", "prog"] {
        let whole = read(&format!("2-truncated-jpeg/{file}.jpg"));
        assert!(Image::decode(&whole).is_ok(), "{file}");
        // The last two bytes are the end marker; the byte before it is part of the last block.
        for length in whole.len() / 4..whole.len() - 2 {
            let cut = &whole[..length];
            assert!(Image::decode(cut).is_err(), "{file} cut to {length}");
            let ended = [cut, &[0xff, 0xd9]].concat();
            assert!(
                Image::decode(&ended).is_err(),
                "{file} cut to {length}, with an end marker"
            );
        }
    }
    // Pillow decodes the last pixel of neither.
    for file in ["eoi", "peoi"] {
        let bytes = read(&format!("2-truncated-jpeg/{file}.jpg"));
        assert!(refusal(&bytes).contains("end marker is missing"), "{file}");
    }
}

/// The file names state whether Pillow 11.3 accepts the file (`taken`) or not (`refused`). All files have complete data.
#[test]
fn a_missing_end_marker_is_accepted_exactly_if_pillow_accepts_it() {
    let (mut taken, mut refused) = (0, 0);
    for entry in fs::read_dir(case("jpeg-without-end-marker")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.display().to_string();
        let bytes = fs::read(&path).unwrap();
        let whole = Image::decode(&[&bytes[..], &[0xff, 0xd9]].concat()).unwrap();
        for end in [&[][..], &[0xff]] {
            let ours = Image::decode(&[&bytes[..], end].concat());
            match name.ends_with("taken.jpg") {
                true => assert_eq!(ours.unwrap(), whole, "{name}"),
                false => assert!(ours.is_err(), "{name}"),
            }
        }
        match name.ends_with("taken.jpg") {
            true => taken += 1,
            false => refused += 1,
        }
    }
    assert!(taken >= 10 && refused >= 10, "{taken} {refused}");
}

#[test]
fn extra_bytes_around_the_data_of_a_jpeg_are_ignored() {
    for file in ["full", "prog"] {
        let whole = read(&format!("2-truncated-jpeg/{file}.jpg"));
        let image = Image::decode(&whole).unwrap();
        let (data, end) = whole.split_at(whole.len() - 2);
        for changed in [
            [&whole[..], b"junk \xff\xd8\xff\xda after"].concat(),
            // Fill bytes before a marker, then other bytes.
            [data, &[0xff, 0xff, 0xff], end].concat(),
            [data, &[0, 1, 2], end].concat(),
        ] {
            assert_eq!(Image::decode(&changed).unwrap(), image, "{file}");
        }
    }
    // If there is only one scan, Pillow does not read beyond its last pixel.
    let whole = read("2-truncated-jpeg/full.jpg");
    let data = &whole[..whole.len() - 2];
    assert!(Image::decode(&[data, &[0; 64]].concat()).is_ok());
}

#[test]
fn png_of_any_bit_depth_decodes_to_the_bytes_of_pillow() {
    let mut seen = 0;
    for entry in fs::read_dir(case("3-png16")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "png") {
            let image = Image::open(&path).unwrap();
            let pillow = fs::read(path.with_extension("rgb")).unwrap();
            assert_eq!(image.rgb(), pillow, "{}", path.display());
            seen += 1;
        }
    }
    assert_eq!(seen, 24);
}

#[test]
fn orientation_is_found_wherever_pillow_finds_it() {
    // The stored quadrants are red, green, blue, yellow; after the rotation by 90 degrees: blue, red above yellow,
    // green.
    for file in [
        "b6.png",
        "b6_afterIDAT.png",
        "c_exifprefix6.png",
        "jolong6.jpg",
    ] {
        let image = Image::open(case("5-png-exif-after-idat").join(file)).unwrap();
        let (width, height) = (image.width() as usize, image.height() as usize);
        let name = |x: usize, y: usize| {
            let offset = 3 * ((y * height / 4) * width + x * width / 4);
            match image.rgb()[offset..offset + 3] {
                [r, g, b] if r > 128 && g > 128 && b < 128 => 'Y',
                [r, g, b] if r > 128 && g < 128 && b < 128 => 'R',
                [r, g, b] if r < 128 && g > 128 && b < 128 => 'G',
                _ => 'B',
            }
        };
        let quadrants = [name(1, 1), name(3, 1), name(1, 3), name(3, 3)];
        assert_eq!(quadrants, ['B', 'R', 'Y', 'G'], "{file}");
    }
}

/// A TIFF structure with the single entry Orientation, little-endian or big-endian.
fn exif(kind: u16, count: u32, value: [u8; 4], little: bool) -> Vec<u8> {
    let mut bytes = if little {
        b"II*\0".to_vec()
    } else {
        b"MM\0*".to_vec()
    };
    let mut put = |value: u64, size: usize| match little {
        true => bytes.extend(&value.to_le_bytes()[..size]),
        false => bytes.extend(&value.to_be_bytes()[8 - size..]),
    };
    put(8, 4);
    put(1, 2);
    put(0x0112, 2);
    put(kind.into(), 2);
    put(count.into(), 4);
    bytes.extend(value);
    bytes.extend([0; 4]);
    bytes
}

fn with_exif(format: ImageFormat, exif: &[u8]) -> Vec<u8> {
    let flat = RgbImage::from_pixel(4, 2, Rgb([9, 9, 9]));
    let bytes = encode(flat, format);
    match format {
        ImageFormat::Jpeg => {
            let mut file = bytes[..2].to_vec();
            file.extend([0xff, 0xe1]);
            file.extend((2 + 6 + exif.len() as u16).to_be_bytes());
            file.extend(b"Exif\0\0");
            file.extend(exif);
            file.extend(&bytes[2..]);
            file
        }
        ImageFormat::Png => {
            let end = bytes.len() - 12;
            let mut file = bytes[..end].to_vec();
            file.extend((exif.len() as u32).to_be_bytes());
            file.extend(b"eXIf");
            file.extend(exif);
            let mut checksum = crc(&file[end + 4..]).to_be_bytes().to_vec();
            file.append(&mut checksum);
            file.extend(&bytes[end..]);
            file
        }
        _ => {
            let mut file = bytes;
            file.extend(b"EXIF");
            file.extend((exif.len() as u32).to_le_bytes());
            file.extend(exif);
            let size = file.len() as u32 - 8;
            file[4..8].copy_from_slice(&size.to_le_bytes());
            file
        }
    }
}

/// The checksum of a PNG chunk.
fn crc(bytes: &[u8]) -> u32 {
    let step = |crc: u32| {
        if crc & 1 == 1 {
            0xedb8_8320 ^ (crc >> 1)
        } else {
            crc >> 1
        }
    };
    !bytes.iter().fold(!0, |crc: u32, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| step(crc))
    })
}

#[test]
fn orientation_of_any_numeric_type_is_read_from_all_formats() {
    let size = |bytes: &[u8]| {
        let image = Image::decode(bytes).unwrap();
        (image.width(), image.height())
    };
    for format in [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::WebP] {
        for (kind, little, value, rotated) in [
            (3, true, [6, 0, 0, 0], true),
            (3, false, [0, 6, 0, 0], true),
            (4, true, [6, 0, 0, 0], true),
            (4, false, [0, 0, 0, 6], true),
            (8, true, [8, 0, 0, 0], true),
            (9, false, [0, 0, 0, 5], true),
            (11, true, 6_f32.to_le_bytes(), true),
            (3, true, [1, 0, 0, 0], false),
            (4, true, [9, 0, 0, 0], false),
            // Type 2 is text, not a number.
            (2, true, [6, 0, 0, 0], false),
        ] {
            let bytes = with_exif(format, &exif(kind, 1, value, little));
            let expected = if rotated { (2, 4) } else { (4, 2) };
            assert_eq!(size(&bytes), expected, "{format:?} type {kind} {value:?}");
        }
        let prefixed = [b"Exif\0\0", exif(4, 1, [6, 0, 0, 0], true).as_slice()].concat();
        assert_eq!(size(&with_exif(format, &prefixed)), (2, 4), "{format:?}");
        // Damaged metadata is ignored.
        for damaged in [&b"II*\0"[..], b"II*\0\xff\xff\xff\xff", b"", b"Exif\0\0"] {
            assert_eq!(size(&with_exif(format, damaged)), (4, 2), "{format:?}");
        }
    }
}

#[test]
fn orientation_of_xmp_applies_if_exif_has_none() {
    let flat = RgbImage::from_pixel(4, 2, Rgb([9, 9, 9]));
    let jpeg = encode(flat, ImageFormat::Jpeg);
    for text in [
        "tiff:Orientation=\"6\"",
        "<tiff:Orientation>6</tiff:Orientation>",
    ] {
        let payload = [b"http://ns.adobe.com/xap/1.0/\0", text.as_bytes()].concat();
        let mut rotated = jpeg[..2].to_vec();
        rotated.extend([0xff, 0xe1]);
        rotated.extend((2 + payload.len() as u16).to_be_bytes());
        rotated.extend(payload);
        rotated.extend(&jpeg[2..]);
        let image = Image::decode(&rotated).unwrap();
        assert_eq!((image.width(), image.height()), (2, 4), "{text}");
    }
}

#[test]
fn the_error_names_the_kind_of_an_unsupported_file() {
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12345\n";
    assert!(refusal(pointer).contains("Git LFS pointer"));
    assert!(refusal(&read("12-extensions/t0.tif")).contains("TIFF"));
    for file in ["6-hf-tiff/cmyk.tif", "6-hf-tiff/f.tif"] {
        let text = refusal(&read(file));
        assert!(
            text.contains("TIFF") && text.contains("convert(\"RGB\")"),
            "{text}"
        );
    }
    assert!(refusal(b"BM\x46\0\0\0").contains("BMP"));
    assert!(refusal(b"").contains("empty"));
}

#[test]
fn a_png_truncated_anywhere_is_refused() {
    let mut whole = Vec::new();
    whole.write_all(&png(32, 32, [1, 2, 3])).unwrap();
    for length in 0..whole.len() - 12 {
        assert!(Image::decode(&whole[..length]).is_err(), "{length}");
    }
}
