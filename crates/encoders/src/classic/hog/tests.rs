use ndarray::{Array4, Ix4, s};
use proptest::prelude::*;

use super::*;
use crate::golden::{Golden, max_difference};

fn images(golden: &Golden) -> Array4<u8> {
    golden.u8("in.images").into_dimensionality::<Ix4>().unwrap()
}

fn config(golden: &Golden) -> HogConfig {
    golden
        .config("model_config")
        .as_str()
        .unwrap()
        .parse()
        .unwrap()
}

fn tokens_equal_the_golden(case: &str) {
    let golden = Golden::open(case);
    let tokens = hog(images(&golden).view(), &config(&golden)).unwrap();
    let expected = golden.f32("out.tokens");
    assert_eq!(tokens.shape(), expected.shape());
    let difference = max_difference(&tokens, &expected);
    assert!(
        difference <= golden.tolerance("out.tokens", "atol"),
        "{difference}"
    );
}

#[test]
fn hog_equals_upstream() {
    tokens_equal_the_golden("classic/hog");
}

#[test]
fn hog_with_other_cells_and_blocks_equals_upstream() {
    tokens_equal_the_golden("classic/hog_alt");
}

#[test]
fn every_step_of_hog_equals_upstream() {
    tokens_equal_the_golden("classic/hog_raw");
    let golden = Golden::open("classic/hog_raw");
    let (images, config) = (images(&golden), config(&golden));
    let within = |name: &str, tolerance: &str, values: &[f32]| {
        let expected = golden.f32(name);
        let difference = max_difference(values, &expected);
        assert!(
            difference <= golden.tolerance(tolerance, "atol"),
            "{name}: {difference}"
        );
    };

    let mut plan = Plan::new(&config, 64, 64).unwrap();
    plan.needed_rows.fill(true);
    plan.needed_cols.fill(true);
    let mut scratch = Scratch::default();
    map_rgb(images.slice(s![0, .., .., ..]), &mut scratch.grey, grey);
    within("out.grey", "out.grey", &scratch.grey);

    let (mut across, mut down) = (Vec::new(), Vec::new());
    for y in 0..64 {
        scratch.gradient.differences(&scratch.grey, 64, y);
        across.extend(scratch.gradient.across.iter().map(|v| *v as f32));
        down.extend(scratch.gradient.down.iter().map(|v| *v as f32));
    }
    within("out.g_col", "out.grey", &across);
    within("out.g_row", "out.grey", &down);

    plan.histograms(
        &scratch.grey,
        &mut scratch.gradient,
        &mut scratch.histograms,
    );
    let expected = golden.f64("out.hist").mapv(|v| v as f32);
    let difference = max_difference(&scratch.histograms, &expected);
    assert!(
        difference <= golden.tolerance("out.hist", "atol"),
        "{difference}"
    );

    let mut blocks = vec![0.0; 29 * 29 * 128];
    for (i, block) in blocks.chunks_exact_mut(128).enumerate() {
        plan.raw_block(
            &scratch.histograms,
            (i / 29, i % 29),
            &mut scratch.cells,
            block,
        );
    }
    within("out.blocks", "out.blocks*", &blocks);
}

#[test]
fn bytes_and_floats_have_the_same_tokens() {
    let golden = Golden::open("classic/hog_raw");
    let images = images(&golden);
    let floats = images.mapv(f32::from);
    let config = config(&golden);
    assert_eq!(
        hog(images.view(), &config).unwrap(),
        hog(floats.view(), &config).unwrap()
    );
}

#[test]
fn tokens_do_not_depend_on_the_memory_layout_of_the_images() {
    let images = images(&Golden::open("classic/hog_raw"));
    let channels_last_images = images
        .view()
        .permuted_axes([0, 2, 3, 1])
        .as_standard_layout()
        .into_owned();
    let config = HogConfig::default();
    let channels_last = hog(
        channels_last_images.view().permuted_axes([0, 3, 1, 2]),
        &config,
    )
    .unwrap();
    assert_eq!(hog(images.view(), &config).unwrap(), channels_last);
}

#[test]
fn flat_image_has_zero_tokens() {
    let tokens = hog(
        Array4::from_elem((1, 3, 64, 64), 9u8).view(),
        &HogConfig::default(),
    )
    .unwrap();
    assert!(tokens.iter().all(|v| *v == 0.0));
}

