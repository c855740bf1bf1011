//! The declarative preprocessing covers every encoder family of upstream.

use std::path::Path;

use encoders::{LoadOptions, Preprocessing, Registry, Resize};
use tch::{Device, Kind, Tensor};

struct Case {
    tensors: Vec<(String, Tensor)>,
    page: serde_json::Value,
}

impl Case {
    fn open(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/preprocess");
        let page = std::fs::read(folder.join(format!("{name}.json"))).unwrap();
        Self {
            tensors: Tensor::read_safetensors(folder.join(format!("{name}.safetensors"))).unwrap(),
            page: serde_json::from_slice(&page).unwrap(),
        }
    }

    fn tensor(&self, wanted: &str) -> &Tensor {
        let found = self.tensors.iter().find(|(name, _)| name == wanted);
        &found.unwrap_or_else(|| panic!("no {wanted}")).1
    }

    fn tolerance(&self, entry: &str, key: &str) -> f64 {
        self.page["tolerance"][entry][key].as_f64().unwrap()
    }
}

/// An encoder of the catalogue for each family name in the golden files.
fn member(family: &str) -> Option<&'static str> {
    Some(match family {
        "dino" => "dino-vit-b",
        "dinov2" => "dinov2-vit-b",
        "dinov3" => "dinov3-vit-b16",
        "siglip_p16" => "siglip-vit-b",
        "siglip_so400m" => "siglip-vit-so400m",
        "siglip2" => "siglip2-vit-b",
        "mocov3" => "mocov3-vit-b",
        "mae" => "mae-vit-l",
        "clip" => "clip-vit-L",
        "jepa" => "jepa-vit-h",
        "webssl" => "webssl-vit-dino1b_full2b_224",
        "pe_p16" => "pe-vit-b",
        "pe_p14" => "pe-vit-l",
        "cradio" => "cradio-vit-b",
        "sam2" => "sam2-vit-s",
        "vgg" => "vgg",
        _ => return None,
    })
}

/// The preprocessing of a family for images of `width` pixels at the encoder's `resolution`, and the side of
/// its output.
fn family(name: &str, resolution: i64, width: i64) -> (Preprocessing, i64) {
    if let Some(encoder) = member(name) {
        let known = encoders::known(encoder).unwrap();
        // CLIP's input size depends on the images, that of the others on the configured resolution.
        let side = if name == "clip" { width } else { resolution };
        return (known.preprocessing, known.input_size_at(side));
    }
    match name {
        "siftopencv" | "hog" => {
            let options = LoadOptions {
                resolution,
                ..LoadOptions::default()
            };
            let encoder = Registry::new(&[]).load(name, &options).unwrap();
            (encoder.spec().preprocessing, encoder.spec().input_size)
        }
        // Not in the catalogue, but formulas that a user's encoder may need.
        "sam" => {
            let sam2 = encoders::known("sam2-vit-s").unwrap();
            (sam2.preprocessing, 1024)
        }
        "sam2logit" => {
            let unchanged = Preprocessing {
                resize: Resize::None,
                ..Preprocessing::RAW
            };
            (unchanged, resolution)
        }
        other => panic!("the golden file has a new family, {other}"),
    }
}

#[test]
fn all_encoders_of_a_family_have_the_same_preprocessing() {
    for known in encoders::catalogue() {
        let same = encoders::catalogue()
            .iter()
            .filter(|other| other.family == known.family);
        for other in same {
            assert_eq!(known.preprocessing, other.preprocessing, "{}", known.name);
        }
    }
}

/// The largest absolute difference; infinite if a value is NaN.
fn difference(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.size(), expected.size());
    let largest = (found - expected).abs().max().double_value(&[]);
    if largest.is_nan() {
        f64::INFINITY
    } else {
        largest
    }
}

