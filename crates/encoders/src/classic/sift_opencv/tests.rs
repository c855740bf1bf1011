use ndarray::{Array3, Array4, ArrayD, Axis, Ix3, Ix4, s};

use super::*;
use crate::golden::{Golden, max_difference};

fn images(golden: &Golden, name: &str) -> Array4<u8> {
    golden.u8(name).into_dimensionality::<Ix4>().unwrap()
}

/// Checks that all values are within the tolerance and nearly all are equal, as the golden file requires.
fn tokens_agree(golden: &Golden, found: &Array3<f32>, expected: &ArrayD<f32>) {
    assert_eq!(found.shape(), expected.shape());
    let difference = max_difference(found, expected);
    assert!(
        difference <= golden.tolerance("out.tokens*", "atol"),
        "{difference}"
    );
    let differ = found.iter().zip(expected).filter(|(a, b)| a != b).count();
    let share = differ as f64 / found.len() as f64;
    assert!(
        share <= golden.tolerance("out.tokens*", "fraction_off"),
        "{share}"
    );
}

#[test]
fn sift_equals_opencv() {
    let golden = Golden::open("classic/sift_opencv");
    let tokens = sift_opencv(images(&golden, "in.images").view()).unwrap();
    tokens_agree(&golden, &tokens, &golden.f32("out.tokens"));
}

#[test]
fn every_step_of_sift_equals_opencv() {
    let golden = Golden::open("classic/sift_opencv_steps");
    let images = images(&golden, "in.images");
    let mut bytes = Vec::new();
    map_rgb(images.index_axis(Axis(0), 0), &mut bytes, grey);
    assert_eq!(Some(bytes.as_slice()), golden.u8("out.grey").as_slice());
    let difference = max_difference(&blur(&bytes, 256), &golden.f32("out.base"));
    assert!(
        difference <= golden.tolerance("out.base", "atol"),
        "{difference}"
    );

    let tokens = sift_opencv(images.view()).unwrap();
    let some = tokens.slice(s![.., ..;15, ..]).to_owned();
    tokens_agree(&golden, &some, &golden.f32("out.tokens"));
}

#[test]
fn misplaced_votes_of_horizontal_gradients_equal_those_of_opencv() {
    let golden = Golden::open("classic/sift_opencv_steps");
    let tokens = sift_opencv(images(&golden, "in.synthetic").view()).unwrap();
    let expected = golden.f32("out.tokens_synthetic");
    tokens_agree(&golden, &tokens, &expected);
    // Also image by image, so that the other images cannot hide differences in one of them.
    let expected = expected.into_dimensionality::<Ix3>().unwrap();
    for b in 0..4 {
        let one = s![b..=b, .., ..];
        tokens_agree(
            &golden,
            &tokens.slice(one).to_owned(),
            &expected.slice(one).to_owned().into_dyn(),
        );
    }
}

#[test]
fn flat_image_has_zero_tokens() {
    let tokens = sift_opencv(Array4::from_elem((1, 3, 32, 48), 77).view()).unwrap();
    assert_eq!(tokens.dim(), (1, 6, 128));
    assert!(tokens.iter().all(|v| *v == 0.0));
}

#[test]
fn window_weights_sum_to_the_gaussian_inside_the_cells() {
    let window = Window::new();
    let votes = Votes {
        bins: vec![wide::f32x8::ONE; 256 * 256],
        misplaced: Vec::new(),
        width: 256,
        height: 256,
    };
    let cells = window.describe(&votes, (128, 128));
    // The sum of a cell's bilinear weights is its area, 24 x 24, thinned by the Gaussian.
    let inner = cells[5][0] / (24.0 * 24.0);
    let outer = cells[0][0] / (24.0 * 24.0);
    assert!(
        (0.8..1.0).contains(&inner) && (0.4..0.7).contains(&outer),
        "{inner} {outer}"
    );
    for (a, b) in cells[0].iter().zip(&cells[15]) {
        assert!((a - b).abs() < 1e-2 * a, "the window is symmetric: {a} {b}");
    }
}

#[test]
fn mirrored_border_does_not_repeat_the_outermost_pixel() {
    let indices: Vec<usize> = (-3..8).map(|index| mirror(index, 5)).collect();
    assert_eq!(indices, [3, 2, 1, 0, 1, 2, 3, 4, 3, 2, 1]);
}

#[test]
fn unsupported_images_are_refused() {
    let error = sift_opencv(Array4::zeros((1, 3, 20, 64)).view())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("siftopencv does not support 20x64"),
        "{error}"
    );
    let error = sift_opencv(Array4::zeros((1, 1, 64, 64)).view()).unwrap_err();
    assert_eq!(error, ClassicError::Channels { found: 1 });
    assert_eq!(
        sift_opencv(Array4::zeros((1, 3, 16, 16)).view())
            .unwrap()
            .dim(),
        (1, 1, 128)
    );
}