#[test]
fn empty_batch_has_no_tokens() {
    let images = Array4::<u8>::zeros((0, 3, 64, 64));
    assert_eq!(
        hog(images.view(), &HogConfig::default()).unwrap().dim(),
        (0, 256, 128)
    );
}

#[test]
fn configuration_is_parsed_in_upstreams_format() {
    let parse = |text: &str| text.parse::<HogConfig>();
    assert_eq!(parse("g16_d128"), Ok(HogConfig::default()));
    let other = HogConfig {
        grid: 8,
        dim: 64,
        pixels_per_cell: 4,
        cells_per_block: 2,
    };
    assert_eq!(parse("g8_d64_ppc4_cb2"), Ok(other));
    assert_eq!(parse(&other.to_string()), Ok(other));
}

#[test]
fn errors_of_invalid_configurations_name_the_invalid_part() {
    for (text, reason) in [
        ("g16_x3", "`x3` is not one of g, d, ppc, cb"),
        ("g16_d", "`d` does not contain an integer"),
        ("g16_d12.5", "`d12.5` does not contain an integer"),
        ("g0", "g (grid) must be 1 to 1024, not 0"),
        ("ppc0", "ppc (pixels per cell) must be 1 to 1024, not 0"),
        (
            "d100",
            "width 100 must be a multiple of the 16 cells of a block",
        ),
        ("cb99999999999999999999", "does not contain an integer"),
        ("", "`` is not one of g, d, ppc, cb"),
    ] {
        let error = text.parse::<HogConfig>().unwrap_err().to_string();
        assert!(error.contains(reason), "{text}: {error}");
    }
}

#[test]
fn unsupported_images_are_refused() {
    let config = HogConfig::default();
    let grey = Array4::<u8>::zeros((1, 1, 64, 64));
    assert_eq!(
        hog(grey.view(), &config),
        Err(ClassicError::Channels { found: 1 })
    );
    let small = Array4::<u8>::zeros((1, 3, 64, 7));
    let error = hog(small.view(), &config).unwrap_err().to_string();
    assert!(
        error.contains("64x7") && error.contains("8x8 pixels"),
        "{error}"
    );
    let zero = HogConfig { grid: 0, ..config };
    assert!(hog(Array4::<u8>::zeros((1, 3, 64, 64)).view(), &zero).is_err());
}

/// The orientation bin as scikit-image computes it.
fn bin_by_arc_tangent(x: f32, y: f32, orientations: usize) -> usize {
    let degrees = f64::from(y)
        .atan2(f64::from(x))
        .to_degrees()
        .rem_euclid(180.0);
    (0..orientations)
        .rfind(|o| degrees >= 180.0 * *o as f64 / orientations as f64)
        .unwrap_or(0)
}

proptest! {
    #[test]
    fn bins_by_comparison_equal_bins_by_arc_tangent(
        pixels in prop::collection::vec((-255i32..=255, -255i32..=255), 1..50),
        orientations in 1usize..20,
    ) {
        // Small integers often produce the ties at multiples of 45 degrees.
        for (x, y) in pixels {
            let (x, y) = (x as f32 / 255.0, y as f32 / 255.0);
            prop_assume!(x != 0.0 || y != 0.0);
            let grey = [[0.0, 0.0, 0.0], [0.0, 0.0, x], [0.0, y, 0.0]].concat();
            let mut row = GradientRow::default();
            row.compute(&grey, 3, 1, &bin_starts(orientations));
            prop_assert_eq!(row.bin[1] as usize, bin_by_arc_tangent(x, y, orientations));
        }
    }

    #[test]
    fn tokens_are_finite_and_bounded(seed in any::<u64>(), side in 8usize..40) {
        let images = Array4::from_shape_fn((1, 3, side, side + 3), |(_, c, y, x)| {
            let mixed = (seed ^ (c * 7919 + y * 104_729 + x) as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            (mixed >> 56) as u8
        });
        let tokens = hog(images.view(), &HogConfig::default()).unwrap();
        prop_assert!(tokens.iter().all(|v| (0.0..=1.0).contains(v)));
    }
}