fn every_family_of(case: &str) {
    let case = Case::open(case);
    let resolution = case.page["config"]["R"].as_i64().unwrap();
    let images = case.tensor("in.images");
    let (_, _, _, width) = images.size4().unwrap();
    let families = case.page["config"]["families"].as_object().unwrap();
    assert!(families.len() > 10);
    for name in families.keys() {
        let (preprocessing, side) = family(name, resolution, width);
        let found = preprocessing.apply(images, side).unwrap();
        let expected = |part: &str| case.tensor(&format!("out.{name}.{part}"));
        let shape = Vec::<i64>::try_from(expected("shape")).unwrap();
        assert_eq!(found.size(), shape, "{name}");

        let step = if side == 1024 { 32 } else { 8 };
        let strided = found.slice(2, None, None, step).slice(3, None, None, step);
        let corner =
            |from: Option<i64>, to: Option<i64>| found.slice(2, from, to, 1).slice(3, from, to, 1);
        // Unscaled values 0..=255 have a wider tolerance.
        let tolerance = match preprocessing.scale {
            true => case.tolerance("out.*.stride, tl, br", "strict_atol"),
            false => case.tolerance("out.sam2logit.*, siftopencv, hog", "atol"),
        };
        for (part, found) in [
            ("stride", strided),
            ("tl", corner(None, Some(8))),
            ("br", corner(Some(side - 8), None)),
        ] {
            let off = difference(&found, expected(part));
            assert!(off <= tolerance, "{name}.{part}: {off}");
        }

        let all = found.to_kind(Kind::Double);
        let mean = |x: Tensor| x.mean_dim([2, 3].as_slice(), false, Kind::Double);
        for (part, found) in [
            ("mean", mean(all.shallow_clone())),
            ("rms", mean(all.square()).sqrt()),
        ] {
            let expected = expected(part);
            let atol = case.tolerance("out.*.mean, rms", "atol");
            let rtol = case.tolerance("out.*.mean, rms", "rtol");
            let allowed = atol + rtol * expected.abs().max().double_value(&[]);
            let off = difference(&found, expected);
            assert!(off <= allowed, "{name}.{part}: {off}");
        }
    }
}

#[test]
fn every_family_equals_upstream_on_images_of_another_size() {
    every_family_of("encoders_resize");
}

#[test]
fn every_family_equals_upstream_on_images_of_256_pixels() {
    every_family_of("encoders_r256");
}

#[test]
fn every_family_equals_upstream_on_images_of_512_pixels() {
    every_family_of("encoders_r512");
}

#[test]
fn bicubic_kernels_equal_those_of_torch() {
    // The golden images are not square, but preprocessing returns squares; the impulse shows the kernels.
    let case = Case::open("interpolate");
    let row = case.tensor("in.impulse");
    let tolerance = case.tolerance("all", "atol");
    for (name, antialias, size) in [
        ("impulse_bicubic", false, 20),
        ("impulse_bicubic_aa", true, 20),
        ("impulse_bicubic_aa_down", true, 5),
    ] {
        let preprocessing = Preprocessing {
            resize: Resize::Bicubic,
            antialias,
            ..Preprocessing::RAW
        };
        // The row is repeated vertically, so that only horizontal resampling changes values.
        let square = row.repeat([1, 3, 8, 1]);
        let found = preprocessing.apply(&square, size).unwrap();
        let found = found.slice(1, None, Some(1), 1).slice(2, None, Some(1), 1);
        let off = difference(&found, case.tensor(&format!("out.{name}")));
        assert!(off <= tolerance, "{name}: {off}");
    }
}

#[test]
fn images_of_the_right_size_are_not_resampled() {
    let images = Tensor::randint(256, [1, 3, 32, 32], (Kind::Uint8, Device::Cpu));
    for resize in [Resize::None, Resize::Bilinear, Resize::Bicubic] {
        for antialias in [false, true] {
            let preprocessing = Preprocessing {
                resize,
                antialias,
                ..Preprocessing::RAW
            };
            let found = preprocessing.apply(&images, 32).unwrap();
            assert_eq!(found, images.to_kind(Kind::Float));
        }
    }
}

#[test]
fn preprocessing_is_read_from_toml_and_unknown_keys_are_refused() {
    let written = toml::to_string(&Preprocessing::RAW).unwrap();
    assert_eq!(
        toml::from_str::<Preprocessing>(&written).unwrap(),
        Preprocessing::RAW
    );
    let error = toml::from_str::<Preprocessing>(&format!("gamma = 2.2\n{written}"));
    assert!(error.unwrap_err().to_string().contains("gamma"));
    let error = toml::from_str::<Preprocessing>(&written.replace("bilinear", "lanczos"));
    assert!(error.unwrap_err().to_string().contains("bicubic"));
}
