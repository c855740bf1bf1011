use ndarray::{Array3, Array4, Ix4, s};

use super::*;
use crate::golden::{Golden, max_difference};

fn images(golden: &Golden) -> Array4<u8> {
    golden.u8("in.images").into_dimensionality::<Ix4>().unwrap()
}

/// Fraction of items with a value that differs by more than `tolerance`.
fn fraction_off(found: &[f32], expected: &[f32], item: usize, tolerance: f64) -> f64 {
    assert_eq!(found.len(), expected.len());
    let items = found.chunks_exact(item).zip(expected.chunks_exact(item));
    // Counting the items within the tolerance makes a NaN count as a difference.
    let within = items
        .filter(|(a, b)| max_difference(*a, *b) <= tolerance)
        .count();
    1.0 - within as f64 / (found.len() / item) as f64
}

/// The samples without border and padding.
fn samples<const N: usize, const S: usize>(patch: &Patch<N, S>) -> Vec<f32> {
    patch
        .0
        .iter()
        .flat_map(|row| &row[1..=N])
        .copied()
        .collect()
}

#[test]
fn sift_equals_upstream() {
    let golden = Golden::open("classic/sift_kornia");
    let tokens = sift(images(&golden).view()).unwrap();
    let expected = golden.f32("out.tokens");
    assert_eq!(tokens.shape(), expected.shape());
    let tolerance = golden.tolerance("out.tokens", "atol");
    let fraction = fraction_off(
        tokens.as_slice().unwrap(),
        expected.as_slice().unwrap(),
        SIFT_DIM,
        tolerance,
    );
    assert!(
        fraction <= golden.tolerance("out.tokens", "fraction_of_tokens_off"),
        "{fraction}"
    );
}

#[test]
fn every_step_of_sift_equals_upstream() {
    let golden = Golden::open("classic/sift_kornia");
    let images = images(&golden);
    let tables = Tables::new();
    assert!(max_difference(&tables.smoothing, &golden.f32("out.kernel_smooth")) < 1e-7);

    let mut angles = Vec::new();
    for b in 0..2 {
        let mut values = Vec::new();
        let grey = Grey::new(images.slice(s![b, .., .., ..]), &mut values);
        let keypoints: Vec<_> = grey.keypoints().collect();
        let found: Vec<f32> = keypoints
            .iter()
            .map(|centre| tables.dominant_angle(&grey.patch(*centre, 0.0)))
            .collect();
        if b == 0 {
            let values: Vec<f32> = grey
                .values
                .chunks_exact(257)
                .take(256)
                .flat_map(|row| &row[..256])
                .copied()
                .collect();
            let difference = max_difference(&values, &golden.f32("out.grey0"));
            assert!(
                difference <= golden.tolerance("out.grey0", "atol"),
                "grey: {difference}"
            );
            for (k, &token) in golden.i64("in.sel").iter().enumerate() {
                let centre = keypoints[token as usize];
                let patch: OrientationPatch = grey.patch(centre, 0.0);
                let expected = golden.f32("out.ori_patches");
                let expected = expected.slice(s![k, .., ..]);
                let difference = max_difference(&samples(&patch), &expected);
                assert!(
                    difference <= golden.tolerance("out.ori_patches", "atol"),
                    "{token}: {difference}"
                );

                let patch: DescriptorPatch = grey.patch(centre, found[token as usize]);
                let expected = golden.f32("out.patches");
                let difference = max_difference(&samples(&patch), &expected.slice(s![k, .., ..]));
                assert!(
                    difference <= golden.tolerance("out.patches", "atol"),
                    "{token}: {difference}"
                );
            }
        }
        angles.extend(found);
    }
    let tolerance = golden.tolerance("out.angles", "atol");
    let expected = golden.f32("out.angles");
    let fraction = fraction_off(&angles, expected.as_slice().unwrap(), 1, tolerance);
    assert!(
        fraction <= golden.tolerance("out.angles", "fraction_off"),
        "{fraction}"
    );
}

#[test]
fn pooling_is_the_triangular_kernel_with_stride_ten() {
    let kernel = Golden::open("classic/sift_kornia").f32("out.kernel_pool_row");
    for (x, pool) in pooling().iter().enumerate() {
        for cell in 0..CELLS {
            let k = x as isize + 4 - 10 * cell as isize;
            let expected = usize::try_from(k)
                .ok()
                .and_then(|k| kernel.get(k))
                .unwrap_or(&0.0);
            let found = match cell.checked_sub(pool.cell) {
                Some(0) => pool.weight,
                Some(1) => pool.next_weight,
                _ => 0.0,
            };
            assert_eq!(found, *expected, "sample {x}, cell {cell}");
        }
    }
}

#[test]
fn bytes_and_floats_have_the_same_tokens() {
    let golden = Golden::open("classic/sift_kornia");
    let images = images(&golden).slice(s![..1, .., ..64, ..64]).to_owned();
    let floats = images.mapv(f32::from);
    assert_eq!(sift(images.view()).unwrap(), sift(floats.view()).unwrap());
}

#[test]
fn tokens_have_unit_norm_even_in_flat_regions() {
    let mut images = Array4::<u8>::from_elem((1, 3, 64, 48), 200);
    images.slice_mut(s![.., .., ..24, ..30]).fill(10);
    let tokens: Array3<f32> = sift(images.view()).unwrap();
    assert_eq!(tokens.dim(), (1, 12, 128));
    for token in tokens.rows() {
        assert!((token.dot(&token) - 1.0).abs() < 1e-5);
    }
}

#[test]
fn unsupported_images_are_refused() {
    let error = sift(Array4::<u8>::zeros((1, 3, 64, 63)).view())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("64x63") && error.contains("multiples of 16"),
        "{error}"
    );
    assert!(sift(Array4::<u8>::zeros((1, 3, 0, 64)).view()).is_err());
    let error = sift(Array4::<u8>::zeros((1, 4, 64, 64)).view()).unwrap_err();
    assert_eq!(error, ClassicError::Channels { found: 4 });
    assert_eq!(
        sift(Array4::<u8>::zeros((0, 3, 32, 32)).view())
            .unwrap()
            .dim(),
        (0, 4, 128)
    );
    assert_eq!(
        sift(Array4::<u8>::zeros((1, 3, 16, 16)).view())
            .unwrap()
            .dim(),
        (1, 1, 128)
    );
}

#[test]
fn nan_and_infinite_pixels_do_not_panic() {
    let images = Array4::from_elem((1, 3, 32, 32), f32::NAN);
    assert_eq!(sift(images.view()).unwrap().dim(), (1, 4, 128));
    let mut images = Array4::zeros((1, 3, 32, 32));
    images[[0, 1, 9, 20]] = f32::INFINITY;
    assert_eq!(sift(images.view()).unwrap().dim(), (1, 4, 128));
}

#[test]
fn tokens_do_not_depend_on_the_number_of_threads() {
    let images = images(&Golden::open("classic/sift_kornia"));
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build()
            .unwrap()
            .install(|| sift(images.view()).unwrap())
    };
    assert_eq!(with(1), with(3));
}
